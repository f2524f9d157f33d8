"""Decode a video file, one planar frame at a time."""

from __future__ import annotations

import os
import re
import stat
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import av
import av.logging
from av.container import Flags as ContainerFlags
from av.container import InputContainer
from av.format import Flags as FormatFlags
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vs3r.engine.media.deinterlace import Deinterlacer, stated_parity
from vs3r.engine.media.formats import Converter, picture_format, planar_name, planes_of
from vs3r.engine.media.info import ColorTags, MediaInfo, display_matrix, hdr_metadata, side_data
from vs3r.engine.media.timing import Joins, Timeline
from vs3r.errors import MediaError
from vs3r.types import Frame, PictureFormat

_FULL_RANGE = 2
_BT2020 = 9
_MAX_READ_ERRORS = 100
# Sound that begins later than FFmpeg looks for it: ten minutes (in microseconds), or so many bytes.
_LONG_LOOK = {"analyzeduration": "600000000", "probesize": "200000000"}
_ALL_AROUND = "a 360-degree picture: it is stabilized as a flat one, and no longer marked as what it is"
_STEREO = "stereoscopic (3D): it is stabilized as one flat picture; the mark, or a view stored apart, is dropped"
# With FFmpeg's number of the projection, or of the arrangement of views, that is an ordinary picture's.
_UNLIKE_FILM = (("SPHERICAL", 4, _ALL_AROUND), ("STEREO3D", 0, _STEREO))
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_LOST_METADATA = {"DOVI_RPU_BUFFER": "Dolby Vision", "DYNAMIC_HDR_PLUS": "HDR10+", "DYNAMIC_HDR_VIVID": "HDR Vivid"}


def open_input(path: Path, *, copies_sound: bool = False) -> InputContainer:
    """Open a local media file.

    Only the file itself (and files that it names) is read, never the network: a playlist cannot make us fetch.

    Args:
        path: of the file.
        copies_sound: what sound is must be known, also where it begins late; that may take half a second.
    Raises:
        MediaError: it is missing, not a regular file, unreadable, empty, or no media file.
    """
    try:
        mode = os.stat(path)
        if stat.S_ISDIR(mode.st_mode):
            raise MediaError(f"expected a video file, got a folder: {path}")
        if not stat.S_ISREG(mode.st_mode):
            raise MediaError(f"expected a regular video file, got a device or pipe: {path}")
        if mode.st_size == 0:
            raise MediaError(f"expected a video file, got an empty one (0 bytes): {path}")
        with open(path, "rb"):
            pass
        container = _opened(path)
        if copies_sound and any(s.codec_context and not s.codec_context.sample_rate for s in container.streams.audio):
            container.close()
            container = _opened(path, _LONG_LOOK)
    except FileNotFoundError:
        raise MediaError(f"input file not found: {path}; check the path") from None
    except (av.FFmpegError, ValueError) as error:
        if isinstance(error, OSError) and not isinstance(error, av.EOFError):
            raise MediaError(f"cannot read {path}: {error.strerror}") from None
        raise MediaError(
            f"expected a video file, got one that is damaged, cut short or not a video: {path}; "
            "check that it plays, or copy it again"
        ) from None
    except OSError as error:
        raise MediaError(f"cannot read {path}: {error.strerror}") from None
    # FFmpeg's guesses at missing times are wrong where B-frames refer to each other; VideoReader makes its own.
    container.flags &= ~cast("int", ContainerFlags.gen_pts.value)
    # FFmpeg plays text files as terminal art.
    if container.format.name == "tty":
        container.close()
        raise MediaError(f"expected a video file, got a text file: {path}")
    return container


def _opened(path: Path, look: dict[str, str] | None = None) -> InputContainer:
    return av.open(
        # The prefix keeps names with a colon from being read as addresses.
        f"file:{os.fspath(path)}",
        "r",
        container_options={"protocol_whitelist": "file"} | (look or {}),
        metadata_errors="surrogateescape",
    )


def main_video(container: InputContainer, path: Path) -> VideoStream:
    """The video stream to work on: FFmpeg's choice, cover art excluded.

    Raises:
        MediaError: there is none.
    """
    videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not videos:
        kinds = sorted({s.type for s in container.streams if s.type})
        found = (
            "only a cover picture"
            if container.streams.video
            else f"only {', '.join(kinds)}"
            if kinds
            else "no stream at all"
        )
        raise MediaError(f"expected a file with a video stream, got {found}: {path}")
    best = container.streams.best("video")
    stream = next((s for s in videos if best is not None and s.index == best.index), videos[0])
    if stream.codec_context is None:
        raise MediaError(f"the video codec of {path} has no decoder here; convert the file to H.264 first")
    return stream


def probe(path: str | os.PathLike[str]) -> MediaInfo:
    """What VideoReader would deliver; decodes the first frame only.

    Raises:
        MediaError: the file cannot be used.
    """
    with VideoReader(path, threads=1) as reader:
        return reader.info


class VideoReader:
    """The frames of a file's video stream, in presentation order, once.

    Frames come in the nearest planar format of the source, untouched when the source is planar. Interlaced pictures
    are deinterlaced one for one. Damaged packets are skipped; pictures that change size or format mid-stream are
    converted to the first one's. Times are the source's own, repaired as Timeline says. A frame's duration reaches
    to the next frame; the last one's is what the file says, or else that of the frame before.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 2) -> None:
        """Open the file and decode its first frame.

        Args:
            path: a local file.
            threads: decoder threads, at least 1; 0 lets FFmpeg use every core.
        Raises:
            MediaError: the file cannot be used.
        """
        self._path = Path(path)
        self._threads = threads
        self._damaged = 0
        self._problems: list[str] = []
        self._converter = Converter()
        self._container = open_input(self._path)
        try:
            self._stream = main_video(self._container, self._path)
            self._pictures = self._decode()
            first = next(self._pictures, None)
            if first is None:
                raise MediaError(f"expected a video with at least one frame, got none that decodes: {self._path}")
            # Some decoders flag no picture: then the container's word holds for all.
            self._parity = None if first.interlaced_frame else stated_parity(self._stream.codec_context)
            self.info = self._describe(first)
            """What the file is."""
        except BaseException:
            self.close()
            raise
        self._first: VideoFrame | None = first

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file; harmless when repeated."""
        self._container.close()

    @property
    def notes(self) -> tuple[str, ...]:
        """info.notes and what reading has met since; complete after the last frame."""
        damaged = (f"{self._damaged} damaged packets could not be decoded and were skipped",) if self._damaged else ()
        return self.info.notes + tuple(self._problems) + damaged

    def __iter__(self) -> Iterator[Frame]:
        info = self.info
        nominal = round(1 / (info.average_rate * info.time_base)) if info.average_rate else 1
        timeline = Timeline(info.time_base, nominal)
        waiting: Frame | None = None
        for picture in self._progressive():
            frame = Frame(
                format=info.format,
                planes=planes_of(picture, info.format),
                pts=timeline.place(picture.pts, picture.duration),
                time_base=info.time_base,
                duration=picture.duration,
                key_frame=picture.key_frame,
            )
            if waiting is not None:
                nominal = frame.pts - waiting.pts
                yield replace(waiting, duration=nominal)
            waiting = frame
        if waiting is not None:
            yield waiting if waiting.duration > 0 else replace(waiting, duration=nominal)
        if timeline.repaired:
            self._problems.append(f"{timeline.repaired} missing or disordered frame times were repaired")

    def _decode(self) -> Iterator[VideoFrame]:
        """Every picture that decodes, in presentation order.

        A file without presentation times (AVI; its first packet tells) has decoding times only. Those are the same
        set of times in another order, so the pictures, which come sorted, take them in turn.
        """
        for stream in self._container.streams:
            stream.discard = Discard.default if stream.index == self._stream.index else Discard.all
        self._stream.codec_context.thread_count = self._threads
        self._stream.codec_context.thread_type = "AUTO"
        times: deque[int] | None = None
        joins = Joins(self._stream.time_base or Fraction(1)) if restarts_clock(self._container) else None
        first = True
        errors_in_a_row = 0
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError:
                errors_in_a_row += 1
                if errors_in_a_row > _MAX_READ_ERRORS:
                    self._problems.append("the file cannot be read to its end: it is damaged or cut short")
                    return
                self._damaged += 1
                packets = self._container.demux(self._stream)
                continue
            if packet is None:
                if joins is not None and len(joins.shifts) > 1:
                    self._problems.append(f"the file joins {len(joins.shifts)} recordings: each follows the one before")
                return
            errors_in_a_row = 0
            if packet.dts is not None and packet.size == 0:
                continue  # "the last picture stays" in AVI; to the decoder it would mean the end
            if first and packet.pts is None and packet.dts is not None:
                times = deque()
            first = False
            if joins is not None:
                joins.meet(packet.dts, packet.duration or 0)
                move(packet, joins.shifts[-1])
            if times is not None and packet.dts is not None:
                times.append(packet.dts)
            try:
                pictures = packet.decode()
            except av.FFmpegError:
                self._damaged += 1
                continue
            for picture in pictures:
                if times:
                    picture.pts = times.popleft()
                yield picture

    def _planar(self) -> Iterator[VideoFrame]:
        """Pictures in info.format, size and layout."""
        source = (self.info.source_pix_fmt, self.info.format.width, self.info.format.height)
        if self._first is not None:
            first, self._first = self._first, None
            yield self._convert(first, source)
        for picture in self._pictures:
            yield self._convert(picture, source)

    def _convert(self, picture: VideoFrame, source: tuple[str, int, int]) -> VideoFrame:
        came = (picture.format.name, picture.width, picture.height)
        if came == source and planar_name(came[0]) in (came[0], came[0].replace("yuvj", "yuv")):
            return picture
        if came != source:
            note = "the picture changes from {}x{} {} to {}x{} {}: scaled to the first".format(
                *source[1:], source[0], *came[1:], came[0]
            )
            if note not in self._problems:
                self._problems.append(note)
        return self._converter.convert(picture, self.info.format)

    def _progressive(self) -> Iterator[VideoFrame]:
        deinterlacer: Deinterlacer | None = None
        for picture in self._planar():
            if deinterlacer is None and (picture.interlaced_frame or self._parity is not None):
                deinterlacer = Deinterlacer(picture, self.info.time_base, self._threads, parity=self._parity)
                if not self.info.interlaced:
                    self._problems.append(_INTERLACED_NOTE)
            if deinterlacer is None:
                yield picture
            else:
                yield from deinterlacer.push(picture)
        if deinterlacer is not None:
            yield from deinterlacer.push(None)

    def _describe(self, first: VideoFrame) -> MediaInfo:
        stream, container = self._stream, self._container
        time_base = stream.time_base or first.time_base
        assert time_base is not None
        rate = _rate(stream)
        duration_s = _duration_s(stream, container)
        frames = stream.frames or (round(duration_s * rate) if duration_s and rate else None)
        fmt = self._format(first)
        interlaced = first.interlaced_frame or self._parity is not None
        return MediaInfo(
            path=self._path,
            format=fmt,
            source_pix_fmt=first.format.name,
            codec=stream.codec_context.name,
            stream_index=stream.index,
            time_base=time_base,
            average_rate=rate,
            frames_estimate=frames,
            duration_s=duration_s,
            origin_s=_origin_s(container),
            rotation_deg=-first.rotation % 360,
            display_matrix=display_matrix(first),
            color=_color_tags(container, stream, first, fmt),
            hdr=hdr_metadata(first),
            interlaced=interlaced,
            notes=tuple(_source_notes(stream, first, interlaced)),
        )

    def _format(self, first: VideoFrame) -> PictureFormat:
        name = planar_name(first.format.name)
        color_range = first.color_range or self._stream.codec_context.color_range
        full = color_range == _FULL_RANGE or "yuvj" in first.format.name or name.startswith("gbr")
        return picture_format(
            name,
            first.width,
            first.height,
            full_range=full,
            sample_aspect=self._stream.sample_aspect_ratio or Fraction(1),
        )


_INTERLACED_NOTE = "the source is interlaced: deinterlaced (bwdif), one frame per frame"


def _source_notes(stream: VideoStream, first: VideoFrame, interlaced: bool) -> Iterator[str]:
    if interlaced:
        yield _INTERLACED_NOTE
    kinds = side_data(first)
    for kind, usual, what in _UNLIKE_FILM:
        if kind in kinds and struct.unpack_from("=i", kinds[kind]) != (usual,):
            yield f"the source is {what}"
    decoder = _ALPHA_DECODERS.get(stream.codec_context.name)
    if decoder is not None and ("alpha_mode", "1") in {(k.lower(), v) for k, v in stream.metadata.items()}:
        convert = f"ffmpeg -c:v {decoder} -i IN -c:v ffv1 -c:a copy OUT.mkv"
        yield f"the alpha channel is dropped: WebM stores it apart; a file that has it inside is made by: {convert}"
    for kind, name in _LOST_METADATA.items():
        if kind in kinds:
            yield f"the source's dynamic {name} metadata is dropped: it describes the pictures before stabilization"
    if "A53_CC" in kinds:
        yield "the closed captions inside the video stream are dropped; subtitle streams are kept"


def _rate(stream: VideoStream) -> Fraction | None:
    average, guess = stream.average_rate or None, stream.guessed_rate or None
    if average and guess and stream.time_base and average * stream.time_base == 1:
        # A picture a tick is FFmpeg's average where it knows none (raw DV: 60000 a second).
        return min(average, guess)
    return average or guess


def _duration_s(stream: VideoStream, container: InputContainer) -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def restarts_clock(container: InputContainer) -> bool:
    """MPEG-TS and its kin count from anywhere, and may begin to count anew."""
    return bool(container.format.flags & cast("int", FormatFlags.ts_discont.value))


def move(packet: Packet[Any], by_s: Fraction) -> None:
    """Change a packet's times."""
    shift = round(by_s / packet.time_base)
    packet.pts = None if packet.pts is None else packet.pts + shift
    packet.dts = None if packet.dts is None else packet.dts + shift


def _origin_s(container: InputContainer) -> Fraction:
    # Elsewhere a late start is meant.
    if not restarts_clock(container) or not container.start_time:
        return Fraction(0)
    return Fraction(container.start_time, av.time_base)


def _color_tags(container: InputContainer, stream: VideoStream, first: VideoFrame, fmt: PictureFormat) -> ColorTags:
    context = stream.codec_context
    return ColorTags(
        range=_FULL_RANGE if fmt.full_range else first.color_range or context.color_range,
        primaries=first.color_primaries,
        transfer=first.color_trc,
        matrix=first.colorspace,
        chroma_location=_chroma_location(container, stream, first) if fmt.chroma_shift == (1, 1) else None,
    )


def _chroma_location(container: InputContainer, stream: VideoStream, first: VideoFrame) -> str | None:
    if stream.codec_context.name in ("mjpeg", "mpeg1video"):
        return "center"
    if _BT2020 not in (first.color_primaries, first.colorspace):
        return None  # unset or "left", which is what an unset one means
    # PyAV has no accessor; FFmpeg's verbose description of the stream names the location of BT.2020 material,
    # where "topleft" is usual.
    level = av.logging.get_level()
    av.logging.set_level(av.logging.VERBOSE)
    av.logging.set_libav_level(av.logging.VERBOSE)
    try:
        text: str = container.dumps_format()  # type: ignore[attr-defined]
    finally:
        av.logging.set_libav_level(av.logging.INFO)
        av.logging.set_level(level)
    line = re.search(rf"Stream #0:{stream.index}\b.*", text)
    found = re.search(r"[,(] ?(topleft|top|bottomleft|bottom|center|left)[,)]", line.group()) if line else None
    return found.group(1) if found else None

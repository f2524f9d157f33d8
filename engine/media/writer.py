"""Encode frames beside everything else that the source file holds."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import stat
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import av
from av.container import Flags as ContainerFlags
from av.container import OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vs3r.config import EncodeConfig
from vs3r.engine.media.encoders import MUXERS, EncoderPlan, check_container, plan_encoder
from vs3r.engine.media.formats import Converter, frame_of, with_chroma
from vs3r.engine.media.info import MediaInfo
from vs3r.engine.media.reader import VideoReader, probe
from vs3r.engine.media.remux import Remuxer
from vs3r.engine.media.tags import muxer_keeps
from vs3r.errors import MediaError, OutputError, ShapeError
from vs3r.types import Frame

# So that the hidden file's name is never too long where the target's is not.
_STEM_CHARACTERS = 40


class VideoWriter:
    """An output file that appears under its name only when it is complete.

    Frames are encoded; sound, subtitles, chapters, tags, attachments and cover pictures are copied from the source,
    interleaved as the video advances. Until `close` all is written to a hidden file beside the target, which is
    removed if anything goes wrong, also when the writer is forgotten or the interpreter exits.

    Times of formats with an arbitrary clock (MPEG-TS) are shifted to start at zero, all streams alike. Matroska
    rounds every time to a millisecond.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        like: VideoReader | MediaInfo | str | os.PathLike[str],
        config: EncodeConfig | None = None,
        threads: int = 4,
    ) -> None:
        """Check the target and open a hidden file beside it; encoding starts with the first frame.

        Args:
            path: the target; its ending (.mp4, .mov, .mkv) names the container.
            like: the source whose colour, times, orientation and other streams the output takes.
            config: encoder settings, None for the defaults.
            threads: encoder threads, at least 1. The output depends on it, not on the machine's cores.
        Raises:
            OutputError: the target cannot be written, or is the source.
            MediaError: the codec does not go into the container, or the source cannot be read.
        """
        self._config = config or EncodeConfig()
        self._threads = max(1, threads)
        if isinstance(like, VideoReader):
            like = like.info
        self._info = like if isinstance(like, MediaInfo) else probe(like)
        self._path = _checked_target(Path(path), self._info.path)
        self._replaces = self._path.exists()
        self._muxer = MUXERS[self._path.suffix.lower()]
        check_container(self._config, self._muxer)
        self._remuxer = Remuxer(self._info, self._muxer)
        self._converter = Converter()
        self._plan: EncoderPlan | None = None
        self._stream: VideoStream | None = None
        self._last_pts: int | None = None
        self._frames = 0
        self._shift = round(self._info.origin_s / self._info.time_base)
        try:
            self._temporary = _create_beside(self._path)
        except OutputError:
            self._remuxer.close()
            raise
        # Runs at the latest when the interpreter exits.
        self._discard = weakref.finalize(self, _remove, self._temporary)
        self._out: OutputContainer = av.open(
            f"file:{self._temporary}",
            "w",
            format=self._muxer,
            container_options=self._muxer_options(),
            metadata_errors="surrogateescape",
        )
        # Without it Matroska puts random numbers into the file.
        self._out.flags |= cast("int", ContainerFlags.bitexact.value)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort()

    @property
    def notes(self) -> tuple[str, ...]:
        """One-line remarks on what the output cannot keep; complete after close."""
        return (tuple(self._plan.notes) if self._plan else ()) + tuple(self._remuxer.notes)

    def write(self, frame: Frame) -> None:
        """Encode the next frame.

        Raises:
            ShapeError: the frame's format is not the first one's.
            MediaError: the encoder cannot take such pictures, or the frame is not later than the one before.
            OutputError: the disk is full or the file cannot be written.
        """
        if not self._discard.alive:
            raise MediaError(f"expected an open writer, got one that was closed: {self._path}")
        with self._reporting():
            if self._plan is None or self._stream is None:
                self._start(frame)
            assert self._plan is not None and self._stream is not None
            if frame.format != self._plan.source:
                raise ShapeError(f"expected every frame to be {self._plan.source}, got {frame.format}")
            scale = frame.time_base / self._info.time_base
            pts = round(frame.pts * scale) - self._shift
            if self._last_pts is not None and pts <= self._last_pts:
                raise MediaError(f"expected a frame later than {self._last_pts}, got {pts} (units of the time base)")
            self._last_pts = pts
            self._frames += 1
            picture = self._picture(frame)
            picture.color_range = self._plan.source_range
            picture.colorspace = self._plan.matrix
            if self._plan.pix_fmt != picture.format.name or self._plan.color_range != self._plan.source_range:
                picture = self._converter.convert(picture, self._plan.pix_fmt, self._plan.color_range)
            # ProRes takes these from the picture, the others from the encoder's settings.
            picture.color_primaries, picture.color_trc = self._plan.primaries, self._plan.transfer
            picture.pts, picture.time_base = pts, self._info.time_base
            picture.duration = round(frame.duration * scale)
            self._mux(self._stream.encode(picture))

    def close(self) -> None:
        """Finish the file and give it its name; harmless when repeated.

        Raises:
            OutputError: no frame was written, the disk is full, or the file cannot be written or renamed; or another
                program took its name meanwhile, and it got another one.
        """
        if not self._discard.alive:
            return
        with self._reporting():
            if self._stream is None:
                raise OutputError(f"expected at least one frame to write, got none: {self._path} was not made")
            packets = self._stream.encode(None)
            if self._frames <= 2:
                # x265 leaves the decoding times of so few pictures uninitialised; nothing is reordered among them.
                for packet in packets:
                    packet.dts = packet.pts
            self._mux(packets)
            self._remuxer.mux_until(None, self._out)
            self._out.close()
            made = self._path if self._replaces else _free_name(self._path)
            os.replace(self._temporary, made)
        self._discard.detach()
        self._remuxer.close()
        if made != self._path:
            raise OutputError(f"{self._path} was made by another program meanwhile and stays; this output is {made}")

    def abort(self) -> None:
        """Drop everything written so far; harmless when repeated or after close."""
        if not self._discard.alive:
            return
        self._remuxer.close()
        # The muxer insists on writing its index, which may fail again.
        with contextlib.suppress(ValueError, av.FFmpegError):
            self._out.close()
        self._discard()

    def _start(self, frame: Frame) -> None:
        plan = plan_encoder(self._config, frame.format, self._info, muxer=self._muxer, threads=self._threads)
        stream = self._out.add_stream(
            self._config.codec,
            rate=self._remuxer.video_rate,
            options=plan.options,
            time_base=self._info.time_base,
        )
        assert isinstance(stream, VideoStream)
        plan.configure(stream.codec_context, self._threads)
        matrix = self._info.display_matrix
        if matrix is not None:
            stream.set_display_matrix(matrix)
        stream.metadata.update(self._remuxer.video_metadata)
        stream.disposition = self._remuxer.video_disposition
        try:
            stream.codec_context.open()
        except av.FFmpegError as error:
            fmt = frame.format
            raise MediaError(
                f"{self._config.codec} cannot encode {plan.pix_fmt} pictures of {fmt.width}x{fmt.height} "
                f"({error.strerror}); choose another codec"
            ) from None
        self._remuxer.attach(self._out)
        self._out.start_encoding()
        self._plan, self._stream = plan, stream

    def _picture(self, frame: Frame) -> VideoFrame:
        assert self._plan is not None
        planes, fmt = frame.planes, frame.format
        if fmt.num_planes <= 2 and self._plan.pix_fmt.startswith("yuv"):
            # FFmpeg's own conversion takes every grey picture for full range.
            planes, fmt = with_chroma(planes, fmt)
        return frame_of(planes, fmt)

    def _mux(self, packets: list[Packet[VideoStream]]) -> None:
        for packet in packets:
            if packet.dts is not None:
                self._remuxer.mux_until(packet.dts * packet.time_base + self._info.origin_s, self._out)
            self._out.mux_one(packet)

    def _muxer_options(self) -> dict[str, str]:
        if self._muxer == "matroska":
            return {}
        # A late start is stored in this unit; FFmpeg's default of 1 ms would round it.
        ticks = self._info.time_base.denominator
        options = {"movie_timescale": str(min(ticks * -(-10_000 // ticks), 1_000_000))}
        # Any other tags are kept only on request, all of them in another box, which fewer programs read.
        if not muxer_keeps(self._remuxer.metadata, self._muxer):
            options["movflags"] = "use_metadata_tags"
        return options

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        """Clean up on every error, and say what an operating system error means for the output."""
        try:
            yield
        except OSError as error:
            self.abort()
            raise OutputError(f"cannot write {self._path}: {error.strerror}; nothing was kept") from None
        except av.FFmpegError as error:
            self.abort()
            raise MediaError(f"cannot write {self._path}: {error.strerror} ({self._config.codec})") from None
        except BaseException:
            self.abort()
            raise


def _checked_target(path: Path, source: Path) -> Path:
    """The real place to write to.

    Raises:
        OutputError: it has the wrong ending, is not a regular file, is the source, or its folder is missing.
    """
    if path.suffix.lower() not in MUXERS:
        raise OutputError(f"expected an output name ending in {', '.join(MUXERS)}, got {path.name!r}")
    path = Path(os.path.realpath(path))
    if path.suffix.lower() not in MUXERS:
        raise OutputError(f"expected a link to a name ending in {', '.join(MUXERS)}, got one to {path}")
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise OutputError(f"the output folder does not exist: {path.parent}; create it first") from None
        return path
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None
    if stat.S_ISDIR(mode):
        raise OutputError(f"expected an output file, got a folder: {path}")
    if not stat.S_ISREG(mode):
        raise OutputError(f"expected a regular output file, got a device or pipe: {path}")
    if os.path.samefile(path, source):
        raise OutputError(f"the output is the input: {path}; choose another output name")
    return path


def _free_name(path: Path) -> Path:
    """A name that no file had, taken by an empty one: the path, or one with a number."""
    for name in itertools.chain([path], (path.with_stem(f"{path.stem}-{n}") for n in itertools.count(2))):
        with contextlib.suppress(FileExistsError):
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            return name
    raise AssertionError("unreachable")


def _create_beside(path: Path) -> Path:
    temporary = path.with_name(
        f".{path.stem[:_STEM_CHARACTERS]}.vs3r-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}"
    )
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise OutputError(f"cannot write into {path.parent}: {error.strerror}; choose another folder") from None
    return temporary


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)

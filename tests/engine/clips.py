"""Small media files with known content, made with PyAV."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.stream import VideoStream

from vs3r.engine.media.bars import Bars
from vs3r.engine.media.formats import encoder_pix_fmt, frame_of, picture_format
from vs3r.types import Frame, PictureFormat, Plane

AUDIO_RATE = 48_000


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What a made-up clip holds."""

    frames: int = 10
    """Number of pictures."""
    width: int = 64
    """Pixels."""
    height: int = 48
    """Pixels."""
    pix_fmt: str = "yuv420p"
    """Planar format of the pictures."""
    codec: str = "libx264"
    """Video encoder."""
    options: dict[str, str] = field(default_factory=dict)
    """Encoder options."""
    rate: Fraction = Fraction(25)
    """Nominal frame rate."""
    time_base: Fraction = Fraction(1, 12800)
    """Unit of the times."""
    pts: tuple[int, ...] | None = None
    """Presentation times in time_base, None for a constant rate from zero."""
    last_duration: int | None = None
    """Length of the last picture in time_base, None for one nominal frame."""
    color: tuple[int, int, int, int] = (0, 2, 2, 2)
    """Range, primaries, transfer, matrix."""
    sample_aspect: Fraction = Fraction(1)
    """Width of a pixel over its height."""
    rotation_deg: int = 0
    """Counter-clockwise display rotation."""
    audio: str | None = None
    """Audio encoder of a quiet tone as long as the video, None for silence."""
    flash_frame: int | None = None
    """This picture is white (the others are dark), and a click sounds at its time."""
    subtitles: str | None = None
    """Subtitle codec of one line a second."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Tags of the file."""
    chapters: tuple[tuple[float, float, str], ...] = ()
    """Start and end in seconds, title."""
    attachment: bytes | None = None
    """A file to attach (Matroska)."""

    @property
    def format(self) -> PictureFormat:
        """Format of the pictures."""
        return picture_format(
            self.pix_fmt,
            self.width,
            self.height,
            full_range=self.color[0] == 2 or self.pix_fmt.startswith("gbr"),
            sample_aspect=self.sample_aspect,
        )

    @property
    def times(self) -> tuple[int, ...]:
        """Presentation times in time_base."""
        if self.pts is not None:
            return self.pts
        return tuple(round(i / (self.rate * self.time_base)) for i in range(self.frames))


def moving_planes(fmt: PictureFormat, index: int) -> tuple[Plane, ...]:
    """A smooth texture that moves by a pixel or so a frame, another one in each plane."""
    planes: list[Plane] = []
    for number in range(fmt.num_planes):
        rows, columns = fmt.plane_shape(number)
        y, x = np.mgrid[:rows, :columns].astype(np.float64)
        wave = np.sin((x + index) / (5 + number)) + np.cos((y - index) / (7 + number)) + 2.0
        planes.append(np.asarray(wave / 4.0 * 200 + 20).astype(np.uint8))
    return _deepened(planes, fmt)


def random_planes(fmt: PictureFormat, seed: int) -> tuple[Plane, ...]:
    """Noise over all values of the format."""
    rng = np.random.default_rng(seed)
    noise = [rng.integers(0, 1 << fmt.bit_depth, fmt.plane_shape(i)) for i in range(fmt.num_planes)]
    return tuple(n.astype(np.uint8) if fmt.bit_depth <= 8 else n.astype(np.uint16) for n in noise)


def flat_planes(fmt: PictureFormat, luma: int) -> tuple[Plane, ...]:
    """A grey picture of an 8-bit luma value."""
    values = [luma if i == 0 or fmt.is_rgb else 128 for i in range(fmt.num_planes)]
    return _deepened([np.full(fmt.plane_shape(i), v, np.uint8) for i, v in enumerate(values)], fmt)


def make_frames(clip: Clip, *, noise: bool = False) -> list[Frame]:
    """The pictures of a clip."""
    times, fmt = clip.times, clip.format
    nominal = round(1 / (clip.rate * clip.time_base))
    ends = [*times[1:], times[-1] + (nominal if clip.last_duration is None else clip.last_duration)]
    frames = []
    for i, (start, end) in enumerate(zip(times, ends, strict=True)):
        if clip.flash_frame is not None:
            planes = flat_planes(fmt, 235 if i == clip.flash_frame else 30)
        else:
            planes = random_planes(fmt, i) if noise else moving_planes(fmt, i)
        frames.append(Frame(format=fmt, planes=planes, pts=start, time_base=clip.time_base, duration=end - start))
    return frames


def barred(frame: Frame, bars: Bars) -> Frame:
    """The picture with black over its borders."""
    fmt, planes = frame.format, []
    for number, plane in enumerate(frame.planes):
        (rows, columns), (sx, sy) = plane.shape, fmt.plane_shift(number)
        bare = np.full_like(plane, fmt.black(number))
        inside = slice(bars.top >> sy, rows - (bars.bottom >> sy)), slice(bars.left >> sx, columns - (bars.right >> sx))
        bare[inside] = plane[inside]
        planes.append(bare)
    return replace(frame, planes=tuple(planes))


def write_clip(path: Path, clip: Clip | None = None, *, noise: bool = False, frames: list[Frame] | None = None) -> Path:
    """Make the file; its ending names the container. Pictures are those of make_frames, or the given ones."""
    clip = clip or Clip()
    frames = make_frames(clip, noise=noise) if frames is None else frames
    with av.open(str(path), "w") as out:
        out.metadata.update(clip.metadata)
        video = _add_video(out, clip)
        audio = out.add_stream(clip.audio, rate=AUDIO_RATE) if clip.audio else None
        subtitles = out.add_mux_stream(clip.subtitles, time_base=Fraction(1, 1000)) if clip.subtitles else None
        if clip.attachment is not None:
            out.add_attachment("notes.txt", "text/plain", clip.attachment)
        out.set_chapters(
            [
                {"id": i, "start": round(a * 1000), "end": round(b * 1000), "time_base": Fraction(1, 1000),
                 "metadata": {"title": title}}
                for i, (a, b, title) in enumerate(clip.chapters)
            ]
        )  # fmt: skip
        packets: list[Packet[Stream]] = []
        for frame in frames:
            picture = frame_of(frame.planes, frame.format)
            picture.pts, picture.time_base, picture.duration = frame.pts, clip.time_base, frame.duration
            out.mux(video.encode(picture))
        out.mux(video.encode(None))
        seconds = float((frames[-1].pts + frames[-1].duration) * clip.time_base)
        if audio is not None:
            assert isinstance(audio, AudioStream)
            for sound in _sound(clip, seconds):
                packets += audio.encode(sound)
            packets += audio.encode(None)
        if subtitles is not None:
            for second in range(math.ceil(seconds)):
                packet: Packet[Stream] = Packet(f"line {second}".encode())
                packet.stream, packet.time_base = subtitles, Fraction(1, 1000)
                packet.pts = packet.dts = second * 1000
                packet.duration = 900
                packets.append(packet)
        out.mux(packets)
    return path


def cut_by_edits(path: Path, target: Path, segments: tuple[tuple[float, float], ...]) -> Path:
    """An MP4 file played in parts, as editors cut it without encoding: its edit lists are replaced, all else stays.

    Args:
        path: made by write_clip with AAC sound, whose first packet is run-in.
        segments: duration and start in the file in seconds; a start of -1 shows nothing.
    """
    data = bytearray(path.read_bytes())

    def inside(start: int, end: int, name: bytes) -> list[tuple[int, int]]:
        found = []
        while start < end:
            size, kind = struct.unpack_from(">I4s", data, start)
            if kind == name:
                found.append((start, start + size))
            start += size
        return found

    def box(parent: tuple[int, int], *names: bytes) -> tuple[int, int]:
        for name in names:
            (parent,) = inside(parent[0] + 8, parent[1], name)
        return parent

    (movie,) = inside(0, len(data), b"moov")
    assert movie[1] == len(data), "no offsets of data must change"
    (scale,) = struct.unpack_from(">I", data, box(movie, b"mvhd")[0] + 20)
    for track in reversed(inside(movie[0] + 8, movie[1], b"trak")):
        (media_scale,) = struct.unpack_from(">I", data, box(track, b"mdia", b"mdhd")[0] + 20)
        handler, edits = box(track, b"mdia", b"hdlr")[0], box(track, b"edts")
        run_in = 1024 if data[handler + 16 : handler + 20] == b"soun" else 0
        entries = struct.pack(">II", 0, len(segments))
        for length, start in segments:
            media = -1 if start < 0 else round(start * media_scale) + run_in
            entries += struct.pack(">IiI", round(length * scale), media, 1 << 16)
        new = struct.pack(">I4sI4s", 16 + len(entries), b"edts", 8 + len(entries), b"elst") + entries
        grown = len(new) - (edits[1] - edits[0])
        data[edits[0] : edits[1]] = new
        for start, end in (track, movie):
            struct.pack_into(">I", data, start, end - start + grown)
        movie = movie[0], movie[1] + grown
    target.write_bytes(data)
    return target


def _add_video(out: OutputContainer, clip: Clip) -> VideoStream:
    video = out.add_stream(clip.codec, rate=clip.rate, options=clip.options, time_base=clip.time_base)
    assert isinstance(video, VideoStream)
    context = video.codec_context
    context.width, context.height = clip.width, clip.height
    context.pix_fmt = encoder_pix_fmt(clip.codec, clip.format)[0]
    context.thread_count = 1
    context.sample_aspect_ratio = clip.sample_aspect
    context.color_range, context.color_primaries, context.color_trc, context.colorspace = clip.color
    context.flags |= av.codec.context.Flags.frame_duration
    if clip.rotation_deg:
        video.set_display_rotation(clip.rotation_deg)
    return video


def _sound(clip: Clip, seconds: float) -> list[AudioFrame]:
    count = round(seconds * AUDIO_RATE)
    wave = 0.02 * np.sin(np.arange(count) * (2 * np.pi * 440 / AUDIO_RATE))
    if clip.flash_frame is not None:
        click = round(clip.times[clip.flash_frame] * clip.time_base * AUDIO_RATE)
        wave[click : click + 480] = 0.9 * np.sin(np.arange(480) * (2 * np.pi * 1000 / AUDIO_RATE))[: count - click]
    frames = []
    for start in range(0, count, 1024):
        part = (wave[start : start + 1024] * 32767).astype(np.int16)
        frame = AudioFrame.from_ndarray(np.repeat(part, 2)[None, :], format="s16", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = AUDIO_RATE, start, Fraction(1, AUDIO_RATE)
        frames.append(frame)
    return frames


def _deepened(planes: list[Plane], fmt: PictureFormat) -> tuple[Plane, ...]:
    if fmt.bit_depth <= 8:
        return tuple(planes)
    return tuple((plane * (1 << (fmt.bit_depth - 8))).astype(np.uint16) for plane in (p.astype(int) for p in planes))

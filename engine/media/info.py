"""What is known about a video file before its frames are read."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

from av.sidedata.sidedata import SideData
from av.sidedata.sidedata import Type as SideDataKind
from av.video.frame import VideoFrame

from vs3r.types import PictureFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class ColorTags:
    """How the numbers of a picture mean colours: ITU-T H.273 code points, as FFmpeg numbers them."""

    range: int = 0
    """0 unspecified, 1 limited (black at 16), 2 full."""
    primaries: int = 2
    """2 is unspecified."""
    transfer: int = 2
    """2 is unspecified."""
    matrix: int = 2
    """2 is unspecified; 0 is RGB."""
    chroma_location: str | None = None
    """Where chroma samples sit ("left", "center", "topleft", ...), None when the source does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HdrMetadata:
    """Static HDR metadata (SMPTE ST 2086 and CTA-861.3), in the text form that x264 and x265 take."""

    mastering_display: str | None
    """"G(x,y)B(x,y)R(x,y)WP(x,y)L(max,min)", chromaticity in 1/50000, luminance in 1/10000 cd/m2."""
    content_light: str | None
    """"MaxCLL,MaxFALL" in cd/m2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaInfo:
    """A video file as VideoReader delivers it."""

    path: Path
    """The file."""
    format: PictureFormat
    """Planar format of every delivered frame."""
    source_pix_fmt: str
    """FFmpeg's name of the format that the decoder gives."""
    codec: str
    """FFmpeg's name of the video codec."""
    stream_index: int
    """Number of the video stream in the file."""
    time_base: Fraction
    """Seconds per unit of Frame.pts."""
    average_rate: Fraction | None
    """Frames per second on average, None when unknown."""
    frames_estimate: int | None
    """Expected number of frames; what the container claims, or duration times rate. May be wrong."""
    duration_s: float | None
    """Length of the video stream in seconds."""
    origin_s: Fraction
    """Time that players show as zero: nonzero for broadcast formats, whose clock starts anywhere."""
    rotation_deg: int
    """Clockwise turn in [0, 360) that shows the picture upright."""
    display_matrix: tuple[int, ...] | None
    """FFmpeg's 3x3 display matrix (rotation and mirroring), None when there is none."""
    color: ColorTags
    """Colour tags of the source."""
    hdr: HdrMetadata | None
    """Static HDR metadata, None when there is none."""
    interlaced: bool
    """The source is interlaced; frames are delivered deinterlaced, one for one."""
    notes: tuple[str, ...]
    """One-line remarks worth telling the user."""


def _unnamed(kinds: type[SideDataKind], number: Any) -> SideDataKind:
    kind = object.__new__(kinds)
    kind._name_, kind._value_ = f"UNNAMED_{number}", number
    return kind


# PyAV has no names for FFmpeg's newer kinds (Exif, views of 3D), and fails on all of a picture's beside one of them.
SideDataKind._missing_ = classmethod(_unnamed)  # type: ignore[assignment]


def side_data(frame: VideoFrame) -> dict[str, bytes]:
    """A decoded frame's side data: FFmpeg's structures by PyAV's names of their kinds."""
    # PyAV's stub declares a dict of known keys; what it gives is a sequence of buffers.
    return {side.type.name: bytes(side) for side in cast("Iterable[SideData]", frame.side_data)}


def hdr_metadata(frame: VideoFrame) -> HdrMetadata | None:
    """Static HDR metadata of a decoded frame, None when it carries none."""
    mastering = content = None
    kinds = side_data(frame)
    if (raw := kinds.get("MASTERING_DISPLAY_METADATA")) is not None and len(raw) >= 88:
        mastering = _mastering_display(raw)
    if (raw := kinds.get("CONTENT_LIGHT_LEVEL")) is not None and len(raw) >= 8:
        content = "{},{}".format(*struct.unpack_from("=2I", raw))
    if mastering is None and content is None:
        return None
    return HdrMetadata(mastering_display=mastering, content_light=content)


def _mastering_display(raw: bytes) -> str | None:
    # AVMasteringDisplayMetadata: 10 rationals (R, G, B as x, y; white x, y; min, max luminance), 2 flags.
    values = struct.unpack_from("=22i", raw)
    has_primaries, has_luminance = values[20], values[21]
    if not (has_primaries and has_luminance and all(values[1:20:2])):
        return None
    rational = [Fraction(values[i], values[i + 1]) for i in range(0, 20, 2)]
    red, green, blue, white = (f"({round(rational[i] * 50000)},{round(rational[i + 1] * 50000)})" for i in (0, 2, 4, 6))
    low, high = (round(v * 10000) for v in rational[8:10])
    return f"G{green}B{blue}R{red}WP{white}L({high},{low})"


def display_matrix(frame: VideoFrame) -> tuple[int, ...] | None:
    """The 9 numbers of a decoded frame's display matrix, None when it has none or the identity."""
    raw = side_data(frame).get("DISPLAYMATRIX")
    if raw is None or len(raw) < 36:
        return None
    matrix = struct.unpack_from("=9i", raw)
    return None if matrix == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30) else matrix

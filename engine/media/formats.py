"""Pixel formats: the nearest planar one, planes in and out of av frames, what an encoder takes."""

from __future__ import annotations

import sys
from fractions import Fraction
from typing import cast

import numpy as np
from av.codec.codec import Codec, PixFmtLoss, find_best_pix_fmt_of_list
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from vs3r.errors import MediaError
from vs3r.types import PictureFormat, Plane

_SUBSAMPLING = {(1, 1): "420", (1, 0): "422", (0, 0): "444", (0, 1): "440", (2, 0): "411", (2, 2): "410"}
_DEPTHS = (8, 9, 10, 12, 14, 16)
_ENDIAN = "le" if sys.byteorder == "little" else "be"


def planar_name(name: str) -> str:
    """The planar format (native byte order, 8 to 16 bits) that holds all of format `name`'s bits.

    "yuvj420p" becomes "yuv420p" (the range is told apart from the layout), "nv12" "yuv420p", "rgb24" "gbrp",
    "bgra" and "pal8" "gbrap". Grey with alpha ("ya8") has no planar form in FFmpeg: the name stays, and
    planes_of splits it.

    Raises:
        MediaError: FFmpeg does not know the format, or its pixels lie elsewhere ("cuda").
    """
    if name.startswith("yuvj"):
        return "yuv" + name[4:]
    try:
        source = VideoFormat(name, 64, 64)
    except ValueError:
        raise MediaError(f"expected a pixel format that FFmpeg knows, got {name!r}") from None
    parts = source.components
    if not parts:
        raise MediaError(f"expected a pixel format of the processor's memory, got {name!r}, which is of a device")
    bits = sum(c.bits for c in parts) if source.is_bayer else max(c.bits for c in parts)
    alpha = "a" if any(c.is_alpha for c in parts) or source.has_palette else ""
    if source.is_rgb or source.has_palette or name.startswith("xyz"):
        stems = [f"gbr{alpha}p"]
    elif len(parts) == 1:
        stems = ["gray"]
    elif len(parts) == 2:
        stems = ["ya"]
    else:
        shift = ((64 // parts[1].width).bit_length() - 1, (64 // parts[1].height).bit_length() - 1)
        stems = [f"yuv{alpha}{_SUBSAMPLING[shift]}p", f"yuv{alpha}444p"]
    for stem in stems:
        # Floating point formats (32 bits) have more than any integer one: 16 is the nearest.
        for depth in (d for d in _DEPTHS if d >= min(bits, 16)):
            plain = "ya8" if stem == "ya" else stem
            candidate = plain if depth == 8 else f"{stem}{depth}{_ENDIAN}"
            if _exists(candidate):
                return candidate
    raise MediaError(f"pixel format {name} has no planar form with its {bits} bits; convert the file first")


def _exists(name: str) -> bool:
    try:
        VideoFormat(name)
    except ValueError:
        return False
    return True


def picture_format(
    name: str, width: int, height: int, *, full_range: bool = False, sample_aspect: Fraction = Fraction(1)
) -> PictureFormat:
    """The PictureFormat of a planar format (a result of planar_name) at a size."""
    parts = VideoFormat(name, 64, 64).components
    chroma = parts[1] if len(parts) >= 3 else parts[0]
    return PictureFormat(
        pix_fmt=name,
        width=width,
        height=height,
        bit_depth=parts[0].bits,
        chroma_shift=((64 // chroma.width).bit_length() - 1, (64 // chroma.height).bit_length() - 1),
        num_planes=len(parts),
        is_rgb=name.startswith("gbr"),
        full_range=full_range,
        sample_aspect=sample_aspect,
    )


def planes_of(frame: VideoFrame, fmt: PictureFormat) -> tuple[Plane, ...]:
    """Copy an av frame of planar format `fmt` into C-contiguous arrays."""
    if fmt.num_planes == 2:
        pairs = _view(frame, 0, fmt).reshape(fmt.height, -1)[:, : 2 * fmt.width]
        return pairs[:, 0::2].copy(), pairs[:, 1::2].copy()
    return tuple(
        _view(frame, i, fmt)[: fmt.plane_shape(i)[0], : fmt.plane_shape(i)[1]].copy() for i in range(fmt.num_planes)
    )


def frame_of(planes: tuple[Plane, ...], fmt: PictureFormat) -> VideoFrame:
    """Copy planes into a new av frame of format `fmt`."""
    frame = VideoFrame(fmt.width, fmt.height, fmt.pix_fmt)
    if fmt.num_planes == 2:
        _view(frame, 0, fmt)[:, 0 : 2 * fmt.width : 2] = planes[0]
        _view(frame, 0, fmt)[:, 1 : 2 * fmt.width : 2] = planes[1]
        return frame
    for i, plane in enumerate(planes):
        rows, columns = fmt.plane_shape(i)
        _view(frame, i, fmt)[:rows, :columns] = plane
    return frame


def with_chroma(planes: tuple[Plane, ...], fmt: PictureFormat) -> tuple[tuple[Plane, ...], PictureFormat]:
    """A grey picture (with or without alpha) as YUV 4:4:4 of the same depth and range."""
    neutral = np.full_like(planes[0], 1 << (fmt.bit_depth - 1))
    name = planar_name(fmt.pix_fmt).replace("gray", "yuv444p").replace("ya", "yuva444p")
    name = name.removesuffix("8") if fmt.bit_depth == 8 else name
    yuv = picture_format(
        name, fmt.width, fmt.height, full_range=fmt.full_range, sample_aspect=fmt.sample_aspect
    )  # fmt: skip
    return (planes[0], neutral, neutral, *planes[1:]), yuv


def _view(frame: VideoFrame, index: int, fmt: PictureFormat) -> Plane:
    """A plane's memory, top row first, padding on the right included."""
    plane = frame.planes[index]
    view = cast("Plane", np.frombuffer(memoryview(plane), fmt.sample_type).reshape(plane.height, -1))
    return view[::-1] if plane.line_size < 0 else view


def encoder_pix_fmt(codec: str, fmt: PictureFormat) -> tuple[str, list[str]]:
    """The pixel format in which encoder `codec` keeps most of `fmt`, and notes on what it loses.

    Chroma that is subsampled needs a size that it divides; H.264 and H.265 cannot store an odd width in 4:2:0, so
    such pictures go to a format with full chroma instead of losing a row or a column.
    """
    offered = [f.name for f in Codec(codec, "w").video_formats or []]
    # The yuvj* aliases would only hide the range, which is tagged separately; float formats are never better; x265
    # announces alpha also where it was built without.
    unwanted = ("yuvj", "nv", "yuva") if codec == "libx265" else ("yuvj", "nv")
    usable = [n for n in offered if not n.startswith(unwanted) and "f16" not in n and "f32" not in n]
    if fmt.pix_fmt in usable and _size_fits(codec, fmt.pix_fmt, fmt):
        return fmt.pix_fmt, []
    fitting = [n for n in usable if _size_fits(codec, n, fmt)]
    has_alpha = fmt.num_planes in (2, 4)
    best, loss = find_best_pix_fmt_of_list(fitting, fmt.pix_fmt, has_alpha)
    if best is None:
        raise MediaError(f"{codec} cannot store {fmt.pix_fmt} pictures of {fmt.width}x{fmt.height}; choose ffv1")
    return best.name, _loss_notes(codec, fmt, best.name, loss)


def _size_fits(codec: str, name: str, fmt: PictureFormat) -> bool:
    if codec not in ("libx264", "libx265"):
        return True
    parts = VideoFormat(name, 64, 64).components
    if len(parts) < 3:
        return True
    return fmt.width % (64 // parts[1].width) == 0 and fmt.height % (64 // parts[1].height) == 0


def _loss_notes(codec: str, fmt: PictureFormat, best: str, loss: PixFmtLoss) -> list[str]:
    if planar_name(best) == fmt.pix_fmt:
        return []  # the same samples in another order
    lost = []
    if loss & PixFmtLoss.ALPHA:
        lost.append("the alpha channel is dropped")
    if loss & PixFmtLoss.DEPTH:
        lost.append("bit depth is reduced")
    if loss & (PixFmtLoss.RESOLUTION | PixFmtLoss.CHROMA):
        lost.append("chroma resolution is reduced")
    if loss & PixFmtLoss.COLORSPACE:
        lost.append("RGB is converted to YUV" if fmt.is_rgb else "the colour model changes")
    odd = not _size_fits(codec, fmt.pix_fmt, fmt)
    reason = f"{codec} cannot store {fmt.pix_fmt}" + (f" at the odd size {fmt.width}x{fmt.height}" if odd else "")
    return [f"{reason}: written as {best}" + (f", {' and '.join(lost)}" if lost else "")]


class Converter:
    """Conversion of size and pixel format, one set of parameters after the other, always the same result."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def convert(self, frame: VideoFrame, fmt: PictureFormat | str, color_range: int = 0) -> VideoFrame:
        """`frame` in another format (and size, and range unless 0); the same frame where nothing changes."""
        name = fmt if isinstance(fmt, str) else fmt.pix_fmt
        width, height = (frame.width, frame.height) if isinstance(fmt, str) else (fmt.width, fmt.height)
        return self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format=name,
            src_color_range=frame.color_range,
            dst_color_range=color_range or frame.color_range,
            interpolation=Interpolation.BICUBIC
            | Interpolation.ACCURATE_RND
            | Interpolation.FULL_CHR_H_INT
            | Interpolation.FULL_CHR_H_INP
            | Interpolation.BITEXACT,
            threads=1,
        )

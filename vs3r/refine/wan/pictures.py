"""Between full-size planes and the small RGB pictures of the model, and the repair put into the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vs3r.refine.fill import fill_unseen
from vs3r.refine.wan.windows import Layout, fold_mask, padded_size
from vs3r.render.pullpush import pull_push
from vs3r.types import FloatArray, Frame, PictureFormat, Plane, RenderedFrame

MATCH_CELLS = 4.0
"""Width of the Gaussian under which the repair gets the colours of its surroundings."""

# BT.709, whatever the tags say: what is converted is converted back by the same matrix, and only then shown.
_RED, _BLUE = 0.2126, 0.0722
_RGB_FROM_YUV = np.array(
    [
        [1.0, 0.0, 2.0 - 2.0 * _RED],
        [1.0, -2.0 * (1 - _BLUE) * _BLUE / (1 - _RED - _BLUE), -2.0 * (1 - _RED) * _RED / (1 - _RED - _BLUE)],
        [1.0, 2.0 - 2.0 * _BLUE, 0.0],
    ]
)
_YUV_FROM_RGB = np.linalg.inv(_RGB_FROM_YUV)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prefilled:
    """A rendered picture as the model sees it, and what is needed to put its repair in."""

    frame: Frame
    """Full size, holes filled from their surroundings: dark ones would darken what the autoencoder makes of those."""
    known: FloatArray
    """(Vh, Vw) 1 in cells that are kept, 0 in a hole and one cell around it."""
    rgb: FloatArray
    """(h, w, 3) the picture at working size, 0 to 1."""

    @property
    def complete(self) -> bool:
        """Nothing is to be repaired."""
        return bool(self.known.all())


def prefill(rendered: RenderedFrame, size: tuple[int, int]) -> Prefilled:
    """
    Args:
        rendered: a picture and its validity.
        size: width and height of the working size.
    """
    frame = fill_unseen(rendered)
    holes = cv2.dilate((rendered.valid < 255).astype(np.uint8), np.ones((3, 3), np.uint8))
    return Prefilled(frame=frame, known=1.0 - holes.astype(np.float32), rgb=rgb_from_frame(frame, size))


def known_pixels(known: FloatArray, size: tuple[int, int], padded: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The cells that are kept, at working size.

    Args:
        known: (Vh, Vw), see Prefilled.
        size: width and height of the working size.
        padded: width and height of what the model sees; what is added repeats the border.
    Returns:
        (H, W) true where all that a pixel is blended from is kept.
    """
    pixels = cv2.resize(known, size, interpolation=cv2.INTER_LINEAR) > 1.0 - 1e-4
    return np.pad(pixels, ((0, padded[1] - size[1]), (0, padded[0] - size[0])), mode="edge")


def model_video(pictures: Sequence[FloatArray], frames: int, layout: Layout) -> Tensor:
    """Pictures as the autoencoder takes them.

    Args:
        pictures: (h, w, 3) each, 0 to 1.
        frames: how many it takes, 4k + 1.
        layout: says what sizes it takes.
    Returns:
        (1, 3, frames, H, W) in [-1, 1]; what is missing of the sizes repeats the last frame, row and column.
    """
    video = np.stack(pictures)
    count, rows, columns = video.shape[:3]
    width, height = padded_size((columns, rows), layout)
    more = (0, frames - count), (0, height - rows), (0, width - columns), (0, 0)
    return torch.from_numpy(np.pad(video, more, mode="edge")).permute(3, 0, 1, 2)[None] * 2.0 - 1.0


def model_mask(given: Sequence[Prefilled], frames: int, layout: Layout) -> Tensor:
    """(1, 4, T, h, w) see fold_mask; of the same pictures and lengths as model_video."""
    rows, columns = given[0].rgb.shape[:2]
    padded = padded_size((columns, rows), layout)
    known = [known_pixels(one.known, (columns, rows), padded) for one in given]
    return fold_mask(np.stack(known + known[-1:] * (frames - len(known))), layout)


def rgb_from_frame(frame: Frame, size: tuple[int, int]) -> FloatArray:
    """(h, w, 3) from 0 to 1 at a size (width, height). Grey is grey; alpha is left out."""
    fmt = frame.format
    small = [
        cv2.resize(plane, size, interpolation=cv2.INTER_AREA).astype(np.float32) for plane in _colours(frame.planes)
    ]
    black, scale = _levels(fmt)
    parts = [(plane - b) / s for plane, b, s in zip(small, black, scale, strict=True)]
    if len(parts) == 1:
        rgb = np.stack(parts * 3, -1)
    elif fmt.is_rgb:
        rgb = np.stack([parts[2], parts[0], parts[1]], -1)
    else:
        rgb = np.stack(parts, -1) @ _RGB_FROM_YUV.T
    return np.asarray(np.clip(rgb, 0.0, 1.0), np.float32)


def planes_from_rgb(rgb: FloatArray, fmt: PictureFormat) -> list[FloatArray]:
    """The inverse: colour planes of the format in its own values, all at the size of `rgb`."""
    black, scale = _levels(fmt)
    if len(black) == 1:
        parts = [rgb @ _YUV_FROM_RGB[0]]
    elif fmt.is_rgb:
        parts = [rgb[..., 1], rgb[..., 2], rgb[..., 0]]
    else:
        parts = list(np.moveaxis(rgb @ _YUV_FROM_RGB.T, -1, 0))
    return [np.asarray(part * s + b, np.float32) for part, b, s in zip(parts, black, scale, strict=True)]


def composite(given: Prefilled, rgb: FloatArray) -> Frame:
    """Put the repaired parts of a picture into it, through a feather one cell wide, in the colours around them.

    Args:
        given: the picture.
        rgb: (h, w, 3) what the model made of it, 0 to 1, at any size.
    Returns:
        The picture; where the feather is one, not a bit is changed.
    """
    if given.complete:
        return given.frame
    frame = given.frame
    repairs = planes_from_rgb(rgb, frame.format)
    top = (1 << frame.format.bit_depth) - 1
    colours = [
        _into_plane(plane, repair, given.known, top)
        for plane, repair in zip(_colours(frame.planes), repairs, strict=True)
    ]
    return replace(frame, planes=(*colours, *frame.planes[len(colours) :]))


def _into_plane(plane: Plane, repair: FloatArray, known: FloatArray, top: int) -> Plane:
    cells, size = known.shape[::-1], plane.shape[::-1]
    amiss = _resized(plane, cells, cv2.INTER_AREA) - _resized(repair, cells, cv2.INTER_AREA)
    weight = cv2.GaussianBlur(known, (0, 0), MATCH_CELLS)
    mean = cv2.GaussianBlur(amiss * known, (0, 0), MATCH_CELLS) / np.maximum(weight, 1e-6)
    correction = pull_push(np.asarray(mean, np.float32), known)
    filled = _resized(repair, size, cv2.INTER_LINEAR) + _resized(correction, size, cv2.INTER_LINEAR)
    keep = _resized(known, size, cv2.INTER_LINEAR)
    # Interpolating ones need not give exactly one.
    kept = keep > 1.0 - 1e-4
    mixed = np.clip(np.rint(filled + keep * (plane - filled)), 0, top)
    return cast("Plane", np.where(kept, plane, mixed).astype(plane.dtype))


def _resized(values: npt.NDArray[np.generic], size: tuple[int, ...], how: int) -> FloatArray:
    return np.asarray(cv2.resize(values.astype(np.float32), size, interpolation=how), np.float32)


def _colours(planes: tuple[Plane, ...]) -> tuple[Plane, ...]:
    """Without alpha."""
    return planes[:3] if len(planes) >= 3 else planes[:1]


def _levels(fmt: PictureFormat) -> tuple[list[float], list[float]]:
    """Per colour plane: the value that means 0, and the step to 1 (for chroma, from -1/2 to 1/2)."""
    count = 3 if fmt.num_planes >= 3 else 1
    top, step = float((1 << fmt.bit_depth) - 1), float(1 << (fmt.bit_depth - 8))
    if fmt.is_rgb:
        return [0.0] * 3, [top] * 3
    if fmt.full_range:
        return [0.0, 128 * step, 128 * step][:count], [top, top, top][:count]
    return [16 * step, 128 * step, 128 * step][:count], [219 * step, 224 * step, 224 * step][:count]

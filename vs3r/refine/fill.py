"""Inpainting of what no frame saw: the surroundings mirrored over the edge, running out into a smooth continuation.

Mirrored along the lines of the picture, not straight across the edge: a slanted line goes on and does not turn back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from vs3r.render.layers import smoothstep
from vs3r.render.pullpush import f32, pull_push
from vs3r.types import FloatArray, Frame, Plane, RenderedFrame

SMOOTH_CELLS = 2.5
"""Width of the Gaussian that parts what is continued smoothly from what is mirrored."""
DETAIL_REACH = 0.06
"""Distance, of the longer side, in which the mirrored detail falls to 1/e."""
DETAIL_FLOOR = 0.3
"""Detail never falls below this share: a patch without any grain is seen."""
LINE_CELLS = 2.0
"""Width of the Gaussian over which the direction of lines is averaged."""
LINE_NOISE = 2.0
"""Squared gradient, levels of 255 per cell, that says nothing about lines."""
FLATTEST = 0.35
"""Cosine between a line and the way straight to the edge: flatter ones are not followed, and"""
FLAT_RAMP = 0.2
"""those steeper by so much wholly."""
TURN_CELLS = 1.5
"""Width of the Gaussian over which the way to the edge is averaged: the nearest known cell jumps along the staircase of
a slanted edge."""
MOST_CELLS = 1 << 11
"""Cells that are filled at a time."""

Ints = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Hole:
    """What has to be filled, on the cells of the validity mask."""

    known: FloatArray
    """(Vh, Vw) 1 in cells that are used as they are, 0 in the hole and one cell around it."""
    toward_x: FloatArray
    """(Vh, Vw) from a cell of the hole to the known cell at which it is mirrored, in cells; 0 in known cells."""
    toward_y: FloatArray
    """(Vh, Vw) likewise, down."""
    gain: FloatArray
    """(Vh, Vw) how much of the mirrored detail is shown."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Spots:
    """Pixels to be filled of a plane, and what is the same for all planes of its shape."""

    rows: Ints
    """(N, n) of n pixels of N cells."""
    cols: Ints
    """(N, n)"""
    at: tuple[FloatArray, FloatArray]
    """(N, n) each, x and y on the cells, the first cell's centre at 0."""
    mirrored: tuple[FloatArray, FloatArray]
    """(N, n) each, x and y of what is mirrored, on the cells."""
    mirrored_px: tuple[FloatArray, FloatArray]
    """(N, n) each, the same in pixels of the plane, the first one's centre at 0."""
    gain: FloatArray
    """(N, n) how much of the mirrored detail is shown."""
    keep: FloatArray
    """(N, n) how much of the picture itself stays."""


def fill_unseen(rendered: RenderedFrame) -> Frame:
    """Repair the cells of a picture that are not wholly valid, where it lies; beyond a feather one cell wide, the rest
    stays as it is.

    Low frequencies are extended from the valid part by pull-push; on them lies the difference between picture and low
    frequencies, mirrored at the edge of the valid part and fading with the distance from it. At the edge the two add up
    to the picture itself, so there is no seam. A picture of which nothing is valid is returned unchanged.
    """
    frame = rendered.frame
    unknown = np.asarray(cv2.dilate((rendered.valid < 255).astype(np.uint8), np.ones((3, 3), np.uint8)), np.uint8)
    if not unknown.any() or unknown.all():
        return frame
    small = [f32(cv2.resize(plane, unknown.shape[::-1], interpolation=cv2.INTER_AREA)) for plane in frame.planes]
    peak = (1 << frame.format.bit_depth) - 1
    hole = _hole(unknown, small[0] * np.float32(255.0 / peak))
    # One cell more, for the feather.
    cells = np.argwhere(cv2.dilate(unknown, np.ones((3, 3), np.uint8)))
    smooth = _smooth(small, hole.known)
    done = []
    for shape in {plane.shape for plane in frame.planes}:
        for part in range(0, len(cells), MOST_CELLS):
            spots = _spots(hole, cells[part : part + MOST_CELLS], shape)
            done += [
                (plane, spots, _filled(plane, low, spots, peak))
                for plane, low in zip(frame.planes, smooth, strict=True)
                if plane.shape == shape
            ]
    # Only now: each part looks at the picture around it.
    for plane, spots, values in done:
        plane[spots.rows, spots.cols] = values
    return frame


def _hole(unknown: npt.NDArray[np.uint8], luma: FloatArray) -> _Hole:
    distance, labels = cv2.distanceTransformWithLabels(
        unknown, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    rows, cols = np.nonzero(unknown == 0)
    nearest = np.zeros((2, labels.max() + 1), np.intp)
    nearest[:, labels[rows, cols]] = rows, cols
    row, col = np.nonzero(unknown)
    at_row, at_col = nearest[:, labels[row, col]]
    toward = np.zeros((2, *unknown.shape), np.float32)
    toward[:, row, col] = _along_lines(
        f32(at_col - col), f32(at_row - row), _structure(luma, unknown)[:, at_row, at_col]
    )
    toward_x, toward_y = (f32(cv2.GaussianBlur(part, (0, 0), TURN_CELLS) * unknown) for part in toward)
    reach = DETAIL_REACH * max(unknown.shape)
    gain = DETAIL_FLOOR + (1.0 - DETAIL_FLOOR) * np.exp(-distance / reach)
    return _Hole(known=f32(1 - unknown), toward_x=toward_x, toward_y=toward_y, gain=f32(gain))


def _structure(luma: FloatArray, unknown: npt.NDArray[np.uint8]) -> FloatArray:
    """(3, Vh, Vw) xx, xy and yy of the structure tensor (Bigun and Granlund 1987), of known cells only."""
    inner = f32(cv2.erode(1 - unknown, np.ones((3, 3), np.uint8)))
    x, y = (cv2.Scharr(luma, cv2.CV_32F, *order, scale=1 / 32) * inner for order in ((1, 0), (0, 1)))
    sums, weight = (
        [cv2.GaussianBlur(part, (0, 0), LINE_CELLS) for part in parts] for parts in ((x * x, x * y, y * y), (inner,))
    )
    return f32(sums / np.maximum(weight[0], 1e-6))


def _along_lines(x: FloatArray, y: FloatArray, structure: FloatArray) -> FloatArray:
    """(2, N) the ways (x, y) straight to the edge turned along the lines there, of structure (3, N), up to the edge."""
    xx, xy, yy = structure
    half = (xx - yy) / 2
    length = np.hypot(half, xy)
    coherence = length / ((xx + yy) / 2 + LINE_NOISE)
    angle = np.arctan2(xy, half) / 2 + np.pi / 2
    line_x, line_y = np.cos(angle), np.sin(angle)
    way = np.hypot(x, y)
    cosine = (x * line_x + y * line_y) / np.maximum(way, 1e-6)
    share = coherence * smoothstep(f32((np.abs(cosine) - FLATTEST) / FLAT_RAMP))
    slanted = np.copysign(way / np.maximum(np.abs(cosine), FLATTEST), cosine)
    return f32([x + share * (line_x * slanted - x), y + share * (line_y * slanted - y)])


def _smooth(small: list[FloatArray], known: FloatArray) -> list[FloatArray]:
    """(Vh, Vw) low frequencies of planes shrunk to cells, beyond the known part too."""
    weight = np.maximum(cv2.GaussianBlur(known, (0, 0), SMOOTH_CELLS), 1e-6)
    means = [cv2.GaussianBlur(values * known, (0, 0), SMOOTH_CELLS) / weight for values in small]
    return list(pull_push(f32(means), known))


def _spots(hole: _Hole, cells: Ints, shape: tuple[int, ...]) -> _Spots:
    step_y, step_x = shape[0] / hole.known.shape[0], shape[1] / hole.known.shape[1]
    rows, cols = _pixels(cells[:, 0], step_y, shape[0]), _pixels(cells[:, 1], step_x, shape[1])
    size = len(cells), rows.shape[1] * cols.shape[1]
    rows = np.broadcast_to(rows[:, :, None], (*rows.shape, cols.shape[1])).reshape(size)
    cols = np.broadcast_to(cols[:, None], (len(cells), size[1] // cols.shape[1], cols.shape[1])).reshape(size)
    px, py = cols.astype(np.float32), rows.astype(np.float32)
    gx = (px + np.float32(0.5)) / np.float32(step_x) - np.float32(0.5)
    gy = (py + np.float32(0.5)) / np.float32(step_y) - np.float32(0.5)
    toward_x, toward_y = _bilinear(hole.toward_x, gx, gy), _bilinear(hole.toward_y, gx, gy)
    mx, my = gx + 2 * toward_x, gy + 2 * toward_y
    return _Spots(
        rows=rows,
        cols=cols,
        at=(gx, gy),
        mirrored=(mx, my),
        mirrored_px=(px + 2 * toward_x * np.float32(step_x), py + 2 * toward_y * np.float32(step_y)),
        # Where a mirror image would itself lie in a hole (narrow or concave known parts) there is no detail to show.
        gain=_bilinear(hole.gain, gx, gy) * _bilinear(hole.known, mx, my),
        keep=_bilinear(hole.known, gx, gy),
    )


def _pixels(cells: Ints, step: float, count: int) -> Ints:
    """(N, n) the pixels of N cells that are `step` pixels long, of a row of `count`."""
    first = np.floor(cells * step).astype(np.intp)
    # A cell that does not begin with a pixel reaches into one more.
    pixels = first[:, None] + np.arange(math.ceil(step) + (step % 1 > 0))
    return np.asarray(np.minimum(pixels, count - 1), dtype=np.intp)


def _filled(plane: Plane, smooth: FloatArray, spots: _Spots, peak: int) -> FloatArray:
    mirrored = cv2.remap(plane, *spots.mirrored_px, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    detail = mirrored.astype(np.float32) - _bilinear(smooth, *spots.mirrored)
    filled = _bilinear(smooth, *spots.at) + spots.gain * detail
    part = plane[spots.rows, spots.cols]
    mixed = np.clip(np.rint(filled + spots.keep * (part - filled)), 0, peak)
    return np.asarray(np.where(spots.keep < 1.0, mixed, part), dtype=np.float32)


def _bilinear(field: FloatArray, x: FloatArray, y: FloatArray) -> FloatArray:
    sampled = cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(sampled, dtype=np.float32)

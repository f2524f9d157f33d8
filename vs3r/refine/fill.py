"""Inpainting of what no frame saw: the surroundings mirrored over the edge, running out into a smooth continuation."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from vs3r.render.pullpush import pull_push
from vs3r.types import FloatArray, Frame, Plane, RenderedFrame

SMOOTH_CELLS = 2.5
"""Width of the Gaussian that parts what is continued smoothly from what is mirrored."""
DETAIL_REACH = 0.06
"""Distance, of the longer side, in which the mirrored detail falls to 1/e."""
DETAIL_FLOOR = 0.3
"""Detail never falls below this share: a patch without any grain is seen."""
TILE_CELLS = 16

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Hole:
    """What has to be filled, on the cells of the validity mask."""

    known: FloatArray
    """(Vh, Vw) 1 in cells that are used as they are, 0 in the hole and one cell around it."""
    toward_x: FloatArray
    """(Vh, Vw) from a cell of the hole to the nearest known cell, in cells; 0 in known cells."""
    toward_y: FloatArray
    """(Vh, Vw) likewise, down."""
    gain: FloatArray
    """(Vh, Vw) how much of the mirrored detail is shown."""


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
    hole = _hole(unknown)
    rects = _rects(unknown > 0)
    for plane in frame.planes:
        _fill_plane(plane, hole, rects, frame.format.bit_depth)
    return frame


def _hole(unknown: npt.NDArray[np.uint8]) -> _Hole:
    distance, labels = cv2.distanceTransformWithLabels(
        unknown, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    rows, cols = np.nonzero(unknown == 0)
    nearest = np.zeros((labels.max() + 1, 2), np.float32)
    nearest[labels[rows, cols]] = np.stack([cols, rows], -1)
    grid = np.stack(np.meshgrid(np.arange(unknown.shape[1]), np.arange(unknown.shape[0])), -1)
    toward = nearest[labels] - grid.astype(np.float32)
    # The nearest known cell jumps along the staircase of a slanted edge; its mean over a few cells does not.
    soft = cv2.GaussianBlur(toward, (0, 0), 1.5) * (unknown > 0)[..., None]
    reach = DETAIL_REACH * max(unknown.shape)
    gain = DETAIL_FLOOR + (1.0 - DETAIL_FLOOR) * np.exp(-distance / reach)
    return _Hole(
        known=1.0 - unknown.astype(np.float32),
        toward_x=np.ascontiguousarray(soft[..., 0], dtype=np.float32),
        toward_y=np.ascontiguousarray(soft[..., 1], dtype=np.float32),
        gain=gain.astype(np.float32),
    )


def _rects(unknown: Bools) -> list[tuple[slice, slice]]:
    """Tiles of cells with something to fill, neighbours in a row merged, grown by the cell that the feather needs."""
    grown = cv2.dilate(unknown.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    found: list[tuple[slice, slice]] = []
    for top in range(0, grown.shape[0], TILE_CELLS):
        band = slice(top, min(top + TILE_CELLS, grown.shape[0]))
        cols = np.flatnonzero(grown[band].any(axis=0))
        if cols.size:
            runs = np.split(cols, np.flatnonzero(np.diff(cols) > TILE_CELLS) + 1)
            found.extend((band, slice(int(run[0]), int(run[-1]) + 1)) for run in runs)
    return found


def _fill_plane(plane: Plane, hole: _Hole, rects: list[tuple[slice, slice]], bit_depth: int) -> None:
    rows, cols = plane.shape
    cell_rows, cell_cols = hole.known.shape
    small = cv2.resize(plane, (cell_cols, cell_rows), interpolation=cv2.INTER_AREA).astype(np.float32)
    weight = cv2.GaussianBlur(hole.known, (0, 0), SMOOTH_CELLS)
    mean = cv2.GaussianBlur(small * hole.known, (0, 0), SMOOTH_CELLS) / np.maximum(weight, 1e-6)
    smooth = pull_push(np.asarray(mean, dtype=np.float32), hole.known)
    filled_parts = []
    step_x, step_y = cols / cell_cols, rows / cell_rows
    for cells_y, cells_x in rects:
        y0, y1 = int(cells_y.start * step_y), min(rows, int(np.ceil(cells_y.stop * step_y)))
        x0, x1 = int(cells_x.start * step_x), min(cols, int(np.ceil(cells_x.stop * step_x)))
        px, py = np.meshgrid(np.arange(x0, x1, dtype=np.float32), np.arange(y0, y1, dtype=np.float32))
        gx = (px + np.float32(0.5)) / np.float32(step_x) - np.float32(0.5)
        gy = (py + np.float32(0.5)) / np.float32(step_y) - np.float32(0.5)
        toward_x, toward_y = _bilinear(hole.toward_x, gx, gy), _bilinear(hole.toward_y, gx, gy)
        mx, my = gx + 2 * toward_x, gy + 2 * toward_y
        mirrored = cv2.remap(
            plane, px + 2 * toward_x * np.float32(step_x), py + 2 * toward_y * np.float32(step_y), cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT_101,
        ).astype(np.float32)  # fmt: skip
        # Where a mirror image would itself lie in a hole (narrow or concave known parts) there is no detail to show.
        gain = _bilinear(hole.gain, gx, gy) * _bilinear(hole.known, mx, my)
        filled = _bilinear(smooth, gx, gy) + gain * (mirrored - _bilinear(smooth, mx, my))
        keep = _bilinear(hole.known, gx, gy)
        part = plane[y0:y1, x0:x1]
        mixed = np.clip(np.rint(filled + keep * (part - filled)), 0, (1 << bit_depth) - 1)
        filled_parts.append((part, np.where(keep < 1.0, mixed, part)))
    # Only now: each part looks at the picture around it.
    for part, done in filled_parts:
        part[:] = done


def _bilinear(field: FloatArray, x: FloatArray, y: FloatArray) -> FloatArray:
    sampled = cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(sampled, dtype=np.float32)

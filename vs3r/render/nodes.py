"""The coarse grid that backward maps are computed on, and how it is brought to the size of a plane.

A map from one camera to another is smooth, so it is evaluated at one node per cell of `cell_px` luma pixels and
interpolated linearly, which keeps affine maps exact. Around the picture lies one ring of nodes more, so that the outer
half cells are interpolated too instead of held. A cell is a whole number of pixels in every plane, and planes are
treated as co-located grids of cells. (Chroma that is sited left is thus mapped half a luma pixel beside its place, in
source and target alike; what remains is half a pixel times the map's departure from a shift: 0.03 px for 3 degrees of
roll.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

from vs3r.types import DoubleArray, FloatArray, PictureFormat, Plane

MOST_CELLS = 64
"""Tiles are joined to rectangles of at most so many cells: smaller ones cost more in calls than in pixels, larger ones
outgrow the cache of a core."""
SMALL_SIDE = 480
"""About the longer side of the small pictures in which sources are aligned and matched in exposure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGrid:
    """Cells of cell_px x cell_px luma pixels that cover the picture; a node at the centre of each, and a ring more."""

    width: int
    """Of the picture, in luma pixels."""
    height: int
    """Of the picture, in luma pixels."""
    small_factor: int
    """Luma pixels per pixel of the small pictures, >= 2."""
    cell_px: int
    """A multiple of small_factor and of 4 (so of every chroma subsampling)."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of cells, without the ring."""
        return -(-self.height // self.cell_px), -(-self.width // self.cell_px)

    @property
    def small_plane_shape(self) -> tuple[int, int]:
        """Rows and columns of the small pictures."""
        return -(-self.height // self.small_factor), -(-self.width // self.small_factor)

    @property
    def valid_shape(self) -> tuple[int, int]:
        """Rows and columns of the validity mask: cells of half the size."""
        half = self.cell_px // 2
        return -(-self.height // half), -(-self.width // half)

    def points(self) -> DoubleArray:
        """(rows + 2, cols + 2, 2) pixel positions of the nodes, ring included."""
        rows, cols = self.shape
        x = (np.arange(-1, cols + 1) + 0.5) * self.cell_px
        y = (np.arange(-1, rows + 1) + 0.5) * self.cell_px
        return np.stack(np.meshgrid(x, y), -1)


def make_grid(fmt: PictureFormat) -> NodeGrid:
    """The grid for pictures of a format: cells of 16 px at 1080p, 8 at 720p and below, 32 in 4K."""
    # A power of two, because OpenCV shrinks much faster by whole factors.
    small = 2 ** max(1, round(math.log2(max(fmt.width, fmt.height) / SMALL_SIDE)))
    cell = small * 4
    return NodeGrid(width=fmt.width, height=fmt.height, small_factor=small, cell_px=cell)


@dataclass(frozen=True, slots=True)
class CellRect:
    """A rectangle of cells: rows top to bottom, columns left to right, ends exclusive."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def nodes(self) -> tuple[slice, slice]:
        """Its nodes and the ring around them in a node field."""
        return slice(self.top, self.bottom + 2), slice(self.left, self.right + 2)

    def pixels(self, step_y: int, step_x: int, shape: tuple[int, int]) -> tuple[slice, slice]:
        """Its pixels in a plane of the given shape that has step_y x step_x pixels per cell."""
        return (
            slice(self.top * step_y, min(self.bottom * step_y, shape[0])),
            slice(self.left * step_x, min(self.right * step_x, shape[1])),
        )


def shrink(plane: Plane, shape: tuple[int, int]) -> Plane:
    """A plane at another size (rows, columns)."""
    larger = plane.shape[0] < shape[0] or plane.shape[1] < shape[1]
    method = cv2.INTER_LINEAR if larger else cv2.INTER_AREA
    return cast("Plane", cv2.resize(plane, shape[::-1], interpolation=method))


def expand(part: FloatArray, step_y: int, step_x: int) -> FloatArray:
    """Interpolate a node field, cut to CellRect.nodes, to the pixels of the rectangle."""
    rows, cols = part.shape[0] * step_y, part.shape[1] * step_x
    big = cv2.resize(part, (cols, rows), interpolation=cv2.INTER_LINEAR)
    return np.asarray(big[step_y : rows - step_y, step_x : cols - step_x], dtype=np.float32)


def tiles(needed: npt.NDArray[np.bool_], tile: int) -> list[CellRect]:
    """Cover the needed cells (rows, cols) with bands `tile` cells high, each cut into runs of needed tiles.

    Runs of the same columns in bands below one another are one rectangle, see MOST_CELLS.
    """
    rows, cols = needed.shape
    rects: list[CellRect] = []
    begun: dict[tuple[int, int], int] = {}  # the first row of each run's rectangle, by columns
    for top in range(0, rows, tile):
        bottom = min(top + tile, rows)
        hit = np.logical_or.reduceat(needed[top:bottom].any(axis=0), np.arange(0, cols, tile))
        ends = tile * np.flatnonzero(np.diff(hit, prepend=False, append=False))
        goes_on: dict[tuple[int, int], int] = {}
        for left, right in np.minimum(ends, cols).reshape(-1, 2).tolist():
            first = begun.get((left, right), top)
            fits = (bottom - first) * (right - left) <= MOST_CELLS
            goes_on[left, right] = begun.pop((left, right), top) if fits else top
        rects += [CellRect(first, top, *run) for run, first in begun.items()]
        begun = goes_on
    return rects + [CellRect(first, rows, *run) for run, first in begun.items()]

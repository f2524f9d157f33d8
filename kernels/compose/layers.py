"""What composing layers takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

PICTURES = (torch.uint8, torch.uint16, torch.float16)
"""What pictures may be made of."""
MAX_LAYERS = 9
SHARPNESS = -0.75
"""The free parameter of the cubic kernel; that of OpenCV."""
_DISTANCES = [abs(tap - 3.5) for tap in range(8)]
_LANCZOS = [math.sin(math.pi * d) * math.sin(math.pi * d / 4) / d**2 for d in _DISTANCES]
HALFWAY = tuple(weight / sum(_LANCZOS) for weight in _LANCZOS)
"""Weights of the eight pixels around a point halfway between two (Lanczos, four lobes)."""
FAINT = 1e-3
"""Least opacity of a layer within its border."""
HIDDEN = 1e-3
"""Where less than this comes through the layers in front, no more layers are added."""
SEEN = 1e-6
"""Where the weights sum up to no more than this, nothing shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneLayout:
    """One plane of the pictures. Planes are co-located grids of cells, a cell a whole number of pixels in each."""

    rows: int
    """Pixels, >= 1."""
    columns: int
    """Pixels, >= 1."""
    step_y: int
    """Pixels per cell, down; even."""
    step_x: int
    """Pixels per cell, across; even."""
    scale_y: int = 1
    """Luma pixels per pixel, down."""
    scale_x: int = 1
    """Luma pixels per pixel, across."""
    empty: int = 0
    """The value where no layer shows."""

    @property
    def size(self) -> int:
        """How many pixels."""
        return self.rows * self.columns

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of cells that cover the plane."""
        return -(-self.rows // self.step_y), -(-self.columns // self.step_x)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layers:
    """L pictures and where they are seen, front to back: usually the frame itself, then its neighbours.

    Fields are given at nodes, one at the centre of each cell and a ring more around them, and are linear in between:
    R and C are the rows and columns of cells plus 2.
    """

    pictures: tuple[Tensor, ...]
    """Of each layer, uint8, uint16 or float16: all planes of its source, row by row, one after the other. The first is
    doubled, (4 N,); the others are (N,)."""
    x: Tensor
    """(L, R, C) float: the position in the source that is seen, in its luma pixels; the first centre is 0.5."""
    y: Tensor
    """(L, R, C) likewise, down."""
    opacity: Tensor
    """(L, R, C) in [0, 1]."""
    margin_px: Tensor
    """(L,) distance from the source's border at which a layer begins to show, luma pixels; may be negative."""
    keep: Tensor
    """(R, C) in [0, 1]: least opacity of the first layer where it shows at all."""
    offsets: Tensor | None = None
    """(L - 1, planes, R, C) added to the values of the layers behind the first. None adds nothing."""

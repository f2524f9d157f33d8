"""Ghosts: what a neighbour shows in the hole and most others do not, because it moved there and away again."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from vs3r.render.pullpush import f32
from vs3r.types import DoubleArray, FloatArray

BoolArray = npt.NDArray[np.bool_]

MIN_WITNESSES = 5
"""Fewer sources say nothing about what is usual."""
AGREE = 0.6
"""Where less than this share of the sources agree, something moves all the time, and none of them is a ghost."""
TOLERANCE = 0.09
"""Difference of samples that still agree, of the full range: noise, shading and fits that are off by a pixel or two."""
SPREAD_NODES = 1.5
"""Width of the Gaussian that brings points to nodes."""


def find_ghosts(colours: FloatArray, shows: BoolArray) -> BoolArray:
    """Which sources disagree with what is usual at points.

    Args:
        colours: (S, N, C) samples in [0, 1] of S sources at N points.
        shows: (S, N) where a source shows the point at all.
    Returns:
        (S, N)
    """
    if len(shows) < MIN_WITNESSES:
        return np.zeros_like(shows)
    seen = np.where(shows[..., None], colours, np.nan)
    usual = _median(seen)
    # Exposure changes with time: what a source differs by everywhere is no ghost.
    level = np.nan_to_num(_median(np.swapaxes(seen - usual, 0, 1)))
    usual = _median(seen - level[:, None])
    off = np.abs(colours - level[:, None] - usual).max(axis=2) > TOLERANCE
    witnesses = shows.sum(axis=0)
    agree = (shows & ~off).sum(axis=0)
    sure = (witnesses >= MIN_WITNESSES) & (agree >= AGREE * witnesses)
    return np.asarray(shows & off & sure)


def _median(values: FloatArray) -> FloatArray:
    """Over the first axis, NaN left out: that of n is number n // 2 of the sorted ones. 0 where all are NaN."""
    ranked = np.sort(values, axis=0)
    count = (~np.isnan(values)).sum(axis=0, keepdims=True)
    middle = np.take_along_axis(ranked, np.maximum(count - 1, 0) // 2, axis=0)[0]
    return f32(np.nan_to_num(middle))


def ghost_share(points: DoubleArray, ghost: BoolArray, cell_px: int, shape: tuple[int, int]) -> FloatArray:
    """How much of what lies around each node is a ghost.

    Args:
        points: (N, 2) pixel positions in the target.
        ghost: (N,)
        cell_px: pixels per node.
        shape: rows and columns of the nodes, the ring around the picture included.
    Returns:
        (rows, cols) in [0, 1].
    """
    col, row = np.floor(points / cell_px).astype(np.int64).T + 1
    at = np.ravel_multi_index((row, col), shape)
    count, bad = (
        np.bincount(at, weights, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float32)
        for weights in (None, ghost.astype(np.float64))
    )
    total, share = (cv2.GaussianBlur(field, (0, 0), SPREAD_NODES) for field in (count, bad))
    return f32(share / np.maximum(total, 1e-6))

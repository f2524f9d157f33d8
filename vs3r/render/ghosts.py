"""Ghosts: what a neighbour shows in the hole and the clip mostly does not, because it moved there and away again.

What moves may fill the hole where it goes on from what the frame itself shows at the border of the hole. Whoever shows
something else at the border may not fill beside it: a runner who films herself would end in grass, or begin once more.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from vs3r.render.pullpush import f32
from vs3r.types import DoubleArray, FloatArray

BoolArray = npt.NDArray[np.bool_]

MIN_WITNESSES = 5
"""Fewer sources say nothing about what is usual."""
AGREE = 0.6
"""Where less than this share of the time agrees, something moves all the time, and none of it is a ghost."""
NOISE = 0.015
"""Samples agree that differ by no more than this, of the full range, or"""
SPREADS = 4.0
"""by no more than so many times what is usual there: skin stands out from a wall, from leaves that are pixels off it
need not."""
GOES_ON = 0.1
"""What moves is no ghost where it goes on: the share of the border near it where the frame itself shows the same is
larger by this than the share where either shows something else that moves."""
SEAM = 0.3
"""Off by more than this at the border, over all planes, a source shows something else than the frame itself."""
MOVING_SEAM = 0.1
"""The same where it surely moves: whoever stands before the camera hides what others show there."""
LEVEL_STEP = 4
"""Exposure is told from every so many-th point."""
SPREAD_NODES = 1.5
"""Width of the Gaussian that brings points to nodes."""


def find_ghosts(
    colours: FloatArray, shows: BoolArray, *, duration: FloatArray, border: BoolArray, near: FloatArray
) -> BoolArray:
    """Which sources disagree with what is usual at points, and do not go on from the frame itself.

    Args:
        colours: (S, N, C) samples in [0, 1] of S sources at N points. The first source is the frame itself.
        shows: (S, N) where a source shows the point at all.
        duration: (S,) of the time that each source stands for: a whole number up to 7, 0 for the frame itself.
        border: (N,) which of them the frame itself shows; the others lie in the hole.
        near: see nearness.
    Returns:
        (S, N)
    """
    if len(shows) <= MIN_WITNESSES:
        return np.zeros_like(shows)
    shows = shows.T
    weight = (shows * duration)[:, None]
    values = _levelled(np.ascontiguousarray(colours.transpose(1, 2, 0)), shows, weight)
    usual = _median(values, weight)
    off_by = np.abs(values - usual[..., None])
    tolerance = np.maximum(NOISE, SPREADS * _median(off_by, weight))
    differs = shows & (off_by > tolerance[..., None]).any(axis=1)
    agree = (weight[:, 0] * ~differs).sum(axis=1) >= AGREE * weight[:, 0].sum(axis=1)
    ghost = differs & (agree & (shows.sum(axis=1) >= MIN_WITNESSES))[:, None]
    goes_on = _continuity(values[border], usual[border, :, None], differs[border], shows[border])
    ghost[~border] &= near @ goes_on < GOES_ON
    return np.asarray(ghost.T)


def find_seams(
    colours: FloatArray, shows: BoolArray, *, moves: BoolArray, border: BoolArray, near: FloatArray
) -> BoolArray:
    """Where sources do not go on from the frame itself: at the border nearby they mostly show something else.

    Args:
        colours, shows, border, near: see find_ghosts.
        moves: (N,) where the frame itself surely shows something that moves.
    Returns:
        (S, N) none at the border itself.
    """
    seams = np.zeros_like(shows)
    if not border.any():
        return seams
    known, moves = shows[:, border], moves[border]
    off_by = np.ascontiguousarray((colours[:, border] - colours[:1, border]).transpose(0, 2, 1))
    # Of exposure: what stands still tells it, if any of it is seen.
    still = known & ~moves
    still |= known & ~still.any(axis=1, keepdims=True)
    off_by -= _median(off_by, still[:, None])[..., None]
    other = known & (np.abs(off_by).sum(axis=1) > np.where(moves, MOVING_SEAM, SEAM))
    seams[:, ~border] = f32(other - np.float32(0.5) * known) @ near.T > 0
    return seams


def find_strays(moves: BoolArray, *, border: BoolArray, near: FloatArray) -> BoolArray:
    """Where sources show what moves, and the frame itself at the border nearby mostly does not.

    Args:
        moves: (S, N) where each source shows something that moves. The first is the frame itself.
        border, near: see find_ghosts.
    Returns:
        (S, N) none at the border itself.
    """
    strays = np.zeros_like(moves)
    strays[:, ~border] = moves[:, ~border] & (near @ f32(moves[0, border]) < 0.5)
    return strays


def nearness(points: DoubleArray, border: BoolArray) -> FloatArray:
    """Weights of means by distance (Shepard 1968).

    Args:
        points: (N, 2) positions.
        border: (N,) at which of them a value is known.
    Returns:
        (H, M) of the M points at the border for each of the others; they sum to 1.
    """
    at, known = f32(points[~border]), f32(points[border])
    weight = np.square(at[:, :1] - known[:, 0])
    weight += np.square(at[:, 1:] - known[:, 1])
    weight = 1.0 / np.square(weight)
    return f32(weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-30))


def _continuity(values: FloatArray, usual: FloatArray, differs: BoolArray, shows: BoolArray) -> FloatArray:
    """(M, S) at the border: 1 where source and frame itself show the same, which is not usual; -1 where either shows
    something else that is not usual; else 0."""
    own, moves = values[..., :1], differs[:, :1]
    same = moves & (np.abs(values - own).sum(axis=1) < 0.5 * np.abs(usual - own).sum(axis=1))
    return np.where(shows & (moves | differs), np.where(same, f32(1), f32(-1)), f32(0))


def _levelled(values: FloatArray, shows: BoolArray, weight: FloatArray) -> FloatArray:
    """Without what a source differs by everywhere, for exposure changes with time."""
    part = values[::LEVEL_STEP]
    off_by = part - _median(part, weight[::LEVEL_STEP])[..., None]
    level = _median(np.ascontiguousarray(off_by.transpose(1, 2, 0)), shows[::LEVEL_STEP].T)
    return f32(values - level)


def _median(values: FloatArray, weights: npt.NDArray[Any]) -> FloatArray:
    """Weighted, over the last axis; weights are whole numbers up to 7. Any value where all weights are 0."""
    # Value and weight in one integer: numpy sorts those several times as fast as it finds an order.
    ranked = np.sort(np.rint(values * np.float32(1 << 20)).astype(np.int32) * 8 + weights.astype(np.int32), axis=-1)
    total = np.cumsum(ranked & 7, axis=-1)
    middle = (2 * total < total[..., -1:]).sum(axis=-1, keepdims=True)
    return f32(np.take_along_axis(ranked, middle, axis=-1)[..., 0] >> 3) / np.float32(1 << 20)


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

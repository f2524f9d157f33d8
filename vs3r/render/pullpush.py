"""Pull-push: extend known values smoothly over the unknown ones (Gortler et al. 1996, the Lumigraph)."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from vs3r.types import FloatArray


def f32(values: npt.ArrayLike) -> FloatArray:
    """As float32: what OpenCV works on; numpy's type rules widen too readily."""
    return np.asarray(values, dtype=np.float32)


def pull_push(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Fill a picture where its weight is small from the weighted means around, coarser the farther they are.

    Args:
        values: (H, W) or (H, W, C) float32; finite everywhere, also where unknown.
        weights: (H, W) float32 in [0, 1]; 1 keeps the value, 0 ignores it.
    Returns:
        The shape of values. All zero where no weight is positive anywhere.
    """
    stacked = values if values.ndim == 3 else values[..., None]
    sums = np.concatenate([stacked * weights[..., None], weights[..., None]], axis=2)
    filled = _fill(sums)
    return filled.reshape(values.shape)


def _fill(sums: FloatArray) -> FloatArray:
    """`sums`: (H, W, C + 1) weighted values and, last, the weight. Returns (H, W, C) values."""
    rows, cols = sums.shape[:2]
    weight = sums[..., -1:]
    if rows <= 1 and cols <= 1:
        return f32(sums[..., :-1] / np.maximum(weight, 1e-6))
    half = ((cols + 1) // 2, (rows + 1) // 2)
    small = cv2.resize(sums, half, interpolation=cv2.INTER_AREA).reshape(half[1], half[0], -1)
    # Means of four; the weight is summed (up to 1), so that a few good cells count fully one level up.
    share = np.maximum(small[..., -1:], 1e-12)
    small = small / share * np.minimum(share * 4.0, 1.0)
    small[share[..., 0] <= 1e-12] = 0.0
    coarse = _fill(f32(small))
    up = cv2.resize(coarse, (cols, rows), interpolation=cv2.INTER_LINEAR).reshape(rows, cols, -1)
    return f32(sums[..., :-1] + (1.0 - weight) * up)

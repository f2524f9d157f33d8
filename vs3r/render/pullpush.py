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
        values: (H, W) or (C, H, W) float32; finite everywhere, also where unknown.
        weights: (H, W), or the shape of values, float32 in [0, 1]; 1 keeps the value, 0 ignores it.
    Returns:
        The shape of values. All zero where no weight is positive anywhere.
    """
    return _fill(f32(values * weights), weights)


def _fill(sums: FloatArray, weight: FloatArray) -> FloatArray:
    """Values of `sums`, which are weighted values, and their weight."""
    rows, cols = sums.shape[-2:]
    if rows <= 1 and cols <= 1:
        return f32(sums / np.maximum(weight, 1e-6))
    half = ((cols + 1) // 2, (rows + 1) // 2)
    small, small_weight = _resized(sums, half, cv2.INTER_AREA), _resized(weight, half, cv2.INTER_AREA)
    # Means of four; the weight is summed (up to 1), so that a few good cells count fully one level up.
    share = np.maximum(small_weight, np.float32(1e-12))
    gain = np.where(small_weight > 1e-12, np.minimum(share * np.float32(4.0), 1.0), 0.0).astype(np.float32)
    small /= share
    small *= gain
    small_weight /= share
    small_weight *= gain
    filled = _resized(_fill(small, small_weight), (cols, rows), cv2.INTER_LINEAR)
    filled *= 1.0 - weight
    filled += sums
    return filled


def _resized(fields: FloatArray, size: tuple[int, int], method: int) -> FloatArray:
    """Fields (..., H, W) at another size (width, height)."""
    if fields.ndim == 2:
        return f32(cv2.resize(fields, size, interpolation=method))
    return np.stack([_resized(field, size, method) for field in fields])

"""Synthetic clips whose motion is known exactly."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from vs3r.metrics import Picture
from vs3r.types import DoubleArray, FloatArray

WIDTH, HEIGHT = 640, 360


def texture(seed: int = 0, width: int = 900, height: int = 640) -> Picture:
    """(height, width, 3) picture with detail at every scale and corners to follow."""
    rng = np.random.default_rng(seed)
    total: FloatArray = np.zeros((height, width, 3), dtype=np.float32)
    for octave in range(1, 7):
        cell = 2**octave
        small = rng.normal(size=(height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        total += cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC) * (0.5 + 0.25 * octave)
    total = np.asarray(cv2.GaussianBlur(total, (0, 0), 0.8), dtype=np.float32)
    total = (total - total.mean()) / total.std() * 45 + 128
    return np.asarray(np.clip(total, 0, 255), dtype=np.uint8)


def similarity(dx: float, dy: float, deg: float = 0.0, scale: float = 1.0) -> DoubleArray:
    """(3, 3) b_from_a about the picture's centre: rotate and scale, then shift by (dx, dy) pixels."""
    cos, sin = scale * np.cos(np.radians(deg)), scale * np.sin(np.radians(deg))
    cx, cy = (WIDTH - 1) / 2, (HEIGHT - 1) / 2
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    return np.asarray(_shift(cx + dx, cy + dy) @ turn @ _shift(-cx, -cy), dtype=np.float64)


def view(world: Picture, view_from_world: DoubleArray) -> Picture:
    """(HEIGHT, WIDTH, 3) what a camera sees: the texture's middle under the given transform."""
    middle = _shift(-(world.shape[1] - WIDTH) / 2, -(world.shape[0] - HEIGHT) / 2)
    seen = cv2.warpPerspective(world, view_from_world @ middle, (WIDTH, HEIGHT), flags=cv2.INTER_LANCZOS4)
    return np.asarray(seen, dtype=np.uint8)


def blur(picture: Picture, sigma: float) -> Picture:
    """Gaussian blur of `sigma` pixels."""
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), dtype=np.uint8)


def shake(count: int, px: float, deg: float, seed: int = 1) -> npt.NDArray[np.float64]:
    """(count, 3) random x, y in pixels and rotation in degrees, RMS as given per component."""
    unit = np.random.default_rng(seed).normal(size=(count, 3))
    return np.asarray(unit * np.array([px, px, deg]), dtype=np.float64)


def shaken_clip(world: Picture, path: npt.NDArray[np.float64]) -> list[Picture]:
    """One view per row of a (T, 3) path of x, y (pixels) and rotation (degrees)."""
    return [view(world, similarity(dx, dy, deg)) for dx, dy, deg in path]


def _shift(dx: float, dy: float) -> DoubleArray:
    return np.array([[1, 0, dx], [0, 1, dy], [0, 0, 1]], dtype=np.float64)

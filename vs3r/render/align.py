"""Optical flow between small pictures, and how far it can be believed: what fills is aligned by it."""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np

from vs3r.render.pullpush import f32
from vs3r.types import FloatArray, Plane

MIN_SIDE = 48
"""Small pictures below this are not aligned: the flow needs room for its patches."""


def find_flow(a: Plane, b: Plane, *, finest_scale: int) -> FloatArray:
    """Optical flow (h, w, 2) of two small 8-bit pictures: a(x) is b(x + flow).

    Args:
        a, b: (h, w)
        finest_scale: halvings of the pictures at which the search ends; one more takes a quarter of the time.
    """
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    dis.setFinestScale(finest_scale)
    # Averages over many patches are used, not single vectors: fewer patches and steps than usual measure as well.
    dis.setPatchStride(5)
    dis.setGradientDescentIterations(10)
    return f32(dis.calc(a, b, np.zeros((*a.shape, 2), np.float32)))


def flow_trust(a: Plane, b: Plane, flow: FloatArray) -> FloatArray:
    """(h, w) in [0, 1]: high where there is texture, and the flow leads to the same."""
    rows, cols = a.shape
    x, y = np.arange(cols, dtype=np.float32), np.arange(rows, dtype=np.float32)[:, None]
    met = cv2.remap(b, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR)
    # Structure, not brightness: that is compared after the shift.
    structure = _structure(a)
    error = cv2.blur(np.abs(structure - _structure(cast("Plane", met))), (7, 7))
    texture = cv2.blur(np.abs(structure), (7, 7))
    return f32(texture / (texture + 2.0) * np.exp(-np.square(error / (0.35 * texture + 1.5))))


def _structure(picture: Plane) -> FloatArray:
    """What differs from its surroundings."""
    fine = f32(picture)
    return f32(fine - cv2.blur(fine, (9, 9)))

"""How a lens bends the picture: the division model of radial distortion (Fitzgibbon, CVPR 2001).

What a pinhole camera would show at m, in focal lengths from the middle of the picture, a lens of distortion k <= 0
shows at d with m = d / (1 + k |d|^2). With k = 0 it is a pinhole, with -1/4 the stereographic projection.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

Values = TypeVar("Values", Tensor, npt.NDArray[np.floating[Any]])

RECTILINEAR, FISHEYE = 0.0, -0.3
"""Distortion of the lenses that ReconstructConfig.lens names. Action cameras lie between the stereographic projection
and the equidistant one, which is near -1/3."""

LEAST = 1e-3
"""Of 1 + k |d|^2: where it is less, the lens shows what no pinhole camera can."""
MOST = 1e30
"""Of |m|^2 in float32: points that come out somewhere far beyond the picture, wherever that is."""


def straightened(distortion: float | Values, r2: Values) -> Values:
    """|m| / |d| of what is shown at |d|^2 = r2."""
    return 1 / (1 + distortion * r2).clip(min=LEAST)


def bent(distortion: float | Values, r2: Values) -> Values:
    """|d| / |m| of what a pinhole camera would show at |m|^2 = r2."""
    return 2 / (1 + (1 - 4 * distortion * r2.clip(max=MOST)) ** 0.5)

"""A plane doubled, against a wave whose values between pixels are known."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest

from vs3r.render.layers import doubled
from vs3r.types import DoubleArray, Plane


def wave(y: DoubleArray, x: DoubleArray) -> DoubleArray:
    """In [0.1, 0.9], of 5 and 7 pixels."""
    return np.asarray(0.5 + 0.2 * np.sin(2 * np.pi * x / 5) + 0.2 * np.cos(2 * np.pi * y / 7))


@pytest.mark.parametrize(("dtype", "peak", "error"), [(np.uint8, 255, 1.3), (np.uint16, 65535, 250.0)])
def test_between_pixels_lies_what_a_wave_has_there(dtype: type[np.uint8 | np.uint16], peak: int, error: float) -> None:
    """Within 0.4 % of the range, and rounding."""
    y, x = np.mgrid[:41, :60].astype(np.float64)
    plane = cast("Plane", np.rint(peak * wave(y, x)).astype(dtype))
    found = doubled(plane)
    np.testing.assert_array_equal(found[::2, ::2], plane)
    fine_y, fine_x = np.mgrid[:82, :120] / 2
    inner = slice(10, -10), slice(10, -10)
    assert np.abs(found - peak * wave(fine_y, fine_x))[inner].max() < error


def test_the_border_is_repeated_outward() -> None:
    np.testing.assert_array_equal(doubled(np.full((1, 1), 77, np.uint8)), np.full((2, 2), 77))
    step = doubled(np.array([[0, 200]], np.uint8))
    np.testing.assert_array_equal(step[0, 2:], [200, step[0, 3]])
    assert step[0, 1] == 100 and step[0, 3] > 200

"""The jelly of a rolling shutter: what its regression shows of a known read-out."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.wobble import excess, wobble


@pytest.mark.parametrize("radians", [0.3, 0.9, 1.5])
def test_slopes_exceed_the_read_out_by_what_is_told(radians: float) -> None:
    readout_frames = 0.6
    times = np.arange(200.0)
    place = np.sin(radians * times), 2.0 * np.cos(radians * times)
    speed = radians * np.cos(radians * times), -2.0 * radians * np.sin(radians * times)
    motions = np.stack([*np.diff(place, axis=1), *(readout_frames * np.diff(speed, axis=1))], -1)
    expected = radians / np.sin(radians)
    assert excess(motions) == pytest.approx((expected, expected), rel=0.01)
    assert wobble(motions, motions) == pytest.approx((readout_frames * expected,) * 2, rel=0.01)

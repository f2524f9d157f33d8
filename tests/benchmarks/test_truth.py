"""The motion of a video against the true stable view."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from benchmarks.truth import U8, FastMotion, fast_motion
from tests.scenes import Footage

FPS, FRAMES, SIZE = 30.0, 60, (192, 144)
SHAKE = 2.0 * np.sin(2 * np.pi * 5 / FPS * np.arange(FRAMES))
CHOICE = 12.0 * np.sin(2 * np.pi * 1.2 / FPS * np.arange(FRAMES))


@pytest.fixture(scope="module")
def still() -> Footage:
    noise = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
    picture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 1.5), None, 0, 255, cv2.NORM_MINMAX)  # type: ignore[call-overload]
    nothing = np.zeros((FRAMES, SIZE[1], SIZE[0]))
    return Footage(
        rgb=np.repeat(picture[None], FRAMES, 0),
        depth=nothing.astype(np.float32),
        object_id=nothing.astype(np.int32),
        moving=nothing.astype(bool),
    )


def moved(still: Footage, across: np.ndarray) -> FastMotion:
    def pictures() -> list[U8]:
        grey = cv2.cvtColor(still.rgb[0], cv2.COLOR_RGB2GRAY)
        shifts = (np.array([[1.0, 0.0, shift], [0.0, 1.0, 0.0]]) for shift in across)
        return [cv2.warpAffine(grey, shift, SIZE, flags=cv2.INTER_CUBIC) for shift in shifts]  # type: ignore[misc]

    return fast_motion(still, pictures(), fps=FPS)


def test_shake_counts_and_slow_motion_does_not(still: Footage) -> None:
    drift = np.linspace(-10, 10, FRAMES)
    assert moved(still, SHAKE).px == pytest.approx(2.0 / np.sqrt(2), rel=0.05)
    assert moved(still, SHAKE + drift).px == pytest.approx(2.0 / np.sqrt(2), rel=0.05)
    assert moved(still, drift).px < 0.05


def test_a_path_of_ones_own_choice_is_not_shake(still: Footage) -> None:
    both, chosen = moved(still, CHOICE + SHAKE), moved(still, CHOICE)
    assert chosen.px > 4
    assert (both - chosen).px == pytest.approx(2.0 / np.sqrt(2), rel=0.05)

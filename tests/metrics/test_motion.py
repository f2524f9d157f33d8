"""Global motion and jitter against exactly known motion."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.metrics.scenes import HEIGHT, WIDTH, blur, shake, shaken_clip, similarity, texture, view
from vs3r.metrics import GlobalMotion, Picture, jitter, jitter_ratio
from vs3r.metrics.motion import as_motion, fit_similarity
from vs3r.metrics.picture import to_grey
from vs3r.types import DoubleArray

# Worst RMS errors seen: 0.0090 px (1280 wide) and 0.0012 degrees; with noise of 4 grey levels 0.015 and 0.0018.
TOLERANCE_PX, TOLERANCE_DEG = 0.03, 0.004
REPORT = 1280 / WIDTH


def measured(clip: list[Picture]) -> DoubleArray:
    tracker = GlobalMotion()
    steps = [tracker.push(to_grey(picture)) for picture in clip]
    assert steps[0] is None
    return np.array(steps[1:], dtype=np.float64)


def true_motion(path: DoubleArray) -> DoubleArray:
    centre = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2, 1])
    rows = []
    for before, after in itertools.pairwise(path):
        step = similarity(*after) @ np.linalg.inv(similarity(*before))
        shift = (step @ centre - centre)[:2] * REPORT
        rows.append([shift[0], shift[1], np.degrees(np.arctan2(step[1, 0], step[0, 0]))])
    return np.array(rows)


@pytest.mark.parametrize(("px", "deg"), [(0.0, 0.0), (0.05, 0.005), (0.5, 0.05), (3.0, 0.3), (12.0, 1.0)])
@pytest.mark.parametrize("noise", [0.0, 4.0])
def test_motion_is_exact(px: float, deg: float, noise: float) -> None:
    path = shake(10, px, deg) + np.linspace(0, 1, 10)[:, None] * np.array([18, 6, 1.2])
    clip = shaken_clip(texture(), path)
    rng = np.random.default_rng(5)
    clip = [np.clip(p + rng.normal(size=p.shape) * noise, 0, 255).astype(np.uint8) for p in clip]
    motion, truth = measured(clip), true_motion(path)
    error = motion - truth
    assert np.sqrt((error[:, :2] ** 2).sum(axis=1).mean()) < TOLERANCE_PX
    assert np.sqrt((error[:, 2] ** 2).mean()) < TOLERANCE_DEG
    got, want = jitter(motion), jitter(truth)
    assert got is not None and want is not None
    assert got.px == pytest.approx(want.px, abs=2 * TOLERANCE_PX)
    assert got.deg == pytest.approx(want.deg, abs=2 * TOLERANCE_DEG)


def test_still_clip_has_no_jitter() -> None:
    still = view(texture(), similarity(0, 0))
    found = jitter(measured([still] * 4))
    assert found is not None
    assert found.px < 1e-6 and found.deg < 1e-6


def test_moving_object_does_not_count() -> None:
    """A third of the picture moves on its own; the background decides."""
    background, thing = view(texture(), similarity(0, 0)), texture(seed=7)
    clip = []
    for offset in (0, 9, 3, 14, 6):
        picture = background.copy()
        picture[60:300, 180:420] = thing[100:340, 200 + offset : 440 + offset]
        clip.append(picture)
    found = jitter(measured(clip))
    assert found is not None
    assert found.px < 0.3  # seen: 0.13; the object's own is 17


def test_shaking_black_border_does_not_count() -> None:
    still = view(texture(), similarity(0, 0))
    clip = []
    for left in (20, 90, 40, 120, 70):
        picture = still.copy()
        picture[:, :left] = 0
        picture[-left // 2 :] = 0
        clip.append(picture)
    found = jitter(measured(clip))
    assert found is not None
    assert found.px < 0.05


def test_scene_cut_is_left_out() -> None:
    path = np.array([[0.0, 0, 0], [2, 0, 0], [4, 0, 0]])
    clip = shaken_clip(texture(0), path) + shaken_clip(texture(3), path)
    motion = measured(clip)
    assert np.isnan(motion).all(axis=1).tolist() == [False, False, True, False, False]
    found = jitter(motion)
    assert found is not None
    assert found.px < 2 * TOLERANCE_PX


def test_untrackable_pictures() -> None:
    flat = np.full((HEIGHT, WIDTH), 90, np.uint8)
    motion = measured([flat, flat, flat])
    assert np.isnan(motion).all()
    assert jitter(motion) is None
    tiny = np.zeros((16, 16), np.uint8)
    assert np.isnan(measured([tiny, tiny])).all()
    assert jitter(np.zeros((0, 3))) is None


def test_survives_blur() -> None:
    path = shake(6, 3.0, 0.3)
    clip = [blur(picture, 2.5) for picture in shaken_clip(texture(), path)]
    got, want = jitter(measured(clip)), jitter(true_motion(path))
    assert got is not None and want is not None
    assert got.px == pytest.approx(want.px, rel=0.02)


def test_jitter_formula() -> None:
    """Second difference of a path 0, 1, 3, 3 px: steps 1, 2, 0; differences 1, -2; RMS sqrt(2.5)."""
    motion = np.array([[1.0, 0, 0.5], [2, 0, 0.5], [0, 0, 1.5]])
    found = jitter(motion)
    assert found is not None
    assert found.px == pytest.approx(np.sqrt(2.5))
    assert found.deg == pytest.approx(np.sqrt(0.5))


def test_ratio_uses_common_frames() -> None:
    source = np.array([[0.0, 0, 0], [4, 0, 4], [0, 0, 0], [np.nan] * 3, [0, 0, 0], [4, 0, 4]])
    output = source / 4
    output[1] = np.nan  # two of the source's three differences fall away
    ratio = jitter_ratio(output, source)
    assert ratio is not None
    assert (ratio.px, ratio.deg) == (0.25, 0.25)
    assert jitter_ratio(output, np.zeros_like(source)) is None
    assert jitter_ratio(output[:0], source) is None


def test_fit_similarity_with_outliers() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(-200, 200, size=(200, 2))
    angle = np.radians(3)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    q = 1.1 * p @ turn.T + [7, -4]
    q[:60] += rng.uniform(15, 60, size=(60, 2))
    found = fit_similarity(p, q)
    assert found is not None
    assert found == pytest.approx([7, -4, 3], abs=0.02)
    assert fit_similarity(p, rng.uniform(-200, 200, size=(200, 2))) is None


def test_irregular_intervals_are_not_shake() -> None:
    """A steady pan with a dropped frame: twice the way in twice the time."""
    steps = [np.array([3.0, 0.0, 0.0])] * 10
    steps[4] = np.array([6.0, 0.0, 0.0])
    pts_s = [0.04 * i for i in (0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11)]
    left = jitter(as_motion(steps, pts_s))
    assert left is not None and left.px == 0
    naive = jitter(as_motion(steps))
    assert naive is not None and naive.px > 1

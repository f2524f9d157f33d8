"""Global motion and jitter against exactly known motion."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.metrics.scenes import HEIGHT, WIDTH, blur, shake, shaken_clip, similarity, texture, view
from vs3r.metrics import GlobalMotion, Picture, jitter, jitter_ratio
from vs3r.metrics.motion import Moved, fit_change, fit_similarity, path_of
from vs3r.metrics.picture import to_grey
from vs3r.types import DoubleArray

# Worst RMS errors seen: 0.0090 px (1280 wide) and 0.0012 degrees; with noise of 4 grey levels 0.015 and 0.0018.
TOLERANCE_PX, TOLERANCE_DEG = 0.03, 0.004
REPORT = 1280 / WIDTH


def measured(clip: list[Picture]) -> tuple[DoubleArray, DoubleArray]:
    tracker = GlobalMotion()
    first, *moves = [tracker.push(to_grey(picture)) for picture in clip]
    assert first is None
    return path_of([move for move in moves if move is not None])


def step_of(after_from_before: DoubleArray) -> DoubleArray:
    centre = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2, 1])
    shift = (after_from_before @ centre - centre)[:2] * REPORT
    return np.array([*shift, np.degrees(np.arctan2(after_from_before[1, 0], after_from_before[0, 0]))])


def true_motion(path: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
    views = [similarity(*row) for row in path]
    steps = [step_of(after @ np.linalg.inv(before)) for before, after in itertools.pairwise(views)]
    back = [step_of(before @ np.linalg.inv(after)) for before, after in itertools.pairwise(views)]
    return np.array(steps), np.array(steps[1:]) + np.array(back[:-1])


@pytest.mark.parametrize(("px", "deg"), [(0.0, 0.0), (0.05, 0.005), (0.5, 0.05), (3.0, 0.3), (12.0, 1.0)])
@pytest.mark.parametrize("noise", [0.0, 4.0])
def test_motion_is_exact(px: float, deg: float, noise: float) -> None:
    path = shake(10, px, deg) + np.linspace(0, 1, 10)[:, None] * np.array([18, 6, 1.2])
    clip = shaken_clip(texture(), path)
    rng = np.random.default_rng(5)
    clip = [np.clip(p + rng.normal(size=p.shape) * noise, 0, 255).astype(np.uint8) for p in clip]
    for found, truth, tolerance in zip(measured(clip), true_motion(path), (1, 2), strict=True):
        error = found - truth
        assert np.sqrt((error[:, :2] ** 2).sum(axis=1).mean()) < tolerance * TOLERANCE_PX
        assert np.sqrt((error[:, 2] ** 2).mean()) < tolerance * TOLERANCE_DEG


def test_still_clip_has_no_jitter() -> None:
    still = view(texture(), similarity(0, 0))
    found = jitter(measured([still] * 4)[1])
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
    found = jitter(measured(clip)[1])
    assert found is not None
    assert found.px < 0.3  # seen: 0.13; the object's own is 17


def test_two_layers_that_move_steadily_do_not_shake() -> None:
    """A crowd that walks out of the picture: first it, then the wall behind has more corners, and neither shakes."""
    near, far = texture(seed=7), texture()
    clip = []
    for n in range(9):
        picture = view(far, similarity(2.0 * n, 0))
        half = 100 + 20 * n
        picture[half:] = view(near, similarity(-5.0 * n, 0))[half:]
        clip.append(picture)
    steps, changes = measured(clip)
    assert np.ptp(steps[:, 0]) > 5 * REPORT  # measured step by step the one and the other are followed
    found = jitter(changes)
    assert found is not None
    assert found.px < 0.3


def test_shaking_black_border_does_not_count() -> None:
    still = view(texture(), similarity(0, 0))
    clip = []
    for left in (20, 90, 40, 120, 70):
        picture = still.copy()
        picture[:, :left] = 0
        picture[-left // 2 :] = 0
        clip.append(picture)
    found = jitter(measured(clip)[1])
    assert found is not None
    assert found.px < 0.05


def test_scene_cut_is_left_out() -> None:
    path = np.array([[0.0, 0, 0], [2, 0, 0], [4, 0, 0]])
    clip = shaken_clip(texture(0), path) + shaken_clip(texture(3), path)
    motion, change = measured(clip)
    assert np.isnan(motion).all(axis=1).tolist() == [False, False, True, False, False]
    assert np.isnan(change).all(axis=1).tolist() == [False, True, True, False]
    found = jitter(change)
    assert found is not None
    assert found.px < 2 * TOLERANCE_PX


def test_untrackable_pictures() -> None:
    flat = np.full((HEIGHT, WIDTH), 90, np.uint8)
    motion, change = measured([flat, flat, flat])
    assert np.isnan(motion).all() and np.isnan(change).all()
    assert jitter(change) is None
    tiny = np.zeros((16, 16), np.uint8)
    assert np.isnan(measured([tiny, tiny])[0]).all()
    assert jitter(np.zeros((0, 3))) is None


def test_survives_blur() -> None:
    path = shake(6, 3.0, 0.3)
    clip = [blur(picture, 2.5) for picture in shaken_clip(texture(), path)]
    got, want = jitter(measured(clip)[1]), jitter(true_motion(path)[1])
    assert got is not None and want is not None
    assert got.px == pytest.approx(want.px, rel=0.02)


def test_jitter_formula() -> None:
    """Changes of 1 and -2 px: RMS sqrt(2.5)."""
    found = jitter(np.array([[1.0, 0, 0], [0, -2, 1.0], [np.nan] * 3]))
    assert found is not None
    assert found.px == pytest.approx(np.sqrt(2.5))
    assert found.deg == pytest.approx(np.sqrt(0.5))


def test_ratio_uses_common_frames() -> None:
    source = np.array([[4.0, 0, 4], [-4, 0, -4], [np.nan] * 3, [4, 0, 4]])
    output = source / 4
    output[1] = np.nan
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


def test_change_is_that_of_the_points_that_agree_on_both_steps() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(-200, 200, size=(200, 2))
    past, future = p - [3, 1], p + [5, 1]
    # A quarter moves with the rest at first, another afterwards; each would tip a step measured by itself.
    past[:50] += [1.5, 0]
    future[50:100] += [0, 1.5]
    found = fit_change(p, past, future)
    assert found is not None
    assert found[:2] == pytest.approx([2, 0], abs=0.3)
    assert found[2] == pytest.approx(0, abs=0.05)


def test_irregular_intervals_are_not_shake() -> None:
    """A steady pan with a dropped frame: twice the way in twice the time."""
    x = np.full(10, 3.0)
    x[4] = 6.0
    changes = np.diff(x, prepend=np.nan)
    moves = [
        Moved(step=np.array([a, 0.0, 0.0]), change=np.array([b, 0.0, 0.0])) for a, b in zip(x, changes, strict=True)
    ]
    pts_s = [0.04 * i for i in (0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11)]
    left = jitter(path_of(moves, pts_s)[1])
    assert left is not None and left.px < 1e-9
    naive = jitter(path_of(moves)[1])
    assert naive is not None and naive.px > 1
    # A frame that comes a fifth early, of the same pan.
    x[4], x[5] = 2.4, 3.6
    changes = np.diff(x, prepend=np.nan)
    moves = [
        Moved(step=np.array([a, 0.0, 0.0]), change=np.array([b, 0.0, 0.0])) for a, b in zip(x, changes, strict=True)
    ]
    left = jitter(path_of(moves, [0.04 * i for i in (0, 1, 2, 3, 4, 4.8, 6, 7, 8, 9, 10)])[1])
    assert left is not None and left.px < 1e-9

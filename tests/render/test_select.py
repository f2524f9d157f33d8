"""Which neighbours fill the hole, and in which order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tests.render.plane_world import intrinsics, make_format, pose, source
from vs3r.render.select import Aim, Chooser, candidates
from vs3r.render.warp import SourceFrame

FMT = make_format("yuv444p", 480, 272)


def frames(moving: tuple[int, ...]) -> dict[int, SourceFrame]:
    """Frame 10 sees less on the right than its neighbours; in the right half of some of those, something moves."""
    found = {index: source(FMT, pose(0.0 if index == 10 else 8.0), index) for index in (9, 10, 12)}
    for index in moving:
        geometry = found[index].geometry
        dynamic = np.zeros_like(geometry.dynamic)
        dynamic[:, dynamic.shape[1] // 2 :] = 1.0
        found[index] = replace(found[index], geometry=replace(geometry, dynamic=dynamic))
    return found


def chooser(sources: dict[int, SourceFrame], spare: int) -> tuple[Chooser, int]:
    """For a view that sees 30 columns more on the right than frame 10 does; and the number of points of the hole."""
    x, y = np.meshgrid(np.arange(400.0, 480, 8), np.arange(4.0, 272, 8))
    points = np.stack([x.ravel(), y.ravel()], 1)
    K, view = intrinsics(FMT), pose(4.0)
    rays = np.concatenate([(points - K[:2, 2]) / K[[0, 1], [0, 1]], np.ones((len(points), 1))], 1)
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    aim = Aim(points=points, rays=rays, border=points[:, 0] < 440)
    made = Chooser(10, aim, view, sources, window=5, worth=1e-3, spare=spare)
    return made, int((~aim.border).sum())


def test_what_stands_still_comes_first() -> None:
    made, count = chooser(frames(moving=(9,)), spare=1)
    found = made.best()
    assert found is not None and found[0] == 12, "farther away, but 9 shows what moves"
    assert not found[1].any()
    made.filled(np.ones(count, np.bool_))
    assert made.best() is None


def test_what_moves_comes_last() -> None:
    made, count = chooser(frames(moving=(9, 12)), spare=1)
    found = made.best()
    assert found is not None and found[0] == 9 and not found[1].any()
    made.filled(np.zeros(count, np.bool_))
    following = made.best()
    assert following is not None and following[0] == 12
    made.filled(np.zeros(count, np.bool_))
    assert made.best() is None, "each is returned once in a round"
    assert chooser(frames(moving=(9, 12)), spare=0)[0].best() is None


def test_what_shows_nothing_of_the_scene_neither_fills_nor_is_filled() -> None:
    sources = frames(moving=(9,))
    assert candidates(10, sources, 5) == [9, 12], "the half of 9 that stands still"
    geometry = sources[9].geometry
    flash = replace(sources[9], geometry=replace(geometry, dynamic=np.ones_like(geometry.dynamic)))
    assert candidates(10, sources | {9: flash}, 5) == [12]
    assert candidates(9, sources | {9: flash}, 5) == []

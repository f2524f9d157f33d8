"""Things that pass through the hole in a few neighbours, against what is there all the time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tests.render.plane_world import F64, depth_at, intrinsics, make_format, picture, pose, psnr, source
from vs3r.config import RenderConfig
from vs3r.render import SourceFrame, WarpRenderer, ghosts
from vs3r.render.ghosts import find_ghosts, find_seams, find_strays, ghost_share, nearness
from vs3r.types import PictureFormat, Plane, VirtualCamera

COLUMNS = np.tile(np.arange(60.0), 2)
BORDER = np.arange(120) < 60
NEAR = nearness(np.stack([COLUMNS, np.where(BORDER, 0.0, 3.0)], 1), BORDER)
"""60 points of the border above as many of the hole."""


@pytest.mark.parametrize(
    ("sources", "passing", "found"),
    [(9, range(1, 4), True), (9, range(1, 6), False), (9, (1, 2, 3, 8), True), (4, range(1, 2), False)],
)
@pytest.mark.parametrize("colour", [(0.9, 0.1, 0.1), (0.5, 0.5, 0.56)])
def test_what_is_seldom_shown_is_a_ghost(
    sources: int, passing: Sequence[int], found: bool, colour: tuple[float, float, float]
) -> None:
    """As bright as what is behind it, too; and many frames of a short time are few."""
    rng = np.random.default_rng(0)
    colours = np.tile(rng.uniform(0.2, 0.8, (60, 3)), (sources + 1, 1, 1)) + rng.normal(0, 2e-3, (sources + 1, 60, 3))
    colours[:, :20] = 0.5
    colours += np.linspace(-0.05, 0.05, sources + 1)[:, None, None]  # exposure
    shows = rng.uniform(size=(sources + 1, 60)) < 0.9
    shows[:, :20] = True
    shows[0] = False
    duration = np.array([0.0] + [1.0 if passing == (1, 2, 3, 8) and i < 4 else 4.0 for i in range(sources)])
    thing = np.zeros((sources + 1, 60), np.bool_)
    thing[np.asarray(passing), 5:12] = True
    exposure = np.linspace(-0.05, 0.05, sources + 1)[:, None]
    colours[thing] = np.asarray(colour) + np.broadcast_to(exposure, thing.shape)[thing][:, None]
    found_ones = find_ghosts(
        colours.astype(np.float32),
        shows,
        duration=duration.astype(np.float32),
        border=np.zeros(60, np.bool_),
        near=np.zeros((60, 0), np.float32),
    )
    np.testing.assert_array_equal(found_ones, thing if found else np.zeros_like(thing))


@pytest.mark.parametrize("exposure", [0.0, 0.2])
def test_beside_what_a_source_does_not_show_it_shows_nothing(exposure: float) -> None:
    """In the middle the frame has a runner where one source has grass."""
    colours = np.tile(np.random.default_rng(0).uniform(0.3, 0.5, (120, 3)), (3, 1, 1))
    colours[2, 20:40] += [0.2, -0.1, 0.1]
    colours[1:] += exposure
    shows = np.ones((3, 120), np.bool_)
    shows[0] = BORDER
    shows[1, 30:50] = False  # what a source does not see it cannot deny
    still = np.zeros(120, np.bool_)
    seams = find_seams(colours.astype(np.float32), shows, moves=still, border=BORDER, near=NEAR)
    assert not seams[:2].any()
    assert not seams[:, BORDER].any()
    assert seams[2, 60 + 21 : 60 + 39].all()
    assert not seams[2, 60 : 60 + 19].any()
    assert not seams[2, 60 + 41 :].any()


@pytest.mark.parametrize("exposure", [0.0, 0.2])
def test_what_stands_still_does_not_end_what_moves(exposure: float) -> None:
    """A white shirt over most of the border, before a road that is nearly as bright."""
    colours = np.tile(np.random.default_rng(0).uniform(0.6, 0.62, (120, 3)), (2, 1, 1))
    moves = (COLUMNS >= 15) & BORDER
    colours[0, moves] += [0.15, 0.03, 0.03]
    colours[1] += exposure
    shows = np.array([BORDER, np.ones(120, np.bool_)])
    seams = find_seams(colours.astype(np.float32), shows, moves=moves, border=BORDER, near=NEAR)
    assert seams[1, 60 + 16 :].all() and not seams[1, : 60 + 14].any()
    # The same colours where nothing is known to move: parallax, or a wet road.
    still = np.zeros(120, np.bool_)
    assert not find_seams(colours.astype(np.float32), shows, moves=still, border=BORDER, near=NEAR)[1, :75].any()


def test_what_moves_may_not_appear_beside_what_stands_still() -> None:
    """A face in one source, half of it beside the frame's own shoulder."""
    moves = np.zeros((3, 120), np.bool_)
    moves[0, :30] = True
    moves[2, 60 + 20 : 60 + 45] = True
    strays = find_strays(moves, border=BORDER, near=NEAR)
    assert strays[2, 60 + 32 : 60 + 45].all()
    assert not strays[:2].any() and not strays[2, : 60 + 28].any() and not strays[2, 60 + 45 :].any()


def test_without_a_border_there_are_no_seams() -> None:
    """The frame itself shows nothing at all."""
    border = np.zeros(5, np.bool_)
    colours, shows = np.zeros((3, 5, 3), np.float32), np.ones((3, 5), np.bool_)
    near = nearness(np.zeros((5, 2)), border)
    assert not find_seams(colours, shows, moves=border, border=border, near=near).any()
    assert find_strays(shows, border=border, near=near).all(), "nothing of it goes on from the frame itself"


def test_share_around_nodes() -> None:
    x, y = np.meshgrid(np.arange(2, 160, 4.0), np.arange(2, 96, 4.0))
    points = np.stack([x.ravel(), y.ravel()], 1)
    share = ghost_share(points, points[:, 0] > 80, 8, (14, 22))
    assert share.shape == (14, 22)
    assert share[:, :5].max() < 0.01 < 0.99 < share[:, 17:].min()


def test_a_passing_thing_does_not_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disc that two neighbours show where the frame itself sees nothing."""
    fmt = make_format("yuv420p", 480, 270)
    own = pose(2.0, -1.0, 1.5, (0.05, 0.03, 0.0))
    # Seen from a little behind, the hole and all around it.
    around = {i: pose(-4 + 0.1 * i, 1.0 - 0.05 * i, 0.05 * i, (0.0, 0.0, -0.3)) for i in (8, 9, 11, 12, 16, 20, 24, 28)}
    frames = {i: source(fmt, p, i) for i, p in {10: own, **around}.items()}
    camera = VirtualCamera(K=intrinsics(fmt), cam_from_world=pose(-1.0, 1.0, 0.0))
    truth = picture(fmt, camera.K, camera.cam_from_world)[0]

    def rendered(frames: dict[int, SourceFrame]) -> float:
        result = WarpRenderer(fmt, RenderConfig()).render(10, camera, frames)
        assert result.valid_share > 0.999 > result.own_share
        return psnr(result.frame.planes[0], truth, np.ones(truth.shape, np.bool_))

    clean = rendered(frames)
    for number in (9, 11):
        frames[number] = with_disc(frames[number])
    assert rendered(frames) > clean - 0.5
    del frames[16], frames[20], frames[24], frames[28]
    assert rendered(frames) > clean - 0.5, "without witnesses: the frame itself has none at the border"
    monkeypatch.setattr(ghosts, "SEAM", 9.0)
    assert rendered(frames) < clean - 3, "the test sees the disc"


@pytest.mark.parametrize("goes_on", [True, False])
def test_what_moves_fills_where_it_goes_on(goes_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A beam as bright as the wall, whose end the frame itself shows at its border, or does not."""
    fmt = make_format("yuv420p", 480, 270)
    numbers = (8, 9, 10, 11, 12, *range(16, 44, 4))
    own = pose(2.0, -1.0, 1.5, (0.05, 0.03, 0.0))
    around = {i: pose(-4 + 0.1 * i, 1.0 - 0.05 * i, 0.05 * i, (0.0, 0.0, -0.3)) for i in numbers}
    frames = {i: source(fmt, p, i) for i, p in {**around, 10: own}.items()}
    camera = VirtualCamera(K=intrinsics(fmt), cam_from_world=pose(-1.0, 1.0, 0.0))
    for i in (8, 9, 10, 11, 12):
        if i != 10 or goes_on:
            planes = with_beam(fmt, frames[i].frame.planes, frames[i].geometry.cam_from_world)
            frames[i] = replace(frames[i], frame=replace(frames[i].frame, planes=planes))
    truth = picture(fmt, camera.K, camera.cam_from_world)
    beam = with_beam(fmt, truth, camera.cam_from_world)
    hole = beam[1] != truth[1]

    def rendered() -> float:
        result = WarpRenderer(fmt, RenderConfig(fill_window_frames=40)).render(10, camera, frames)
        assert result.valid_share > 0.999 > result.own_share
        return psnr(result.frame.planes[1], (beam if goes_on else truth)[1], hole)

    assert rendered() > 38
    monkeypatch.setattr(ghosts, "GOES_ON", 2.0 if goes_on else -2.0)
    assert rendered() < 29, "the test sees what goes on"


def with_beam(fmt: PictureFormat, planes: tuple[Plane, ...], cam_from_world: F64) -> tuple[Plane, ...]:
    """Chroma 20 levels off on a beam across the left border."""
    rows, cols = fmt.plane_shape(1)
    x, y = np.meshgrid((np.arange(cols) + 0.5) * 2, (np.arange(rows) + 0.5) * 2)
    _, points = depth_at(intrinsics(fmt), cam_from_world, x, y)
    on_beam = (np.abs(points[..., 1] - 0.1) < 0.35) & (points[..., 0] < -1.6)
    return planes[0], np.where(on_beam, planes[1] + 20, planes[1]).astype(np.uint8), planes[2]


def with_disc(frame: SourceFrame) -> SourceFrame:
    luma = frame.frame.planes[0].copy()
    y, x = np.mgrid[: luma.shape[0], : luma.shape[1]]
    luma[(x - 15) ** 2 + (y - 135) ** 2 < 60**2] = 255
    return replace(frame, frame=replace(frame.frame, planes=(luma, *frame.frame.planes[1:])))

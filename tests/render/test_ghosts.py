"""Things that pass through the hole in a few neighbours, against what is there all the time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.render.plane_world import intrinsics, make_format, picture, pose, psnr, source
from vs3r.config import RenderConfig
from vs3r.render import SourceFrame, WarpRenderer
from vs3r.render.ghosts import find_ghosts, ghost_share
from vs3r.types import VirtualCamera


@pytest.mark.parametrize(("sources", "passing", "found"), [(9, 3, True), (9, 5, False), (4, 1, False)])
def test_what_few_of_many_show_is_a_ghost(sources: int, passing: int, found: bool) -> None:
    rng = np.random.default_rng(0)
    colours = np.tile(rng.uniform(0.2, 0.8, (60, 3)), (sources, 1, 1)) + rng.normal(0, 0.01, (sources, 60, 3))
    colours += np.linspace(-0.05, 0.05, sources)[:, None, None]  # exposure
    shows = rng.uniform(size=(sources, 60)) < 0.9
    shows[:, :20] = True
    thing = np.zeros((sources, 60), np.bool_)
    thing[:passing, 5:12] = True
    colours[thing] = (0.9, 0.1, 0.1)
    ghosts = find_ghosts(colours.astype(np.float32), shows)
    np.testing.assert_array_equal(ghosts, thing if found else np.zeros_like(thing))


def test_share_around_nodes() -> None:
    x, y = np.meshgrid(np.arange(2, 160, 4.0), np.arange(2, 96, 4.0))
    points = np.stack([x.ravel(), y.ravel()], 1)
    share = ghost_share(points, points[:, 0] > 80, 8, (14, 22))
    assert share.shape == (14, 22)
    assert share[:, :5].max() < 0.01 < 0.99 < share[:, 17:].min()


def test_a_passing_thing_does_not_fill() -> None:
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
    assert rendered(frames) < clean - 3, "without witnesses it is taken for real"


def with_disc(frame: SourceFrame) -> SourceFrame:
    luma = frame.frame.planes[0].copy()
    y, x = np.mgrid[: luma.shape[0], : luma.shape[1]]
    luma[(x - 15) ** 2 + (y - 135) ** 2 < 60**2] = 255
    return replace(frame, frame=replace(frame.frame, planes=(luma, *frame.frame.planes[1:])))

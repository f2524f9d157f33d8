"""Degraded clips, of a scene whose geometry is known."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tests.render.plane_world import depth_at, make_format, pose, source
from vs3r.config import RenderConfig
from vs3r.refine.training.degrade import DegradedClip, degrade_clip
from vs3r.refine.training.recipe import IDENTITY_SHARE, SPLAT_SHARE, Recipe, draw_recipe
from vs3r.refine.training.shake import film, shake_path
from vs3r.render import SourceFrame, WarpRenderer
from vs3r.types import RenderedFrame

FMT = make_format("gbrp", 192, 128)
NOTHING_WRONG = Recipe(
    seed=3, identity=False, zoom=1.2, shake_deg=1.0, shake_roll_deg=0.5, shake_shift=0.01, shake_frames=3.0,
    splat=False, point_share=1.0, fill_frames=0, depth_noise=0.0, point_noise=0.0, tear_cells=0, pose_noise_deg=0.0,
    forget_moving=False, mask_cells=0, ghost_opacity=0.0, ghost_known=False, blur=0.0, soft_px=0.0, exposure_step=0.0,
    quality=0,
)  # fmt: skip
MIDDLE = 2


def clip(count: int = 5) -> list[SourceFrame]:
    """A slow pan with a thing in front, which moves in the mask only."""
    sources = [source(FMT, pose(0.4 * i, 0, 0, (0.02 * i, 0, 0)), i) for i in range(count)]
    for given in sources:
        given.geometry.inv_depth[8:12, 12:20] *= 1.6
        given.geometry.dynamic[5:7, 6:10] = 1.0
    return sources


def degraded(**changes: Any) -> DegradedClip:
    return degrade_clip(clip(), replace(NOTHING_WRONG, **changes), lambda: None)


def plane(frame: RenderedFrame) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.asarray(frame.frame.planes[0], np.float64)


def known(frame: RenderedFrame) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    return np.kron(frame.valid == 255, np.ones((4, 4), np.bool_))


def error(found: DegradedClip) -> float:
    """Mean difference of the middle frame, where it is called right, from the clean one."""
    given = found.rendered[MIDDLE]
    amiss = np.abs(plane(given) - found.clean[MIDDLE].planes[0])
    return float(amiss[known(given)].mean())


def test_the_shaky_camera_sees_nothing_that_was_not_seen() -> None:
    for seed in range(6):
        recipe = replace(draw_recipe(seed), shake_deg=8.0, shake_roll_deg=8.0)
        sources = clip()
        cameras = shake_path(sources, recipe)
        renderer = WarpRenderer(FMT, RenderConfig(fill_window_frames=0))
        for given, camera in zip(sources, cameras, strict=True):
            seen = renderer.render(given.geometry.index, camera, {given.geometry.index: given})
            assert seen.valid_share == 1.0, seed
        moved = np.ptp([camera.cam_from_world[0, 2] for camera in cameras])
        still = np.ptp([given.geometry.cam_from_world[0, 2] for given in sources])
        assert abs(moved - still) > 1e-4, "it shakes"


def test_the_filmed_geometry_is_the_true_one() -> None:
    sources = [source(FMT, pose(0.4 * i), i) for i in range(5)]
    cameras = shake_path(sources, replace(NOTHING_WRONG, shake_shift=0.05))
    for shaky in film(sources, cameras):
        rows, cols = shaky.geometry.inv_depth.shape
        x, y = np.meshgrid((np.arange(cols) + 0.5) * FMT.width / cols, (np.arange(rows) + 0.5) * FMT.height / rows)
        depth, _ = depth_at(shaky.geometry.K, shaky.geometry.cam_from_world, x, y)
        # 2e-7 seen: inverse depth is linear on a plane.
        np.testing.assert_allclose(shaky.geometry.inv_depth * depth, 1.0, atol=1e-5)


def test_with_nothing_wrong_only_borders_are_lost_and_they_move_with_the_shake() -> None:
    found = degraded()
    # Grey levels; 0.70 seen: the picture was resampled twice.
    assert error(found) < 1.0
    masks = [frame.valid == 255 for frame in found.rendered]
    for mask in masks:
        assert 0.4 < mask.mean() < 0.9, "a zoom of 1.2 leaves 0.7"
        assert not mask[0].any() and not mask[:, -1].any() and mask[16, 24]
    assert all((one != other).any() for one, other in pairwise(masks))
    wider = degraded(fill_frames=8)
    assert (wider.rendered[MIDDLE].valid == 255).mean() > masks[MIDDLE].mean(), "neighbours fill some of it"


@pytest.mark.parametrize(
    ("changes", "least"),
    [
        ({"depth_noise": 0.2}, 0.05),
        ({"tear_cells": 2}, 0.05),
        ({"tear_cells": -2}, 0.05),
        ({"pose_noise_deg": 0.3}, 1.0),
        ({"blur": 0.9}, 0.5),
        ({"soft_px": 1.5}, 3.0),
        ({"quality": 20}, 0.5),
        ({"ghost_opacity": 0.7, "ghost_known": True}, 0.5),
        ({"splat": True, "point_noise": 0.05}, 2.0),
        ({"splat": True, "point_share": 0.6}, 2.0),
        ({"mask_cells": -1}, 0.5),
    ],
)
def test_every_damage_is_seen_where_the_mask_calls_it_right(changes: dict[str, Any], least: float) -> None:
    assert error(degraded(**changes)) > error(degraded(splat=changes.get("splat", False))) + least


def test_masks_may_call_too_little_right() -> None:
    whole, less = degraded().rendered[MIDDLE].valid, degraded(mask_cells=2).rendered[MIDDLE].valid
    assert ((less == 255) <= (whole == 255)).all() and (less == 255).sum() < (whole == 255).sum()
    haunted = degraded(ghost_opacity=0.7, ghost_known=False)
    ghosts = sum(int(frame.valid[8:24, 8:40].min() == 0) for frame in haunted.rendered)
    assert ghosts > 0, "a ghost may be known as one"


def test_what_moves_may_be_forgotten() -> None:
    kept, lost = degraded(splat=True, fill_frames=8), degraded(splat=True, fill_frames=8, forget_moving=True)
    assert any((plane(a) != plane(b)).any() for a, b in zip(kept.rendered, lost.rendered, strict=True))


def test_exposure_belongs_to_both() -> None:
    found = degrade_clip(clip(20), replace(NOTHING_WRONG, exposure_step=0.3, seed=5), lambda: None)
    levels = [float(frame.planes[0].mean()) for frame in found.clean]
    assert max(levels) > 1.05 * min(levels)
    for given, clean in zip(found.rendered, found.clean, strict=True):
        assert plane(given)[known(given)].mean() == pytest.approx(clean.planes[0][known(given)].mean(), rel=0.02)


def test_identity_pairs_are_what_they_were() -> None:
    found, sources = degraded(identity=True), clip()
    for given, clean, was in zip(found.rendered, found.clean, sources, strict=True):
        assert given.frame is clean and (given.valid == 255).all()
        np.testing.assert_array_equal(clean.planes[0], was.frame.planes[0])


def test_a_clip_is_made_again_by_its_recipe() -> None:
    for seed in (0, 2):
        recipe = draw_recipe(seed)
        assert Recipe(**json.loads(json.dumps(asdict(recipe)))) == recipe == draw_recipe(seed)
        one, two = (degrade_clip(clip(), recipe, lambda: None) for _ in range(2))
        for a, b in zip(one.rendered, two.rendered, strict=True):
            np.testing.assert_array_equal(plane(a), plane(b))
            np.testing.assert_array_equal(a.valid, b.valid)


def test_recipes_differ_as_they_should() -> None:
    recipes = [draw_recipe(seed) for seed in range(1500)]
    assert np.mean([r.identity for r in recipes]) == pytest.approx(IDENTITY_SHARE, abs=0.03)
    assert np.mean([r.splat for r in recipes]) == pytest.approx(SPLAT_SHARE, abs=0.04)
    for name in ("depth_noise", "pose_noise_deg", "ghost_opacity", "blur", "exposure_step", "quality", "mask_cells"):
        shares = np.mean([getattr(r, name) == 0 for r in recipes])
        assert 0.2 < shares < 0.85, f"{name}: now and then it is left out"


def test_it_ends_when_told_to() -> None:
    class End(Exception):
        pass

    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise End

    with pytest.raises(End):
        degrade_clip(clip(), NOTHING_WRONG, check)
    assert calls == 3

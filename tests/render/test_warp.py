"""Backward maps against closed forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.render.plane_world import DISTANCE, NORMAL, depth_at, intrinsics, make_format, pose, source
from vs3r.cameras import Division, make_output_camera
from vs3r.geometry import rigid, so3_exp
from vs3r.render.nodes import CellRect, expand, make_grid, tiles
from vs3r.render.pullpush import pull_push
from vs3r.render.warp import backward_map, calm_inv_depth

FMT = make_format("gray", 960, 540)
K = intrinsics(FMT)
FULL = np.stack(np.meshgrid(np.arange(960) + 0.5, np.arange(540) + 0.5), -1)


def plane_homography(source_pose: np.ndarray, target_pose: np.ndarray) -> np.ndarray:
    """source pixels from target pixels, for points on the plane of the test world."""
    source_from_target = source_pose @ np.linalg.inv(target_pose)
    world_from_target = np.linalg.inv(target_pose)
    normal = NORMAL @ world_from_target[:3, :3]
    distance = DISTANCE - NORMAL @ world_from_target[:3, 3]
    return np.asarray(
        K @ (source_from_target[:3, :3] + np.outer(source_from_target[:3, 3], normal) / distance) @ np.linalg.inv(K)
    )


def apply(H: np.ndarray, points: np.ndarray) -> np.ndarray:
    y = np.concatenate([points, np.ones_like(points[..., :1])], -1) @ H.T
    return np.asarray(y[..., :2] / y[..., 2:])


@pytest.mark.parametrize(
    ("target_pose", "tolerance_px"),
    [
        (pose(3, -2, 4), 2e-3),
        (pose(2, 1, -3, (0.15, -0.1, 0.2)), 0.02),  # worst seen 0.006
        (pose(0, 0, 0, (0.3, 0.2, -0.4)), 0.02),  # worst seen 0.004
    ],
)
def test_a_plane_maps_by_its_homography(target_pose: np.ndarray, tolerance_px: float) -> None:
    src = source(FMT, pose(1, 1, 0))
    rays, _ = make_output_camera("pinhole", K).unproject(FULL)
    at = backward_map(rays, target_pose, src.geometry, src.geometry.inv_depth, (960, 540))
    truth = apply(plane_homography(src.geometry.cam_from_world, target_pose), FULL)
    # The outer half cell of the inverse depth is held, not extrapolated.
    inside = (np.abs(truth - (480, 270)) < (464, 256)).all(-1)
    error = np.hypot(at.x - truth[..., 0], at.y - truth[..., 1])
    assert error[inside].max() < tolerance_px
    assert at.settled[inside].all() and at.front.all()


def test_a_lens_bends_what_a_plane_shows() -> None:
    """The same points as between pinhole cameras, seen through the lens of each. Worst seen 0.03 px."""
    lens, target_pose = Division(K=K, distortion=-0.3), pose(2, 1, -3, (0.15, -0.1, 0.2))
    src = source(FMT, pose(1, 1, 0))
    x, y = np.meshgrid((np.arange(32) + 0.5) * 30, (np.arange(20) + 0.5) * 27)
    rays, _ = lens.unproject(np.stack([x, y], -1))
    straight = rays[..., :2] / rays[..., 2:] * [K[0, 0], K[1, 1]] + K[:2, 2]
    z, _ = depth_at(K, src.geometry.cam_from_world, straight[..., 0], straight[..., 1])
    geometry = replace(src.geometry, distortion=-0.3, inv_depth=(1 / z).astype(np.float32))
    rays, _ = make_output_camera("pinhole", K, -0.3).unproject(FULL)
    at = backward_map(rays, target_pose, geometry, geometry.inv_depth, (960, 540))
    pinhole = rays[..., :2] / rays[..., 2:] * [K[0, 0], K[1, 1]] + K[:2, 2]
    there = apply(plane_homography(src.geometry.cam_from_world, target_pose), pinhole)
    ahead = np.concatenate([(there - K[:2, 2]) / [K[0, 0], K[1, 1]], np.ones_like(there[..., :1])], -1)
    truth, _ = lens.project(ahead)
    inside = (np.abs(truth - (480, 270)) < (464, 256)).all(-1)
    assert inside.mean() > 0.5
    assert np.hypot(at.x - truth[..., 0], at.y - truth[..., 1])[inside].max() < 0.1


@pytest.mark.parametrize("target_pose", [pose(3, -2, 4), pose(2, 1, -3, (0.15, -0.1, 0.2))])
def test_a_rolling_shutter_is_undone(target_pose: np.ndarray) -> None:
    """What a map's point shows, seen by the camera of that point's row, lies at that point. Worst seen 0.0045 px."""
    src = source(FMT, pose(1, 1, 0))
    row_motion = np.zeros((6, 6))
    row_motion[0] = 0.03, -0.02, 0.01, 0.02, -0.05, 0.03  # 40 px across the picture
    row_motion[2] = 0.02 * np.arange(6) - 0.05
    cameras = row_cameras(row_motion, np.arange(20) / 20 + 0.5 / 20 - 0.5) @ src.geometry.cam_from_world
    x, y = np.meshgrid((np.arange(32) + 0.5) * 30, (np.arange(20) + 0.5) * 27)
    world = np.stack([depth_at(K, camera, x[i], y[i])[1] for i, camera in enumerate(cameras)])
    z = (world @ src.geometry.cam_from_world[:3, :3].T + src.geometry.cam_from_world[:3, 3])[..., 2]
    geometry = replace(src.geometry, row_motion=row_motion, inv_depth=(1 / z).astype(np.float32))
    rays, _ = make_output_camera("pinhole", K).unproject(FULL)
    at = backward_map(rays, target_pose, geometry, geometry.inv_depth, (960, 540))
    still = backward_map(rays, target_pose, src.geometry, src.geometry.inv_depth, (960, 540))
    _, shown = depth_at(K, target_pose, FULL[..., 0], FULL[..., 1])
    inside = (np.abs(at.x - 480) < 464) & (np.abs(at.y - 270) < 256)
    cameras = row_cameras(row_motion, at.y[inside] / 540.0 - 0.5) @ src.geometry.cam_from_world
    seen = np.einsum("nij,nj->ni", cameras[:, :3, :3], shown[inside]) + cameras[:, :3, 3]
    expected = seen @ K.T / seen[:, 2:]
    assert np.hypot(at.x - still.x, at.y - still.y)[inside].max() > 15
    assert np.hypot(at.x[inside] - expected[:, 0], at.y[inside] - expected[:, 1]).max() < 0.02
    assert at.settled[inside].all()


def test_a_picture_on_its_side_is_read_from_column_to_column() -> None:
    """The same source and view, both turned by 90 degrees about the axis of view."""
    src = source(FMT, pose(1, 1, 0))
    row_motion = np.zeros((6, 6))
    row_motion[0] = 0.03, -0.02, 0.01, 0.02, -0.05, 0.03
    geometry = replace(src.geometry, row_motion=row_motion)
    rays, _ = make_output_camera("pinhole", K).unproject(FULL)
    target = pose(2, 1, -3, (0.15, -0.1, 0.2))
    expected = backward_map(rays, target, geometry, geometry.inv_depth, (960, 540))

    lying = np.eye(4)
    lying[:2, :2] = [[0, 1], [-1, 0]]
    turned = replace(
        geometry,
        K=np.array([[K[0, 0], 0, 270], [0, K[1, 1], 480], [0, 0, 1]]),
        cam_from_world=lying @ geometry.cam_from_world,
        row_motion=row_motion @ np.kron(np.eye(2), lying[:3, :3].T),
    )
    inv_depth = np.ascontiguousarray(np.rot90(geometry.inv_depth))
    at = backward_map(rays @ lying[:3, :3].T, lying @ target, turned, inv_depth, (540, 960))
    np.testing.assert_allclose(at.x, expected.y, atol=2e-3)
    np.testing.assert_allclose(at.y, 960 - expected.x, atol=2e-3)


def row_cameras(row_motion: np.ndarray, s: np.ndarray) -> np.ndarray:
    """(N, 4, 4) the cameras of rows s, (N,), from the middle row's."""
    moved = torch.from_numpy(s[:, None] ** np.arange(1, 7) @ row_motion)
    return np.asarray(rigid(so3_exp(moved[:, 3:]), moved[:, :3]))


@pytest.mark.parametrize("camera", ["pinhole", "ultra-wide", "fisheye", "ucm", "double-sphere"])
def test_nodes_interpolate_to_the_full_map(camera: str) -> None:
    """Worst seen: 0.004 px pinhole, 0.03 px in the corners of the bent ones."""
    src = source(FMT, pose(1, 1, 0))
    model = make_output_camera(camera, K)
    grid = make_grid(FMT)
    target = pose(3, -1, 3, (0.1, 0.0, 0.1))
    full = backward_map(model.unproject(FULL)[0], target, src.geometry, src.geometry.inv_depth, (960, 540))
    nodes = backward_map(model.unproject(grid.points())[0], target, src.geometry, src.geometry.inv_depth, (960, 540))
    rows, cols = grid.shape
    everything = CellRect(0, rows, 0, cols).nodes
    x = expand(nodes.x[everything], grid.cell_px, grid.cell_px)[:540, :960]
    y = expand(nodes.y[everything], grid.cell_px, grid.cell_px)[:540, :960]
    inside = (np.abs(full.x - 480) < 460) & (np.abs(full.y - 270) < 255)
    assert np.hypot(x - full.x, y - full.y)[inside].max() < 0.05


def test_what_lies_behind_the_source_is_not_seen() -> None:
    src = source(FMT, pose())
    rays = np.array([[[0.0, 0, 1], [0, 0, -1], [1, 0, 0]]])
    at = backward_map(rays, pose(), src.geometry, src.geometry.inv_depth, (960, 540))
    assert at.front.tolist() == [[1, 0, 0]]


def test_moving_parts_take_the_depth_around_them() -> None:
    src = source(FMT, pose())
    spoiled = src.geometry.inv_depth.copy()
    spoiled[8:14, 12:20] *= 5
    dynamic = np.zeros((40, 64), np.float32)
    dynamic[14:30, 22:42] = 1
    object.__setattr__(src.geometry, "inv_depth", spoiled)
    object.__setattr__(src.geometry, "dynamic", dynamic)
    calm = calm_inv_depth(src.geometry)
    truth = source(FMT, pose()).geometry.inv_depth
    assert np.abs(calm / truth - 1).max() < 0.2
    assert np.abs(spoiled / truth - 1).max() > 3


def test_pull_push_keeps_the_known_and_stays_within_it() -> None:
    rng = np.random.default_rng(5)
    values = rng.uniform(2, 7, (2, 37, 53)).astype(np.float32)
    weights = (rng.uniform(size=(37, 53)) < 0.1).astype(np.float32)
    filled = pull_push(values * weights, weights)
    np.testing.assert_allclose(filled[:, weights > 0], values[:, weights > 0], rtol=1e-6)
    assert filled.min() >= 2 - 1e-4 and filled.max() <= 7 + 1e-4
    assert not pull_push(values, np.zeros_like(weights)).any()
    each = np.stack([weights, weights[::-1]])
    alone = np.stack([pull_push(*one) for one in zip(values, each, strict=True)])
    np.testing.assert_array_equal(pull_push(values, each), alone)


def test_pull_push_of_a_constant_is_constant() -> None:
    weights = np.zeros((19, 31), np.float32)
    weights[3, 4] = weights[17, 30] = 0.3
    np.testing.assert_allclose(pull_push(np.full((19, 31), 4.5, np.float32), weights), 4.5, rtol=1e-3)


def test_tiles_cover_what_is_needed_and_little_more() -> None:
    needed = np.zeros((34, 60), np.bool_)
    needed[0, :] = needed[:, 59] = needed[20, 20] = True
    covered = np.zeros_like(needed)
    rects = tiles(needed, 8)
    for rect in rects:
        part = covered[rect.top : rect.bottom, rect.left : rect.right]
        assert not part.any(), "tiles overlap"
        part[:] = True
    assert covered[needed].all()
    assert covered.mean() < 0.45
    # The top, a part in the middle, and what is below one another at the right in two.
    assert len(rects) == 4

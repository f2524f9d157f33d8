"""The motion within a frame and rectified observations, against a camera that is known at all times."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.reconstruct.test_bundle import FOCAL_PX, grid_points
from vs3r.geometry import rigid, rigid_inverse, so3_exp
from vs3r.reconstruct.problem import Edges, State
from vs3r.reconstruct.rolling import Shutter, rectify
from vs3r.types import ROW_MOTION_ORDER

HEIGHT = 270.0
FPS = 30.0


def camera_at(t: Tensor, *, hz: float = 4.0, degrees: float = 1.0) -> Tensor:
    """(..., 4, 4) cam_from_world at times (...,): turning to and fro about three axes, and swaying."""
    wave = torch.stack([torch.sin(2 * torch.pi * hz * t + phase) for phase in (0.3, 1.7, 4.0)], -1)
    return rigid(so3_exp(np.deg2rad(degrees) * wave), 0.01 * wave.flip(-1))


def moved_by(coefficients: Tensor, t: Tensor) -> Tensor:
    """(4, 4) the motion of a frame's camera after t seconds."""
    c = (coefficients * t ** torch.arange(1, ROW_MOTION_ORDER + 1)[:, None]).sum(0)
    return rigid(so3_exp(c[3:]), c[:3])


@pytest.mark.parametrize(("hz", "worst_px"), [(2.0, 1e-4), (4.0, 0.002), (8.0, 0.3)])
def test_motion_within_a_frame(hz: float, worst_px: float) -> None:
    """Half an interval to either side, in pixels at a focal length of 380 px; worst seen 2e-6, 6e-4, 0.17."""
    pts = torch.arange(16).double() / FPS
    poses = camera_at(pts, hz=hz)
    motion = Shutter(pts.tolist(), HEIGHT).motion(poses)
    errors = []
    for i in range(4, 12):
        for late in (-0.5, -0.25, 0.25, 0.5):
            t = torch.tensor(late / FPS, dtype=torch.float64)
            true = camera_at(pts[i] + t, hz=hz) @ rigid_inverse(poses[i])
            off = moved_by(motion[i], t) @ rigid_inverse(true)
            errors.append(FOCAL_PX * float((off - torch.eye(4)).abs().max()))
    assert max(errors) < worst_px


def test_motion_at_the_ends_across_gaps_and_of_repeats() -> None:
    """Fewer frames tell less, but a steady turn is told by two; beyond a long gap nothing, nor what is shown again."""
    pts = torch.cat([torch.arange(5), torch.arange(5) + 60]).double() / FPS
    rate = torch.tensor([0.0, 0.3, 0.0, 0.1, 0.5, -0.2]).double()
    poses = rigid(so3_exp(rate[3:] * pts[:, None]), torch.zeros(len(pts), 3).double())
    poses[5:] = torch.eye(4).double()
    motion = Shutter(pts.tolist(), HEIGHT).motion(poses)
    torch.testing.assert_close(motion[:5, 0, 3:], rate[3:].expand(5, 3), rtol=0, atol=1e-6)
    assert float(motion[5:].abs().max()) < 1e-9
    twice = Shutter(pts.repeat_interleave(2).tolist(), HEIGHT).motion(poses.repeat_interleave(2, 0))
    torch.testing.assert_close(twice, motion.repeat_interleave(2, 0))
    alone = Shutter(pts[:1].tolist(), HEIGHT).motion(poses[:1])
    assert alone.shape == (1, ROW_MOTION_ORDER, 6) and not alone.any()


def observed(readout: float) -> tuple[State, Edges, Edges, Shutter]:
    """Cameras, what a rolling shutter sees of points in space, and what a global one would have seen."""
    pts = torch.arange(12).double() / FPS
    poses = camera_at(pts)
    grid = grid_points(6, 8)
    inv_depth = 0.3 + 0.2 * torch.cos(grid[:, 0] / 90 + torch.arange(12)[:, None])
    state = State(
        cam_from_world=poses,
        log_focal=torch.full((12,), FOCAL_PX).double().log(),
        inv_depth=inv_depth.contiguous(),
        readout=torch.tensor(readout, dtype=torch.float64),
        readout_info=torch.tensor(0.0).double(),
        wobble=torch.zeros(12, ROW_MOTION_ORDER, 3).double(),
    )
    src, dst = torch.tensor([4, 5, 6, 5]), torch.tensor([5, 4, 7, 7])
    shutter = Shutter(pts.tolist(), HEIGHT)
    rolled, still = [], []
    for a, b in zip(src.tolist(), dst.tolist(), strict=True):
        # A grid point's place in the middle row's camera, then where another camera sees it, row by row.
        ray = torch.cat([grid / FOCAL_PX, torch.ones(len(grid), 1)], 1)
        row_camera = camera_at(pts[a] + readout * grid[:, 1] / HEIGHT)
        from_row = poses[a] @ rigid_inverse(row_camera)
        world = points_at(from_row, ray, inv_depth[a])
        middle = world[:, :2] / world[:, 2:] * FOCAL_PX
        at = world / world[:, 2:] / inv_depth[a][:, None]
        everywhere = torch.cat([at, torch.ones(len(at), 1)], 1) @ rigid_inverse(poses[a]).T
        seen = in_camera(poses[b], everywhere)
        still.append((middle, seen))
        for _ in range(20):
            seen = in_camera(camera_at(pts[b] + readout * seen[:, 1] / HEIGHT), everywhere)
        rolled.append(seen)
    one = torch.ones(len(src), 1, len(grid)).double()
    edges = Edges(
        src=src,
        dst=dst,
        target=torch.stack(rolled).transpose(1, 2),
        weight=one[:, 0],
        source=torch.cat([grid.T.expand(len(src), -1, -1), one], 1),
    )
    true = replace(
        edges,
        target=torch.stack([target for _, target in still]).transpose(1, 2),
        source=torch.cat([torch.stack([source for source, _ in still]).transpose(1, 2), one], 1),
    )
    return state, edges, true, shutter


def points_at(from_row: Tensor, ray: Tensor, inv_depth_in_middle: Tensor) -> Tensor:
    """(P, 3) points on rays of their rows' cameras, in the middle row's, where they have the given inverse depth."""
    turned = (from_row[:, :3, :3] @ ray[..., None]).squeeze(-1)
    offset = from_row[:, :3, 3]
    along = (1 / inv_depth_in_middle - offset[:, 2]) / turned[:, 2]
    return turned * along[:, None] + offset


def in_camera(cam_from_world: Tensor, points: Tensor) -> Tensor:
    """(P, 2) pixels from the centre of (P, 4) points in one camera or in one each."""
    seen = (cam_from_world @ points[..., None]).squeeze(-1)
    return seen[:, :2] / seen[:, 2:3] * FOCAL_PX


def test_motion_beside_frames_of_nearly_one_time() -> None:
    """Times are repaired so where they are wrong: what the camera does between such frames is not its speed."""
    pts = torch.cat([torch.arange(12), 12 + torch.arange(6) * 1e-3]).double() / FPS
    poses = camera_at(torch.arange(18).double() / FPS)
    turns = Shutter(pts.tolist(), HEIGHT).motion(poses)[:, :, 3:] * (0.5 / FPS) ** torch.arange(1, 7)[:, None]
    assert float(turns.abs().sum(1).max()) < np.deg2rad(2)


@pytest.mark.parametrize("readout_frames", [-1.0, 0.3, 0.9])
def test_rectified_observations_are_those_of_a_global_shutter(readout_frames: float) -> None:
    """Of 1.2 to 3.8 px of rolling shutter 0.007 px stay at worst."""
    state, edges, true, shutter = observed(readout_frames / FPS)
    found = rectify(edges, state, shutter)
    bent = torch.cat([edges.source - true.source, edges.target - true.target], 1).abs().max()
    assert float(bent) > 3 * abs(readout_frames)
    torch.testing.assert_close(found.source, true.source, rtol=0, atol=0.02)
    torch.testing.assert_close(found.target, true.target, rtol=0, atol=0.02)


def test_a_picture_on_its_side_is_read_from_column_to_column() -> None:
    """The same cameras and observations, all turned by 90 degrees about the axis of view."""
    state, edges, _, shutter = observed(0.7 / FPS)
    lying = torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]).double()
    pose = torch.eye(4).double()
    pose[:3, :3] = lying
    turned = replace(edges, source=lying @ edges.source, target=lying[:2, :2] @ edges.target)
    state_turned = replace(state, cam_from_world=pose @ state.cam_from_world)
    found = rectify(turned, state_turned, Shutter((torch.arange(12).double() / FPS).tolist(), HEIGHT, 0))
    expected = rectify(edges, state, shutter)
    torch.testing.assert_close(found.source, lying @ expected.source)
    torch.testing.assert_close(found.target, lying[:2, :2] @ expected.target)


def test_how_observations_depend_on_the_readout() -> None:
    state, edges, _, shutter = observed(0.5 / FPS)
    found = rectify(edges, state, shutter, free=True)
    assert found.slope is not None and found.slope_at == 0.5 / FPS
    step = 1e-5
    ends = [rectify(edges, replace(state, readout=state.readout + sign * step), shutter) for sign in (1, -1)]
    source, target = (
        (getattr(ends[0], part) - getattr(ends[1], part))[:, :2] / (2 * step) for part in ("source", "target")
    )
    slope = torch.cat([source, target], 1)
    torch.testing.assert_close(found.slope, slope, rtol=0, atol=2e-3 * float(slope.abs().max()))


def test_ends_say_nothing_of_the_readout() -> None:
    """Their own turns follow it. But where most frames are at an end, they have to."""
    state, edges, _, shutter = observed(0.5 / FPS)
    everywhere = rectify(edges, state, shutter, free=True).slope
    assert everywhere is not None and bool((everywhere.flatten(1) != 0).any(1).all())
    shutter.at_an_end = torch.arange(12) > 9
    at_end = torch.full_like(edges.src, 10)
    for moved, end, rest in (
        (replace(edges, src=at_end), slice(0, 2), slice(2, 4)),
        (replace(edges, dst=at_end), slice(2, 4), slice(0, 2)),
    ):
        slope = rectify(moved, state, shutter, free=True).slope
        assert slope is not None
        assert not slope[:, end].any() and slope[:, rest].any()


def test_a_global_shutter_changes_nothing() -> None:
    state, edges, _, shutter = observed(0.0)
    assert rectify(edges, state, shutter) is edges

"""The turn within a frame, against one that is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.reconstruct.test_bundle import FOCAL_PX, project, random, scene
from vs3r.geometry import rigid_inverse, se3_retract
from vs3r.reconstruct import wobble
from vs3r.reconstruct.bundle import reprojection_error
from vs3r.reconstruct.problem import Problem, State
from vs3r.reconstruct.rolling import REACH, Shutter, rectify
from vs3r.reconstruct.wobble import find_wobble, turn_ends
from vs3r.types import ROW_MOTION_ORDER

N = 8


def vibrating(axis: int, size_px: float, count: int = N) -> tuple[State, Problem, Shutter]:
    """A true state whose frames wave along an axis, and what is seen of it."""
    state, problem = scene(count, (12, 16), gaps=(1, 2), rotation_only=False)
    shutter = Shutter((torch.arange(count).double() / 30).tolist(), (480, 270)[axis], axis)
    # A sine of a period of 0.8 pictures, as good as its series of six terms.
    series = torch.tensor([1.0, 0.0, -1 / 6, 0.0, 1 / 120, 0.0]).double()
    wave = series * (2 * torch.pi / 0.8) ** torch.arange(1, 1 + ROW_MOTION_ORDER)
    turns = random(5)(count, 1, 3) * torch.tensor([1.0, 1.0, 0.5]).double() * size_px / FOCAL_PX
    state = replace(state, wobble=wave[:, None] * turns)
    return state, seen_by(state, problem, shutter), shutter


def seen_by(state: State, problem: Problem, shutter: Shutter) -> Problem:
    """Where points of the grid are in the middle line's camera, where others see them, and on which line."""
    edges = problem.edges
    for _ in range(30):
        seen = rectify(edges, state, shutter)
        whole = replace(problem, edges=seen)
        target = project(state.cam_from_world, state.log_focal, state.inv_depth, whole)
        edges = replace(edges, target=edges.target + target - seen.target)
    return replace(problem, edges=edges)


def error_px(state: State, problem: Problem, shutter: Shutter) -> float:
    return float(reprojection_error(state, replace(problem, edges=rectify(problem.edges, state, shutter))).mean())


@pytest.mark.parametrize("axis", [0, 1])
def test_a_vibration_is_found(axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Depths given, and no belief that there is none: of 1.3 px on average at most 0.006 stay."""
    monkeypatch.setattr(wobble, "PRIOR_PX2", 1e-3)
    true, problem, shutter = vibrating(axis, 1.0)
    assert error_px(true, problem, shutter) < 1e-6
    state = replace(true, wobble=torch.zeros_like(true.wobble))
    before = error_px(state, problem, shutter)
    for _ in range(4):
        state = find_wobble(state, problem, shutter)
    assert error_px(state, problem, shutter) < 0.01 * before


def test_what_is_fixed_stays_and_stillness_is_not_disturbed() -> None:
    true, problem, shutter = vibrating(1, 1.0)
    problem = replace(problem, first_free_pose=4, first_free_structure=3)
    start = replace(true, wobble=0.5 * true.wobble)
    found = find_wobble(start, problem, shutter)
    assert torch.equal(found.wobble[:3], start.wobble[:3]) and not torch.equal(found.wobble[3:], start.wobble[3:])
    assert torch.equal(found.cam_from_world[:4], start.cam_from_world[:4])
    assert torch.equal(found.inv_depth, start.inv_depth) and torch.equal(found.log_focal, start.log_focal)
    still, problem, shutter = vibrating(1, 0.0)
    found = find_wobble(still, problem, shutter)
    assert float(found.wobble.abs().max()) < 1e-9


def bent_ends(readout_frames: float) -> tuple[State, Problem, Shutter]:
    """A true state of 12 frames whose ends turn within a frame otherwise than the poses around tell."""
    state, problem, shutter = vibrating(1, 0.0, count=12)
    turns = random(6)(12, ROW_MOTION_ORDER, 3) * 2 / FOCAL_PX
    turns[:, 2:] = turns[REACH:-REACH] = 0
    state = replace(state, wobble=turns, readout=torch.tensor(readout_frames / 30).double())
    return state, seen_by(state, problem, shutter), shutter


def test_ends_turn_as_the_flow_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 0.5 px at most 0.001 stay; frames between others are not touched, nor anything under a global shutter."""
    true, problem, shutter = bent_ends(0.7)
    assert shutter.at_an_end.tolist() == [True] * REACH + [False] * (12 - 2 * REACH) + [True] * REACH
    start = replace(true, wobble=torch.zeros_like(true.wobble))
    assert error_px(start, problem, shutter) > 0.1
    assert turn_ends(replace(start, readout=torch.zeros(()).double()), problem, shutter).wobble is start.wobble
    believed = turn_ends(start, problem, shutter)
    monkeypatch.setattr(wobble, "PRIOR_PX2", 1e-3)
    state = start
    for _ in range(6):
        state = turn_ends(state, problem, shutter)
    assert error_px(state, problem, shutter) < 0.01 * error_px(start, problem, shutter)
    for found in (believed, state):
        assert not found.wobble[REACH:-REACH].any() and found.wobble[:REACH, :2].any()
        assert torch.equal(found.cam_from_world[REACH:-REACH], start.cam_from_world[REACH:-REACH])


def test_ends_are_placed_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first frame of all too; nothing moves where the camera only turns."""
    monkeypatch.setattr(wobble, "PRIOR_PX2", 1e-3)
    true, problem, shutter = bent_ends(0.7)
    assert problem.first_free_pose == 1
    off = random(7)(12, 6) * torch.tensor([0.02] * 3 + [2 / FOCAL_PX] * 3).double()
    off[REACH:-REACH] = 0
    start = replace(true, wobble=torch.zeros_like(true.wobble), cam_from_world=se3_retract(off, true.cam_from_world))
    state = start
    for _ in range(6):
        state = turn_ends(state, problem, shutter)
    before, after = ((s.cam_from_world - true.cam_from_world)[:, :3].flatten(1).norm(dim=1) for s in (start, state))
    assert (after[:REACH] < 0.02 * before[:REACH]).all() and (after[-REACH:] < 0.02 * before[-REACH:]).all()
    turned = turn_ends(start, replace(problem, rotation_only=True), shutter)
    moved = (turned.cam_from_world @ rigid_inverse(start.cam_from_world))[:, :3, 3]
    assert float(moved.abs().max()) < 1e-12

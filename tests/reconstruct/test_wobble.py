"""The turn within a frame, against one that is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.reconstruct.test_bundle import FOCAL_PX, project, random, scene
from vs3r.reconstruct import wobble
from vs3r.reconstruct.bundle import Problem, State, reprojection_error
from vs3r.reconstruct.rolling import Shutter, rectify
from vs3r.reconstruct.wobble import find_wobble
from vs3r.types import ROW_MOTION_ORDER

N = 8


def vibrating(axis: int, size_px: float) -> tuple[State, Problem, Shutter]:
    """A true state whose frames wave along an axis, and what is seen of it."""
    state, problem = scene(N, (12, 16), gaps=(1, 2), rotation_only=False)
    shutter = Shutter((torch.arange(N).double() / 30).tolist(), (480, 270)[axis], axis)
    # A sine of a period of 0.8 pictures, as good as its series of six terms.
    series = torch.tensor([1.0, 0.0, -1 / 6, 0.0, 1 / 120, 0.0]).double()
    wave = series * (2 * torch.pi / 0.8) ** torch.arange(1, 1 + ROW_MOTION_ORDER)
    turns = random(5)(N, 1, 3) * torch.tensor([1.0, 1.0, 0.5]).double() * size_px / FOCAL_PX
    state = replace(state, wobble=wave[:, None] * turns)
    # Where points of the grid are in the middle line's camera, where others see them, and on which line.
    edges = problem.edges
    for _ in range(30):
        seen = rectify(edges, state, shutter)
        whole = replace(problem, edges=seen)
        target = project(state.cam_from_world, state.log_focal, state.inv_depth, whole)
        edges = replace(edges, target=edges.target + target - seen.target)
    return state, replace(problem, edges=edges), shutter


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

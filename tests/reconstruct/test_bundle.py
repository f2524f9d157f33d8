"""The adjustment's derivatives against automatic ones of a plain projection, and its answers against known cameras."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vs3r.geometry import se3_retract, skew
from vs3r.reconstruct import bundle
from vs3r.reconstruct.bundle import Seen, _free, _Linear, _linearise, _Prior, adjust, reprojection_error, robust_weight
from vs3r.reconstruct.problem import Edges, Problem, State
from vs3r.types import ROW_MOTION_ORDER

FOCAL_PX = 380.0
EXACT = 1e-9


def random(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)


def grid_points(rows: int, cols: int) -> Tensor:
    """(P, 2) centres of cells that tile a 480x270 picture, from its centre."""
    x = ((torch.arange(cols).double() + 0.5) / cols - 0.5) * 480
    y = ((torch.arange(rows).double() + 0.5) / rows - 0.5) * 270
    v, u = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([u, v], -1).reshape(-1, 2)


def project(T: Tensor, log_focal: Tensor, inv_depth: Tensor, problem: Problem, readout: Tensor | float = 0.0) -> Tensor:
    """(E, 2, P) where the destination cameras see the points: unproject, to the world, to the other camera."""
    seen, edges = [], problem.edges
    for k, (a, b) in enumerate(zip(edges.src.tolist(), edges.dst.tolist(), strict=True)):
        source = edges.source[k, :2]
        if edges.slope is not None:
            source = source + (readout - edges.slope_at) * edges.slope[k, :2]
        ray = torch.cat([source / log_focal[a].exp(), torch.ones_like(source[:1])])
        b_from_a = T[b] @ torch.linalg.inv(T[a])
        point = b_from_a[:3, :3] @ ray
        if not problem.rotation_only:
            point = point + inv_depth[a] * b_from_a[:3, 3:]
        seen.append(log_focal[b].exp() * point[:2] / point[2])
    return torch.stack(seen)


def scene(
    n: int, grid: tuple[int, int], *, gaps: tuple[int, ...], rotation_only: bool, seed: int = 0, rolling: bool = False
) -> tuple[State, Problem]:
    """A true state of n cameras and a problem with exact observations of it; rolling: they depend on a read-out."""
    normal = random(seed)
    points = grid_points(*grid)
    steps = torch.cat([0.01 * normal(n, 3), 0.01 * normal(n, 3)], 1)
    poses = [torch.eye(4).double()]
    for step in steps[1:]:
        poses.append(se3_retract(step, poses[-1]))
    slope = normal(n, 2) * 0.1
    depth = 0.6 + points @ slope.T / 240 + 0.3 * torch.cos(points[:, :1] / 60)
    state = State(
        cam_from_world=torch.stack(poses),
        log_focal=torch.full((n,), FOCAL_PX).double().log(),
        inv_depth=depth.T.contiguous().clamp_min(0.1),
        readout=torch.tensor(0.02 if rolling else 0.0).double(),
        readout_info=torch.tensor(0.0).double(),
        wobble=torch.zeros(n, ROW_MOTION_ORDER, 3).double(),
    )
    pairs = [(i, j) for i in range(n) for j in range(n) if abs(i - j) in gaps]
    edges = Edges(
        src=torch.tensor([i for i, _ in pairs]),
        dst=torch.tensor([j for _, j in pairs]),
        target=torch.zeros(len(pairs), 2, len(points)).double(),
        weight=normal(len(pairs), len(points)).abs().clamp(0.2, 1),
        source=torch.cat([points, torch.ones(len(points), 1).double()], 1).T.expand(len(pairs), -1, -1),
        slope=200 * normal(len(pairs), 4, len(points)) if rolling else None,
        slope_at=0.01,
    )
    problem = Problem(
        grid=grid,
        edges=edges,
        first_free_pose=1,
        first_free_structure=0,
        log_focal_prior=float(state.log_focal[0]),
        rotation_only=rotation_only,
    )
    target = project(state.cam_from_world, state.log_focal, state.inv_depth, problem, state.readout)
    if edges.slope is not None:
        target = target - edges.slope[:, 2:] * (state.readout - edges.slope_at)
    return state, replace(problem, edges=replace(edges, target=target))


def moved(state: State, xi: Tensor) -> State:
    """Left increments and changes of log focal, (n, 7)."""
    return replace(
        state, cam_from_world=se3_retract(xi[:, :6], state.cam_from_world), log_focal=state.log_focal + xi[:, 6]
    )


def perturbed(state: State, size: float, *, seed: int = 3) -> State:
    """Frame 0's pose is kept."""
    normal = random(seed)
    xi = size * normal(len(state.log_focal), 7) * torch.tensor([1, 1, 1, 1, 1, 1, 0.5])
    xi[0] = 0
    return replace(moved(state, xi), inv_depth=state.inv_depth * (size * normal(*state.inv_depth.shape)).exp())


def exponential(xi: Tensor) -> Tensor:
    """(n, 4, 4) matrix exponential of twists (n, 6)."""
    twist = torch.cat([torch.cat([skew(xi[:, 3:]), xi[:, :3, None]], 2), torch.zeros(len(xi), 1, 4).double()], 1)
    out: Tensor = torch.linalg.matrix_exp(twist)
    return out


def jacobians(state: State, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Residuals (R,) and their derivatives by the 7n + 1 increments and by the inverse depths (R, nP)."""
    edges = problem.edges

    def residual(increments: Tensor, inv_depth: Tensor) -> Tensor:
        xi, readout = increments[:-1].reshape(-1, 7), state.readout + increments[-1]
        T = exponential(xi[:, :6]) @ state.cam_from_world
        seen = project(T, state.log_focal + xi[:, 6], inv_depth, problem, readout) - edges.target
        return seen if edges.slope is None else seen - (readout - edges.slope_at) * edges.slope[:, 2:]

    zero = torch.zeros(7 * len(state.log_focal) + 1).double()
    by_xi, by_depth = torch.func.jacrev(residual, argnums=(0, 1))(zero, state.inv_depth)
    r = residual(zero, state.inv_depth)
    return r, by_xi.reshape(r.numel(), -1), by_depth.reshape(r.numel(), -1)


def linearised(state: State, problem: Problem) -> tuple[float, _Linear]:
    """Cost and normal equations with a loss 3 px wide."""
    seen = Seen.of(state, problem)
    cost, weight = seen.cost(problem, 3.0)
    return float(cost), _linearise(state, problem, seen, weight, _free(problem, len(state.log_focal)))


@pytest.mark.parametrize("rolling", [True, False])
@pytest.mark.parametrize("rotation_only", [True, False])
@pytest.mark.parametrize("fixed", [0, 2])
def test_normal_equations(rotation_only: bool, fixed: int, rolling: bool) -> None:
    """J^T W J and J^T W r, with every derivative taken automatically; relative to the largest entry."""
    true, problem = scene(4, (2, 3), gaps=(1, 2), rotation_only=rotation_only, rolling=rolling)
    problem = replace(problem, first_free_structure=fixed)
    state = perturbed(true, 0.02)
    r, J, D = jacobians(state, problem)
    weight = robust_weight(r, 3.0)[1] * problem.edges.weight
    W = weight[:, None].expand_as(r).reshape(-1, 1)
    _, found = linearised(state, problem)
    P = problem.edges.target.shape[-1]
    pairs = [(found.hessian, J.T @ (W * J)), (found.gradient, (J.T @ (W * r.reshape(-1, 1)))[:, 0])]
    if not rotation_only:
        C = (J.T @ (W * D)).reshape(-1, 4, P).transpose(0, 1)[fixed:, _free(problem, 4)]
        pairs += [
            (found.inv_depth_info, (W * D * D).sum(0).reshape(4, P)[fixed:]),
            (found.inv_depth_gradient, (W * D * r.reshape(-1, 1)).sum(0).reshape(4, P)[fixed:]),
            (found.coupling, C),
        ]
    for ours, theirs in pairs:
        assert float(theirs.abs().max()) > 0
        torch.testing.assert_close(ours, theirs, rtol=0, atol=EXACT * float(theirs.abs().max()))


@pytest.mark.parametrize("rotation_only", [True, False])
def test_the_gradient_is_that_of_the_robust_cost(rotation_only: bool) -> None:
    """Finite differences of the cost itself. The gradient is of half the cost."""
    true, problem = scene(4, (2, 3), gaps=(1, 2), rotation_only=rotation_only)
    state = perturbed(true, 0.02)
    total, found = linearised(state, problem)

    def cost(of: State) -> float:
        return float(Seen.of(of, problem).cost(problem, 3.0)[0])

    assert cost(state) == pytest.approx(total, rel=1e-12)
    step = 1e-6
    scale = float(found.gradient.abs().max())
    for k in range(28):
        xi = torch.zeros(28).double()
        xi[k] = step
        slope = (cost(moved(state, xi.reshape(4, 7))) - cost(moved(state, -xi.reshape(4, 7)))) / (2 * step)
        assert 0.5 * slope == pytest.approx(float(found.gradient[k]), abs=1e-6 * scale)
    if rotation_only:
        return
    scale = float(found.inv_depth_gradient.abs().max())
    for k in range(state.inv_depth.numel()):
        change = torch.zeros_like(state.inv_depth)
        change.view(-1)[k] = step
        after, before = (cost(replace(state, inv_depth=state.inv_depth + sign * change)) for sign in (1, -1))
        slope = (after - before) / (2 * step)
        assert 0.5 * slope == pytest.approx(float(found.inv_depth_gradient.reshape(-1)[k]), abs=1e-6 * scale)


@pytest.mark.parametrize("rotation_only", [True, False])
def test_the_prior_and_its_derivatives(rotation_only: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """To first order in the steps between frames: the error is a few per cent at 0.01 and falls with the step."""
    monkeypatch.setattr(bundle, "TRANSLATION_STEP_LIMIT", 1e6)
    true, problem = scene(4, (2, 3), gaps=(1,), rotation_only=rotation_only)
    problem = replace(problem, log_focal_prior=problem.log_focal_prior + 0.1)
    problem = replace(problem, readout_prior=(0.01, 3.0))
    prior = _Prior(problem, 1.0)
    zero = torch.zeros(29).double()
    worst = []
    for size in (1e-2, 1e-3, 0.0):
        poses = [torch.eye(4).double()]
        for step in size * random(1)(3, 6):
            poses.append(se3_retract(step, poses[-1]))
        zoom = 0.003 * random(2)(4)
        state = replace(true, cam_from_world=torch.stack(poses), log_focal=true.log_focal + zoom)

        def cost(xi: Tensor, state: State = state) -> Tensor:
            steps = xi[:-1].reshape(4, 7)
            T, zoom = exponential(steps[:, :6]) @ state.cam_from_world, state.log_focal + steps[:, 6]
            return 0.5 * prior.cost(replace(state, cam_from_world=T, log_focal=zoom, readout=state.readout + xi[-1]))

        gradient = torch.func.jacrev(cost)(zero)
        hessian = torch.func.jacrev(torch.func.jacrev(cost))(zero)
        pairs = zip(prior.normal(state), (hessian, gradient), strict=True)
        worst.append(max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs))
    assert worst[0] < 0.05 and worst[1] < 0.005 and worst[2] < EXACT


def test_a_bump_is_believed_sooner_than_the_same_way_in_many_steps() -> None:
    """The gradient of long steps is that of their cost; a step ten times as long pulls less, not ten times as much."""
    true, problem = scene(2, (2, 3), gaps=(1,), rotation_only=False)
    prior = _Prior(problem, 1.0)
    std = bundle.TRANSLATION_STEP_STD_PX / FOCAL_PX

    def state(x: Tensor) -> State:
        poses = torch.eye(4).double().repeat(2, 1, 1)
        poses[1, 0, 3] = x
        return replace(true, cam_from_world=poses)

    pulls = []
    for stds in (0.1, 6.0, 60.0):
        x = torch.tensor(stds * std, dtype=torch.float64)
        slope = 0.5 * float(torch.func.grad(lambda x: prior.cost(state(x)))(x))
        pulls.append(float(prior.normal(state(x))[1][7]))
        assert pulls[-1] == pytest.approx(slope, rel=1e-9)
    assert pulls[1] > 20 * pulls[0] and pulls[2] < 0.5 * pulls[1]


def test_robust_weight_is_the_slope_of_the_cost() -> None:
    """Geman-McClure: w^2 s / (w^2 + s), and its derivative by s."""
    r = (5 * random(0)(3, 2, 7)).requires_grad_()
    cost, weight = robust_weight(r, 1.5)
    s = (r * r).sum(1)
    torch.testing.assert_close(cost, 1.5**2 * s / (1.5**2 + s))
    (by_r,) = torch.autograd.grad(cost.sum(), r)
    torch.testing.assert_close(by_r, 2 * weight[:, None] * r)


def relative_rotation_deg(state: State) -> Tensor:
    """(n - 1, 3, 3) rotation of each camera from the one before."""
    R = state.cam_from_world[:, :3, :3]
    return R[1:] @ R[:-1].transpose(1, 2)


def rotation_error_deg(found: State, true: State) -> float:
    R = relative_rotation_deg(found) @ relative_rotation_deg(true).transpose(1, 2)
    return float(torch.rad2deg((R - R.transpose(1, 2)).square().sum((1, 2)).sqrt() / 8**0.5).max())


def centres(state: State) -> Tensor:
    T = state.cam_from_world
    return -(T[:, :3, :3].transpose(1, 2) @ T[:, :3, 3:]).squeeze(-1)


def travel_error(found: State, true: State) -> float:
    """Largest distance between the paths after the best scale, over the length of the true one."""
    a, b = centres(found), centres(true)
    a = a * float((a * b).sum() / (a * a).sum())
    return float((a - b).norm(dim=1).max() / b.norm(dim=1).max())


def test_rotations_are_recovered() -> None:
    true, problem = scene(8, (6, 10), gaps=(1, 2, 4), rotation_only=True)
    start = perturbed(true, 0.02)
    assert rotation_error_deg(start, true) > 0.5
    state = start
    for width in (16.0, 4.0, 1.0):
        state = adjust(state, problem, width_px=width, iterations=20)
    # Worst seen 1.4e-4 degrees and 5e-6.
    assert rotation_error_deg(state, true) < 1e-3
    assert float((state.log_focal - true.log_focal).abs().max()) < 1e-4


@pytest.mark.parametrize("rotation_only", [True, False])
def test_the_readout_is_recovered(rotation_only: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Together with the poses; and what is known of it is the curvature of the least cost along it."""
    monkeypatch.setattr(bundle, "PRIOR_PX2", 5e-6)
    monkeypatch.setattr(bundle, "POINT_PX2", 0.25e-6)
    true, problem = scene(8, (6, 10), gaps=(1, 2, 4), rotation_only=rotation_only, rolling=True)
    problem = replace(problem, free_focal=False)
    start = replace(true, readout=true.readout + 0.004)

    def solved(state: State, problem: Problem) -> State:
        for width in (16.0, 4.0, 1.0):
            state = adjust(state, problem, width_px=width, iterations=20)
        return state

    found = solved(start, problem)
    assert float(found.readout) == pytest.approx(0.02, abs=1e-6)
    # Twice the cost of holding the read-out off by a little, over its square.
    off, hold = 1e-4, 1e12
    held = solved(found, replace(problem, readout_prior=(0.02 + off, hold)))
    cost = float(Seen.of(held, problem).cost(problem, 1.0)[0])
    assert float(held.readout) == pytest.approx(0.02 + off, abs=1e-7)
    assert cost / off**2 == pytest.approx(float(found.readout_info), rel=0.02)


def wild_problem(outliers: float) -> tuple[State, Problem, State]:
    """A true state, observations of which a share is 30 px off, and a start without depth and with wrong poses."""
    true, problem = scene(8, (12, 20), gaps=(1, 2, 4), rotation_only=False)
    wild = torch.rand(problem.edges.weight.shape, generator=torch.Generator().manual_seed(1)) < outliers
    edges = replace(problem.edges, target=problem.edges.target + 30.0 * wild[:, None])
    start = replace(perturbed(true, 0.01), inv_depth=torch.full_like(true.inv_depth, 0.6), log_focal=true.log_focal)
    assert rotation_error_deg(start, true) > 1 and travel_error(start, true) > 0.2
    return true, replace(problem, edges=edges, free_focal=False), start


def solve(start: State, problem: Problem) -> State:
    for width in (12.0, 4.0, 1.0):
        start = adjust(start, problem, width_px=width, iterations=20)
    return start


@pytest.mark.parametrize("outliers", [0.0, 0.2])
def test_path_and_depth_are_recovered_exactly_without_priors(outliers: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to scale. Worst seen 3e-5 degrees, 2e-5 of the way, 4e-6 of the depth."""
    monkeypatch.setattr(bundle, "PRIOR_PX2", 5e-6)
    monkeypatch.setattr(bundle, "POINT_PX2", 0.25e-6)
    true, problem, start = wild_problem(outliers)
    state = solve(start, problem)
    ratio = (state.inv_depth / true.inv_depth).log()
    assert rotation_error_deg(state, true) < 3e-4
    assert travel_error(state, true) < 2e-4
    assert float((ratio - ratio.median()).abs().median()) < 1e-4


@pytest.mark.parametrize("outliers", [0.0, 0.2])
def test_priors_pull_only_a_little(outliers: float) -> None:
    """Here the camera moves six times as far as they expect; worst seen 0.18 degrees, 13 % of the way."""
    true, problem, start = wild_problem(outliers)
    state = solve(start, problem)
    assert rotation_error_deg(state, true) < 0.3
    assert travel_error(state, true) < 0.2


@pytest.mark.parametrize("rotation_only", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_the_cost_never_rises(rotation_only: bool, seed: int) -> None:
    """From anywhere, with wild observations. The depths are kept: their prior depends on what it is asked about."""
    true, problem = scene(5, (3, 4), gaps=(1, 2), rotation_only=rotation_only, seed=seed)
    noise = 20 * random(seed + 50)(*problem.edges.target.shape)
    problem = replace(problem, free_depth=False, edges=replace(problem.edges, target=problem.edges.target + noise))
    state = perturbed(true, 0.2, seed=seed)
    prior = _Prior(problem, float(state.inv_depth.median()))

    def cost(of: State) -> float:
        return float(Seen.of(of, problem).cost(problem, 4.0)[0] + prior.cost(of))

    first = last = cost(state)
    for _ in range(10):
        state = adjust(state, problem, width_px=4.0, iterations=1)
        assert cost(state) <= last
        last = cost(state)
    assert last < first


@pytest.mark.parametrize("rotation_only", [True, False])
def test_what_is_fixed_stays_to_the_last_bit(rotation_only: bool) -> None:
    true, problem = scene(6, (4, 6), gaps=(1, 2), rotation_only=rotation_only)
    problem = replace(problem, first_free_pose=3, first_free_structure=3)
    start = perturbed(true, 0.02)
    before = State(
        cam_from_world=start.cam_from_world.clone(),
        log_focal=start.log_focal.clone(),
        inv_depth=start.inv_depth.clone(),
        readout=start.readout.clone(),
        readout_info=start.readout_info.clone(),
        wobble=start.wobble.clone(),
    )
    found = adjust(start, problem, width_px=4.0, iterations=5)
    for part in ("cam_from_world", "log_focal", "inv_depth"):
        assert torch.equal(getattr(start, part), getattr(before, part)), "the given state must not be written to"
        assert torch.equal(getattr(found, part)[:3], getattr(start, part)[:3])
    assert not torch.equal(found.cam_from_world[3:], start.cam_from_world[3:])
    assert not torch.equal(found.log_focal[3:], start.log_focal[3:])
    assert torch.equal(found.inv_depth, start.inv_depth) == rotation_only


def test_switches_hold() -> None:
    true, problem = scene(5, (4, 6), gaps=(1, 2), rotation_only=False)
    start = perturbed(true, 0.02)
    found = adjust(start, replace(problem, free_focal=False), width_px=4.0, iterations=4)
    assert torch.equal(found.log_focal, start.log_focal) and not torch.equal(found.inv_depth, start.inv_depth)
    found = adjust(start, replace(problem, free_rotation=False), width_px=4.0, iterations=4)
    assert torch.equal(found.cam_from_world[:, :3, :3], start.cam_from_world[:, :3, :3])
    assert not torch.equal(found.cam_from_world, start.cam_from_world)
    found = adjust(start, replace(problem, free_depth=False), width_px=4.0, iterations=4)
    assert torch.equal(found.inv_depth, start.inv_depth) and not torch.equal(found.cam_from_world, start.cam_from_world)


def test_a_turning_camera_keeps_its_place() -> None:
    true, problem = scene(5, (4, 6), gaps=(1, 2), rotation_only=True)
    start = perturbed(true, 0.02)
    found = adjust(start, problem, width_px=4.0, iterations=5)
    assert torch.equal(found.inv_depth, start.inv_depth)
    assert rotation_error_deg(found, start) > 0.1
    torch.testing.assert_close(centres(found), centres(start), rtol=0, atol=1e-12)


def test_reprojection_error() -> None:
    true, problem = scene(4, (3, 4), gaps=(1, 2), rotation_only=False)
    assert float(reprojection_error(true, problem).max()) < EXACT
    shifted = replace(problem, edges=replace(problem.edges, target=problem.edges.target + torch.tensor([[3.0], [4.0]])))
    torch.testing.assert_close(reprojection_error(true, shifted), torch.full_like(problem.edges.weight, 5.0))
    ahead = torch.eye(4).double()
    ahead[2, 3] = -100.0
    passed = replace(true, cam_from_world=torch.stack([torch.eye(4).double(), ahead, ahead, ahead]))
    behind = reprojection_error(passed, problem)[(problem.edges.src == 0)]
    assert (behind == 1e3).all()


@pytest.mark.needs_cuda
@pytest.mark.parametrize("rolling", [False, True])
def test_a_gpu_finds_the_same(rolling: bool) -> None:
    true, problem = scene(6, (9, 16), gaps=(1, 2, 4), rotation_only=False, rolling=rolling)
    begin = perturbed(true, 0.01)
    cpu, gpu, again = (
        adjust(begin, problem, width_px=1.5, iterations=12, device=torch.device(name))
        for name in ("cpu", "cuda", "cuda")
    )
    for name in ("cam_from_world", "log_focal", "inv_depth", "readout"):
        torch.testing.assert_close(getattr(gpu, name), getattr(cpu, name), atol=1e-6, rtol=0)
        assert torch.equal(getattr(gpu, name), getattr(again, name)), "the same bits every time"
    assert float((gpu.cam_from_world - begin.cam_from_world).abs().max()) > 1e-3

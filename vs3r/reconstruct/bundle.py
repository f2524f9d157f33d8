"""Dense bundle adjustment over optical flow (DROID-SLAM, Teed & Deng 2021, section 3.2).

Every frame has P points on a grid, each with one inverse depth. An edge (i, j) says where the flow sees the points of
frame i in frame j. Unknown are the poses, the inverse depths and one focal length per frame. Gauss-Newton with
Levenberg-Marquardt damping; the inverse depths, whose block is diagonal, are eliminated by the Schur complement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vs3r.geometry import rigid_inverse, se3_retract, skew
from vs3r.reconstruct.problem import Edges, Problem, State

# The standard deviations below are what one believes before looking; PRIOR_PX2 turns them into the units of the flow
# residuals. It stands for the squared flow error times the number of residuals that share one error, because
# neighbouring flow vectors are wrong together.
PRIOR_PX2 = 5.0
# A walk straight ahead hardly tells it: with 0.15 a lens of 75 degrees came out as one of 114, and the first turn
# became a jump.
LOG_FOCAL_STD = 0.08
LOG_FOCAL_STEP_STD = 0.01
# A zoom looks like walking ahead but for the parallax: a camera that moves is believed to keep its lens at first.
LOG_FOCAL_STEP_STD_MOVING = 0.0001
# What a step between frames moves a point of typical depth in the picture. Where depth varies the flow decides; where
# it hardly does, sideways motion looks like rotation, and rotation is what hands do.
TRANSLATION_STEP_STD_PX = 0.4
# Of a step ahead where the lens zooms: so much less is believed, for walking ahead is then what a zoom looks like.
ZOOMING_AHEAD = 0.3
# A step of so many standard deviations and more is an event, a bump in the road, and costs little more (Cauchy's loss).
TRANSLATION_STEP_LIMIT = 5.0
ROTATION_STEP_STD_RAD = 0.1
# Per point, in the same sense, and in units of the typical inverse depth, because the scale of the world is free: one
# inverse depth against its neighbourhood. Against that at the beginning see Problem.inv_depth_std.
INV_DEPTH_NEIGHBOUR_STD = 0.5
POINT_PX2 = 0.25

# Points are taken to be no nearer than this, times their inverse depth.
NEAREST = 1e-3
# Derivatives of so many edges fit into a core's cache.
EDGES_AT_A_TIME = 16

MIN_INV_DEPTH, MAX_INV_DEPTH = 1e-3, 20.0

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, eq=False)
class _Linear:
    """Normal equations of the data term; of inverse depths those that may change, empty where none may."""

    hessian: Tensor
    """(7 n + 1, 7 n + 1) float64, of the cameras and the read-out."""
    gradient: Tensor
    """(7 n + 1,) float64."""
    inv_depth_info: Tensor
    """(m, P) the diagonal of the inverse depths' own block, of the last m frames."""
    inv_depth_gradient: Tensor
    """(m, P)."""
    coupling: Tensor
    """(m, k, P) between the k unknowns above that may change and the inverse depths of each frame."""


def reprojection_error(state: State, problem: Problem) -> Tensor:
    """Distance between where state and flow see the points, (E, P) pixels; 1e3 where behind the camera."""
    seen = Seen.of(state, problem)
    # norm takes ten times as long over an axis of two.
    return torch.where(seen.ahead, seen.residual.square().sum(1).sqrt(), 1e3)


def inv_depth_at_target(state: State, edges: Edges) -> Tensor:
    """Inverse depth (E, P) of the points in the destination frames."""
    from_pixels, _, t = (v.to(edges.target.dtype) for v in _dst_from_src(state, edges))
    rho = state.inv_depth[edges.src]
    z = (from_pixels[:, 2:] @ edges.source).squeeze(1).addcmul_(t[:, 2:], rho)
    return rho / z.clamp_min_(NEAREST)


def _dst_from_src(state: State, edges: Edges) -> tuple[Tensor, Tensor, Tensor]:
    """From pixels and 1 of the source to directions of the destination (E, 3, 3), rotation (E, 3, 3) and translation
    (E, 3)."""
    T = state.cam_from_world[edges.dst] @ rigid_inverse(state.cam_from_world[edges.src])
    per_px = torch.exp(-state.log_focal)
    rays = torch.diag_embed(torch.stack([per_px, per_px, torch.ones_like(per_px)], -1))
    return T[:, :3, :3] @ rays[edges.src], T[:, :3, :3], T[:, :3, 3]


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """The points of the source frames in the destination cameras; coordinates are times the inverse depth."""

    residual: Tensor
    """(E, 2, P)."""
    ahead: Tensor
    """(E, P) in front of the camera."""
    z: Tensor
    """(E, P)."""
    slope: Tensor
    """(E, 2, P) x / z and y / z."""
    source: Tensor
    """(E, 3, P) the points in the source frame, for the state's read-out."""
    from_pixels: Tensor
    """(E, 3, 3) pixels and 1 of the source to directions of the destination."""
    R: Tensor
    """(E, 3, 3) rotation, destination from source."""
    t: Tensor
    """(E, 3) translation, likewise."""
    f: Tensor
    """(E, 1) focal length of the destination."""

    @staticmethod
    def of(state: State, problem: Problem) -> Seen:
        e, dtype = problem.edges, problem.edges.target.dtype
        from_pixels, R, t = (v.to(dtype) for v in _dst_from_src(state, e))
        f = state.log_focal.exp()[e.dst, None].to(dtype)
        source, target = e.source, e.target
        if e.slope is not None:
            shift = e.slope * (state.readout - e.slope_at).to(dtype)
            source, target = source.clone(), target + shift[:, 2:]
            source[:, :2] += shift[:, :2]
        Y = from_pixels @ source
        if not problem.rotation_only:
            Y.addcmul_(t[:, :, None], state.inv_depth[e.src][:, None])
        z = Y[:, 2].clamp_min(NEAREST)
        slope = Y[:, :2] / z[:, None]
        residual = torch.addcmul(-target, f[:, None], slope)
        return Seen(residual, Y[:, 2] > 1e-2, z, slope, source, from_pixels, R, t, f)

    def cost(self, problem: Problem, width_px: float) -> tuple[Tensor, Tensor]:
        """Robust cost and the weights (E, P) of the squared residuals."""
        cost, weight = robust_weight(self.residual, width_px)
        trust = problem.edges.weight
        total = (torch.where(self.ahead, cost, width_px**2) * trust).sum()
        return total.double(), weight * trust * self.ahead


def robust_weight(r: Tensor, width_px: float) -> tuple[Tensor, Tensor]:
    """Geman-McClure cost (E, P) and weight (E, P) of residuals (E, 2, P)."""
    s = (r * r).sum(1)
    g = 1 / (1 + s / width_px**2)
    return s * g, g * g


def _smoothed(inv_depth: Tensor, info: Tensor, k_near: float, grid: tuple[int, int]) -> Tensor:
    """Inverse depth (n, P) averaged over 5x5 neighbourhoods, weighted by what the data says of each."""
    n = inv_depth.shape[0]
    w = (info / (info + k_near) + 1e-3).reshape(n, 1, *grid)
    d = inv_depth.reshape(n, 1, *grid)
    for _ in range(2):
        pooled = torch.nn.functional.avg_pool2d(torch.cat([w * d, w], 1), 3, 1, 1, count_include_pad=False)
        d = pooled[:, :1] / pooled[:, 1:]
    return d.reshape(n, -1)


class _Prior:
    """What is believed of path and focal length before looking: a quadratic cost of the steps between frames.

    The pose increments are left increments, so a step of camera i+1 relative to camera i is their difference to first
    order, in the axes of the cameras, which turn little from one frame to the next.
    """

    def __init__(self, problem: Problem, typical: float) -> None:
        self._first, self._log_focal = problem.first_free_structure, problem.log_focal_prior
        self._readout, self._k_readout = (torch.tensor(v, dtype=torch.float64) for v in problem.readout_prior)
        focal_step = LOG_FOCAL_STEP_STD if problem.rotation_only or problem.zooms else LOG_FOCAL_STEP_STD_MOVING
        # How far one length moves a point of typical depth in the picture: sideways, and ahead on average.
        px = (
            typical * math.exp(problem.log_focal_prior),
            typical * float(problem.edges.source[0, :2].norm(dim=0).square().mean().sqrt()),
        )
        sideways, ahead = TRANSLATION_STEP_STD_PX / px[0], TRANSLATION_STEP_STD_PX / px[1]
        if problem.zooms:
            ahead *= ZOOMING_AHEAD
        # A rotation of no data at all stays where it is; with data this is far too weak to be felt.
        std = torch.tensor([sideways, sideways, ahead] + [ROTATION_STEP_STD_RAD] * 3 + [focal_step]).double()
        self._k, self._k_focal = PRIOR_PX2 / std**2, PRIOR_PX2 / LOG_FOCAL_STD**2

    def _steps(self, state: State) -> tuple[Tensor, Tensor]:
        step = state.cam_from_world[1:] @ rigid_inverse(state.cam_from_world[:-1])
        turn = 0.5 * (step[:, [2, 0, 1], [1, 2, 0]] - step[:, [1, 2, 0], [2, 0, 1]])
        zoom = (state.log_focal[1:] - state.log_focal[:-1])[:, None]
        return torch.cat([step[:, :3, 3], turn, zoom], -1), state.log_focal[self._first] - self._log_focal

    def _weights(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Cost (n - 1,) of the steps' translations, and weights (n - 1, 7) of the squared steps."""
        far = (self._k[:3] * steps[:, :3] * steps[:, :3]).sum(-1)
        limit = PRIOR_PX2 * TRANSLATION_STEP_LIMIT**2
        weight = self._k.repeat(len(steps), 1)
        weight[:, :3] /= (1 + far / limit)[:, None]
        return limit * torch.log1p(far / limit), weight

    def cost(self, state: State) -> Tensor:
        steps, off = self._steps(state)
        rolling = self._k_readout * (state.readout - self._readout) ** 2
        turning = (self._k[3:] * steps[:, 3:] * steps[:, 3:]).sum()
        return self._weights(steps)[0].sum() + turning + self._k_focal * off * off + rolling

    def normal(self, state: State) -> tuple[Tensor, Tensor]:
        """Hessian (7 n + 1, 7 n + 1) and gradient (7 n + 1,)."""
        steps, off = self._steps(state)
        _, weight = self._weights(steps)
        n = len(steps) + 1
        pull = weight * steps
        g = torch.zeros(n, 7).double()
        g[1:] += pull
        g[:-1] -= pull
        g[self._first, 6] += self._k_focal * off
        own = torch.zeros(n, 7).double()
        own[1:] += weight
        own[:-1] += weight
        own[self._first, 6] += self._k_focal
        H = torch.diag(torch.cat([own.reshape(-1), self._k_readout.reshape(1)]))
        near = torch.arange(7 * (n - 1))
        H[near, near + 7] = H[near + 7, near] = -weight.reshape(-1)
        return H, torch.cat([g.reshape(-1), (self._k_readout * (state.readout - self._readout)).reshape(1)])


def _derivatives(state: State, problem: Problem, seen: Seen) -> Tensor:
    """(E, L + 1, 2, P) how the points move in the picture with each of L = 8 or 9 unknowns of an edge: dst translation
    (3), dst rotation (3), dst log f, src log f, and the read-out where it is unknown; then the residual itself."""
    e, dtype = problem.edges, problem.edges.target.dtype
    (a, b), f = seen.slope.unbind(1), seen.f
    fa, fb, s = f * a, f * b, f / seen.z

    def moved(source_move: Tensor) -> Tensor:
        """How the picture moves (E, 2, P) when the source's points do (E, 2, P)."""
        v = seen.from_pixels[:, :, :2] @ source_move
        return s[:, None] * (v[:, :2] - seen.slope * v[:, 2:])

    J = torch.empty(len(e.src), 9 if e.slope is None else 10, 2, a.shape[1], dtype=dtype)
    if problem.rotation_only:
        J[:, :3] = 0
    else:
        q = state.inv_depth[e.src] * s
        J[:, 0, 0] = J[:, 1, 1] = q
        J[:, 0, 1] = J[:, 1, 0] = 0
        torch.mul(q, -a, out=J[:, 2, 0])
        torch.mul(q, -b, out=J[:, 2, 1])
    torch.mul(fa, -b, out=J[:, 3, 0])
    torch.addcmul(-f, fb, b, value=-1, out=J[:, 3, 1])
    torch.addcmul(f, fa, a, out=J[:, 4, 0])
    torch.mul(fa, b, out=J[:, 4, 1])
    torch.neg(fb, out=J[:, 5, 0])
    J[:, 5, 1], J[:, 6, 0], J[:, 6, 1] = fa, fa, fb
    J[:, 7] = moved(-seen.source[:, :2])
    if e.slope is not None:
        J[:, 8] = moved(e.slope[:, :2]) - e.slope[:, 2:]
    J[:, -1] = seen.residual
    return J


def _rows_from_unknowns(seen: Seen, rows: int) -> Tensor:
    """(E, L, 15) from the unknowns of an edge (src pose, src log f, dst pose, dst log f, read-out) to the L `rows` of
    _derivatives: dst_from_src * exp(-xi_src) = exp(-Ad xi_src) * dst_from_src."""
    M = torch.zeros(len(seen.R), rows, 15, dtype=seen.R.dtype)
    M[:, :3, :3] = M[:, 3:6, 3:6] = -seen.R
    M[:, :3, 3:6] = -skew(seen.t) @ seen.R
    M[:, 7, 6] = 1
    M[:, :6, 7:13] = torch.eye(6, dtype=M.dtype)
    M[:, 6, 13] = 1
    M[:, 8:, 14] = 1
    return M


def _linearise(state: State, problem: Problem, seen: Seen, weight: Tensor, free: Tensor) -> _Linear:
    """Normal equations of the data term: of each frame translation, rotation and log f, 7 increments; the read-out.

    Args:
        state: where to linearise.
        problem: the observations.
        seen: what the state sees.
        weight: (E, P) of the squared residuals.
        free: (7 n + 1,) which of the unknowns may change: the inverse depths are coupled with those only.
    """
    e, dtype = problem.edges, problem.edges.target.dtype
    n, P = state.inv_depth.shape
    J = _derivatives(state, problem, seen)
    L = J.shape[1] - 1
    Mt = _rows_from_unknowns(seen, L).transpose(1, 2)
    D = None
    if problem.moves_depth:
        # How the picture moves with the inverse depth.
        D = (seen.f / seen.z)[:, None] * (seen.t[:, :2, None] - seen.slope * seen.t[:, 2:, None])
    gram = torch.empty(len(e.src), L + 1, L + 1, dtype=dtype)
    CJ = torch.empty(len(e.src), L + 1, P, dtype=dtype)
    for part in (slice(i, i + EDGES_AT_A_TIME) for i in range(0, len(e.src), EDGES_AT_A_TIME)):
        wJ = J[part] * weight[part, None, None]
        torch.bmm(wJ.flatten(2), J[part].flatten(2).transpose(1, 2), out=gram[part])
        if D is not None:
            torch.sum(wJ.mul_(D[part, None]), 2, out=CJ[part])
    gram = gram.double()
    H15, g15 = Mt.double() @ gram[:, :L, :L] @ Mt.mT.double(), (Mt.double() @ gram[:, :L, L:]).squeeze(-1)
    N = 7 * n + 1
    columns = torch.arange(7)
    cols = torch.cat(
        [e.src[:, None] * 7 + columns, e.dst[:, None] * 7 + columns, torch.full((len(e.src), 1), N - 1)], 1
    )
    H, g = assembled(N, cols, H15, g15)
    info = grad = coupling = torch.zeros(0, dtype=dtype)
    if D is not None:
        first = problem.first_free_structure
        own = e.src >= first
        src, own_D = e.src[own] - first, D[own]
        info = _summed(n - first, src, (weight[own, None] * own_D * own_D).sum(1))
        grad = _summed(n - first, src, CJ[own, L])
        # Of each frame a row per free unknown, and one for all others.
        rows = int(free.sum()) + 1
        row = torch.where(free, free.cumsum(0) - 1, rows - 1)
        at = (src[:, None] * rows + row[cols[own]]).reshape(-1)
        coupling = _summed((n - first) * rows, at, (Mt[own] @ CJ[own, :L]).reshape(-1, P))
        coupling = coupling.reshape(n - first, rows, P)[:, :-1]
    return _Linear(H, g, info, grad, coupling)


def assembled(size: int, unknowns: Tensor, hessians: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Normal equations (size, size) and (size,) of edges whose own are hessians (E, k, k) and gradients (E, k).

    Args:
        size: number of unknowns.
        unknowns: (E, k) which of them an edge's are.
    """
    H = _summed(size * size, (unknowns[:, :, None] * size + unknowns[:, None, :]).reshape(-1), hessians.reshape(-1))
    return H.reshape(size, size), _summed(size, unknowns.reshape(-1), gradients.reshape(-1))


def _summed(size: int, rows: Tensor, values: Tensor) -> Tensor:
    """(size, ...) the sums of the values (k, ...) of each row, the same to the last bit every time."""
    found = torch.zeros(size, *values.shape[1:], dtype=values.dtype, device=values.device)
    if values.is_cuda:
        # A GPU adds in the order of the moment, but for this function.
        return found.index_put_((rows,), values, accumulate=True)
    return found.index_add_(0, rows, values)


def _free(problem: Problem, n: int) -> Tensor:
    """Mask (7 n + 1,) of the unknowns that may change."""
    free = torch.zeros(n, 7, dtype=torch.bool)
    free[problem.first_free_pose :, :6] = True
    free[problem.first_free_structure :, 6] = problem.free_focal
    if problem.rotation_only:
        free[:, :3] = False
    if not problem.free_rotation:
        free[:, 3:6] = False
    return torch.cat([free.reshape(-1), torch.tensor([problem.edges.slope is not None])])


def _eliminated(H: Tensor, E: Tensor, E_over_c: Tensor) -> Tensor:
    """The Hessian of the cameras when the inverse depths, of Hessian c and coupling E, follow them."""
    return H - (E_over_c @ E.transpose(1, 2)).sum(0).double()


def adjust(state: State, problem: Problem, *, width_px: float, iterations: int, device: torch.device = CPU) -> State:
    """Minimise the robust reprojection error plus the priors.

    Args:
        state: where to start, on the CPU.
        problem: observations and what may change, on the CPU.
        width_px: width of the Geman-McClure loss in pixels.
        iterations: at most this many linearisations.
        device: where to compute.
    Returns:
        The adjusted state, on the CPU; never one of higher cost than the given.
    """
    if device.type == "cpu":
        return _adjusted(state, problem, width_px, iterations)
    with device:
        found = _adjusted(state.to(device), replace(problem, edges=problem.edges.to(device)), width_px, iterations)
    return found.to(CPU)


def _adjusted(state: State, problem: Problem, width_px: float, iterations: int) -> State:
    free, first = _free(problem, len(state.inv_depth)), problem.first_free_structure
    begin = state.inv_depth[first:]
    typical = float(begin.median())
    prior = _Prior(problem, typical)
    k_near = POINT_PX2 / (INV_DEPTH_NEIGHBOUR_STD * typical) ** 2
    k_begin = POINT_PX2 / (problem.inv_depth_std * typical) ** 2

    def depth_cost(rho: Tensor, near: Tensor) -> Tensor:
        return (k_near * (rho - near) ** 2 + k_begin * (rho - begin) ** 2).sum()

    damping = 1e-4
    seen = Seen.of(state, problem)
    cost, weight = seen.cost(problem, width_px)
    for _ in range(iterations):
        data, (prior_hessian, prior_gradient) = _linearise(state, problem, seen, weight, free), prior.normal(state)
        H, g = (data.hessian + prior_hessian)[free][:, free], (data.gradient + prior_gradient)[free]
        normal = replace(data, hessian=H, gradient=g)
        before = cost + prior.cost(state)
        rho = near = state.inv_depth[first:]
        if problem.moves_depth:
            near = _smoothed(rho, data.inv_depth_info, k_near, problem.grid)
            before = before + depth_cost(rho, near)
            info = data.inv_depth_info + k_near + k_begin
            pull = data.inv_depth_gradient + k_near * (rho - near) + k_begin * (rho - begin)
            normal = replace(normal, inv_depth_info=info, inv_depth_gradient=pull)
        for _ in range(6):
            found = _step(normal, damping)
            if found is not None:
                step = torch.zeros(len(free), dtype=torch.float64)
                step[free] = found[0]
                xi = step[:-1].reshape(-1, 7)
                inv_depth = state.inv_depth.clone()
                if problem.moves_depth:
                    inv_depth[first:] = (rho + found[1]).clamp(MIN_INV_DEPTH * typical, MAX_INV_DEPTH * typical)
                trial = replace(
                    state,
                    cam_from_world=se3_retract(xi[:, :6], state.cam_from_world),
                    log_focal=state.log_focal + xi[:, 6].clamp(-0.2, 0.2),
                    inv_depth=inv_depth,
                    readout=state.readout + step[-1],
                )
                trial_seen = Seen.of(trial, problem)
                trial_cost, trial_weight = trial_seen.cost(problem, width_px)
                after = trial_cost + prior.cost(trial)
                if problem.moves_depth:
                    after = after + depth_cost(inv_depth[first:], near)
                if after < before:
                    break
            damping = max(damping * 10, 1e-3)
        else:
            break
        state, seen, cost, weight = trial, trial_seen, trial_cost, trial_weight
        damping = max(damping * 0.3, 1e-6)
        if before - after < 1e-3 * before:
            break
    return replace(state, readout_info=_readout_info(normal)) if free[-1] else state


def _step(normal: _Linear, damping: float) -> tuple[Tensor, Tensor] | None:
    """A damped step (k,) of the unknowns that may change, and (m, P) of the inverse depths; None where it has none."""
    H, g, E, h = normal.hessian, normal.gradient, normal.coupling, normal.inv_depth_gradient
    A, v = H, g
    if len(E):
        c = normal.inv_depth_info * (1 + damping)
        E_over_c = E / c[:, None]
        A = _eliminated(H, E, E_over_c)
        v = g - (E_over_c @ h[..., None]).sum(0).squeeze(-1).double()
    A = A + torch.diag(damping * H.diagonal() + 1e-9)
    factor, info = torch.linalg.cholesky_ex(A)
    if int(info) != 0:
        return None
    step = -torch.cholesky_solve(v[:, None], factor)[:, 0]
    if not len(E):
        return step, h
    return step, -(h + (E.transpose(1, 2) @ step[:, None].to(E.dtype)).squeeze(-1)) / c


def _readout_info(normal: _Linear) -> Tensor:
    """() what remains of the read-out's curvature when all others follow it, without damping."""
    A, E = normal.hessian, normal.coupling
    if len(E):
        A = _eliminated(A, E, E / normal.inv_depth_info[:, None])
    rest: Tensor = torch.linalg.solve(A[:-1, :-1] + 1e-9 * torch.eye(len(A) - 1).double(), A[:-1, -1])
    return A[-1, -1] - A[-1, :-1] @ rest

"""Dense bundle adjustment over optical flow (DROID-SLAM, Teed & Deng 2021, section 3.2).

Every frame has P points on a grid, each with one inverse depth. An edge (i, j) says where the flow sees the points of
frame i in frame j. Unknown are the poses, the inverse depths and one focal length per frame. Gauss-Newton with
Levenberg-Marquardt damping; the inverse depths, whose block is diagonal, are eliminated by the Schur complement.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vs3r.geometry import rigid_inverse, se3_retract, skew

# The standard deviations below are what one believes before looking; PRIOR_PX2 turns them into the units of the flow
# residuals. It stands for the squared flow error times the number of residuals that share one error, because
# neighbouring flow vectors are wrong together.
PRIOR_PX2 = 5.0
LOG_FOCAL_STD = 0.15
LOG_FOCAL_STEP_STD = 0.002
# A zoom looks like walking ahead but for the parallax: a camera that moves is believed to keep its lens.
LOG_FOCAL_STEP_STD_MOVING = 0.0001
TRANSLATION_STEP_STD = 0.3
ROTATION_STEP_STD_RAD = 0.1
# Per point, in the same sense: one inverse depth against its neighbourhood, and against 1.
INV_DEPTH_NEIGHBOUR_STD = 0.15
INV_DEPTH_UNIT_STD = 1.0
POINT_PX2 = 0.25

MIN_INV_DEPTH, MAX_INV_DEPTH = 1e-2, 20.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Edges:
    """E directed pairs of frames with the flow between them at P points."""

    src: Tensor
    """(E,) frame whose points are observed."""
    dst: Tensor
    """(E,) frame that they are observed in."""
    target: Tensor
    """(E, P, 2) where they are seen, in pixels from the picture's centre."""
    weight: Tensor
    """(E, P) trust in the observation, in [0, 1]."""

    def select(self, keep: Tensor) -> Edges:
        """The edges for which the mask keep (E,) is true."""
        return Edges(src=self.src[keep], dst=self.dst[keep], target=self.target[keep], weight=self.weight[keep])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """The unknowns of n frames."""

    cam_from_world: Tensor
    """(n, 4, 4)."""
    log_focal: Tensor
    """(n,) log of the focal length in analysis pixels."""
    inv_depth: Tensor
    """(n, P)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """What stays fixed during one adjustment."""

    points: Tensor
    """(P, 2) grid points in pixels from the picture's centre."""
    grid: tuple[int, int]
    """Rows and columns of the grid; rows * columns = P."""
    edges: Edges
    """The observations."""
    first_free_pose: int
    """Frames before this one keep their pose."""
    first_free_structure: int
    """Frames before this one keep their inverse depths and focal length."""
    log_focal_prior: float
    """Expected log focal length."""
    rotation_only: bool
    """No frame moves: translations are ignored, inverse depths stay."""
    free_focal: bool = True
    """The focal length is unknown."""


@dataclass(slots=True)
class _Linear:
    cost: Tensor
    hessian: Tensor
    gradient: Tensor
    inv_depth_info: Tensor
    inv_depth_gradient: Tensor
    coupling: Tensor


def residuals(state: State, problem: Problem) -> Tensor:
    """Reprojection minus flow, (E, P, 2) pixels; a point behind the camera has a residual of 1e3."""
    Y, f_dst, _, _ = _reproject(state, problem)
    z = Y[..., 2:]
    r = f_dst * Y[..., :2] / z.clamp_min(1e-3) - problem.edges.target
    return torch.where(z > 1e-2, r, torch.full_like(r, 1e3))


def _reproject(state: State, problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points in the destination camera times their inverse depth (E, P, 3); f_dst; dst_from_src R and t."""
    e = problem.edges
    focal = state.log_focal.exp()
    x = problem.points / focal[e.src, None, None]
    T = state.cam_from_world[e.dst] @ rigid_inverse(state.cam_from_world[e.src])
    R, t = T[:, :3, :3], T[:, :3, 3]
    if problem.rotation_only:
        t = torch.zeros_like(t)
    Y = x @ R[:, :, :2].transpose(1, 2) + R[:, None, :, 2]
    if not problem.rotation_only:
        Y = Y + state.inv_depth[e.src][..., None] * t[:, None]
    return Y, focal[e.dst, None, None], R, t


def robust_weight(r: Tensor, width_px: float) -> tuple[Tensor, Tensor]:
    """Geman-McClure cost (…,) and weight (…,) of residuals (…, 2)."""
    s = (r * r).sum(-1)
    g = 1 / (1 + s / width_px**2)
    return s * g, g * g


def _smoothed(inv_depth: Tensor, info: Tensor, grid: tuple[int, int]) -> Tensor:
    """Inverse depth (n, P) averaged over 5x5 neighbourhoods, weighted by what the data says of each."""
    n = inv_depth.shape[0]
    w = (info / (info + POINT_PX2 / INV_DEPTH_NEIGHBOUR_STD**2) + 1e-3).reshape(n, 1, *grid)
    d = inv_depth.reshape(n, 1, *grid)
    for _ in range(2):
        pooled = torch.nn.functional.avg_pool2d(torch.cat([w * d, w], 1), 3, 1, 1, count_include_pad=False)
        d = pooled[:, :1] / pooled[:, 1:]
    return d.reshape(n, -1)


def _data_cost(state: State, problem: Problem, width_px: float) -> Tensor:
    cost, _ = robust_weight(residuals(state, problem), width_px)
    return (cost * problem.edges.weight).sum()


def _prior(state: State, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Cost, Hessian (7n, 7n) and gradient (7n) of what is believed of path and focal length before looking.

    The pose increments are left increments, so a step of camera i+1 relative to camera i is their difference to first
    order, in the axes of the cameras, which turn little from one frame to the next.
    """
    n = state.log_focal.shape[0]
    H = state.log_focal.new_zeros(n, 7, n, 7)
    g = state.log_focal.new_zeros(n, 7)
    a, b = torch.arange(n - 1), torch.arange(1, n)
    step = state.cam_from_world[1:] @ rigid_inverse(state.cam_from_world[:-1])
    # A rotation of no data at all stays where it is; with data this is far too weak to be felt.
    rot = 0.5 * torch.stack(
        [step[:, 2, 1] - step[:, 1, 2], step[:, 0, 2] - step[:, 2, 0], step[:, 1, 0] - step[:, 0, 1]], -1
    )
    k_t = PRIOR_PX2 / TRANSLATION_STEP_STD**2
    k_r = PRIOR_PX2 / ROTATION_STEP_STD_RAD**2
    k_s = PRIOR_PX2 / (LOG_FOCAL_STEP_STD if problem.rotation_only else LOG_FOCAL_STEP_STD_MOVING) ** 2
    k_f = PRIOR_PX2 / LOG_FOCAL_STD**2
    stiffness = torch.tensor([k_t] * 3 + [k_r] * 3 + [k_s], dtype=g.dtype)
    diff = torch.cat([step[:, :3, 3], rot, (state.log_focal[1:] - state.log_focal[:-1])[:, None]], -1)
    cost = (stiffness * diff * diff).sum()
    for d in range(7):
        H[a, d, a, d] += stiffness[d]
        H[b, d, b, d] += stiffness[d]
        H[a, d, b, d] -= stiffness[d]
        H[b, d, a, d] -= stiffness[d]
    g[1:] += stiffness * diff
    g[:-1] -= stiffness * diff
    off = state.log_focal[problem.first_free_structure] - problem.log_focal_prior
    i = problem.first_free_structure
    H[i, 6, i, 6] += k_f
    g[i, 6] += k_f * off
    return cost + k_f * off * off, H.reshape(7 * n, 7 * n), g.reshape(-1)


def _linearise(state: State, problem: Problem, width_px: float) -> _Linear:
    """Normal equations of the data term: of each frame translation, rotation and log f, 7 increments."""
    e = problem.edges
    n, P = state.inv_depth.shape
    Y, f, R, t = _reproject(state, problem)
    z = Y[..., 2].clamp_min(1e-3)
    ahead = Y[..., 2] > 1e-2
    a, b = Y[..., 0] / z, Y[..., 1] / z
    r = f * torch.stack([a, b], -1) - e.target
    cost, w = robust_weight(r, width_px)
    w = torch.where(ahead, w * e.weight, torch.zeros_like(w))
    total = (torch.where(ahead, cost, torch.full_like(cost, width_px**2)) * e.weight).sum()

    f = f[..., 0]
    q = torch.zeros_like(z) if problem.rotation_only else state.inv_depth[e.src] / z
    o = torch.zeros_like(a)
    fa, fb = f * a, f * b
    xy = R[:, None, :, 0] * (problem.points[:, :1]) + R[:, None, :, 1] * (problem.points[:, 1:])
    d_src = -xy / state.log_focal.exp()[e.src, None, None]
    s = f / z
    # Columns: dst translation (3), dst rotation (3), dst log f, src log f, then the residual itself.
    Ju = torch.stack(
        [f * q, o, -fa * q, -fa * b, f + fa * a, -fb, fa, s * (d_src[..., 0] - a * d_src[..., 2]), r[..., 0]], -1
    )
    Jv = torch.stack(
        [o, f * q, -fb * q, -f - fb * b, fb * a, fa, fb, s * (d_src[..., 1] - b * d_src[..., 2]), r[..., 1]], -1
    )
    # Columns of the 14 unknowns of an edge (src pose, src log f, dst pose, dst log f) in those of the 8 above:
    # dst_from_src * exp(-xi_src) = exp(-Ad xi_src) * dst_from_src.
    M = R.new_zeros(len(R), 8, 14)
    M[:, :3, :3] = -R
    M[:, :3, 3:6] = -skew(t) @ R
    M[:, 3:6, 3:6] = -R
    M[:, 7, 6] = 1
    M[:, :6, 7:13] = torch.eye(6, dtype=R.dtype)
    M[:, 6, 13] = 1

    wJu, wJv = w[..., None] * Ju, w[..., None] * Jv
    gram = wJu.transpose(1, 2) @ Ju + wJv.transpose(1, 2) @ Jv
    Mt = M.transpose(1, 2)
    H14, g14 = Mt @ gram[:, :8, :8] @ M, (Mt @ gram[:, :8, 8:]).squeeze(-1)
    cols = torch.cat([e.src[:, None] * 7 + torch.arange(7), e.dst[:, None] * 7 + torch.arange(7)], 1)
    H = R.new_zeros(7 * n * 7 * n)
    H.index_add_(0, (cols[:, :, None] * (7 * n) + cols[:, None, :]).reshape(-1), H14.reshape(-1))
    g = R.new_zeros(7 * n).index_add_(0, cols.reshape(-1), g14.reshape(-1))
    info, grad, coupling = R.new_zeros(n, P), R.new_zeros(n, P), R.new_zeros(0)
    if not problem.rotation_only:
        du, dv = s * (t[:, None, 0] - a * t[:, None, 2]), s * (t[:, None, 1] - b * t[:, None, 2])
        info.index_add_(0, e.src, w * (du * du + dv * dv))
        grad.index_add_(0, e.src, w * (du * r[..., 0] + dv * r[..., 1]))
        C = (du[..., None] * wJu[..., :8] + dv[..., None] * wJv[..., :8]) @ M
        coupling = R.new_zeros(n, 7 * n, P)
        flat = coupling.reshape(n * 7 * n, P)
        flat.index_add_(0, (e.src[:, None] * (7 * n) + cols).reshape(-1), C.transpose(1, 2).reshape(-1, P))
    return _Linear(total, H.reshape(7 * n, 7 * n), g, info, grad, coupling)


def adjust(state: State, problem: Problem, *, width_px: float, iterations: int) -> State:
    """Minimise the robust reprojection error plus the priors.

    Args:
        state: where to start.
        problem: observations and what may change.
        width_px: width of the Geman-McClure loss in pixels.
        iterations: at most this many linearisations.
    Returns:
        The adjusted state; never one of higher cost than the given.
    """
    n, _ = state.inv_depth.shape
    free = torch.zeros(n, 7, dtype=torch.bool)
    free[problem.first_free_pose :, :6] = True
    free[problem.first_free_structure :, 6] = problem.free_focal
    if problem.rotation_only:
        free[:, :3] = False
    free = free.reshape(-1)
    move_depth = not problem.rotation_only
    b = problem.first_free_structure
    damping = 1e-4
    k_near, k_unit = POINT_PX2 / INV_DEPTH_NEIGHBOUR_STD**2, 0.02 * POINT_PX2 / INV_DEPTH_UNIT_STD**2
    for _ in range(iterations):
        lin = _linearise(state, problem, width_px)
        prior_cost, Hp, gp = _prior(state, problem)
        H, g = (lin.hessian + Hp)[free][:, free], (lin.gradient + gp)[free]
        rho = state.inv_depth[b:]
        if move_depth:
            near = _smoothed(rho, lin.inv_depth_info[b:], problem.grid)
            depth_cost = (k_near * (rho - near) ** 2 + k_unit * (rho - 1) ** 2).sum()
            E = lin.coupling[b:, free]
            c0 = lin.inv_depth_info[b:] + k_near + k_unit
            h = lin.inv_depth_gradient[b:] + k_near * (rho - near) + k_unit * (rho - 1)
        else:
            depth_cost = rho.new_zeros(())
        before = lin.cost + prior_cost + depth_cost
        accepted = False
        for _ in range(4):
            A, v = H, g
            if move_depth:
                c = c0 * (1 + damping)
                Ec = E / c[:, None]
                A = H - (Ec @ E.transpose(1, 2)).sum(0)
                v = g - (Ec @ h[..., None]).sum(0).squeeze(-1)
            A = A + torch.diag(damping * H.diagonal() + 1e-9)
            factor, info = torch.linalg.cholesky_ex(A)
            if int(info) != 0:
                damping = max(damping * 10, 1e-3)
                continue
            step = g.new_zeros(7 * n)
            step[free] = -torch.cholesky_solve(v[:, None], factor)[:, 0]
            xi = step.reshape(n, 7)
            new_rho = state.inv_depth.clone()
            if move_depth:
                d_rho = -(h + (E.transpose(1, 2) @ step[free][:, None]).squeeze(-1)) / c
                new_rho[b:] = (rho + d_rho).clamp(MIN_INV_DEPTH, MAX_INV_DEPTH)
            trial = State(
                cam_from_world=se3_retract(xi[:, :6], state.cam_from_world),
                log_focal=state.log_focal + xi[:, 6].clamp(-0.2, 0.2),
                inv_depth=new_rho,
            )
            after = _data_cost(trial, problem, width_px) + _prior_cost(trial, problem)
            if move_depth:
                after = after + (k_near * (new_rho[b:] - near) ** 2 + k_unit * (new_rho[b:] - 1) ** 2).sum()
            if after < before:
                accepted = True
                break
            damping = max(damping * 10, 1e-3)
        if not accepted:
            break
        state = trial
        damping = max(damping * 0.3, 1e-6)
        if before - after < 1e-4 * before:
            break
    return replace(state)


def _prior_cost(state: State, problem: Problem) -> Tensor:
    return _prior(state, problem)[0]

"""Rolling shutter: how a camera turns while it reads a frame, beyond what the poses around tell.

A camera that vibrates faster than it takes pictures turns within a frame as no polynomial through the poses of
neighbouring frames does. What is then left of the flow waves along the axis of the read-out, alike in all edges of a
frame; from that the turn is found, as a polynomial of the line for each frame.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vs3r.geometry import se3_retract
from vs3r.reconstruct.bundle import Seen, assembled, robust_weight
from vs3r.reconstruct.problem import Problem, State
from vs3r.reconstruct.rolling import Shutter, rectify
from vs3r.types import ROW_MOTION_ORDER

# What is believed of a coefficient before looking, as in bundle.py: its standard deviation, and the squared flow error
# times the number of residuals that share one error.
STD_PX = 2.0
PRIOR_PX2 = 50.0
# Of a frame at an end of what is seen: how far off an extrapolated motion is with a read-out of one interval between
# frames, in a polynomial of low order; a global shutter has none.
END_STD_PX = 1.0
END_MIN_STD_PX = 0.02
END_ORDER = 2
# And how far it may have to be moved, a point of typical depth, likewise: where all is far away nothing tells that from
# a turn.
END_MOVE_STD_PX = 0.4
# Width of the Geman-McClure loss.
WIDTH_PX = 2.0
# Of the points every so many are enough: a frame has 21 unknowns.
EVERY = 2


def _basis() -> Tensor:
    """(7, 7) coefficients of s**0 to s**6 of 1 and of Legendre's polynomials on [-1/2, 1/2], less their value at 0."""
    unit = np.eye(1 + ROW_MOTION_ORDER)
    rows = [np.pad(np.polynomial.legendre.leg2poly(e), (0, ROW_MOTION_ORDER - k)) for k, e in enumerate(unit)]
    out = np.stack(rows) * 2.0 ** np.arange(1 + ROW_MOTION_ORDER)
    out[1:, 0] = 0
    return torch.from_numpy(out)


_BASIS = _basis()
# Shifts (right, down) and a roll, each over the focal length, as turns about x, y and z.
_TURN_FROM_SHIFT = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


def find_wobble(state: State, problem: Problem, shutter: Shutter) -> State:
    """The state with the turns, of whole frames and within them, that leave least of the flow; the rest stays.

    Args:
        state: where to start.
        problem: its edges are those observed, not rectified.
        shutter: when the lines of the state's frames are read.
    """
    everywhere = torch.ones(len(state.log_focal), dtype=torch.bool)
    return _turned(state, problem, shutter, everywhere, order=ROW_MOTION_ORDER, std_px=STD_PX)


def turn_ends(state: State, problem: Problem, shutter: Shutter) -> State:
    """The same for those frames only whose neighbours to one side are missing: a polynomial through few says little.

    Where the camera moves, those frames move as well, at depths that stay: a step to the side turns the picture more
    the nearer a line is, and found one after the other either takes most of what the other had.
    """
    share = abs(float(state.readout)) / shutter.interval_s
    std_px, move_px = END_STD_PX * share, END_MOVE_STD_PX * share
    if std_px < END_MIN_STD_PX:
        return state
    edges, ends = problem.edges, shutter.at_an_end
    problem = replace(problem, edges=edges.select(ends[edges.src] | ends[edges.dst]))
    return _turned(
        state, problem, shutter, ends, order=END_ORDER, std_px=std_px, move_px=0 if problem.rotation_only else move_px
    )


def _turned(
    state: State,
    problem: Problem,
    shutter: Shutter,
    frames: Tensor,
    *,
    order: int,
    std_px: float,
    move_px: float = 0.0,
) -> State:
    """Turns of the given frames, and where `move_px` is not 0 their steps.

    A turn about x or y is taken for a shift of the picture; linear least squares, weighted by the state's residuals.
    """
    n, count, moves = len(state.log_focal), 1 + order, move_px > 0
    turns = 3 * count
    normal, right = _normal_equations(state, problem, shutter, count, moves=moves)
    size = len(right) // n
    focal = state.log_focal.exp()[:, None, None]
    shifts, known = torch.zeros(n, 3, count).double(), torch.zeros(n, 3, count).double()
    coefficients = torch.linalg.solve(_BASIS[1:, 1:].T, state.wobble * focal)[:, :order]
    shifts[:, :, 1:] = _TURN_FROM_SHIFT.T @ coefficients.transpose(1, 2)
    known[:, :, 1:] = PRIOR_PX2 / std_px**2
    # What no observation tells of, a frame's turn as a whole, stays.
    pull, held = torch.zeros(n, size).double(), torch.full((n, size), 1e-6).double()
    pull[:, :turns] = (known * shifts).flatten(1)
    held[:, :turns] += known.flatten(1)
    if moves:
        # How far one length moves a point of typical depth in the picture.
        px = float(state.inv_depth[problem.first_free_structure :].median() * state.log_focal.exp().mean())
        held[:, turns:] += PRIOR_PX2 / move_px**2 * px**2
    free = torch.zeros(n, size, dtype=torch.bool)
    free[frames] = True
    free[: problem.first_free_structure] = False
    if frames.all():  # as one they may turn anywhere
        free[: problem.first_free_pose, :turns:count] = False
    free = free.reshape(-1)
    step = torch.zeros(n * size).double()
    normal += torch.diag(held.reshape(-1))
    right += pull.reshape(-1)
    step[free] = -torch.linalg.solve(normal[free][:, free], right[free])
    step = step.reshape(n, size)
    turn = (_TURN_FROM_SHIFT @ step[:, :turns].reshape(n, 3, count)).transpose(1, 2) / focal
    moved = step[:, turns:] if moves else torch.zeros(n, 3).double()
    return replace(
        state,
        cam_from_world=se3_retract(torch.cat([moved, turn[:, 0]], 1), state.cam_from_world),
        wobble=state.wobble + _BASIS[1:count, 1:].T @ turn[:, 1:],
    )


def _normal_equations(
    state: State, problem: Problem, shutter: Shutter, count: int, *, moves: bool
) -> tuple[Tensor, Tensor]:
    """Hessian (n size, n size) and gradient of the coefficients of each frame's shifts and roll, then, where it `moves`
    as well, of its translation."""
    edges, n = problem.edges, len(state.log_focal)
    seen = Seen.of(state, replace(problem, edges=rectify(edges, state, shutter)))
    _, weight = robust_weight(seen.residual, WIDTH_PX)
    weight, residual = (weight * edges.weight * seen.ahead)[:, ::EVERY], seen.residual[:, :, ::EVERY]
    basis, radius = _BASIS[:count, :count].T.to(weight.dtype), float(state.log_focal.exp().mean())

    def values(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(E, P, count): values of the basis at points (E, 2 or 3, P), and how a roll moves them right and down."""
        x, y = points[:, 0, ::EVERY, None], points[:, 1, ::EVERY, None]
        line = points[:, shutter.axis, ::EVERY] / shutter.length
        at = torch.stack([line**p for p in range(count)], -1) @ basis
        return at, at * (-y / radius), at * (x / radius)

    # Shifts are taken from source and target; the residual is where the source is expected less the target.
    shift, across, down = (
        torch.cat([-a, b], -1) for a, b in zip(values(edges.source), values(edges.target), strict=True)
    )
    none = torch.zeros_like(shift)
    # How each part moves the picture right and down.
    parts = [(shift, none), (none, shift), (across, down)]
    columns = [torch.arange(part * count, (part + 1) * count) for part in range(3)]
    if moves:
        near = (state.inv_depth[edges.src].to(weight.dtype) * seen.f / seen.z)[:, ::EVERY]
        zero, (a, b) = torch.zeros_like(near), seen.slope[:, :, ::EVERY].unbind(1)
        right, below = torch.stack([near, zero, -near * a], -1), torch.stack([zero, near, -near * b], -1)
        parts.append((torch.cat([-right, right], -1), torch.cat([-below, below], -1)))
        columns.append(torch.arange(3 * count, 3 * count + 3))
    u, v = (torch.cat(axis, -1) for axis in zip(*parts, strict=True))
    u_weighed, v_weighed = ((m * weight[..., None]).mT for m in (u, v))
    H = u_weighed @ u + v_weighed @ v
    g = (u_weighed @ residual[:, 0, :, None] + v_weighed @ residual[:, 1, :, None]).squeeze(-1)
    size = sum(len(own) for own in columns)
    cols = torch.cat([frame[:, None] * size + own for own in columns for frame in (edges.src, edges.dst)], 1)
    return assembled(n * size, cols, H.double(), g.double())

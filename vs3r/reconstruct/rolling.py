"""Rolling shutter: the lines of a picture are exposed one after the other while the camera moves.

Lines are rows, or columns where the picture lies on its side (read_axis). A picture's geometry is that of its middle
line. A line at s of the picture's length from the middle, in [-0.5, 0.5], is read readout * s later; the read-out is
signed, negative where the last line comes first. How the camera moves meanwhile is the polynomial through its poses at
the frames around, and beyond that a turn found for each frame by itself (wobble.py); at the ends, where frames lie to
one side only, the polynomial is of low order and the turn always found. Observations are rectified: moved
to where a pinhole camera would have seen them (vs3r.lens) had all lines been exposed with the middle one, so that
everything after sees a pinhole camera with a global shutter.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vs3r.geometry import rigid_inverse, so3_log
from vs3r.lens import bent, straightened
from vs3r.reconstruct.bundle import inv_depth_at_target
from vs3r.reconstruct.problem import Edges, State
from vs3r.types import ROW_MOTION_ORDER

# The motion within a frame is the polynomial through the poses of so many frames to each side.
REACH = 4
# Those that are closer to each other than this are one, in intervals between frames.
NEAREST = 0.3
# Step of the derivative with respect to the read-out, in intervals between frames.
_DELTA = 0.01


def _lowered() -> Tensor:
    """(6, 8) from the coefficients of t**1 to t**8 to those of the nearest polynomial of order 6 for |t| <= 1/2."""
    t = torch.linspace(-0.5, 0.5, 33, dtype=torch.float64)[:, None]
    low, high = t ** torch.arange(1, 1 + ROW_MOTION_ORDER), t ** torch.arange(1, 1 + 2 * REACH)
    found: Tensor = torch.linalg.lstsq(low, high).solution
    return found


_LOWERED = _lowered()


class Shutter:
    """When the lines of n frames are read, and how a camera with known poses at n times moves around them."""

    def __init__(self, exposed_s: Sequence[float], length: float, axis: int = 1) -> None:
        """
        Args:
            exposed_s: times of the middle lines in seconds, never falling, at least one; that of the frame before
                where a frame shows the same picture again.
            length: of the picture along the axis, in the pixels of the edges.
            axis: along which lines are read, see read_axis.
        """
        self.length, self.axis = length, axis
        # Of the frames with the same picture the first; which of those each frame shows.
        firsts = [i for i, t in enumerate(exposed_s) if i == 0 or t > exposed_s[i - 1]]
        shows = list(itertools.accumulate((b > a for a, b in itertools.pairwise(exposed_s)), initial=0))
        times = [exposed_s[i] for i in firsts]
        steps = sorted(b - a for a, b in itertools.pairwise(times))
        self.interval_s = steps[len(steps) // 2] if steps else 1 / 30
        """The usual time between exposures."""
        powers = torch.arange(1, 1 + ROW_MOTION_ORDER)[:, None]
        # Per frame: its neighbours, itself where it has fewer, and what turns their motions into a polynomial.
        n = len(exposed_s)
        self._neighbour = torch.arange(n)[:, None].repeat(1, 2 * REACH)
        self._solve = torch.zeros(n, ROW_MOTION_ORDER, 2 * REACH, dtype=torch.float64)
        self.at_an_end = torch.zeros(n, dtype=torch.bool)
        """(n,) which frames have fewer neighbours to one side."""
        for i, j in enumerate(shows):
            near = self._neighbours(times, j)
            self.at_an_end[i] = len(near) < 2 * REACH
            t = torch.tensor([times[k] - times[j] for k in near], dtype=torch.float64) / self.interval_s
            self._neighbour[i, : len(near)] = torch.tensor([firsts[k] for k in near])
            found = _LOWERED[:, : len(near)] @ torch.linalg.inv(t[:, None] ** torch.arange(1, len(near) + 1))
            self._solve[i, :, : len(near)] = found / self.interval_s**powers

    def _neighbours(self, times: Sequence[float], i: int) -> list[int]:
        before, after = self._to_one_side(times, i, -1), self._to_one_side(times, i, 1)
        # A polynomial through points of one side only swings out: near an end, take fewer.
        count_before, count_after = min(len(before), max(len(after) + 1, 2)), min(len(after), max(len(before) + 1, 2))
        return before[:count_before][::-1] + after[:count_after]

    def _to_one_side(self, times: Sequence[float], i: int, step: int) -> list[int]:
        """The nearest frames before (-1) or after (1) frame i that the polynomial may go through, nearest first."""
        found: list[int] = []
        last = times[i]
        for k in range(i + step, len(times) if step > 0 else -1, step):
            if len(found) == REACH or abs(times[k] - times[i]) >= (REACH + 0.5) * self.interval_s:
                break
            # Through poses at nearly one time it would swing out as well: times are repaired so where they are wrong.
            if abs(times[k] - last) >= NEAREST * self.interval_s:
                found.append(k)
                last = times[k]
        return found

    def motion(self, cam_from_world: Tensor) -> Tensor:
        """How a camera with poses (n, 4, 4) moves around each frame's time.

        Returns:
            (n, 6, 6) coefficients c: t seconds after frame i, in axes of camera i, the camera has moved by
            c[i, 0] t + ... + c[i, 5] t**6 = (translation, rotation vector), which takes points of camera i there.
        """
        step = cam_from_world[self._neighbour] @ rigid_inverse(cam_from_world)[:, None]
        return self._solve @ torch.cat([step[..., :3, 3], so3_log(step[..., :3, :3])], -1)


def rectify(edges: Edges, state: State, shutter: Shutter, *, free: bool = False) -> Edges:
    """Edges as a pinhole camera with a global shutter would have seen them.

    Args:
        edges: as observed.
        state: poses, depths and read-out at which to rectify.
        shutter: when the lines of the state's frames are read.
        free: the read-out is unknown: tell as well how the edges depend on it.
    Returns:
        Edges with other source and target; with slope where the read-out is free.
    """
    readout = float(state.readout)
    straight = straight_edges(edges, state)
    if readout == 0 and not free and not state.wobble.any():
        return straight
    motion = shutter.motion(state.cam_from_world)
    powers = torch.arange(1, 1 + ROW_MOTION_ORDER)[:, None].double()
    focal = state.log_focal.exp().to(edges.target.dtype)
    # All source points of a frame are the same grid: rectified once a frame, not once an edge.
    frames, frame_of_edge = torch.unique(edges.src, return_inverse=True)
    edge_of_frame = torch.zeros_like(frames)
    edge_of_frame[frame_of_edge] = torch.arange(len(edges.src))
    grid, grid_depth = straight.source[edge_of_frame, :2], state.inv_depth[frames]
    seen_depth = inv_depth_at_target(state, straight)

    grid_lines, target_lines = (
        _powers(points[:, shutter.axis] / shutter.length) for points in (edges.source[edge_of_frame], edges.target)
    )

    def at(r: float) -> tuple[Tensor, Tensor]:
        moved = motion * r**powers
        moved[:, :, 3:] += state.wobble
        moved = moved.to(edges.target.dtype)
        source = _rectified(grid, grid_depth, focal[frames], moved[frames], grid_lines)
        target = _rectified(straight.target, seen_depth, focal[edges.dst], moved[edges.dst], target_lines)
        return source[frame_of_edge], target

    source, target = at(readout)
    slope = None
    if free:
        delta = _DELTA * shutter.interval_s
        slope = (torch.cat(at(readout + delta), 1) - torch.cat([source, target], 1)) / delta
        # At the ends turns follow the read-out (turn_ends); held fixed meanwhile they would hold it fixed as well.
        inside = ~shutter.at_an_end
        if 2 * int(inside.sum()) > len(inside):
            slope[:, :2] *= inside[edges.src, None, None]
            slope[:, 2:] *= inside[edges.dst, None, None]
    whole = torch.cat([source, torch.ones_like(source[:, :1])], 1)
    return replace(edges, source=whole, target=target, slope=slope, slope_at=readout)


def straight_edges(edges: Edges, state: State) -> Edges:
    """Edges as a pinhole camera would have seen them."""
    if not state.distortion:
        return edges

    def straight(points: Tensor, frames: Tensor) -> Tensor:
        return points * straightened(state.distortion, _radius2(points, frames, state))

    source = torch.cat([straight(edges.source[:, :2], edges.src), edges.source[:, 2:]], 1)
    return replace(edges, source=source, target=straight(edges.target, edges.dst))


def bent_points(points: Tensor, frames: Tensor, state: State) -> Tensor:
    """Where the lens shows what a pinhole camera would at points (E, 2, P), pixels from the middle, of frames (E,)."""
    return points * bent(state.distortion, _radius2(points, frames, state)) if state.distortion else points


def _radius2(points: Tensor, frames: Tensor, state: State) -> Tensor:
    """(E, 1, P) square of the distance from the middle in focal lengths, see bent_points."""
    focal = state.log_focal.exp().to(points.dtype)
    return points.square().sum(1, keepdim=True) / focal[frames, None, None] ** 2


def _powers(line: Tensor) -> Tensor:
    """(n, 6, P) line**1 to line**6 of lines (n, P)."""
    powers = [line]
    for _ in range(ROW_MOTION_ORDER - 1):
        powers.append(powers[-1] * line)
    return torch.stack(powers, 1)


def _rectified(points: Tensor, inv_depth: Tensor, focal: Tensor, motion: Tensor, lines: Tensor) -> Tensor:
    """Points (n, 2, P) with inverse depth (n, P), moved from their line's time to that of the middle line; `lines` are
    the powers of the line."""
    move = motion.transpose(1, 2) @ lines
    f = focal[:, None]
    x = points[:, 0] / f - inv_depth * move[:, 0]
    y = points[:, 1] / f - inv_depth * move[:, 1]
    z = 1 - inv_depth * move[:, 2]
    a, b, c_ = -move[:, 3], -move[:, 4], -move[:, 5]
    # Rotation by a small vector w to second order, v + w x v + w x (w x v) / 2.
    ux, uy, uz = b * z - c_ * y, c_ * x - a * z, a * y - b * x
    x, y, z = (
        x + ux + 0.5 * (b * uz - c_ * uy),
        y + uy + 0.5 * (c_ * ux - a * uz),
        z + uz + 0.5 * (a * uy - b * ux),
    )
    return torch.stack([f * x / z, f * y / z], 1)

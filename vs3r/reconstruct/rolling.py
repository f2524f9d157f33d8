"""Rolling shutter: the rows of a picture are exposed one after the other while the camera moves.

A picture's geometry is that of its middle row. A row at s = y / height from the middle, in [-0.5, 0.5], is read
readout * s later; the read-out is signed, negative where the bottom row comes first. How the camera moves meanwhile is
the polynomial through its poses at the frames around. Observations are rectified: moved to where they would have been
seen had all rows been exposed with the middle one, so that everything after sees a global shutter.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vs3r.geometry import rigid_inverse, so3_log
from vs3r.reconstruct.bundle import Edges, State, inv_depth_at_target
from vs3r.types import ROW_MOTION_ORDER

# The motion within a frame is the polynomial through the poses of so many frames to each side.
REACH = ROW_MOTION_ORDER // 2
# Step of the derivative with respect to the read-out, in intervals between frames.
_DELTA = 0.05


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shutter:
    """When the rows of n frames are read."""

    pts_s: Tensor
    """(n,) times of the middle rows in seconds, increasing."""
    height: float
    """Of the picture, in the pixels of the edges."""

    @property
    def interval_s(self) -> float:
        """The usual time between frames."""
        return float((self.pts_s[1:] - self.pts_s[:-1]).median()) if len(self.pts_s) > 1 else 1 / 30

    def motion(self, cam_from_world: Tensor) -> Tensor:
        """How a camera with poses (n, 4, 4) moves around each frame's time.

        Returns:
            (n, 6, 6) coefficients c: t seconds after frame i, in axes of camera i, the camera has moved by
            c[i, 0] t + ... + c[i, 5] t**6 = (translation, rotation vector), which takes points of camera i there.
        """
        out = torch.zeros(len(self.pts_s), ROW_MOTION_ORDER, 6).double()
        for offsets, frames in self._neighbours().items():
            i, k = torch.tensor(frames), torch.tensor(frames)[:, None] + torch.tensor(offsets)
            step = cam_from_world[k] @ rigid_inverse(cam_from_world[i])[:, None]
            moved = torch.cat([step[..., :3, 3], so3_log(step[..., :3, :3])], -1)
            t = (self.pts_s[k] - self.pts_s[i, None]) / self.interval_s
            powers = torch.arange(1, len(offsets) + 1)
            c = torch.linalg.solve(t[..., None] ** powers, moved)
            out[i, : len(offsets)] = c / self.interval_s ** powers[:, None]
        return out

    def _neighbours(self) -> dict[tuple[int, ...], list[int]]:
        """Which frames, counted from a frame, tell how it moves, and for which frames it is those."""
        n, out = len(self.pts_s), defaultdict[tuple[int, ...], list[int]](list)
        within = (REACH + 0.5) * self.interval_s
        for i in range(n):
            # A polynomial through points of one side only swings out: near an end, take fewer.
            before, after = min(i, REACH), min(n - 1 - i, REACH)
            before, after = min(before, max(after + 1, 2)), min(after, max(before + 1, 2))
            near = [k for k in range(-before, after + 1) if k and abs(self.pts_s[i + k] - self.pts_s[i]) < within]
            if near:
                out[tuple(near)].append(i)
        return out


def rectify(edges: Edges, state: State, shutter: Shutter, *, free: bool = False) -> Edges:
    """Edges as a global shutter would have seen them.

    Args:
        edges: as observed.
        state: poses, depths and read-out at which to rectify.
        shutter: when the rows of the state's frames are read.
        free: the read-out is unknown: tell as well how the edges depend on it.
    Returns:
        Edges with other source and target; with slope where the read-out is free.
    """
    readout = float(state.readout)
    if readout == 0 and not free:
        return edges
    motion = shutter.motion(state.cam_from_world).to(edges.target.dtype)
    focal = state.log_focal.exp().to(edges.target.dtype)
    n, P = len(focal), edges.target.shape[-1]
    # All source points of a frame are the same grid: rectified once a frame, not once an edge.
    first = torch.zeros(n, dtype=torch.long)
    first[edges.src] = torch.arange(len(edges.src))
    grid = edges.source[first, :2]
    depth = state.inv_depth
    seen_depth = inv_depth_at_target(state, edges)

    def at(r: float) -> tuple[Tensor, Tensor]:
        source = _rectified(grid, depth, focal, motion, r / shutter.height)
        target = _rectified(edges.target, seen_depth, focal[edges.dst], motion[edges.dst], r / shutter.height)
        return source[edges.src], target

    source, target = at(readout)
    slope = None
    if free:
        delta = _DELTA * shutter.interval_s
        ahead, behind = at(readout + delta), at(readout - delta)
        slope = torch.cat([a - b for a, b in zip(ahead, behind, strict=True)], 1) / (2 * delta)
    whole = torch.cat([source, torch.ones(len(source), 1, P, dtype=source.dtype)], 1)
    return replace(edges, source=whole, target=target, slope=slope, slope_at=readout)


def _rectified(points: Tensor, inv_depth: Tensor, focal: Tensor, motion: Tensor, s_per_row: float) -> Tensor:
    """Points (n, 2, P) with inverse depth (n, P), moved from their row's time to that of the middle row."""
    t = points[:, 1] * s_per_row
    c = motion[..., None]
    move = torch.zeros_like(t)[:, None]
    for k in reversed(range(ROW_MOTION_ORDER)):
        move = t[:, None] * (c[:, k] + move)
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

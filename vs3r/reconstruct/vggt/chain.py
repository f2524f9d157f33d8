"""Windows of frames, each in a world of its own, joined to one: where they overlap they speak of the same cameras."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from vs3r.geometry import rigid, rigid_inverse, so3_exp, so3_log


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameEstimate:
    """What the network believes of a frame."""

    cam_from_world: Tensor
    """(4, 4) float64."""
    log_focal: Tensor
    """() float64, log of the focal length in analysis pixels."""
    inv_depth: Tensor
    """(rows, cols) > 0."""
    trust: Tensor
    """(rows, cols) >= 0, in the inverse depth; 0 where something moves."""
    dynamic: Tensor
    """(2 rows, 2 cols) in [0, 1] what moves."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Similarity:
    """Takes a world to another: x to scale * R x + t."""

    scale: float
    R: Tensor
    t: Tensor

    def __call__(self, frame: FrameEstimate) -> FrameEstimate:
        """The frame in the other world."""
        R = frame.cam_from_world[:3, :3] @ self.R.T
        centre = self.scale * self.R @ rigid_inverse(frame.cam_from_world)[:3, 3] + self.t
        return dataclasses.replace(frame, cam_from_world=rigid(R, -R @ centre), inv_depth=frame.inv_depth / self.scale)


def weighted_median(values: Tensor, weights: Tensor) -> float:
    """The value below and above which lies half of the weight; the plain median where there is none."""
    if not bool((weights > 0).any()):
        weights = torch.ones_like(weights)
    order = values.argsort()
    total = weights[order].double().cumsum(0)
    return float(values[order][torch.searchsorted(total, total[-1] / 2).clamp_max(len(values) - 1)])


def alignment(old: list[FrameEstimate], new: list[FrameEstimate]) -> Similarity:
    """The similarity from the world of `new` to that of `old`, of the same frames.

    The scale is the median ratio of their depths where nothing moves: a camera that hardly travels says nothing of it.
    Then the cameras agree: on average in rotation, at the median in place.
    """
    ratio = torch.cat([(b.inv_depth / a.inv_depth).flatten() for a, b in zip(old, new, strict=True)])
    trust = torch.cat([(a.trust * b.trust).flatten() for a, b in zip(old, new, strict=True)])
    scale = weighted_median(ratio, trust)
    turns = sum((a.cam_from_world[:3, :3].T @ b.cam_from_world[:3, :3] for a, b in zip(old, new, strict=True)))
    assert isinstance(turns, Tensor)
    u, _, vt = torch.linalg.svd(turns)
    flip = torch.ones(3, dtype=u.dtype)
    flip[2] = torch.det(u @ vt)
    R = u @ (flip[:, None] * vt)
    centres = [[rigid_inverse(each.cam_from_world)[:3, 3] for each in part] for part in (old, new)]
    shifts = torch.stack([a - scale * R @ b for a, b in zip(*centres, strict=True)])
    return Similarity(scale=scale, R=R, t=shifts.median(0).values)


def blended(a: FrameEstimate, b: FrameEstimate, weight: float) -> FrameEstimate:
    """From a (weight 0) to b (weight 1)."""
    Ra, Rb = a.cam_from_world[:3, :3], b.cam_from_world[:3, :3]
    R = so3_exp(weight * so3_log(Rb @ Ra.T)) @ Ra
    place, other = (rigid_inverse(each.cam_from_world)[:3, 3] for each in (a, b))
    return FrameEstimate(
        cam_from_world=rigid(R, -R @ torch.lerp(place, other, weight)),
        log_focal=torch.lerp(a.log_focal, b.log_focal, weight),
        inv_depth=torch.lerp(a.inv_depth.log(), b.inv_depth.log(), weight).exp(),
        trust=torch.lerp(a.trust, b.trust, weight),
        dynamic=torch.lerp(a.dynamic, b.dynamic, weight),
    )


class Chain:
    """Joins windows in order. Holds the frames of the last one."""

    def __init__(self) -> None:
        self._world: dict[int, FrameEstimate] = {}
        self._final = 0

    def push(self, first: int, window: list[FrameEstimate], *, final: int) -> list[FrameEstimate]:
        """Add the window that begins with frame `first`.

        Args:
            first: number of its first frame; a window after the first shares frames with that before it.
            window: its frames.
            final: no later window begins before this frame.
        Returns:
            The frames that are now final, in order.
        """
        numbers = range(first, first + len(window))
        shared = [n for n in numbers if n in self._world]
        if shared:
            into = alignment([self._world[n] for n in shared], [window[n - first] for n in shared])
            window = [into(each) for each in window]
        open_ones = [n for n in shared if n >= self._final]
        for k, n in enumerate(open_ones, 1):
            window[n - first] = blended(self._world[n], window[n - first], k / (len(open_ones) + 1))
        settled = {n: self._world[n] for n in shared if n < self._final}
        self._world = {n: settled.get(n, window[n - first]) for n in numbers}
        done = [self._world[n] for n in range(self._final, final)]
        self._final = final
        return done

    def flush(self) -> list[FrameEstimate]:
        """No more windows: the frames not yet returned."""
        return [frame for n, frame in self._world.items() if n >= self._final]

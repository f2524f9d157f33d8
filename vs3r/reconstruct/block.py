"""One block of frames: from flow to cameras and depth by bundle adjustment.

First the camera that only turns, then the one that moves as well, where it explains clearly more, and at the beginning
of a segment through which lens; then whether the lens zooms; then how the camera turns within its frames.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from vs3r.config import ReconstructConfig
from vs3r.geometry import rigid_inverse
from vs3r.lens import bent, straightened
from vs3r.networks import chosen_device
from vs3r.reconstruct.bundle import adjust, reprojection_error
from vs3r.reconstruct.leap import shared_shift, turn
from vs3r.reconstruct.lenses import log_focals
from vs3r.reconstruct.mounted import MountedBelief
from vs3r.reconstruct.observe import Grid, sample
from vs3r.reconstruct.problem import Edges, Problem, State
from vs3r.reconstruct.readout import ReadoutBelief, clipped
from vs3r.reconstruct.rolling import Shutter, rectify, straight_edges
from vs3r.reconstruct.wobble import find_wobble, turn_ends
from vs3r.types import ROW_MOTION_ORDER

log = logging.getLogger(__name__)

INLIER_PX = 1.0
# Of the loss with which the turn between neighbours is found first.
STEP_WIDTHS_PX = (16.0, 4.0, 1.5)
# Where a moving camera leaves this share of the flow unexplained, a zoom is tried, and taken if so much less is left;
# right after a zoom it is always tried, and taken unless so much more is left.
ZOOM_ABOVE = 0.05
ZOOM_GAIN = 0.3
ZOOM_GOES_ON_LOSS = 0.05
# Patches of flow that the picture's border cuts off see it move too little, which looks like a longer lens: where the
# focal length is found, in a segment's first block, trust falls over the width of one. Later the border is what tells
# the world from people in the middle.
BORDER_PX = 16.0
# Of inverse depths that are believed beforehand, relative.
BELIEVED_STD = 0.1
# Where a lens leaves this share of the flow of a segment's first block unexplained, the other is tried, and taken if so
# much less is left. Of 15 clips from rectilinear lenses a fisheye left 0.95 to 6 times as much, of one from an action
# camera 0.7 times.
LENS_ABOVE = 0.04
LENS_GAIN = 0.2
# A camera that begins to move must explain this much more of the flow than one that only turns.
MIN_GAIN = 0.15
# Turns within frames must explain this much more: people who move look like them (at most 0.05 in a rendered crowd with
# a global shutter; 0.08 on a street with a rolling one, 0.1 to 0.28 where the camera vibrates).
WAVES_GAIN = 0.06
# And so much of all flow: where nearly everything is explained, what is left is noise, which follows any turn (at most
# 0.0014 of a rendered walk, 0.002 and more where phones film).
WAVES_LEAST = 0.0015
# Nothing holds the scale of a world in which the camera walks on, and what is believed of its steps makes them a little
# short, block by block, and inverse depths as much too large. So each block goes this share of the way back, in the
# logarithm, to where the typical inverse depth is 1.
SCALE_RETURN = 0.02


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Solved:
    """A frame whose geometry is final."""

    cam_from_world: Tensor
    """(4, 4) see State."""
    log_focal: Tensor
    """() see State."""
    inv_depth: Tensor
    """(P,) see State."""
    exposed_s: float
    """When the picture was taken, in seconds."""
    flat: bool
    """The camera only turned: it knows no depth."""
    wobble: Tensor
    """(6, 3) see State."""


Believe: TypeAlias = Callable[[State, list[int], int], tuple[State, float] | None]
"""What else is known of a moving camera. Takes the camera that only turns, the numbers of its frames, and the place of
the last frame that stays as it is; gives a state that begins there, in the scale of its depth, and the log focal length
to be expected; or None."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Moving:
    """How six degrees of freedom begin."""

    start: State
    """Where they started from."""
    state: State
    """Where they are, refined."""
    problem: Problem
    """How they were found."""
    left: float
    """What share of the flow they leave unexplained."""
    enough: float
    """So little must be left in the end."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Begun:
    """A block, as far as it tells whether the camera moves and through which lens it was seen."""

    turning: State
    """The camera that only turns."""
    unexplained: float
    """What share of the flow it leaves unexplained."""
    moving: _Moving | None
    """None where it is clear that the camera only turns."""
    fresh: Edges
    """Flow from the new frames, between frames that may have depth of their own."""

    @property
    def moves(self) -> bool:
        """Six degrees of freedom explain clearly more, so far."""
        return self.moving is not None and self.moving.left < self.moving.enough

    @property
    def best(self) -> tuple[State, bool]:
        """What leaves less of the flow unexplained, and whether that only turns."""
        if self.moving is not None and self.moving.left < self.unexplained:
            return self.moving.state, False
        return self.turning, True


class BlockSolver:
    """Adjusts blocks of frames, each from where the frames before it stand."""

    def __init__(self, config: ReconstructConfig, size: tuple[int, int], grid: Grid, believe: Believe | None) -> None:
        """
        Args:
            config: what is known of the camera, and where to compute.
            size: width and height of the analysis picture.
            grid: its cells.
            believe: see Believe.
        """
        self._size, self._grid, self._believe = size, grid, believe
        self._adjust = functools.partial(adjust, device=chosen_device(config.adjust_device, "adjust_device"))
        self._focal_known = config.hfov_deg is not None
        self._log_focals = log_focals(config, size)
        ms = config.readout_ms
        self._global_shutter = ms == 0
        self._readout = ReadoutBelief(None if ms is None else ms / 1000)
        self.mounted = MountedBelief(grid.rows, grid.cols)
        """What is fixed to the camera, as the blocks so far tell."""
        centre = np.array(size, dtype=np.float32) / 2
        self._points = torch.from_numpy((grid.centres(fine=False) - centre).reshape(-1, 2))
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._readout.reset()
        self.mounted.reset()
        self._distortion = min(self._log_focals, key=abs)
        self._zooms = False

    def cut(self) -> None:
        """What follows is another shot."""
        self._readout.cut()
        self.mounted.reset()
        self._zooms = False

    def solve(self, old: list[Solved], edges: Edges | None, shutter: Shutter, *, first: int) -> tuple[State, bool]:
        """Cameras and depths of a block.

        Args:
            old: frames before it, which stay as they are.
            edges: flow between frames, numbered from the first of `old`; None where there is none.
            shutter: when the lines of all those frames are read.
            first: number of the first of those frames, for `believe`.
        Returns:
            The state of all those frames, and whether the camera only turns.
        """
        self._shutter, self._first = shutter, first
        if edges is None:
            state, flat = self._predict(old, edges), True
        else:
            self.mounted.learn(edges)
            log.debug("fixed to the camera: %.3f", self.mounted.mounted.mean())
            edges = replace(edges, weight=edges.weight * self.mounted.world)
            lens_known = bool(old) or len(self._log_focals) == 1
            begun = self._begun(old, edges) if lens_known else self._begun_through_best_lens(edges)
            moving = self._moving(begun, old)
            # A camera that only turns stays where the last one stood: no adjustment of rotations alone moves a centre.
            state, flat = moving or begun.turning, moving is None
        self._readout.learn(state, shutter.interval_s)
        said = state.readout / shutter.interval_s, state.readout_info * shutter.interval_s**2
        log.debug("readout %.3f frames, info %.1f", *said)
        return state, flat

    def _begun_through_best_lens(self, edges: Edges) -> _Begun:
        """The first block of a segment, which may be seen through another lens than the one before."""
        usual = self._distortion
        (other,) = self._log_focals.keys() - {usual}
        # Half of the flow is enough to compare them.
        onward = edges.select(edges.src < edges.dst)

        def left(begun: _Begun) -> float:
            state, only_turns = begun.best
            return self._left(state, self._problem(onward, 0, rotation_only=only_turns), onward)

        begun = self._begun([], edges)
        left_usual = left(begun)
        if left_usual < LENS_ABOVE:
            return begun
        self._distortion = other
        tried = self._begun([], onward)
        left_other = left(tried)
        log.debug("outlier share of a lens of %.1f %.3f, of %.1f %.3f", usual, left_usual, other, left_other)
        # A camera that hardly moves tells nothing.
        if (begun.moves or tried.moves) and left_other < (1 - LENS_GAIN) * left_usual:
            return self._begun([], edges)
        self._distortion = usual
        return begun

    def _inside(self, edges: Edges) -> Tensor:
        """How far from the picture's border flow begins and ends, (E, P) in [0, 1]."""
        half = torch.tensor(self._size)[:, None] / 2
        ends = (edges.source[:, :2], edges.target)
        distance = torch.stack([(half - points.abs()).amin(1) for points in ends]).amin(0)
        return (distance / BORDER_PX).clamp(0, 1) ** 2

    def _problem(self, edges: Edges, known: int, *, rotation_only: bool) -> Problem:
        return Problem(
            grid=(self._grid.rows, self._grid.cols),
            edges=edges,
            first_free_pose=max(1, known),
            first_free_structure=known,
            log_focal_prior=self._log_focals[self._distortion],
            rotation_only=rotation_only,
            free_focal=not self._focal_known,
        )

    def _predict(self, old: list[Solved], edges: Edges | None) -> State:
        """Where to start: each new frame by a robust rotation from the one before it."""
        new, P = len(self._shutter.at_an_end) - len(old), len(self._points)
        poses = [s.cam_from_world for s in old] or [torch.eye(4).double()]
        focals = [s.log_focal for s in old] or [torch.tensor(self._log_focals[self._distortion], dtype=torch.float64)]
        n = len(old) + new
        level = float(old[-1].inv_depth.median()) if old else 1.0
        interval_s = self._shutter.interval_s
        readout_s = clipped(self._readout.readout_s, interval_s)
        _, known_of_it = self._readout.prior(readout_s, interval_s)
        state = State(
            cam_from_world=torch.stack((poses + [poses[-1]] * new)[:n]),
            log_focal=torch.stack((focals + [focals[-1]] * new)[:n]),
            inv_depth=torch.stack([s.inv_depth for s in old] + [torch.full((P,), level)] * new),
            readout=torch.tensor(readout_s, dtype=torch.float64),
            readout_info=torch.tensor(known_of_it, dtype=torch.float64),
            wobble=torch.stack([s.wobble for s in old] + [torch.zeros(ROW_MOTION_ORDER, 3).double()] * new),
            distortion=self._distortion,
        )
        if edges is None:
            return state
        edges = straight_edges(edges.select(_nearest(edges)), state)
        steps = self._problem(edges, len(old), rotation_only=True)
        state = replace(state, cam_from_world=_leapt(state, edges, len(old)))
        for width in STEP_WIDTHS_PX:
            state = self._adjust(state, steps, width_px=width, iterations=4)
        return state

    def _turning(self, state: State, edges: Edges, known: int) -> State:
        """The camera that only turns, and the read-out."""
        problem = self._problem(edges, known, rotation_only=True)
        for width in (3.0, 1.0):
            state = self._adjusted(state, problem, width, 3)
            state = turn_ends(state, problem, self._shutter)
        return self._adjusted(state, problem, 1.0, 6)

    def _begun(self, old: list[Solved], edges: Edges) -> _Begun:
        """A block through the lens that is thought of: the camera that only turns, and from it six degrees of freedom,
        refined, but where it is clear that they do not explain more."""
        state = self._predict(old, edges)
        if not old:
            edges = replace(edges, weight=edges.weight * self._inside(edges))
        known, was_moving = len(old), _was_moving(old)
        turning = self._turning(state, edges, known)
        # Frames without depth of their own know neither where they stood nor where a moving camera sees their points:
        # after them a walk begins where the last of them is thought to be.
        flat = torch.tensor([s.flat for s in old] + [False] * (len(turning.log_focal) - known))
        used = edges.select(~flat[edges.src] & ~flat[edges.dst])
        fresh = used.select(used.src >= known)
        if not len(fresh.src):
            return _Begun(turning=turning, unexplained=0.0, moving=None, fresh=fresh)
        flat_problem = self._problem(rectify(fresh, turning, self._shutter), known, rotation_only=True)
        unexplained = _outlier_share(turning, flat_problem)
        enough = unexplained if was_moving else (1 - MIN_GAIN) * unexplained - 0.01
        if enough < 0.01:
            return _Begun(turning=turning, unexplained=unexplained, moving=None, fresh=fresh)
        problem = self._problem(used, known, rotation_only=False)
        if not was_moving:
            problem = replace(problem, first_free_pose=known + 1)
        start, problem = self._begin(turning, problem, old, fresh, unexplained)
        state, left = self._refined(start, problem, fresh)
        log.debug("outlier share turning %.3f moving %.3f", unexplained, left)
        moving = _Moving(start=start, state=state, problem=problem, left=left, enough=enough)
        return _Begun(turning=turning, unexplained=unexplained, moving=moving, fresh=fresh)

    def _moving(self, begun: _Begun, old: list[Solved]) -> State | None:
        """Six degrees of freedom; None where they do not clearly explain more."""
        if begun.moving is None:
            return None
        start, state, problem, left = begun.moving.start, begun.moving.state, begun.moving.problem, begun.moving.left
        zoomed, self._zooms = self._zooms, False
        if problem.free_focal and (zoomed or left > ZOOM_ABOVE):
            zooming, left_zooming = self._refined(start, replace(problem, zooms=True), begun.fresh)
            log.debug("outlier share zooming %.3f", left_zooming)
            if left_zooming < (1 + ZOOM_GOES_ON_LOSS if zoomed else 1 - ZOOM_GAIN) * left:
                state, left, self._zooms = zooming, left_zooming, True
                problem = replace(problem, zooms=True)
        state, left = self._finished(state, problem, begun.fresh, left)
        if left >= begun.moving.enough:
            return None
        return _rescaled(state, old)

    def _refined(self, state: State, problem: Problem, fresh: Edges) -> tuple[State, float]:
        """All unknowns adjusted, and what share of the flow of the fresh edges stays unexplained."""
        for width, iterations in ((4.0, 6), (1.5, 8)):
            state = self._adjusted(state, problem, width, iterations)
            state = turn_ends(state, problem, self._shutter)
        return state, self._left(state, problem, fresh)

    def _finished(self, state: State, problem: Problem, fresh: Edges, left: float) -> tuple[State, float]:
        """Refined further, from a state that leaves `left`, with turns within frames where they pay. Whether the lens
        zooms is known by now: as a line moves further the lower it is, a turn within the frame looks like half of a
        zoom."""
        waves = False
        if not self._global_shutter:
            turned = find_wobble(state, problem, self._shutter)
            waves = left - self._left(turned, problem, fresh) > max(WAVES_GAIN * left, WAVES_LEAST)
        if waves:
            state = self._adjusted(turned, problem, 1.5, 3, waves=True)
            state = find_wobble(state, problem, self._shutter)
            # Blurred frames are lost with a narrower loss.
            state = self._adjusted(state, problem, 1.0, 5, waves=True)
        else:
            state = self._adjusted(state, problem, 0.75, 6)
        return state, self._left(state, problem, fresh)

    def _adjusted(
        self, state: State, problem: Problem, width_px: float, iterations: int, *, waves: bool = False
    ) -> State:
        # A turn that is found frame by frame would take for itself what tells of the read-out.
        seen = rectify(problem.edges, state, self._shutter, free=self._readout.unsettled and not waves)
        prior = self._readout.prior(float(state.readout), self._shutter.interval_s)
        now = replace(problem, edges=seen, readout_prior=prior)
        state = self._adjust(state, now, width_px=width_px, iterations=iterations)
        interval_s = self._shutter.interval_s
        return replace(state, readout=state.readout.clamp(-interval_s, interval_s))

    def _left(self, state: State, problem: Problem, fresh: Edges) -> float:
        """What share of the flow of the fresh edges stays unexplained, in [0, 1]."""
        return _outlier_share(state, replace(problem, edges=rectify(fresh, state, self._shutter)))

    def _begin(
        self, turning: State, problem: Problem, old: list[Solved], fresh: Edges, unexplained: float
    ) -> tuple[State, Problem]:
        """Where to start with six degrees of freedom: where believed to be, if that explains more than turning."""
        known = len(old)
        # A lens that zooms while it turns is what walking ahead looks like: begin without.
        log_focal = turning.log_focal.clone()
        log_focal[known:] = log_focal[known - 1] if known else log_focal.mean()
        # And what parallax made of the newest frames.
        wobble = turning.wobble.clone()
        wobble[known:] = 0
        turning = replace(turning, log_focal=log_focal, wobble=wobble)
        numbers = list(range(self._first, self._first + len(log_focal)))
        believed = self._believe(turning, numbers, problem.first_free_pose - 1) if self._believe else None
        if believed is not None:
            state, expected = believed
            state = self._placed(state, replace(problem, free_depth=False, free_focal=False))
            left = self._left(state, problem, fresh)
            log.debug("outlier share believed %.3f turning %.3f", left, unexplained)
            if left < unexplained:
                problem = replace(problem, inv_depth_std=BELIEVED_STD)
                return state, problem if self._focal_known else replace(problem, log_focal_prior=expected)
        return self._begin_moving(turning, problem, old), problem

    def _begin_moving(self, turning: State, problem: Problem, old: list[Solved]) -> State:
        """Where to start with six degrees of freedom."""
        state = turning
        if _was_moving(old):
            # Poses for the depth that is known, a wide basin first: parallax puts the turning camera far off.
            state = replace(turning, inv_depth=self._carried_depth(turning, old))
            problem = replace(problem, free_depth=False, free_focal=False)
        else:
            # With no depth yet, sideways motion and rotation are one: find depth and translation for these rotations.
            problem = replace(problem, free_rotation=False, free_focal=False)
        return turn_ends(self._placed(state, problem), problem, self._shutter)

    def _placed(self, state: State, problem: Problem) -> State:
        """What is free adjusted from afar, with the read-out as it is."""
        for width in (12.0, 4.0):
            seen = rectify(problem.edges, state, self._shutter)
            state = self._adjust(state, replace(problem, edges=seen), width_px=width, iterations=8)
        return state

    def _carried_depth(self, turning: State, old: list[Solved]) -> Tensor:
        """Inverse depths to start from: those of the last solved frame, seen from the new ones by rotation alone."""
        depth = turning.inv_depth.clone()
        last, distortion = len(old) - 1, turning.distortion
        field = old[-1].inv_depth.reshape(self._grid.rows, self._grid.cols).numpy()
        size = torch.tensor(self._size)
        for k in range(len(old), len(depth)):
            R = (turning.cam_from_world[last, :3, :3] @ turning.cam_from_world[k, :3, :3].T).float()
            there = (self._points / turning.log_focal[k].exp()).float()
            there *= straightened(distortion, there.square().sum(1, keepdim=True))
            ray = torch.cat([there, torch.ones(len(there), 1)], 1) @ R.T
            here = ray[:, :2] / ray[:, 2:].clamp_min(0.1)
            here *= bent(distortion, here.square().sum(1, keepdim=True))
            seen = here * turning.log_focal[last].exp() / size + 0.5
            at = seen * torch.tensor([self._grid.cols, self._grid.rows])
            cells = at.numpy().astype(np.float32).reshape(self._grid.rows, self._grid.cols, 2)
            depth[k] = torch.from_numpy(sample(field, cells)).reshape(-1)
        return depth


def _nearest(edges: Edges) -> Tensor:
    """(E,) which edges join a frame to the nearest one before it that it is joined to at all."""
    before, frame = torch.minimum(edges.src, edges.dst), torch.maximum(edges.src, edges.dst)
    nearest = torch.zeros(int(frame.max()) + 1, dtype=before.dtype).scatter_reduce(0, frame, before, "amax")
    return before == nearest[frame]


def _leapt(state: State, steps: Edges, known: int) -> Tensor:
    """(n, 4, 4) cameras of which the first `known` stand where they do, and each further one where the one before it
    does, or turned from there if the picture leapt."""
    T, focal = state.cam_from_world.clone(), math.exp(float(state.log_focal[max(known - 1, 0)]))
    ahead = {int(dst): e for e, dst in enumerate(steps.dst) if steps.src[e] < dst}
    shift = torch.zeros(2).double()
    if known > 1:
        axis = T[known - 1, :3, :3] @ T[known - 2, 2, :3]
        shift = focal * axis[:2] / axis[2]
    for k in range(max(1, known), len(T)):
        T[k] = T[k - 1]
        if k in ahead:
            e = ahead[k]
            T[k] = T[steps.src[e]]
            shift = shared_shift(steps.source[e, :2], steps.target[e], steps.weight[e], shift)
            if shift.norm() > STEP_WIDTHS_PX[0]:
                T[k, :3] = turn(shift, focal) @ T[k, :3]
    return T


def _rescaled(state: State, old: list[Solved]) -> State:
    """A moving camera's new frames, seen from the last old one in another scale."""
    known, depth = len(old), state.inv_depth.clone()
    ratio = float(depth[known:].median())
    if _was_moving(old):
        ratio **= SCALE_RETURN
    elif old:
        # A walk that begins, in the scale of the frames before it: else what stood still a moment ago leaps.
        ratio /= float(depth[known - 1].median())
    depth[known:] /= ratio
    T = state.cam_from_world.clone()
    centre = rigid_inverse(T)[:, :3, 3]
    begin = centre[max(known - 1, 0)]
    T[known:, :3, 3] = -(T[known:, :3, :3] @ (begin + ratio * (centre[known:] - begin))[..., None]).squeeze(-1)
    return replace(state, cam_from_world=T, inv_depth=depth)


def _was_moving(old: list[Solved]) -> bool:
    """The last frame before a block has depth of its own."""
    return bool(old) and not old[-1].flat


def _outlier_share(state: State, problem: Problem) -> float:
    """Weighted share of the flow that the state does not explain, in [0, 1]."""
    outlier = 1 - 1 / (1 + (reprojection_error(state, problem) / INLIER_PX) ** 2)
    weight = problem.edges.weight
    return float((weight * outlier).sum() / weight.sum().clamp_min(1e-9))

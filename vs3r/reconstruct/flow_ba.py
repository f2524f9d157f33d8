"""Reconstruction without weights: dense bundle adjustment on optical flow (DESIGN section 4).

Frames are adjusted in blocks of 8, each with the 8 frames before it, which stay as they are, and the 4 after it, which
are adjusted again with the next block. The blocks begin at the frame numbers of the segment, so the result does not
depend on how the frames arrived.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vs3r.config import Config
from vs3r.flow import analysis_picture, analysis_size, make_flow
from vs3r.geometry import rigid_inverse
from vs3r.mask import OtherFrame, dynamic_probability
from vs3r.networks import Prepare, chosen_device, eager
from vs3r.reconstruct.bundle import Edges, Problem, State, adjust, reprojection_error
from vs3r.reconstruct.observe import FlowWindow, Grid, Observation, agreement, sample
from vs3r.reconstruct.readout import ReadoutBelief
from vs3r.reconstruct.rolling import REACH, Shutter, rectify
from vs3r.reconstruct.wobble import find_wobble, turn_ends
from vs3r.types import ROW_MOTION_ORDER, DoubleArray, FloatArray, Frame, FrameGeometry, PictureFormat, read_axis

log = logging.getLogger(__name__)

BLOCK = 8
# The newest frames are seen from one side only, and their translations come out short: they are adjusted again.
OVERLAP = 4
# A phone's main camera filming video; a wider or longer lens shows itself once the camera turns.
DEFAULT_HFOV_DEG = 62.0
INLIER_PX = 1.0
# Share of the picture on which flow and flow back agree, below which two frames may be of different shots.
CONNECTED = 0.25
# A picture is shown again where it differs by less than this on average, and the flow between them is less than that.
REPEAT_GREY = 0.5
REPEAT_PX = 0.05
# Where a moving camera leaves this share of the flow unexplained, a zoom is tried, and taken if so much less is left;
# right after a zoom it is always tried, and taken for less.
ZOOM_ABOVE = 0.05
ZOOM_GAIN = 0.3
ZOOM_GOES_ON_GAIN = 0.05
# Of inverse depths that are believed beforehand, relative.
BELIEVED_STD = 0.1
# A camera that begins to move must explain this much more of the flow than one that only turns.
MIN_GAIN = 0.15
# Turns within frames must explain this much more: people who move look like them (at most 0.05 in a rendered crowd with
# a global shutter; 0.08 on a street with a rolling one, 0.1 to 0.28 where the camera vibrates).
WAVES_GAIN = 0.06


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedFrame:
    """What is known of a frame when it has been seen, in the numbers of all frames seen."""

    index: int
    """Frame number."""
    pts_s: float
    """Time in seconds."""
    exposed_s: float
    """When the picture was taken: the time of the first frame that shows it."""
    picture: npt.NDArray[np.uint8]
    """(H, W) what analysis sees of it."""
    found: list[Observation]
    """Flow between it and earlier frames."""
    agreement: float
    """Share of the picture on which flow from the frame before and back agree, in [0, 1]."""
    change: float
    """How much the histogram differs from that of the frame before, in [0, 2]."""


@dataclass(slots=True)
class _Solved:
    """A frame whose geometry is final."""

    cam_from_world: Tensor
    log_focal: Tensor
    inv_depth: Tensor
    exposed_s: float
    flat: bool
    wobble: Tensor


Believe: TypeAlias = Callable[[State, list[int], int], tuple[State, float] | None]
"""What else is known of a moving camera. Takes the camera that only turns, the numbers of its frames, and the place of
the last frame that stays as it is; gives a state that begins there, in the scale of its depth, and the log focal length
to be expected; or None."""


class FlowBundleAdjustment:
    """Camera path, depth and moving objects from optical flow alone. A Reconstructor."""

    def __init__(
        self, config: Config, fmt: PictureFormat, prepare: Prepare = eager, believe: Believe | None = None
    ) -> None:
        self._format = fmt
        self._believe = believe
        self._size = analysis_size(fmt, config.flow.analysis_pixels)
        self._grid = Grid.of(*self._size)
        self._window = FlowWindow(make_flow(config.flow, prepare), self._grid)
        device = chosen_device(config.reconstruct.adjust_device, "adjust_device")
        self._adjust = functools.partial(adjust, device=device)
        hfov = config.reconstruct.hfov_deg
        self._focal_known = hfov is not None
        long_side = self._size[0] if hfov is not None else max(self._size)
        angle = math.radians(hfov if hfov is not None else DEFAULT_HFOV_DEG)
        self._log_focal = math.log(0.5 * long_side / math.tan(angle / 2))
        ms = config.reconstruct.readout_ms
        self._global_shutter = ms == 0
        self._readout = ReadoutBelief(None if ms is None else ms / 1000)
        centre = np.array(self._size, dtype=np.float32) / 2
        self._points = torch.from_numpy((self._grid.centres(fine=False) - centre).reshape(-1, 2))
        self._seen = 0
        self._last_picture: npt.NDArray[np.uint8] | None = None
        self._exposed_s = 0.0
        self.reset()

    def reset(self) -> None:
        """See Reconstructor."""
        self._first: int | None = None
        self._segment = 0
        self._readout.reset()
        self._start_segment()

    def _start_segment(self) -> None:
        self._last_agreement = 1.0
        self._observed: list[Observation] = []
        self._pictures: dict[int, npt.NDArray[np.uint8]] = {}
        self._pending: list[ObservedFrame] = []
        self._solved: list[_Solved] = []
        self._zooms = False
        self._readout.cut()

    def observe(self, frame: Frame, /) -> ObservedFrame:
        """See Reconstructor."""
        picture = analysis_picture(frame, self._size)
        index, before = self._seen, self._last_picture
        found = self._window.push(index, picture)
        steps = [o for o in found if abs(o.src - o.dst) == 1]
        self._seen, self._last_picture = index + 1, picture
        if before is None or not _is_repeat(before, picture, steps):
            self._exposed_s = frame.pts_s
        return ObservedFrame(
            index=index,
            pts_s=frame.pts_s,
            exposed_s=self._exposed_s,
            picture=picture,
            found=found,
            agreement=agreement(steps) if steps else 1.0,
            change=_histogram_change(before, picture) if before is not None else 0.0,
        )

    def push(self, observed: ObservedFrame, /) -> list[FrameGeometry]:
        """See Reconstructor."""
        done: list[FrameGeometry] = []
        if self._first is None:
            self._first = self._segment_first = observed.index
        else:
            # In the middle of a whipped pan no flow is found either; a cut comes out of the blue.
            sudden, self._last_agreement = self._last_agreement > CONNECTED, observed.agreement
            if sudden and is_cut(observed):
                done = self._finish()
                self._segment += 1
                self._segment_first = observed.index
                self._start_segment()
        self._observed += [o for o in observed.found if min(o.src, o.dst) >= self._segment_first]
        self._pictures[observed.index] = observed.picture
        self._pending.append(observed)
        # The first block of a segment has no solved frames to lean on and takes twice as many.
        ready = BLOCK if self._solved else 2 * BLOCK
        if len(self._pending) == ready + OVERLAP:
            done += self._solve(ready)
        return done

    def flush(self) -> list[FrameGeometry]:
        """See Reconstructor."""
        return self._finish()

    def _finish(self) -> list[FrameGeometry]:
        return self._solve(len(self._pending)) if self._pending else []

    def _solve(self, ready: int) -> list[FrameGeometry]:
        """Adjust the pending frames and make the geometry of the first `ready` of them final."""
        # Beyond those that edges reach, frames that tell how the camera moves within the first of them.
        old = self._solved[-BLOCK - REACH :]
        base = self._pending[0].index - len(old)
        found = self._fresh_observations(base)
        edges = self._edges(found, base) if found else None
        exposed_s = [s.exposed_s for s in old] + [p.exposed_s for p in self._pending]
        axis = read_axis(self._format.width, self._format.height)
        self._shutter = Shutter(exposed_s, self._size[axis], axis)
        start = self._predict(old, edges)
        known = len(old)
        if edges is not None:
            start = self._turning(start, edges, known)
        solved = self._moving(start, edges, old) if edges is not None else None
        # A camera that only turns stays where the last frame stood: no adjustment of rotations alone moves a centre.
        flat, state = solved is None, solved or start
        interval_s = self._shutter.interval_s
        self._readout.learn(state, interval_s)
        log.debug("readout %.3f frames, info %.1f", state.readout / interval_s, state.readout_info * interval_s**2)
        for k, seen in enumerate(self._pending[:ready], known):
            pose, log_focal, inv_depth = state.cam_from_world[k], state.log_focal[k], state.inv_depth[k]
            self._solved.append(_Solved(pose, log_focal, inv_depth, seen.exposed_s, flat, state.wobble[k]))
        del self._solved[: -2 * BLOCK]
        out = [
            self._geometry(k, seen.index, seen.pts_s, state, base)
            for k, seen in enumerate(self._pending[:ready], known)
        ]
        self._pending = self._pending[ready:]
        keep = base + known + ready - BLOCK
        self._observed = [o for o in self._observed if min(o.src, o.dst) >= keep]
        self._pictures = {i: picture for i, picture in self._pictures.items() if i >= keep}
        return out

    def _fresh_observations(self, base: int) -> list[Observation]:
        """Those between the frames from `base` that are of use for the pending ones."""
        new = self._pending[0].index
        return [o for o in self._observed if min(o.src, o.dst) >= base and max(o.src, o.dst) >= new]

    def _edges(self, found: list[Observation], base: int, *, fine: bool = False) -> Edges:
        """Observations, at the coarse or the fine cells, of frames numbered from `base`."""
        centre = np.array(self._size, dtype=np.float32) / 2
        points = torch.from_numpy((self._grid.centres(fine) - centre).reshape(-1, 2))
        P = len(points)
        flow = torch.from_numpy(np.stack([o.fine_flow if fine else o.flow for o in found])).flatten(1, 2)
        return Edges(
            src=torch.tensor([o.src - base for o in found]),
            dst=torch.tensor([o.dst - base for o in found]),
            target=(points + flow).transpose(1, 2).contiguous(),
            weight=torch.from_numpy(np.stack([o.fine_weight if fine else o.weight for o in found])).flatten(1),
            source=torch.cat([points, torch.ones(P, 1)], 1).T.expand(len(found), -1, -1),
        )

    def _problem(self, edges: Edges, known: int, *, rotation_only: bool) -> Problem:
        return Problem(
            grid=(self._grid.rows, self._grid.cols),
            edges=edges,
            first_free_pose=max(1, known),
            first_free_structure=known,
            log_focal_prior=self._log_focal,
            rotation_only=rotation_only,
            free_focal=not self._focal_known,
        )

    def _predict(self, old: list[_Solved], edges: Edges | None) -> State:
        """Where to start: each new frame by a robust rotation from the one before it."""
        new, P = len(self._pending), len(self._points)
        poses = [s.cam_from_world for s in old] or [torch.eye(4).double()]
        focals = [s.log_focal for s in old] or [torch.tensor(self._log_focal, dtype=torch.float64)]
        n = len(old) + new
        level = float(old[-1].inv_depth.median()) if old else 1.0
        readout_s = self._readout.readout_s
        _, known_of_it = self._readout.prior(readout_s, self._shutter.interval_s)
        state = State(
            cam_from_world=torch.stack((poses + [poses[-1]] * new)[:n]),
            log_focal=torch.stack((focals + [focals[-1]] * new)[:n]),
            inv_depth=torch.stack([s.inv_depth for s in old] + [torch.full((P,), level)] * new),
            readout=torch.tensor(readout_s, dtype=torch.float64),
            readout_info=torch.tensor(known_of_it, dtype=torch.float64),
            wobble=torch.stack([s.wobble for s in old] + [torch.zeros(ROW_MOTION_ORDER, 3).double()] * new),
        )
        if edges is None:
            return state
        steps = self._problem(edges.select((edges.src - edges.dst).abs() == 1), len(old), rotation_only=True)
        for width in (16.0, 4.0, 1.5):
            state = self._adjust(state, steps, width_px=width, iterations=4)
        return state

    def _turning(self, state: State, edges: Edges, known: int) -> State:
        """The camera that only turns, and the read-out."""
        problem = self._problem(edges, known, rotation_only=True)
        for width in (3.0, 1.0):
            state = self._adjusted(state, problem, width, 3)
            state = turn_ends(state, problem, self._shutter)
        return self._adjusted(state, problem, 1.0, 6)

    def _moving(self, turning: State, edges: Edges, old: list[_Solved]) -> State | None:
        """Six degrees of freedom from the turning camera; None where they do not clearly explain more."""
        known = len(old)
        was_moving = bool(old) and not old[-1].flat
        # Frames without depth of their own know neither where they stood nor where a moving camera sees their points:
        # after them a walk begins where the last of them is thought to be.
        flat = torch.tensor([s.flat for s in old] + [False] * len(self._pending))
        used = edges.select(~flat[edges.src] & ~flat[edges.dst])
        fresh = used.select(used.src >= known)
        if not len(fresh.src):
            return None
        flat_problem = self._problem(rectify(fresh, turning, self._shutter), known, rotation_only=True)
        unexplained = _outlier_share(turning, flat_problem)
        enough = unexplained if was_moving else (1 - MIN_GAIN) * unexplained - 0.01
        if enough < 0.01:
            return None
        problem = self._problem(used, known, rotation_only=False)
        if not was_moving:
            problem = replace(problem, first_free_pose=known + 1)
        begin, problem = self._begin(turning, problem, old, fresh, unexplained)
        state, left = self._refined(begin, problem, fresh)
        log.debug("outlier share turning %.3f moving %.3f", unexplained, left)
        zoomed, self._zooms = self._zooms, False
        if problem.free_focal and (zoomed or left > ZOOM_ABOVE):
            zooming, left_zooming = self._refined(begin, replace(problem, zooms=True), fresh)
            log.debug("outlier share zooming %.3f", left_zooming)
            if left_zooming < (1 - (ZOOM_GOES_ON_GAIN if zoomed else ZOOM_GAIN)) * left:
                state, left, self._zooms = zooming, left_zooming, True
                problem = replace(problem, zooms=True)
        state, left = self._finished(state, problem, fresh)
        if left >= enough:
            return None
        return state if was_moving else self._rescaled(state, known)

    def _refined(self, state: State, problem: Problem, fresh: Edges) -> tuple[State, float]:
        """All unknowns adjusted, and what share of the flow of the fresh edges stays unexplained."""
        for width, iterations in ((4.0, 6), (1.5, 8)):
            state = self._adjusted(state, problem, width, iterations)
            state = turn_ends(state, problem, self._shutter)
        return state, self._left(state, problem, fresh)

    def _finished(self, state: State, problem: Problem, fresh: Edges) -> tuple[State, float]:
        """Refined further, with turns within frames where they pay. Whether the lens zooms is known by now: as a line
        moves further the lower it is, a turn within the frame looks like half of a zoom."""
        waves = False
        if not self._global_shutter:
            turned = find_wobble(state, problem, self._shutter)
            waves = self._left(turned, problem, fresh) < (1 - WAVES_GAIN) * self._left(state, problem, fresh)
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
        return self._adjust(state, now, width_px=width_px, iterations=iterations)

    def _left(self, state: State, problem: Problem, fresh: Edges) -> float:
        """What share of the flow of the fresh edges stays unexplained, in [0, 1]."""
        return _outlier_share(state, replace(problem, edges=rectify(fresh, state, self._shutter)))

    def _rescaled(self, state: State, known: int) -> State:
        """A walk that begins, in the scale of the frames before it: else what stood still a moment ago leaps."""
        depth = state.inv_depth.clone()
        level = float(depth[known - 1].median()) if known else 1.0
        ratio = float(depth[known:].median()) / level
        depth[known:] /= ratio
        T = state.cam_from_world.clone()
        centre = rigid_inverse(T)[:, :3, 3]
        begin = centre[max(known - 1, 0)]
        T[known:, :3, 3] = -(T[known:, :3, :3] @ (begin + ratio * (centre[known:] - begin))[..., None]).squeeze(-1)
        return replace(state, cam_from_world=T, inv_depth=depth)

    def _begin(
        self, turning: State, problem: Problem, old: list[_Solved], fresh: Edges, unexplained: float
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
        base = self._pending[0].index - known
        numbers = list(range(base, base + len(log_focal)))
        believed = self._believe(turning, numbers, problem.first_free_pose - 1) if self._believe else None
        if believed is not None:
            state, expected = believed
            posed = replace(problem, free_depth=False, free_focal=False)
            for width in (12.0, 4.0):
                seen = rectify(problem.edges, state, self._shutter)
                state = self._adjust(state, replace(posed, edges=seen), width_px=width, iterations=8)
            left = self._left(state, problem, fresh)
            log.debug("outlier share believed %.3f turning %.3f", left, unexplained)
            if left < unexplained:
                problem = replace(problem, inv_depth_std=BELIEVED_STD)
                return state, problem if self._focal_known else replace(problem, log_focal_prior=expected)
        return self._begin_moving(turning, problem, old), problem

    def _begin_moving(self, turning: State, problem: Problem, old: list[_Solved]) -> State:
        """Where to start with six degrees of freedom."""
        state = turning
        if old and not old[-1].flat:
            # Poses for the depth that is known, a wide basin first: parallax puts the turning camera far off.
            state = replace(turning, inv_depth=self._carried_depth(turning, old))
            problem = replace(problem, free_depth=False, free_focal=False)
        else:
            # With no depth yet, sideways motion and rotation are one: find depth and translation for these rotations.
            problem = replace(problem, free_rotation=False, free_focal=False)
        for width in (12.0, 4.0):
            seen = rectify(problem.edges, state, self._shutter)
            state = self._adjust(state, replace(problem, edges=seen), width_px=width, iterations=8)
        return turn_ends(state, problem, self._shutter)

    def _carried_depth(self, turning: State, old: list[_Solved]) -> Tensor:
        """Inverse depths to start from: those of the last solved frame, seen from the new ones by rotation alone."""
        depth = turning.inv_depth.clone()
        last = len(old) - 1
        field = old[-1].inv_depth.reshape(self._grid.rows, self._grid.cols).numpy()
        size = torch.tensor(self._size)
        for k in range(len(old), len(depth)):
            R = (turning.cam_from_world[last, :3, :3] @ turning.cam_from_world[k, :3, :3].T).float()
            ray = torch.cat([self._points / turning.log_focal[k].exp(), torch.ones(len(depth[k]), 1)], 1).float() @ R.T
            seen = ray[:, :2] / ray[:, 2:].clamp_min(0.1) * turning.log_focal[last].exp() / size + 0.5
            at = seen * torch.tensor([self._grid.cols, self._grid.rows])
            cells = at.numpy().astype(np.float32).reshape(self._grid.rows, self._grid.cols, 2)
            depth[k] = torch.from_numpy(sample(field, cells)).reshape(-1)
        return depth

    def _geometry(self, k: int, index: int, pts_s: float, state: State, base: int) -> FrameGeometry:
        grid, f = self._grid, math.exp(float(state.log_focal[k]))
        scale_x, scale_y = self._format.width / self._size[0], self._format.height / self._size[1]
        K = np.array([[f * scale_x, 0, self._format.width / 2], [0, f * scale_y, self._format.height / 2], [0, 0, 1]])
        inv_depth = state.inv_depth[k].reshape(grid.rows, grid.cols).numpy()
        readout_s = float(state.readout)
        motion = (
            self._shutter.motion(state.cam_from_world)[k] * readout_s ** torch.arange(1, 1 + ROW_MOTION_ORDER)[:, None]
        )
        motion[:, 3:] += state.wobble[k]
        assert self._first is not None
        return FrameGeometry(
            index=index - self._first,
            pts_s=pts_s,
            segment=self._segment,
            K=K,
            cam_from_world=state.cam_from_world[k].numpy(),
            inv_depth=inv_depth,
            dynamic=self._dynamic(index, inv_depth, state, base),
            readout_s=readout_s,
            row_motion=motion.numpy(),
        )

    def _dynamic(self, index: int, inv_depth: FloatArray, state: State, base: int) -> FloatArray:
        grid = self._grid
        fine = (2 * grid.cols, 2 * grid.rows)
        last = base + len(state.log_focal) - 1
        found = [o for o in self._observed if o.src == index and base <= o.dst <= last and abs(o.dst - index) <= 4]
        if not found:
            return np.zeros(fine[::-1], np.float32)
        cell = (grid.width / fine[0], grid.height / fine[1])
        fine_depth = np.asarray(cv2.resize(inv_depth, fine, interpolation=cv2.INTER_LINEAR), dtype=np.float32)
        depths = torch.from_numpy(fine_depth).flatten().expand(len(state.log_focal), -1)
        seen = rectify(self._edges(found, base, fine=True), replace(state, inv_depth=depths), self._shutter)
        flows = (seen.target - seen.source[:, :2]).transpose(1, 2).reshape(len(found), *fine[::-1], 2).numpy()

        def intrinsics(n: int) -> DoubleArray:
            f = math.exp(float(state.log_focal[n - base]))
            return np.array([[f / cell[0], 0, fine[0] / 2], [0, f / cell[1], fine[1] / 2], [0, 0, 1]])

        pose = state.cam_from_world
        others = [
            OtherFrame(
                gap=abs(o.dst - index),
                picture=self._pictures[o.dst],
                flow=o.fine_flow,
                rectified=flow,
                weight=o.fine_weight,
                K=intrinsics(o.dst),
                dst_from_src=(pose[o.dst - base] @ rigid_inverse(pose[index - base])).numpy(),
            )
            for o, flow in zip(found, flows, strict=True)
        ]
        return dynamic_probability(fine_depth, self._pictures[index], others, K=intrinsics(index), cell_px=cell)


def _outlier_share(state: State, problem: Problem) -> float:
    """Weighted share of the flow that the state does not explain, in [0, 1]."""
    outlier = 1 - 1 / (1 + (reprojection_error(state, problem) / INLIER_PX) ** 2)
    weight = problem.edges.weight
    return float((weight * outlier).sum() / weight.sum().clamp_min(1e-9))


def _histogram_change(before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8]) -> float:
    a, b = (cv2.calcHist([picture], [0], None, [32], [0, 256]) / picture.size for picture in (before, after))
    return float(np.abs(a - b).sum())


def _is_repeat(before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8], steps: list[Observation]) -> bool:
    """The same picture again, as good as: another exposure differs by its noise at least."""
    if cv2.norm(before, after, cv2.NORM_L1) > REPEAT_GREY * after.size:
        return False
    return all(float(np.median(np.abs(o.flow))) < REPEAT_PX for o in steps)


def is_cut(observed: ObservedFrame) -> bool:
    """The picture changed, no flow explains it, and nothing in it is found again."""
    if observed.agreement > CONNECTED or any(o.aligned for o in observed.found):
        return False
    return observed.change > (0.25 if observed.agreement < CONNECTED / 5 else 0.5)

"""Reconstruction without weights: dense bundle adjustment on optical flow.

Frames are adjusted in blocks of 8, each with the 8 frames before it, which stay as they are, and the 4 after it, which
are adjusted again with the next block. The blocks begin at the frame numbers of the segment, so the result does not
depend on how the frames arrived.
"""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt
import torch

from vs3r.config import Config
from vs3r.flow import analysis_size, make_flow
from vs3r.geometry import rigid_inverse
from vs3r.mask import OtherFrame, dynamic_probability
from vs3r.networks import Prepare, eager
from vs3r.reconstruct.block import Believe, BlockSolver, Solved
from vs3r.reconstruct.observe import Grid, Observation, ObservedFrame, Observer
from vs3r.reconstruct.problem import Edges, State
from vs3r.reconstruct.rolling import REACH, Shutter, bent_points, rectify
from vs3r.reconstruct.shots import Shots
from vs3r.types import ROW_MOTION_ORDER, DoubleArray, FloatArray, Frame, FrameGeometry, PictureFormat, read_axis

BLOCK = 8
# The newest frames are seen from one side only, and their translations come out short: they are adjusted again.
OVERLAP = 4
# What surrounds a cell is told by those this far around it, by untrusted ones a little as well; it counts as much as
# flow that is trusted so much.
EVEN_CELLS = 3.0
LEAST_TRUST = 0.01
EVEN_TRUST = 0.05


class FlowBundleAdjustment:
    """Camera path, depth and moving objects from optical flow alone. A Reconstructor."""

    def __init__(
        self, config: Config, fmt: PictureFormat, prepare: Prepare = eager, believe: Believe | None = None
    ) -> None:
        """
        Args:
            config: analysis size, flow, and what is known of the camera.
            fmt: of the frames.
            prepare: how to run a network.
            believe: see Believe.
        Raises:
            InputError: the weights of the flow are missing or wrong.
            BackendError: it is to be adjusted on a GPU, and there is none.
        """
        self._format = fmt
        self._size = analysis_size(fmt, config.flow.analysis_pixels)
        self._grid = Grid.of(*self._size)
        self._observer = Observer(make_flow(config.flow, prepare), self._grid)
        self._solver = BlockSolver(config.reconstruct, self._size, self._grid, believe)
        self.reset()

    def reset(self) -> None:
        """See Reconstructor."""
        self._first: int | None = None
        self._segment = 0
        self._shots = Shots()
        self._solver.reset()
        self._start_segment()

    def _start_segment(self) -> None:
        self._observed: list[Observation] = []
        self._pictures: dict[int, npt.NDArray[np.uint8]] = {}
        self._blank: set[int] = set()
        self._pending: list[ObservedFrame] = []
        self._solved: list[Solved] = []

    def observe(self, frame: Frame, /) -> ObservedFrame:
        """See Reconstructor."""
        return self._observer.observe(frame)

    def push(self, observed: ObservedFrame, /) -> list[FrameGeometry]:
        """See Reconstructor."""
        return [geometry for known in self._shots.push(observed) for geometry in self.take(known)]

    def take(self, observed: ObservedFrame) -> list[FrameGeometry]:
        """The same for a frame of which it is known to which shot it belongs."""
        done: list[FrameGeometry] = []
        if self._first is None:
            self._first = self._segment_first = observed.index
            self._first_s = observed.pts_s
        elif observed.begins:
            done = self._finish()
            self._segment += 1
            self._segment_first = observed.index
            self._solver.cut()
            self._start_segment()
        if observed.first_shown < self._first:  # by the stream before a reset
            observed = replace(observed, exposed_s=self._first_s)
        if observed.blank:
            self._blank.add(observed.index)
        self._observed += [
            o for o in observed.found if min(o.src, o.dst) >= self._segment_first and not {o.src, o.dst} & self._blank
        ]
        self._pictures[observed.index] = observed.picture
        self._pending.append(observed)
        # The first block of a segment has no solved frames to lean on and takes twice as many.
        ready = BLOCK if self._solved else 2 * BLOCK
        if len(self._pending) == ready + OVERLAP:
            done += self._solve(ready)
        return done

    def flush(self) -> list[FrameGeometry]:
        """See Reconstructor."""
        return [geometry for known in self._shots.flush() for geometry in self.take(known)] + self._finish()

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
        state, flat = self._solver.solve(old, edges, self._shutter, first=base)
        for k in range(len(old), len(exposed_s)):
            if base + k in self._blank:
                state.inv_depth[k] = state.inv_depth[k - 1]
        done, self._pending = self._pending[:ready], self._pending[ready:]
        for k, seen in enumerate(done, len(old)):
            self._solved.append(
                Solved(
                    cam_from_world=state.cam_from_world[k],
                    log_focal=state.log_focal[k],
                    inv_depth=state.inv_depth[k],
                    exposed_s=seen.exposed_s,
                    flat=flat,
                    wobble=state.wobble[k],
                )
            )
        del self._solved[: -2 * BLOCK]
        out = [self._geometry(seen, state, base) for seen in done]
        keep = base + len(old) + ready - BLOCK
        self._observed = [o for o in self._observed if min(o.src, o.dst) >= keep]
        self._pictures = {i: picture for i, picture in self._pictures.items() if i >= keep}
        self._blank = {i for i in self._blank if i >= keep}
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

    def _geometry(self, seen: ObservedFrame, state: State, base: int) -> FrameGeometry:
        """What the state, of frames numbered from `base`, says of one of them."""
        grid, k = self._grid, seen.index - base
        f = math.exp(float(state.log_focal[k]))
        inv_depth = state.inv_depth[k].reshape(grid.rows, grid.cols).numpy()
        readout_s = float(state.readout)
        motion = (
            self._shutter.motion(state.cam_from_world)[k] * readout_s ** torch.arange(1, 1 + ROW_MOTION_ORDER)[:, None]
        )
        motion[:, 3:] += state.wobble[k]
        if seen.blank:
            motion[:] = 0
        assert self._first is not None
        return FrameGeometry(
            index=seen.index - self._first,
            pts_s=seen.pts_s,
            segment=self._segment,
            K=grid.intrinsics(f, self._format.width, self._format.height),
            cam_from_world=state.cam_from_world[k].numpy(),
            inv_depth=self._evened(seen.index, inv_depth),
            dynamic=np.maximum(self._dynamic(seen.index, inv_depth, state, base), self._mounted()),
            distortion=state.distortion,
            readout_s=readout_s,
            # Rounded, and no negative zeros: the last bits of MKL's small products depend on where in memory they lie.
            row_motion=(motion.round(decimals=12) + 0.0).numpy(),
        )

    def _evened(self, index: int, inv_depth: FloatArray) -> FloatArray:
        """Inverse depths (rows, cols), drawn to those around them where little flow is trusted to tell them: what is
        wrong with a plain wall would bend the door in it."""
        trust = np.mean([o.weight for o in self._observed if o.src == index] or [np.ones_like(inv_depth)], 0)
        told, weight = (
            cv2.GaussianBlur(field, (0, 0), EVEN_CELLS, borderType=cv2.BORDER_REPLICATE)
            for field in ((trust + LEAST_TRUST) * inv_depth, trust + LEAST_TRUST)
        )
        return np.asarray((trust * inv_depth + EVEN_TRUST * told / weight) / (trust + EVEN_TRUST), np.float32)

    def _mounted(self) -> FloatArray:
        """(2 rows, 2 cols) what is fixed to the camera moves in the world, also while that does not show."""
        fine = 2 * self._grid.cols, 2 * self._grid.rows
        return np.asarray(cv2.resize(self._solver.mounted.mounted, fine, interpolation=cv2.INTER_LINEAR), np.float32)

    def _dynamic(self, index: int, inv_depth: FloatArray, state: State, base: int) -> FloatArray:
        """(2 rows, 2 cols) see FrameGeometry.dynamic."""
        grid = self._grid
        fine = (2 * grid.cols, 2 * grid.rows)
        last = base + len(state.log_focal) - 1
        found = [o for o in self._observed if o.src == index and base <= o.dst <= last and abs(o.dst - index) <= 4]
        if not found:
            return np.full(fine[::-1], index in self._blank, np.float32)
        cell = (grid.width / fine[0], grid.height / fine[1])
        fine_depth = np.asarray(cv2.resize(inv_depth, fine, interpolation=cv2.INTER_LINEAR), dtype=np.float32)
        depths = torch.from_numpy(fine_depth).flatten().expand(len(state.log_focal), -1)
        seen = rectify(self._edges(found, base, fine=True), replace(state, inv_depth=depths), self._shutter)
        flow = bent_points(seen.target, seen.dst, state) - bent_points(seen.source[:, :2], seen.src, state)
        flows = flow.transpose(1, 2).reshape(len(found), *fine[::-1], 2).numpy()

        def intrinsics(n: int) -> DoubleArray:
            return grid.intrinsics(math.exp(float(state.log_focal[n - base])), *fine)

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
        return dynamic_probability(
            fine_depth,
            self._pictures[index],
            others,
            K=intrinsics(index),
            cell_px=cell,
            distortion=state.distortion,
        )

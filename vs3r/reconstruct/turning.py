"""Reconstruction at once: a camera that only turns, each frame's geometry final when it has been seen.

For live pictures. Every frame is turned to where the flow from the frames before it says, and stays there; what a
walking camera sees move, near things against far ones, is not explained, nor what its rolling shutter bends.
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
from vs3r.lens import straightened
from vs3r.mask import OtherFrame, dynamic_probability
from vs3r.networks import Prepare, eager
from vs3r.reconstruct.leap import shared_shift, turn
from vs3r.reconstruct.lenses import log_focals
from vs3r.reconstruct.observe import CONNECTED, GAPS, Grid, Observation, ObservedFrame, Observer, joined
from vs3r.reconstruct.shots import BLINK_FRAMES, is_cut
from vs3r.types import DoubleArray, FloatArray, Frame, FrameGeometry, PictureFormat

# Geman-McClure's loss: its width in analysis pixels, wide first, and rounds of each.
WIDTHS_PX = ((12.0, 4), (4.0, 3), (1.5, 6))


class TurningCamera:
    """Rotations from flow, frame by frame. A Reconstructor that keeps no frame waiting."""

    def __init__(self, config: Config, fmt: PictureFormat, prepare: Prepare = eager) -> None:
        """
        Args:
            config: analysis size, flow, and what is known of the camera.
            fmt: of the frames.
            prepare: how to run a network.
        Raises:
            InputError: the weights of the flow are missing or wrong.
        """
        self._format = fmt
        self._size = analysis_size(fmt, config.flow.analysis_pixels)
        self._grid = Grid.of(*self._size)
        self._observer = Observer(make_flow(config.flow, prepare), self._grid, lean=True)
        lenses = log_focals(config.reconstruct, self._size)
        # The first frames do not tell a fisheye from a camera that walks.
        self._distortion = min(lenses, key=abs)
        self._focal = math.exp(lenses[self._distortion])
        centres = self._grid.centres(fine=False) - np.array(self._size, np.float32) / 2
        self._points = centres.reshape(-1, 2).astype(np.float64)
        self.reset()

    def reset(self) -> None:
        """See Reconstructor."""
        self._first: int | None = None
        self._segment = 0
        self._start_segment()

    def _start_segment(self) -> None:
        self._rotation: dict[int, DoubleArray] = {}  # (3, 3) cam_from_world of the newest frames that show the shot
        self._pictures: dict[int, npt.NDArray[np.uint8]] = {}
        self._last = np.eye(3)
        self._shift = torch.zeros(2, dtype=torch.float64)  # of the scene, at the last frame
        self._blanks = 0  # in a row

    def observe(self, frame: Frame, /) -> ObservedFrame:
        """See Reconstructor."""
        return self._observer.observe(frame)

    def push(self, observed: ObservedFrame, /) -> list[FrameGeometry]:
        """See Reconstructor."""
        if self._first is None:
            self._first = observed.index
        pairs = observed.pairs()
        known = {frame: found for frame, found in pairs.items() if frame in self._rotation}
        blank = False
        if self._rotation and not any(map(joined, known.values())):
            again = self._blanks > 0 and joined(pairs[observed.index - 1])
            if again or self._blanks == BLINK_FRAMES:
                self._segment += 1
                self._start_segment()
                known = {}
            else:
                # A flash, or another shot: known when the next frames have come.
                blank = self._blanks > 0 or is_cut(replace(observed, agreement=min(observed.agreement, CONNECTED)))
        rotation = self._last
        if known and not blank:
            rotation = self._turned(observed.index, [o for found in known.values() for o in found])
        self._blanks = self._blanks + 1 if blank else 0
        if not blank:
            self._rotation[observed.index], self._pictures[observed.index] = rotation, observed.picture
            for old in [i for i in self._rotation if i < observed.index - max(GAPS)]:
                del self._rotation[old], self._pictures[old]
        self._last = rotation
        return [self._geometry(observed, known, blank=blank)]

    def flush(self) -> list[FrameGeometry]:
        """See Reconstructor."""
        return []

    def _rays(self, points: DoubleArray) -> DoubleArray:
        """(N, 3) of points (N, 2) in analysis pixels from the picture's centre, with z = 1."""
        at = points / self._focal
        at *= straightened(self._distortion, (at * at).sum(1))[:, None]
        return np.column_stack([at, np.ones(len(at))])

    def _turned(self, index: int, found: list[Observation]) -> DoubleArray:
        """(3, 3) the rotation that flow to and from frames with known ones agrees on best."""
        directions, seen, weights = [], [], []
        for o in found:
            there = self._points + o.flow.reshape(-1, 2)
            before, now = (self._points, there) if o.dst == index else (there, self._points)
            directions.append(self._rays(before) @ self._rotation[min(o.src, o.dst)])
            seen.append(self._rays(now)[:, :2])
            weights.append(o.weight.ravel())
        direction, target, weight = np.concatenate(directions), np.concatenate(seen), np.concatenate(weights)
        used = weight > 1e-3
        direction, target, weight = direction[used], target[used], weight[used].astype(np.float64)
        R = self._leapt(found)
        if not len(weight):
            return R
        for width, rounds in WIDTHS_PX:
            for _ in range(rounds):
                X = direction @ R.T
                z = np.maximum(X[:, 2], 1e-3)
                x, y = X[:, 0] / z, X[:, 1] / z
                off_x, off_y = x - target[:, 0], y - target[:, 1]
                w = weight / (1 + (off_x**2 + off_y**2) * (self._focal / width) ** 2) ** 2
                xy = x * y
                # How the two move with a turn about each axis.
                J = np.stack([np.stack([-xy, 1 + x * x, -y]), np.stack([-1 - y * y, xy, x])])
                normal = np.einsum("can,cbn,n->ab", J, J, w) + 1e-9 * np.eye(3)
                omega = -np.linalg.solve(normal, np.einsum("can,cn,n->a", J, np.stack([off_x, off_y]), w))
                R = cv2.Rodrigues(omega)[0] @ R
                if np.abs(omega).max() < 1e-6:
                    break
        return R

    def _leapt(self, found: list[Observation]) -> DoubleArray:
        """(3, 3) where to look for a rotation: the newest known one, turned from there if the picture leapt."""
        o = max((o for o in found if o.src in self._rotation), key=lambda o: o.src)
        points, flow = torch.from_numpy(self._points), torch.from_numpy(o.flow).double().reshape(-1, 2)
        weight = torch.from_numpy(o.weight).double().flatten()
        self._shift = shared_shift(points.T, (points + flow).T, weight, self._shift)
        R = self._rotation[o.src]
        if self._shift.norm() <= WIDTHS_PX[0][0]:
            return R
        return np.asarray(turn(self._shift, self._focal).numpy() @ R, np.float64)

    def _geometry(self, observed: ObservedFrame, known: dict[int, list[Observation]], *, blank: bool) -> FrameGeometry:
        assert self._first is not None
        grid, fmt = self._grid, self._format
        cam_from_world = np.eye(4)
        cam_from_world[:3, :3] = self._last
        return FrameGeometry(
            index=observed.index - self._first,
            pts_s=observed.pts_s,
            segment=self._segment,
            K=grid.intrinsics(self._focal, fmt.width, fmt.height),
            cam_from_world=cam_from_world,
            inv_depth=np.ones((grid.rows, grid.cols), np.float32),
            dynamic=self._dynamic(observed, known, blank=blank),
            distortion=self._distortion,
        )

    def _dynamic(self, observed: ObservedFrame, known: dict[int, list[Observation]], *, blank: bool) -> FloatArray:
        """(2 rows, 2 cols) see FrameGeometry.dynamic."""
        cols, rows = 2 * self._grid.cols, 2 * self._grid.rows
        onward = [o for found in known.values() for o in found if o.src == observed.index and o.src - o.dst <= 4]
        if blank or not onward:
            return np.full((rows, cols), blank, np.float32)
        cell = (self._grid.width / cols, self._grid.height / rows)
        K = self._grid.intrinsics(self._focal, cols, rows)
        others = []
        for o in onward:
            dst_from_src = np.eye(4)
            dst_from_src[:3, :3] = self._rotation[o.dst] @ self._last.T
            others.append(
                OtherFrame(
                    gap=o.src - o.dst,
                    picture=self._pictures[o.dst],
                    flow=o.fine_flow,
                    rectified=o.fine_flow,
                    weight=o.fine_weight,
                    K=K,
                    dst_from_src=dst_from_src,
                )
            )
        return dynamic_probability(
            np.ones((rows, cols), np.float32), observed.picture, others, K=K, cell_px=cell, distortion=self._distortion
        )

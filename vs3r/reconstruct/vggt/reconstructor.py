"""Reconstruction with VGGT4D on sliding windows, refined by bundle adjustment on the flow.

Windows begin at fixed frame numbers of a segment, so the result does not depend on how the frames arrived. What the
network believes of a frame, in the world that the windows are joined to, is where the bundle adjustment begins, as long
as it explains the flow better than a camera that only turns; and what the network says moves weighs nothing there.

While the network looks at a window, what it said of the window before is adjusted: geometry comes a stride later so.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch

from vs3r.config import Config
from vs3r.flow import analysis_size
from vs3r.geometry import rigid_inverse
from vs3r.networks import Prepare, eager
from vs3r.reconstruct.flow_ba import BLOCK, FlowBundleAdjustment
from vs3r.reconstruct.observe import Grid, Observation, ObservedFrame
from vs3r.reconstruct.problem import State
from vs3r.reconstruct.shots import Shots
from vs3r.reconstruct.vggt.chain import Chain, FrameEstimate
from vs3r.reconstruct.vggt.window import WindowNetwork, load_network
from vs3r.types import FloatArray, Frame, FrameGeometry, PictureFormat

# Frames before the newest whose estimates an adjustment may still ask for.
_REACH = 4 * BLOCK


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ObservedPicture:
    """What is known of a frame when it has been seen."""

    picture: npt.NDArray[np.uint8]
    """(H, W, 3) as the network takes it."""
    flow: ObservedFrame
    """What the bundle adjustment has to know."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeenWindow:
    """A window that the network looks at, in a thread of its own."""

    first: int
    """Number of its first frame in the segment."""
    final: int
    """Frames of the segment that no later window will see."""
    estimates: Future[list[FrameEstimate]]
    """What it says of the frames."""


class Vggt4d:
    """Camera path, depth and moving objects from a network and optical flow. A Reconstructor."""

    def __init__(self, config: Config, fmt: PictureFormat, prepare: Prepare = eager) -> None:
        """
        Raises:
            BackendError: there is no GPU.
            InputError: the weights are missing or wrong.
        """
        self._network = WindowNetwork(config.vggt, fmt, load_network(config.vggt), prepare)
        self._length = config.vggt.vggt_window_frames
        self._stride = self._length - config.vggt.vggt_overlap_frames
        self._focal_given = config.reconstruct.hfov_deg is not None
        self._grid = Grid.of(*analysis_size(fmt, config.flow.analysis_pixels))
        self._adjustment = FlowBundleAdjustment(config, fmt, prepare, self._believe)
        self._seen: SeenWindow | None = None  # the newest, whose frames are not adjusted yet
        self.reset()

    def observe(self, frame: Frame, /) -> ObservedPicture:
        """See Reconstructor."""
        return ObservedPicture(picture=self._network.picture(frame), flow=self._adjustment.observe(frame))

    def reset(self) -> None:
        """See Reconstructor."""
        if self._seen is not None:
            wait([self._seen.estimates])  # it would meet the next one in the network
        self._adjustment.reset()
        self._first: int | None = None
        self._estimates: dict[int, FrameEstimate] = {}  # in the numbers of all frames seen
        self._shots = Shots()
        self._unsorted: dict[int, npt.NDArray[np.uint8]] = {}  # pictures by number, of which the shot is not known yet
        self._start_segment()

    def _start_segment(self) -> None:
        self._chain = Chain()
        self._pictures: list[npt.NDArray[np.uint8]] = []  # the newest of the segment, those of one window
        self._waiting: list[ObservedFrame] = []  # of the segment, not yet given to the adjustment
        self._count = 0
        self._started = 0  # windows
        self._seen = None

    def push(self, observed: ObservedPicture, /) -> list[FrameGeometry]:
        """See Reconstructor."""
        self._unsorted[observed.flow.index] = observed.picture
        return [geometry for known in self._shots.push(observed.flow) for geometry in self._take(known)]

    def flush(self) -> list[FrameGeometry]:
        """See Reconstructor."""
        done = [geometry for known in self._shots.flush() for geometry in self._take(known)]
        return done + self._finish() + [self._with_mask(each) for each in self._adjustment.flush()]

    def _take(self, flow: ObservedFrame) -> list[FrameGeometry]:
        """The next frame, of which it is known to which shot it belongs."""
        done: list[FrameGeometry] = []
        if self._first is None:
            self._first = flow.index
        elif flow.begins:  # a window of two scenes makes no sense
            done = self._finish()
            self._start_segment()
        self._pictures = [*self._pictures, self._unsorted.pop(flow.index)][-self._length :]
        self._waiting.append(flow)
        self._count += 1
        begin = self._started * self._stride
        if self._count == begin + self._length:
            self._started += 1
            done += self._window(final=begin + self._stride)
        return done

    def _finish(self) -> list[FrameGeometry]:
        """The segment ends: its last frames."""
        if not self._waiting:
            return []
        seen = (self._started - 1) * self._stride + self._length if self._started else 0
        done = []
        if self._count > seen:
            # A last window of full length as well, which begins earlier: it knows more, and engines have one length.
            done = self._window(final=self._count)
        assert self._seen is not None
        return done + self._joined(self._seen) + self._adjusted(self._chain.flush())

    def _window(self, *, final: int) -> list[FrameGeometry]:
        """Let the network look at the newest pictures, and meanwhile adjust what it said of the window before."""
        before = self._seen
        if before is not None:
            wait([before.estimates])  # the GPU's memory may be enough for one window
        thread = ThreadPoolExecutor(1, "vs3r-window")
        self._seen = SeenWindow(
            first=self._count - len(self._pictures),
            final=final,
            estimates=thread.submit(self._network, self._pictures, self._grid),
        )
        thread.shutdown(wait=False)
        return [] if before is None else self._joined(before)

    def _joined(self, window: SeenWindow) -> list[FrameGeometry]:
        return self._adjusted(self._chain.push(window.first, window.estimates.result(), final=window.final))

    def _adjusted(self, final: list[FrameEstimate]) -> list[FrameGeometry]:
        """Give the next frames, of which the network's estimates are final, to the adjustment."""
        done: list[FrameGeometry] = []
        for estimate in final:
            observed = self._waiting.pop(0)
            self._estimates[observed.index] = estimate
            found = [self._still(each) for each in observed.found]
            done += self._adjustment.take(dataclasses.replace(observed, found=found))
        done = [self._with_mask(each) for each in done]
        for old in [n for n in self._estimates if n < max(self._estimates) - _REACH]:
            del self._estimates[old]
        return done

    def _still(self, found: Observation) -> Observation:
        """The observation without the points that move."""
        if found.src not in self._estimates:
            return found
        rows, cols = found.weight.shape
        moving = self._estimates[found.src].dynamic.numpy()
        coarse = cv2.resize(moving, (cols, rows), interpolation=cv2.INTER_AREA)
        return dataclasses.replace(found, weight=np.asarray(found.weight * (1 - coarse), np.float32))

    def _with_mask(self, geometry: FrameGeometry) -> FrameGeometry:
        """The union of what flow and network say moves (VS3R eq. 5)."""
        assert self._first is not None
        moving: FloatArray = self._estimates[self._first + geometry.index].dynamic.numpy()
        return dataclasses.replace(geometry, dynamic=np.maximum(geometry.dynamic, moving))

    def _believe(self, turning: State, numbers: list[int], anchor: int) -> tuple[State, float] | None:
        """See block.Believe."""
        if any(n not in self._estimates for n in numbers[anchor:]):
            return None
        known = [self._estimates[n] for n in numbers[anchor:]]
        begin = known[0]
        # Lengths of the network's world over those of the adjustment's.
        scale = float((turning.inv_depth[anchor] / begin.inv_depth.flatten()).median())
        poses, depth = turning.cam_from_world.clone(), turning.inv_depth.clone()
        log_focal = turning.log_focal.clone()
        for k, estimate in enumerate(known, anchor):
            step = estimate.cam_from_world @ rigid_inverse(begin.cam_from_world)
            step[:3, 3] /= scale
            poses[k] = step @ turning.cam_from_world[anchor]
            depth[k] = scale * estimate.inv_depth.flatten()
        expected = float(torch.stack([estimate.log_focal for estimate in known]).median())
        if anchor == 0 and not self._focal_given:
            log_focal[:] = expected
        return dataclasses.replace(turning, cam_from_world=poses, inv_depth=depth, log_focal=log_focal), expected

"""Stand-ins for the stages of the method, to test the pipeline around them: known delays, recorded calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from vs3r.render import SourceFrame
from vs3r.smooth import SmoothedFrame
from vs3r.types import Frame, FrameGeometry, PictureFormat, Plane, RenderedFrame, VirtualCamera

FMT = PictureFormat(
    pix_fmt="yuv420p", width=16, height=16, bit_depth=8, chroma_shift=(1, 1), num_planes=3, is_rgb=False
)


def make_frame(index: int, fmt: PictureFormat = FMT) -> Frame:
    """A flat picture whose brightness is the frame's number."""
    planes = tuple(np.full(fmt.plane_shape(p), index % 256, np.uint8) for p in range(fmt.num_planes))
    return Frame(format=fmt, planes=planes, pts=index, time_base=Fraction(1, 25), duration=1)


def make_geometry(index: int, segment: int = 0) -> FrameGeometry:
    """A camera at rest before a wall."""
    return FrameGeometry(
        index=index,
        pts_s=index / 25,
        segment=segment,
        K=np.array([[16.0, 0, 8], [0, 16, 8], [0, 0, 1]]),
        cam_from_world=np.eye(4),
        inv_depth=np.ones((2, 2), np.float32),
        dynamic=np.zeros((4, 4), np.float32),
    )


class BatchReconstructor:
    """Returns geometry in batches of `batch` frames; a new segment starts at each frame in `cuts`."""

    def __init__(self, batch: int, cuts: tuple[int, ...] = ()) -> None:
        self._batch = batch
        self._cuts = cuts
        self.reset()

    def observe(self, frame: Frame, /) -> Frame:
        return frame

    def push(self, _frame: Frame, /) -> list[FrameGeometry]:
        self._pushed += 1
        return self._return(self._batch * (self._pushed // self._batch))

    def flush(self) -> list[FrameGeometry]:
        return self._return(self._pushed)

    def reset(self) -> None:
        self._pushed = self._returned = 0

    def _return(self, end: int) -> list[FrameGeometry]:
        start, self._returned = self._returned, end
        return [make_geometry(i, sum(i >= cut for cut in self._cuts)) for i in range(start, end)]


class LookaheadSmoother:
    """Returns frame t when frame t + lookahead of its segment is known, or that there is none."""

    def __init__(self, lookahead: int) -> None:
        self._lookahead = lookahead
        self.reset()

    def push(self, geometry: FrameGeometry) -> list[SmoothedFrame]:
        done = []
        if self._held and self._held[-1].segment != geometry.segment:
            done = self.flush()
        self._held.append(geometry)
        while len(self._held) > self._lookahead:
            done.append(self._steady(self._held.pop(0)))
        return done

    def flush(self) -> list[SmoothedFrame]:
        done = [self._steady(g) for g in self._held]
        self._held.clear()
        return done

    def reset(self) -> None:
        self._held: list[FrameGeometry] = []

    def _steady(self, geometry: FrameGeometry) -> SmoothedFrame:
        camera = VirtualCamera(K=geometry.K, cam_from_world=geometry.cam_from_world)
        return SmoothedFrame(geometry=geometry, camera=camera)


class CopyingRenderer:
    """Draws the source frame as it is."""

    def render(
        self,
        index: int,
        _camera: VirtualCamera,
        sources: Mapping[int, SourceFrame],
        out: Sequence[Plane] | None = None,
        /,
    ) -> RenderedFrame:
        assert all(source.geometry.index == i for i, source in sources.items())
        valid = np.full((4, 4), 255, np.uint8)
        frame = sources[index].frame
        planes = tuple(map(np.empty_like, frame.planes)) if out is None else tuple(out)
        for plane, source in zip(planes, frame.planes, strict=True):
            np.copyto(plane, source)
        return RenderedFrame(frame=replace(frame, planes=planes), valid=valid, own_share=1.0, valid_share=1.0)


class RecordingRenderer(CopyingRenderer):
    """Notes which sources it was given, too."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, tuple[int, ...]]] = []

    def render(
        self,
        index: int,
        camera: VirtualCamera,
        sources: Mapping[int, SourceFrame],
        out: Sequence[Plane] | None = None,
        /,
    ) -> RenderedFrame:
        self.calls.append((index, tuple(sorted(sources))))
        return super().render(index, camera, sources, out)


def take_picture(rendered: RenderedFrame) -> Frame:
    """A refiner that repairs nothing."""
    return rendered.frame

"""Stages that survive a model that throws: the frames it held pass through, marked, and the stream goes on.

A failed reconstructor's frames get a camera at rest and a scene of their own, so that no other frame is filled from
them or smoothed with them; the renderer then gives the source frame back untouched.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vs3r.config import Config
from vs3r.engine.networks import make_reconstructor
from vs3r.engine.pipeline import Analysis, Refiner, Rendering, Smoother, SourceWindow
from vs3r.reconstruct import Reconstructor
from vs3r.refine import make_refiner
from vs3r.render import Renderer, SourceFrame, make_renderer
from vs3r.smooth import PathSmoother, SmoothedFrame, unsmoothed
from vs3r.types import Frame, FrameGeometry, PictureFormat, Plane, RenderedFrame, VirtualCamera

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """Makes the parts of the method; tests put failing ones here."""

    reconstructor: Callable[[Config, PictureFormat], Reconstructor] = make_reconstructor
    """For pictures of a format."""
    renderer: Callable[[Config, PictureFormat], Renderer] = lambda config, fmt: make_renderer(config.render, fmt)
    """For pictures of a format."""
    refiner: Callable[[Config], Refiner] = lambda config: make_refiner(config.refine)
    """Repairs what no frame saw."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardedStages:
    """The two stages of the pipeline around guarded models."""

    analysis: Analysis
    """Frames to sources and cameras."""
    rendering: Rendering
    """Sources and cameras to pictures."""
    failed: set[int] = field(default_factory=set)
    """Numbers of the frames that pass through."""


def guarded_stages(models: Models, config: Config, fmt: PictureFormat) -> GuardedStages:
    """The stages for a stream."""
    failed: set[int] = set()
    reconstructor = GuardedReconstructor(models.reconstructor(config, fmt), fmt, failed)
    smoother = _GuardedSmoother(PathSmoother(config.smooth, fmt), failed)
    drawing = guarded_drawing(models, config, fmt, failed)
    return GuardedStages(
        analysis=Analysis(reconstructor, smoother),
        rendering=Rendering(*drawing, SourceWindow.of_stream(config)),
        failed=failed,
    )


def guarded_drawing(models: Models, config: Config, fmt: PictureFormat, failed: set[int]) -> tuple[Renderer, Refiner]:
    """Renderer and refiner; the numbers of frames that they fail on are added to `failed`."""
    guard = _GuardedRenderer(models.renderer(config, fmt), models.refiner(config), failed)
    return guard, _picture


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Observed:
    """What the inner reconstructor said of a frame, or why it could not."""

    pts_s: float
    observed: Any
    error: Exception | None

    def get(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.observed


class GuardedReconstructor:
    """A Reconstructor whose failures end a scene instead of the stream."""

    def __init__(self, inner: Reconstructor, fmt: PictureFormat, failed: set[int]) -> None:
        self._inner = inner
        self._format = fmt
        self._failed = failed
        self.reset()

    def reset(self) -> None:
        """See Reconstructor."""
        self._inner.reset()
        self._held: deque[float] = deque()  # times of the frames whose geometry is not known
        self._first = self._count = 0  # frame 0 of the inner one; frames returned
        self._segment = self._last_segment = 0  # segment 0 of the inner one; the newest returned

    def observe(self, frame: Frame, /) -> _Observed:
        """See Reconstructor."""
        try:
            return _Observed(pts_s=frame.pts_s, observed=self._inner.observe(frame), error=None)
        except Exception as error:  # whatever a model throws; it ends the scene when its turn comes
            return _Observed(pts_s=frame.pts_s, observed=None, error=error)

    def push(self, item: _Observed, /) -> list[FrameGeometry]:
        """See Reconstructor."""
        self._held.append(item.pts_s)
        return self._take(lambda: self._inner.push(item.get()))

    def flush(self) -> list[FrameGeometry]:
        """See Reconstructor."""
        return self._take(self._inner.flush)

    def _take(self, call: Callable[[], list[FrameGeometry]]) -> list[FrameGeometry]:
        try:
            found = call()
        except Exception as error:  # whatever a model throws
            return self._give_up(error)
        out = []
        for geometry in found:
            self._held.popleft()
            self._last_segment = self._segment + geometry.segment
            out.append(replace(geometry, index=self._first + geometry.index, segment=self._last_segment))
        self._count += len(out)
        return out

    def _give_up(self, error: Exception) -> list[FrameGeometry]:
        log.warning("reconstruction failed on %d frames: %s", len(self._held), type(error).__name__)
        log.debug("its origin", exc_info=error)
        segment = self._last_segment + 1 if self._count else 0
        out = [_at_rest(self._format, self._count + i, pts_s, segment) for i, pts_s in enumerate(self._held)]
        self._failed.update(g.index for g in out)
        self._held.clear()
        self._count += len(out)
        self._first, self._segment, self._last_segment = self._count, segment + 1, segment
        self._inner.reset()
        return out


def equal_grids(geometries: Iterable[FrameGeometry], failed: set[int]) -> list[FrameGeometry]:
    """The rows of a track: frames of failed windows get grids of the size that the others have."""
    rows = list(geometries)
    model = next((g for g in rows if g.index not in failed), None)
    if model is None:
        return rows
    grids = np.ones_like(model.inv_depth), np.zeros_like(model.dynamic)
    return [
        replace(g, inv_depth=grids[0], dynamic=grids[1]) if g.inv_depth.shape != grids[0].shape else g for g in rows
    ]


def _at_rest(fmt: PictureFormat, index: int, pts_s: float, segment: int) -> FrameGeometry:
    """A camera that stands still before a wall."""
    focal = float(max(fmt.width, fmt.height))
    return FrameGeometry(
        index=index,
        pts_s=pts_s,
        segment=segment,
        K=np.array([[focal, 0, fmt.width / 2], [0, focal, fmt.height / 2], [0, 0, 1]]),
        cam_from_world=np.eye(4),
        inv_depth=np.ones((1, 1), np.float32),
        dynamic=np.zeros((1, 1), np.float32),
    )


class _GuardedSmoother:
    """A Smoother whose failures leave the frames it held where they were."""

    def __init__(self, inner: Smoother, failed: set[int]) -> None:
        self._inner = inner
        self._failed = failed
        self._held: deque[FrameGeometry] = deque()

    def reset(self) -> None:
        self._inner.reset()
        self._held.clear()

    def push(self, geometry: FrameGeometry) -> list[SmoothedFrame]:
        self._held.append(geometry)
        return self._take(lambda: self._inner.push(geometry))

    def flush(self) -> list[SmoothedFrame]:
        return self._take(self._inner.flush)

    def _take(self, call: Callable[[], list[SmoothedFrame]]) -> list[SmoothedFrame]:
        try:
            found = call()
        except Exception as error:  # whatever a model throws
            log.warning("smoothing failed on %d frames: %s", len(self._held), type(error).__name__)
            log.debug("its origin", exc_info=error)
            self._failed.update(g.index for g in self._held)
            found = [SmoothedFrame(geometry=g, camera=unsmoothed(g)) for g in self._held]
            self._inner.reset()
        for _ in found:
            self._held.popleft()
        return found


class _GuardedRenderer:
    """A Renderer, refinement included, that gives the source frame back where either fails."""

    def __init__(self, inner: Renderer, refiner: Refiner, failed: set[int]) -> None:
        self._inner = inner
        self._refiner = refiner
        self._failed = failed

    def render(
        self,
        index: int,
        camera: VirtualCamera,
        sources: Mapping[int, SourceFrame],
        out: Sequence[Plane] | None = None,
        /,
    ) -> RenderedFrame:
        if index not in self._failed:
            try:
                rendered = self._inner.render(index, camera, sources, out)
                return replace(rendered, frame=self._refiner(rendered))
            except Exception as error:  # whatever a model throws
                log.warning("rendering failed on a frame: %s", type(error).__name__)
                log.debug("its origin", exc_info=error)
                self._failed.add(index)
        valid = np.full((1, 1), 255, np.uint8)
        return RenderedFrame(frame=sources[index].frame, valid=valid, own_share=1.0, valid_share=1.0)


def _picture(rendered: RenderedFrame) -> Frame:
    """For a renderer that has refined already."""
    return rendered.frame

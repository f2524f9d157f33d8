"""The method on a stream: a frame goes in, a stabilized frame comes out a bounded number of frames later.

    stabilizer = Stabilizer(config, fmt)
    for frame in frames:
        for steady in stabilizer.push(frame):
            ...
    for steady in stabilizer.flush():
        ...

Two passive stages, which engine/files.py runs in threads of their own and Stabilizer one after the other:
Analysis turns frames into sources and virtual cameras, in two halves, Rendering those into pictures.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Protocol, TypeAlias

from vs3r.config import Config, RenderConfig, SmoothConfig
from vs3r.engine.networks import make_reconstructor
from vs3r.engine.threads import Crew
from vs3r.engine.track_file import check_frame, check_length
from vs3r.errors import ShapeError
from vs3r.reconstruct import Reconstructor
from vs3r.refine import ClipRefiner, make_clip_refiner, make_refiner
from vs3r.render import Renderer, SourceFrame, make_renderer
from vs3r.smooth import PathSmoother, SmoothedFrame, smooth_track
from vs3r.types import CameraTrack, Frame, FrameGeometry, PictureFormat, Plane, RenderedFrame

AnalysisItem: TypeAlias = SourceFrame | SmoothedFrame
"""What Analysis hands to Rendering: a frame whose geometry is final, or a frame's smoothed camera."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ObservedFrame:
    """A frame that went through the first half of Analysis."""

    frame: Frame
    """The frame."""
    observed: Any
    """What the reconstructor has to know of it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StabilizedFrame:
    """One picture of the result."""

    index: int
    """Number of the frame in the stream, from 0."""
    frame: Frame
    """The picture, with the time of the source frame."""
    own_share: float
    """Share of the picture that the source frame of this index covers, in [0, 1]."""
    valid_share: float
    """Share that any source frame covers, in [0, 1]; the rest was repaired."""


class Smoother(Protocol):
    """A stage that turns the camera path into a steady one, some frames later; see vs3r.smooth.PathSmoother."""

    def push(self, geometry: FrameGeometry) -> list[SmoothedFrame]: ...
    def flush(self) -> list[SmoothedFrame]: ...
    def reset(self) -> None: ...


Refiner = Callable[[RenderedFrame], Frame]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceWindow:
    """Which frames may fill frame t: those of its segment from t - before to t + after. Never more, never fewer,
    so that the picture of frame t does not depend on how the frames arrived or which was asked for first."""

    before: int
    """Frames, >= 0."""
    after: int
    """Frames, >= 0."""

    @classmethod
    def of_stream(cls, config: Config) -> SourceWindow:
        """For streaming, where nothing beyond the lookahead exists yet."""
        reach = config.render.fill_window_frames
        return cls(before=reach, after=min(reach, config.smooth.lookahead_frames))

    @classmethod
    def of_track(cls, config: RenderConfig) -> SourceWindow:
        """For a finished track, where the whole clip can be read."""
        return cls(before=config.fill_window_frames, after=config.fill_window_frames)


class Analysis:
    """Frames to sources and cameras. Holds the frames whose geometry is not final yet.

    `observe` may run in another thread, ahead of the rest.
    """

    def __init__(self, reconstructor: Reconstructor, smoother: Smoother) -> None:
        self._reconstructor = reconstructor
        self._smoother = smoother
        self._frames: deque[Frame] = deque()

    def observe(self, frame: Frame) -> ObservedFrame:
        """The first half of the work on the next frame."""
        return ObservedFrame(frame=frame, observed=self._reconstructor.observe(frame))

    def push(self, item: ObservedFrame) -> list[AnalysisItem]:
        """Take the next frame; return what is now final. A camera never comes before the source of its frame."""
        self._frames.append(item.frame)
        return self._take(self._reconstructor.push(item.observed))

    def flush(self) -> list[AnalysisItem]:
        """End of the stream: everything not yet returned."""
        items = self._take(self._reconstructor.flush())
        items.extend(self._smoother.flush())
        assert not self._frames, "the reconstructor returned fewer frames than it was given"
        return items

    def reset(self) -> None:
        """Forget all that was pushed; the frame pushed next is frame 0."""
        self._frames.clear()
        self._reconstructor.reset()
        self._smoother.reset()

    def _take(self, geometries: list[FrameGeometry]) -> list[AnalysisItem]:
        items: list[AnalysisItem] = []
        for geometry in geometries:
            items.append(SourceFrame(frame=self._frames.popleft(), geometry=geometry))
            items.extend(self._smoother.push(geometry))
        return items


class TrackAnalysis:
    """In Analysis' place where the whole track is known: frames to sources and smoothed cameras, at once."""

    def __init__(self, track: CameraTrack, config: SmoothConfig) -> None:
        self._track = track
        self._cameras = smooth_track(track, config)
        self._index = 0
        self._first_s = Fraction(0)

    def push(self, frame: Frame) -> list[AnalysisItem]:
        """Take the next frame of the clip that the track was made of.

        Raises:
            TrackError: the track was made of another clip.
        """
        if self._index == 0:
            self._first_s = frame.pts * frame.time_base
        check_frame(self._track, self._index, frame, first_s=self._first_s)
        geometry, camera = self._track.frame(self._index), self._cameras[self._index]
        self._index += 1
        return [SourceFrame(frame=frame, geometry=geometry), SmoothedFrame(geometry=geometry, camera=camera)]

    def flush(self) -> list[AnalysisItem]:
        """End of the clip.

        Raises:
            TrackError: the track goes on.
        """
        check_length(self._track, self._index)
        return []


class Rendering:
    """Sources and cameras to pictures. Holds the sources that a picture still to come may need."""

    def __init__(self, renderer: Renderer, refiner: Refiner, window: SourceWindow, crew: Crew | None = None) -> None:
        """
        Args:
            renderer: draws.
            refiner: repairs what it drew.
            window: which frames may fill one.
            crew: who calls both, pictures then come later; None: the caller's thread.
        """
        self._renderer = renderer
        self._refiner = refiner
        self._window = window
        self._crew = crew
        self._sources: dict[int, SourceFrame] = {}
        self._waiting: deque[SmoothedFrame] = deque()
        self._place: Callable[[int], tuple[Plane, ...] | None] = lambda _: None
        self._drawn: deque[Future[StabilizedFrame]] = deque()
        self._newest: SourceFrame | None = None

    def draw_into(self, place: Callable[[int], tuple[Plane, ...] | None]) -> None:
        """Whom to ask, when its turn has come, where the picture of a frame may be drawn; None: anywhere."""
        self._place = place

    def push(self, item: AnalysisItem) -> list[StabilizedFrame]:
        """Take a source or a camera; return the pictures whose sources are now complete."""
        if isinstance(item, SourceFrame):
            self._sources[item.geometry.index] = item
            self._newest = item
        else:
            self._waiting.append(item)
        return self._ready(end=False)

    def flush(self) -> list[StabilizedFrame]:
        """End of the stream: every picture not yet returned."""
        return self._ready(end=True)

    def reset(self) -> None:
        """Forget everything."""
        self._sources.clear()
        self._waiting.clear()
        self._drawn.clear()
        self._newest = None

    @property
    def held(self) -> int:
        """Number of full-size frames held."""
        return len(self._sources) + len(self._drawn)

    @property
    def newest(self) -> FrameGeometry | None:
        """Camera of the newest source."""
        return self._newest.geometry if self._newest is not None else None

    def _ready(self, *, end: bool) -> list[StabilizedFrame]:
        done = []
        while self._waiting and (end or self._complete(self._waiting[0].geometry)):
            done += self._begun(self._waiting.popleft())
        while end and self._drawn:
            done.append(self._drawn.popleft().result())
        return done

    def _begun(self, smoothed: SmoothedFrame) -> list[StabilizedFrame]:
        """Draw the picture, or have it drawn; return what is finished."""
        sources, out = self._usable(smoothed), self._place(smoothed.geometry.index)
        if self._crew is None:
            return [self._draw(smoothed, sources, out)]
        self._drawn.append(self._crew.pool.submit(self._draw, smoothed, sources, out))
        return [self._drawn.popleft().result()] if len(self._drawn) > self._crew.ahead else []

    def _complete(self, geometry: FrameGeometry) -> bool:
        """Nothing that may fill this frame is still to come."""
        newest = self._newest
        if newest is None:
            return False
        reached = newest.geometry.index >= geometry.index + self._window.after
        return reached or newest.geometry.segment != geometry.segment

    def _usable(self, smoothed: SmoothedFrame) -> dict[int, SourceFrame]:
        """The sources of the next picture; those that no later one needs are let go."""
        index, segment = smoothed.geometry.index, smoothed.geometry.segment
        first, last = index - self._window.before, index + self._window.after
        for old in [i for i in self._sources if i < first]:
            del self._sources[old]
        return {i: s for i, s in self._sources.items() if i <= last and s.geometry.segment == segment}

    def _draw(
        self, smoothed: SmoothedFrame, sources: dict[int, SourceFrame], out: tuple[Plane, ...] | None
    ) -> StabilizedFrame:
        index = smoothed.geometry.index
        rendered = self._renderer.render(index, smoothed.camera, sources, out)
        return StabilizedFrame(
            index=index,
            frame=self._refiner(rendered),
            own_share=rendered.own_share,
            valid_share=rendered.valid_share,
        )


class ClipRendering:
    """Rendering with a refiner that works on many frames together: the same pictures in, finished ones later."""

    def __init__(self, renderer: Renderer, refiner: ClipRefiner, window: SourceWindow) -> None:
        self._rendering = Rendering(renderer, self._note, window)
        self._refiner = refiner
        self._rendered: list[RenderedFrame] = []
        self._segments: deque[int] = deque()  # of the cameras whose pictures are not drawn yet
        self._drawn: deque[StabilizedFrame] = deque()  # what the refiner holds

    def push(self, item: AnalysisItem) -> list[StabilizedFrame]:
        """See Rendering."""
        if isinstance(item, SmoothedFrame):
            self._segments.append(item.geometry.segment)
        return self._refine(self._rendering.push(item))

    def flush(self) -> list[StabilizedFrame]:
        """See Rendering."""
        return self._refine(self._rendering.flush()) + self._finish(self._refiner.flush())

    def reset(self) -> None:
        """Forget everything."""
        self._rendering.reset()
        self._refiner.reset()
        self._rendered.clear()
        self._segments.clear()
        self._drawn.clear()

    @property
    def held(self) -> int:
        """Number of full-size frames held."""
        return self._rendering.held + len(self._drawn)

    @property
    def newest(self) -> FrameGeometry | None:
        """See Rendering."""
        return self._rendering.newest

    def _note(self, rendered: RenderedFrame) -> Frame:
        self._rendered.append(rendered)
        return rendered.frame

    def _refine(self, drawn: list[StabilizedFrame]) -> list[StabilizedFrame]:
        rendered, self._rendered = self._rendered, []
        done = []
        for picture, noted in zip(drawn, rendered, strict=True):
            self._drawn.append(picture)
            done += self._finish(self._refiner.push(noted, segment=self._segments.popleft()))
        return done

    def _finish(self, frames: list[Frame]) -> list[StabilizedFrame]:
        return [replace(self._drawn.popleft(), frame=frame) for frame in frames]


def make_analysis(config: Config, fmt: PictureFormat) -> Analysis:
    """The analysis stage that the config asks for."""
    return Analysis(make_reconstructor(config, fmt), PathSmoother(config.smooth, fmt))


def make_rendering(
    config: Config,
    fmt: PictureFormat,
    window: SourceWindow,
    *,
    crew: Crew | None = None,
    check: Callable[[], None] = lambda: None,
) -> Rendering | ClipRendering:
    """The rendering stage that the config asks for.

    Args:
        config: all settings.
        fmt: of every frame.
        window: which frames may fill one.
        crew: see Rendering; not used with a refiner of many frames.
        check: called now and then in work that takes long; what it raises ends it.
    Raises:
        InputError: weights that the config names are missing or wrong.
        BackendError: a backend that the config names cannot run here.
    """
    renderer = make_renderer(config.render, fmt)
    if config.refine.backend == "wan":
        return ClipRendering(renderer, make_clip_refiner(config.wan, check), window)
    return Rendering(renderer, make_refiner(config.refine), window, crew)


class Stabilizer:
    """Both stages, one after the other, in the caller's thread.

    The pictures depend only on the frames and the config, not on when the frames arrive. Memory is that
    of lookahead_frames + fill_window_frames and a few more, whatever the length of the stream.
    """

    def __init__(self, config: Config, fmt: PictureFormat) -> None:
        """
        Args:
            config: all settings; `encode` is not used.
            fmt: the format of every frame.
        Raises:
            BackendError: a backend that the config names cannot run here.
        """
        self._format = fmt
        self._analysis = make_analysis(config, fmt)
        self._rendering = make_rendering(config, fmt, SourceWindow.of_stream(config))

    def push(self, frame: Frame) -> list[StabilizedFrame]:
        """Take the next frame; return the pictures that are now finished, in order.

        Raises:
            ShapeError: the frame's format is not the stream's.
        """
        check_format(frame, self._format)
        return self._render(self._analysis.push(self._analysis.observe(frame)))

    def flush(self) -> list[StabilizedFrame]:
        """End of the stream: all pictures not yet returned. The stabilizer is then as after reset()."""
        done = self._render(self._analysis.flush()) + self._rendering.flush()
        self.reset()
        return done

    def reset(self) -> None:
        """Forget everything; the next frame is frame 0 of a new stream."""
        self._analysis.reset()
        self._rendering.reset()

    def _render(self, items: list[AnalysisItem]) -> list[StabilizedFrame]:
        return [done for item in items for done in self._rendering.push(item)]


def check_format(frame: Frame, fmt: PictureFormat) -> None:
    """Raise ShapeError unless the frame has the stream's format."""
    if frame.format != fmt:
        raise ShapeError(
            f"expected frames of {fmt.width}x{fmt.height} {fmt.pix_fmt}, got one of "
            f"{frame.format.width}x{frame.format.height} {frame.format.pix_fmt}; start a new stabilizer for it"
        )

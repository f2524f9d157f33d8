"""The method on video files: every stage in a thread of its own, with bounded queues between them.

    read ──► observe ──► analyse ──► render ──► encode (the caller's thread)

Several pictures are rendered at a time. The caller's thread writes, so that an interrupt reaches the output file at
once: it is removed, then the stages end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from vs3r.config import Config, SourceConfig
from vs3r.engine.media import Inset, VideoReader, VideoWriter, find_inset
from vs3r.engine.progress import Meter, ProgressCallback
from vs3r.engine.threads import Cancellation, Channel, Stages, crew_of_cores
from vs3r.engine.track_file import TrackBuilder, check_source
from vs3r.types import CameraTrack, Frame, FrameGeometry

if TYPE_CHECKING:  # loads PyTorch, which takes seconds; reading starts before that
    from vs3r.engine.pipeline import AnalysisItem, ObservedFrame, StabilizedFrame

# Frames in flight between two stages. Analysis works in bursts of 8 frames (a source and a camera each): the queue
# before it holds one burst and that behind it two, so that its neighbours go on meanwhile. With VGGT a burst is what is
# new in a window.
_FRAME_QUEUE = 4
_OBSERVED_QUEUE = 8
_ITEM_QUEUE = 32
_POOL_THREADS = 1

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """What a finished run did."""

    output: Path
    """The file written."""
    frames: int
    """Frames written."""
    seconds: float
    """Wall time."""
    first_frame_s: float
    """Wall time to the first finished frame."""
    own_share: float
    """Mean share of the output pictures that their own source frame covers, in [0, 1]."""
    valid_share: float
    """Mean share that any source frame covers, in [0, 1]; the rest was repaired."""
    worst_valid_share: float
    """The smallest valid share of any picture."""
    readout_s: float | None
    """Read-out of the source's rolling shutter, which is undone; signed, negative where the bottom row comes first.
    None where a server found it."""
    distortion: float | None
    """Of the source's lens, see vs3r.lens; 0 for a rectilinear one. None where a server found it."""
    notes: tuple[str, ...]
    """One-line remarks on the source and the output."""

    @property
    def fps(self) -> float:
        """Frames per second."""
        return self.frames / self.seconds if self.seconds > 0 else 0.0


def stabilize_file(
    in_path: PathLike,
    out_path: PathLike,
    config: Config,
    *,
    progress: ProgressCallback | None = None,
    cancel: Cancellation | None = None,
) -> RunReport:
    """Stabilize a video file.

    Args:
        in_path: the source.
        out_path: the target (.mp4, .mov, .mkv); appears when it is complete, and replaces a file of that name.
        config: all settings.
        progress: called in this thread after every frame written.
        cancel: lets another thread end the run; Stopped is raised then, and nothing is written.
    Raises:
        MediaError: the source cannot be read, or the target's container does not take the codec.
        OutputError: the target cannot be written, or is the source.
        BackendError: a backend that the config names cannot run here.
    """
    tally = _Tally(progress)
    frames: Channel[Frame] = Channel(_FRAME_QUEUE)
    observed: Channel[ObservedFrame] = Channel(_burst(config))
    items: Channel[AnalysisItem] = Channel(_ITEM_QUEUE)
    pictures: Channel[StabilizedFrame] = Channel(_FRAME_QUEUE)
    with VideoReader(in_path) as reader:
        tally.meter.total = reader.info.frames_estimate
        inset = find_inset(reader.info, config.source)
        with (
            crew_of_cores() as crew,
            _stages([frames, observed, items, pictures], cancel) as stages,
            VideoWriter(out_path, like=reader, config=config.encode) as writer,
        ):
            stages.start("read", lambda: _read(reader, inset, frames))
            from vs3r.engine.pipeline import SourceWindow, make_analysis, make_rendering

            analysis = make_analysis(config, inset.format)
            rendering = make_rendering(
                config, inset.format, SourceWindow.of_stream(config), crew=crew, check=pictures.check
            )
            with _thread_pools():
                stages.start("observe", lambda: _each(analysis.observe, frames, observed))
                stages.start("analyse", lambda: _work(analysis, observed, items))
                stages.start("render", lambda: _work(rendering, items, pictures))
                _write(pictures, inset, writer, tally)
        return tally.report(out_path, rendering.newest, reader.notes + inset.notes + writer.notes)


def analyze_file(
    in_path: PathLike,
    config: Config,
    *,
    progress: ProgressCallback | None = None,
    cancel: Cancellation | None = None,
) -> CameraTrack:
    """Recover the camera track of a video file, see stabilize_file."""
    meter = Meter(progress)
    frames: Channel[Frame] = Channel(_FRAME_QUEUE)
    observed: Channel[Any] = Channel(_burst(config))
    with VideoReader(in_path) as reader, _stages([frames, observed], cancel) as stages:
        meter.total = reader.info.frames_estimate
        inset = find_inset(reader.info, config.source)
        stages.start("read", lambda: _read(reader, inset, frames))
        from vs3r.engine.networks import make_reconstructor

        builder = TrackBuilder(inset.format, reader.info.time_base)
        reconstructor = make_reconstructor(config, inset.format)

        def observe(frame: Frame) -> Any:
            builder.add_frame(frame)
            return reconstructor.observe(frame)

        with _thread_pools():
            stages.start("observe", lambda: _each(observe, frames, observed))
            for item in observed:
                builder.add_geometry(reconstructor.push(item))
                meter.tick()
            builder.add_geometry(reconstructor.flush())
        return builder.finish()


def render_file(
    in_path: PathLike,
    out_path: PathLike,
    track: CameraTrack,
    config: Config,
    *,
    progress: ProgressCallback | None = None,
    cancel: Cancellation | None = None,
) -> RunReport:
    """Render a video file along the smoothed path of a track that analyze_file made of it, see stabilize_file.

    Raises:
        TrackError: the track was made of another clip.
    """
    tally = _Tally(progress)
    frames: Channel[Frame] = Channel(_FRAME_QUEUE)
    items: Channel[AnalysisItem] = Channel(_ITEM_QUEUE)
    pictures: Channel[StabilizedFrame] = Channel(_FRAME_QUEUE)
    with VideoReader(in_path) as reader:
        inset = inset_of_track(track, reader)
        tally.meter.total = len(track)
        with (
            crew_of_cores() as crew,
            _stages([frames, items, pictures], cancel) as stages,
            VideoWriter(out_path, like=reader, config=config.encode) as writer,
        ):
            stages.start("read", lambda: _read(reader, inset, frames))
            from vs3r.engine.pipeline import SourceWindow, TrackAnalysis, make_rendering

            with _thread_pools():
                analysis = TrackAnalysis(track, config.smooth)
                window = SourceWindow.of_track(config.render)
                rendering = make_rendering(config, inset.format, window, crew=crew, check=pictures.check)
                stages.start("analyse", lambda: _work(analysis, frames, items))
                stages.start("render", lambda: _work(rendering, items, pictures))
                _write(pictures, inset, writer, tally)
        return tally.report(out_path, rendering.newest, reader.notes + inset.notes + writer.notes)


def inset_of_track(track: CameraTrack, reader: VideoReader) -> Inset:
    """The part of the pictures that a track was made of: all, or what lies between black bars.

    Raises:
        TrackError: it was made of another clip.
    """
    info = reader.info
    whole = (track.width, track.height) == (info.format.width, info.format.height)
    inset = find_inset(info, SourceConfig(bars="off" if whole else "auto"))
    check_source(track, inset.format)
    return inset


_In = TypeVar("_In")
_Out = TypeVar("_Out")
_In_contra = TypeVar("_In_contra", contravariant=True)
_Out_co = TypeVar("_Out_co", covariant=True)


def _burst(config: Config) -> int:
    """Frames in flight between the halves of analysis."""
    if config.reconstruct.backend == "vggt4d":
        return config.vggt.vggt_window_frames - config.vggt.vggt_overlap_frames
    return _OBSERVED_QUEUE


class _Stage(Protocol[_In_contra, _Out_co]):
    def push(self, item: _In_contra, /) -> Sequence[_Out_co]: ...
    def flush(self) -> Sequence[_Out_co]: ...


def _work(stage: _Stage[_In, _Out], source: Channel[_In], target: Channel[_Out]) -> None:
    for item in source:
        for result in stage.push(item):
            target.put(result)
    for result in stage.flush():
        target.put(result)
    target.end()


def _each(work: Callable[[_In], _Out], source: Channel[_In], target: Channel[_Out]) -> None:
    for item in source:
        target.put(work(item))
    target.end()


def _read(reader: VideoReader, inset: Inset, target: Channel[Frame]) -> None:
    for frame in reader:
        target.put(inset.take(frame))
    target.end()


def _write(pictures: Channel[StabilizedFrame], inset: Inset, writer: VideoWriter, tally: _Tally) -> None:
    for picture in pictures:
        writer.write(inset.put(picture.frame))
        tally.add(picture)


@contextmanager
def _stages(channels: list[Channel[Any]], cancel: Cancellation | None) -> Iterator[Stages]:
    with Stages(channels) as stages:
        if cancel is not None:
            cancel.attach(stages.stop)
        yield stages


@contextmanager
def _thread_pools() -> Iterator[None]:
    """OpenCV's and PyTorch's own thread pools for the run; both settings hold for the whole process."""
    import cv2
    import torch

    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(_POOL_THREADS)
    torch.set_num_threads(_POOL_THREADS)
    try:
        yield
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])


class _Tally:
    """Adds up what is reported at the end."""

    def __init__(self, progress: ProgressCallback | None) -> None:
        self.meter = Meter(progress)
        self._own, self._valid, self._worst = 0.0, 0.0, 1.0

    def add(self, picture: StabilizedFrame) -> None:
        self._own += picture.own_share
        self._valid += picture.valid_share
        self._worst = min(self._worst, picture.valid_share)
        self.meter.tick()

    def report(self, output: PathLike, camera: FrameGeometry | None, notes: tuple[str, ...]) -> RunReport:
        count = max(self.meter.frames, 1)
        return RunReport(
            output=Path(output),
            frames=self.meter.frames,
            seconds=self.meter.elapsed_s,
            first_frame_s=self.meter.first_frame_s,
            own_share=self._own / count,
            valid_share=self._valid / count,
            worst_valid_share=self._worst,
            readout_s=0.0 if camera is None else camera.readout_s,
            distortion=0.0 if camera is None else camera.distortion,
            notes=notes,
        )

"""Calls that take or give frames."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from vs3r.engine.proto.convert import config_from, settings_from
from vs3r.engine.proto.layout import Layout, field_error, layout_message, planar_layout, rational, time_base_of
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.proto.wire import Pictured
from vs3r.engine.server import access
from vs3r.engine.server.file_frames import FileFrames, media_problems, open_media, resolve
from vs3r.engine.server.guard import guarded_stages
from vs3r.engine.server.intake import Intake, clip_frames, first_config, frame_error
from vs3r.engine.server.problems import Malformed, client_gone, draining, session_deleted
from vs3r.engine.server.sessions import Session
from vs3r.engine.server.state import State, frame_bytes, plane_bytes
from vs3r.engine.server.stream_run import CREDITS, StreamRun, result_message
from vs3r.engine.server.track_run import ClipAnalysis, TrackRecorder, analysis_message
from vs3r.engine.track_file import check_source
from vs3r.errors import Vs3rError
from vs3r.reconstruct import delay_frames

if TYPE_CHECKING:
    import grpc

_PROGRESS_EVERY = 8
_MAX_FRAME_ERRORS = 1000
"""So many frames of an upload may be refused: their errors are held until it ends."""
_UPLOADED_AT_ONCE = 2
"""Frames of an upload in memory beside those held: one that is taken while gRPC reads the next."""
_BROKEN_S = 0.25
"""How long after the last request of an older client a broken connection is heard of, at most."""


class FrameCalls:
    """One function per call of the proto, named as it in lower case."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._sessions = state.sessions
        self._memory = state.memory

    def stream(
        self, requests: Iterator[pb.StreamRequest | Pictured | Malformed], context: grpc.ServicerContext
    ) -> Iterator[pb.StreamResponse | bytes]:
        # Later on the run itself sees that nothing comes.
        config: pb.StreamConfig = first_config(self._state.watched(requests, context))
        session = self._sessions.get(config.session) if config.session else None
        if session is not None and config.HasField("config"):
            raise field_error("config.config", "expected none beside a session, which has its own")
        settings = config_from(config.config) if session is None else session.config
        layout, time_base = self._state.layout(config.format), time_base_of(config.time_base, field="config.time_base")
        regions = self._state.regions(session, context)
        latency = delay_frames(settings) + settings.smooth.lookahead_frames
        kept = latency + 2 * settings.render.fill_window_frames
        size = kept * plane_bytes(layout) + 4 * CREDITS * frame_bytes(layout)
        finished = False
        with ExitStack() as held:
            held.enter_context(self._state.slot())
            held.enter_context(self._memory.reserve(size))
            recorder = None
            if session is not None and not config.transient:
                self._state.use_layout(session, layout)
                recorder = TrackRecorder(session, self._memory, layout.format, time_base)
            stages = guarded_stages(self._state.models, settings, layout.format)
            intake = Intake(
                layout, time_base, regions, first_sequence=config.first_sequence, keeps=recorder is not None
            )
            run = StreamRun(
                stages,
                intake,
                layout=layout,
                metrics=self._state.metrics,
                output_from_sequence=config.output_from_sequence,
                recorder=recorder,
            )
            held.enter_context(self._state.running(run, context, session))
            try:
                yield pb.StreamResponse(started=pb.StreamStarted(credits=CREDITS, latency_frames=latency))
                yield from run.responses(clip_frames(requests, explicit_end=config.explicit_end))
                if recorder is not None:
                    if not config.explicit_end:
                        _check_whole(context)
                    recorder.finish(stages.failed, self._state.store)
                finished = True
            finally:
                if not finished:
                    intake.lending.break_off()

    def analyze(
        self, requests: Iterator[pb.AnalyzeRequest | Pictured | Malformed], context: grpc.ServicerContext
    ) -> Iterator[pb.AnalyzeResponse]:
        requests = self._state.watched(requests, context)
        config: pb.AnalyzeConfig = first_config(requests)
        session = self._sessions.get(config.session)
        with self._state.slot(), self._sessions.call(session, context.cancel):
            match config.WhichOneof("source"):
                case "path":
                    yield from self._state.taken(self._analyze_file(session, config.path), context)
                case "frames":
                    yield from self._state.taken(self._analyze_frames(session, config, requests, context), context)
                case _:
                    raise field_error("config.source", "expected path or frames, got neither")

    def _analyze_file(self, session: Session, name: str) -> Generator[pb.AnalyzeResponse]:
        path = resolve(self._state.config.media_root, name)
        with media_problems(path, name, "INVALID_ARGUMENT"):
            reader = open_media(path)
        with reader:
            fmt = reader.info.format
            most = self._state.config.max_frame_pixels
            if fmt.width * fmt.height > most:
                raise field_error("config.path", f"expected at most {most} pixels a frame")
            if session.track is not None:
                check_source(session.track, fmt)
            self._state.use_layout(session, planar_layout(fmt))
            with session.lock:
                old, session.file = session.file, FileFrames(path, name, self._state.files)
            if old is not None:
                old.close()
            if session.track is not None:
                yield self._reused(session, rotation_deg=reader.info.rotation_deg)
                return
            recorder = TrackRecorder(session, self._memory, fmt, reader.info.time_base)
            analysis = ClipAnalysis(recorder, self._state.models, session.config, fmt)
            total = reader.info.frames_estimate or 0
            for index, frame in enumerate(reader):
                self._check_open()
                analysis.push(index, frame)
                if analysis.frames % _PROGRESS_EVERY == 0:
                    yield _progress(analysis.frames, total)
            made = analysis.finish(self._state.store)
            made.rotation_deg = reader.info.rotation_deg
            yield pb.AnalyzeResponse(analysis=made)

    def _analyze_frames(
        self,
        session: Session,
        config: pb.AnalyzeConfig,
        requests: Iterator[pb.AnalyzeRequest | Pictured | Malformed],
        context: grpc.ServicerContext,
    ) -> Generator[pb.AnalyzeResponse]:
        reused = session.track is not None
        at_once = 0 if reused else CREDITS
        with self._frames_of(session, config.frames, context, at_once=at_once) as (layout, intake, recorder):
            if reused:
                yield self._reused(session)
                return
            analysis = ClipAnalysis(recorder, self._state.models, session.config, layout.format)
            yield pb.AnalyzeResponse(credit=pb.Credit(frames=CREDITS))
            for sent in clip_frames(requests, explicit_end=config.explicit_end):
                self._check_open()
                try:
                    arrival = intake.take(sent)
                except Vs3rError as error:
                    yield pb.AnalyzeResponse(frame_error=frame_error(sent.frame.sequence, error))
                    yield pb.AnalyzeResponse(credit=pb.Credit(frames=1))
                    continue
                analysis.push(arrival.sequence, arrival.frame)
                yield pb.AnalyzeResponse(credit=pb.Credit(frames=1, acknowledged_sequence=arrival.sequence))
                if analysis.frames % _PROGRESS_EVERY == 0:
                    yield _progress(analysis.frames, 0)
            if not config.explicit_end:
                _check_whole(context)
            yield pb.AnalyzeResponse(analysis=analysis.finish(self._state.store))

    def set_smoothing(self, request: pb.SetSmoothingRequest, _context: grpc.ServicerContext) -> pb.SetSmoothingResponse:
        session = self._sessions.get(request.session)
        seconds = session.set_smoothing(lambda now: settings_from(now, request.smooth, field="smooth"))
        message = pb.SetSmoothingResponse(session=self._sessions.message(session))
        message.smoothing_time.FromNanoseconds(int(seconds * 1e9))
        return message

    def upload_frames(
        self, requests: Iterator[pb.UploadFramesRequest | Pictured | Malformed], context: grpc.ServicerContext
    ) -> pb.UploadFramesResponse:
        requests = self._state.watched(requests, context)
        config: pb.UploadConfig = first_config(requests)
        session = self._sessions.get(config.session)
        result = pb.UploadFramesResponse()
        with (
            self._state.slot(),
            self._sessions.call(session, context.cancel),
            self._frames_of(session, config.frames, context, at_once=_UPLOADED_AT_ONCE) as (layout, intake, _),
        ):
            for sent in clip_frames(requests, explicit_end=False):
                self._check_open()
                try:
                    arrival = intake.take(sent)
                except Vs3rError as error:
                    if len(result.frame_errors) == _MAX_FRAME_ERRORS:
                        raise
                    result.frame_errors.append(frame_error(sent.frame.sequence, error))
                else:
                    if not self._memory.hold(session, arrival.sequence, arrival.frame):
                        raise self._memory.exhausted(frame_bytes(layout))
                    result.frames += 1
        return result

    def get_frame(self, request: pb.GetFrameRequest, context: grpc.ServicerContext) -> pb.GetFrameResponse | Pictured:
        session = self._sessions.get(request.session)
        index = access.frame_index(session, request)
        with self._drawing(session, context) as check:
            drawn = access.draw(session, session.path(), self._memory, self._state.models, index, check)
        planes = drawn.picture.frame.planes
        message = result_message(drawn.picture, sequence=drawn.picture.index, passed_through=drawn.passed_through)
        shape, time_base = layout_message(drawn.layout), rational(drawn.picture.frame.time_base)
        if not request.HasField("output_slot"):
            rest = pb.GetFrameResponse(format=shape, time_base=time_base)
            return Pictured(rest=rest, frame=message, pixels=drawn.layout.pack(planes))
        region = self._state.regions(session, context).find(request.output_slot.region)
        memory = region.memory(request.output_slot, drawn.layout.byte_size)
        drawn.layout.write(memory, planes)
        message.slot.CopyFrom(request.output_slot)
        return pb.GetFrameResponse(frame=message, format=shape, time_base=time_base)

    def get_warp(self, request: pb.GetWarpRequest, context: grpc.ServicerContext) -> pb.GetWarpResponse:
        session = self._sessions.get(request.session)
        index = access.frame_index(session, request)
        if request.map_only:
            grid, _ = access.warp_grid(session, session.path(), index)
            return pb.GetWarpResponse(sequence=index, grid=grid)
        with self._drawing(session, context) as check:
            path = session.path()  # of both: SetSmoothing may come between
            grid, inside = access.warp_grid(session, path, index)
            drawn = access.draw(session, path, self._memory, self._state.models, index, check)
        return pb.GetWarpResponse(
            sequence=index,
            grid=grid,
            patches=access.patches(drawn, inside),
            patch_format=layout_message(drawn.layout.tight()),
            own_share=drawn.picture.own_share,
            valid_share=drawn.picture.valid_share,
        )

    @contextmanager
    def _drawing(self, session: Session, context: grpc.ServicerContext) -> Iterator[Callable[[], None]]:
        """It is this picture's turn; gives what raises where nobody wants it any more."""

        def check() -> None:
            # Who scrubs through a clip gives up most of the frames that he asked for.
            if not context.is_active():
                raise client_gone()
            # DeleteSession waits for its file.
            if session.ended.is_set():
                raise session_deleted()

        with self._state.drawing, self._sessions.call(session, lambda: None):
            check()
            yield check

    @contextmanager
    def _frames_of(
        self, session: Session, source: pb.FrameSource, context: grpc.ServicerContext, *, at_once: int
    ) -> Iterator[tuple[Layout, Intake, TrackRecorder]]:
        """What takes the frames of a call, with memory for `at_once` of them that are not held yet."""
        layout = self._state.layout(source.format, field="config.frames.format")
        time_base = time_base_of(source.time_base, field="config.frames.time_base")
        if session.track is not None:
            check_source(session.track, layout.format)
        with self._memory.reserve(at_once * frame_bytes(layout)):
            self._state.use_layout(session, layout)
            recorder = TrackRecorder(session, self._memory, layout.format, time_base)
            yield layout, Intake(layout, time_base, self._state.regions(session, context), keeps=True), recorder

    def _reused(self, session: Session, *, rotation_deg: int = 0) -> pb.AnalyzeResponse:
        with session.lock:
            track, failed = session.made_track(), len(session.failed)
        # As finish() of a TrackRecorder.
        stored = not failed and self._state.store.keep(session.track_id, track)
        analysis = analysis_message(session, track, stored=stored, failed=failed, reused=True)
        analysis.rotation_deg = rotation_deg
        return pb.AnalyzeResponse(analysis=analysis)

    def _check_open(self) -> None:
        if self._state.draining:
            raise draining()


def _check_whole(context: grpc.ServicerContext) -> None:
    """For clients that do not say where the clip ends: a connection that breaks can look like the end of the requests.

    Half a clip must not become the clip's track. gRPC tells a moment later that it broke, as a rule.
    """
    gone = threading.Event()
    if not context.add_callback(gone.set) or gone.wait(_BROKEN_S):
        raise client_gone()


def _progress(frames: int, total: int) -> pb.AnalyzeResponse:
    return pb.AnalyzeResponse(
        progress=pb.AnalyzeProgress(frames=frames, total_frames=max(total, frames) if total else 0)
    )

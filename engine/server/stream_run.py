"""One call of Stream: frames by credit in, pictures out, memory bounded.

    read (frames) ──► analyse ──► render ──► responses (the call's own thread)

Reading never waits for room: credit bounds what can arrive, and a frame without credit ends the call. So a client that
writes and never reads is told so instead of being blocked for ever. Credit counts from when its message is sent.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vs3r.engine.pipeline import AnalysisItem, ObservedFrame, StabilizedFrame
from vs3r.engine.proto.layout import Layout
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.proto.wire import Pictured
from vs3r.engine.server.guard import GuardedStages
from vs3r.engine.server.intake import Arrival, Intake, Output, frame_error
from vs3r.engine.server.metrics import Metrics
from vs3r.engine.server.problems import Problem, client_gone, draining, forget_origin
from vs3r.engine.server.track_run import TrackRecorder
from vs3r.engine.threads import Channel, Stages, Stopped
from vs3r.errors import Vs3rError
from vs3r.render import SourceFrame
from vs3r.types import Plane

CREDITS = 8
"""Frames that may be on their way: analysis works in bursts of 8."""
_OBSERVED = 8
_PICTURES = 4
_ITEMS = 32


@dataclass(slots=True, kw_only=True, eq=False)
class _Taken:
    """A frame in the pipeline."""

    sequence: int
    output: Output | None  # a slot from the beginning; a message, which takes memory, once it is drawn
    decode_s: float
    queue_s: float
    taken_s: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Picture:
    """A finished frame."""

    picture: StabilizedFrame
    taken: _Taken
    passed_through: bool
    finished_s: float


class _Outbox(Channel[_Picture | pb.FrameError | pb.Credit]):
    """What is to be sent. Pictures wait for room; the rest, which credit bounds, does not."""

    def note(self, message: pb.FrameError | pb.Credit) -> None:
        with self._changed:
            self._items.append(message)
            self._changed.notify_all()


class StreamRun:
    """A running stream. `responses` is called once; the other public functions from any thread."""

    def __init__(
        self,
        stages: GuardedStages,
        intake: Intake,
        *,
        layout: Layout,
        metrics: Metrics,
        output_from_sequence: int,
        recorder: TrackRecorder | None,
    ) -> None:
        """
        Args:
            stages: the pipeline.
            intake: makes frames of messages.
            layout: of the results.
            metrics: counts frames.
            output_from_sequence: results before it are not sent.
            recorder: makes the session's track on the way.
        """
        self._stages = stages
        self._intake = intake
        self._layout = layout
        self._metrics = metrics
        self._output_from = output_from_sequence
        self._recorder = recorder
        self._frames: Channel[Arrival] = Channel(CREDITS)
        self._observed: Channel[ObservedFrame] = Channel(_OBSERVED)
        self._items: Channel[AnalysisItem] = Channel(_ITEMS)
        self._outbox = _Outbox(_PICTURES)
        self._lock = threading.Lock()
        self._credits = CREDITS
        self._taken: dict[int, _Taken] = {}
        self._problem: Problem | None = None
        self._draining = False
        self._whole = False  # the clip's end has come, and all before it is taken
        self._sending = False  # a response waits for the client
        self.active_s = time.monotonic()
        """When a frame last came or went."""

    def responses(self, sent: Iterator[Pictured]) -> Iterator[pb.StreamResponse | bytes]:
        """Run the stream.

        Args:
            sent: the frames up to the clip's end; raises a Problem where there is none.
        Raises:
            Problem: what ended it early.
        """
        # Ends with the call, when gRPC ends `sent`; waiting for it here would wait for the client.
        threading.Thread(target=self._read, args=(sent,), name="vs3r-stream-read", daemon=True).start()
        try:
            with Stages([self._frames, self._observed, self._items, self._outbox]) as stages:
                stages.start("observe", self._observe)
                stages.start("analyse", self._analyse)
                stages.start("render", self._render)
                for item in self._outbox:
                    self.active_s = time.monotonic()
                    response = self._response(item)
                    if response is not None:
                        self._sending = True
                        yield response
                        self._sending = False
        except Stopped:
            raise self._problem or client_gone() from None
        if self._problem is not None:
            raise self._problem
        if self._draining and not self._whole:
            raise draining()

    def waits_for_client(self) -> bool:
        """It is the client's turn to send or to take, not the models'."""
        with self._lock:
            return self._sending or (self._credits > 0 and not self._whole and not self._draining)

    def fail(self, problem: Problem) -> bool:
        """End the stream with an error; False when it had one before."""
        with self._lock:
            first, self._problem = self._problem is None, self._problem or problem
        self.stop()
        return first

    def stop(self) -> None:
        """End the stream now; the client is gone."""
        for channel in (self._frames, self._observed, self._items, self._outbox):
            channel.stop()

    def drain(self) -> None:
        """Take no more frames; those taken are finished."""
        with self._lock:
            self._draining = True
            self._frames.end()

    def _read(self, sent: Iterator[Pictured]) -> None:
        try:
            for frame in sent:
                self.active_s = time.monotonic()
                if not self._receive(frame):
                    return
        except Stopped:
            return
        except Problem as problem:
            self.fail(problem)
        except Exception as error:  # gRPC's way to say that the call is over; or a bug, which must not be lost
            self.fail(client_gone(type(error).__name__))
            forget_origin(error)
        else:
            self._whole = True
            self._frames.end()

    def _receive(self, sent: Pictured) -> bool:
        """Take a frame; False where no more are taken."""
        with self._lock:
            if self._credits == 0:
                raise Problem(
                    "RESOURCE_EXHAUSTED", "CREDIT", "expected frames by credit only; read the responses while you send"
                )
            self._credits -= 1
        try:
            arrival = self._intake.take(sent)
        except Vs3rError as error:
            self._metrics.add("frames_refused")
            self._intake.refuse(sent.frame)
            self._outbox.note(frame_error(sent.frame.sequence, error))
            self._outbox.note(pb.Credit(frames=1))
        else:
            with self._lock:
                if self._draining:
                    return False
                self._frames.put(arrival)  # never waits, for credit bounds them
            self._metrics.add("frames_received")
        return not self._draining

    def _observe(self) -> None:
        for index, arrival in enumerate(self._frames):
            now = time.perf_counter()
            self._taken[index] = _Taken(
                sequence=arrival.sequence,
                output=arrival.output,
                decode_s=arrival.decode_s,
                queue_s=now - arrival.arrived_s,
                taken_s=now,
            )
            if self._recorder is not None:
                self._recorder.add_frame(arrival.sequence, arrival.frame)
            self._outbox.note(pb.Credit(frames=1, acknowledged_sequence=arrival.sequence))
            self._observed.put(self._stages.analysis.observe(arrival.frame))
        self._observed.end()

    def _analyse(self) -> None:
        for item in self._observed:
            self._pass_on(self._stages.analysis.push(item))
        self._pass_on(self._stages.analysis.flush())
        self._items.end()

    def _pass_on(self, items: list[AnalysisItem]) -> None:
        for item in items:
            if self._recorder is not None and isinstance(item, SourceFrame):
                self._recorder.add_geometry(item.geometry)
            self._items.put(item)

    def _render(self) -> None:
        self._stages.rendering.draw_into(_places(self._taken, self._layout))
        for item in self._items:
            self._finish(self._stages.rendering.push(item))
        self._finish(self._stages.rendering.flush())
        self._outbox.end()

    def _finish(self, pictures: list[StabilizedFrame]) -> None:
        for picture in pictures:
            failed = picture.index in self._stages.failed
            if self._recorder is None:  # which needs them all at the end
                self._stages.failed.discard(picture.index)
            self._outbox.put(
                _Picture(
                    picture=picture,
                    taken=self._taken.pop(picture.index),
                    passed_through=failed,
                    finished_s=time.perf_counter(),
                )
            )

    def _response(self, item: _Picture | pb.FrameError | pb.Credit) -> pb.StreamResponse | bytes | None:
        if isinstance(item, pb.Credit):
            with self._lock:
                self._credits += item.frames
            item.returned.extend(self._intake.lending.returned())
            return pb.StreamResponse(credit=item)
        if isinstance(item, pb.FrameError):
            return pb.StreamResponse(frame_error=item)
        if item.taken.sequence < self._output_from:
            if item.taken.output is not None and isinstance(item.taken.output.goal, pb.SharedMemorySlot):
                self._intake.lending.give_back(item.taken.output.goal)
            return None
        self._metrics.add("frames_returned")
        if item.passed_through:
            self._metrics.add("frames_passed_through")
        return self._send(item)

    def _send(self, done: _Picture) -> pb.StreamResponse | bytes:
        taken, picture, output = done.taken, done.picture, done.taken.output
        assert output is not None, "a picture that is drawn has a place"
        start = time.perf_counter()
        message = result_message(picture, sequence=taken.sequence, passed_through=done.passed_through)
        output.write(picture.frame.planes, self._layout)
        now = time.perf_counter()
        message.timings.CopyFrom(
            pb.FrameTimings(
                decode_us=_us(taken.decode_s),
                queue_us=_us(taken.queue_s),
                pipeline_us=_us(done.finished_s - taken.taken_s),
                output_us=_us(start - done.finished_s),
                encode_us=_us(now - start),
            )
        )
        return output.response(message)


def _places(taken: dict[int, _Taken], layout: Layout) -> Callable[[int], tuple[Plane, ...] | None]:
    """Where the pictures of frames are drawn. No method of the run: it would refer to itself, and a client's memory
    would stay mapped."""

    def place(index: int) -> tuple[Plane, ...] | None:
        frame = taken[index]
        frame.output = frame.output or Output.message(layout)
        return frame.output.planes

    return place


def result_message(picture: StabilizedFrame, *, sequence: int, passed_through: bool) -> pb.StabilizedFrame:
    """A result without its pixels."""
    return pb.StabilizedFrame(
        sequence=sequence,
        pts=picture.frame.pts,
        duration=picture.frame.duration,
        own_share=picture.own_share,
        valid_share=picture.valid_share,
        passed_through=passed_through,
    )


def _us(seconds: float) -> int:
    return max(0, round(seconds * 1e6))

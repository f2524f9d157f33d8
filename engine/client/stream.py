"""The blocking client's Stream call: credit, shared memory, and going on where the connection broke."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from vs3r.config import Config
from vs3r.engine.client.errors import ServerError
from vs3r.engine.client.shared import Lent, SharedFrames, frame_request, own_session, result_bytes
from vs3r.engine.client.unfinished import Patience, Refused, Steady, Unfinished, refused, steady, stream_opening
from vs3r.engine.proto.convert import config_from
from vs3r.engine.proto.layout import Layout, planar_layout
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.proto.wire import Pictured, kind_of, pictured
from vs3r.types import Frame

if TYPE_CHECKING:
    from vs3r.engine.client.sync import Client

_PAUSE_S = 0.2


class Streaming:
    """One stream of frames, over as many calls as it takes."""

    def __init__(
        self,
        client: Client,
        config: Config | None,
        *,
        session: str | None,
        shared_memory: SharedFrames | None,
        patience_s: float,
    ) -> None:
        self._client = client
        self._config = config or Config()
        self._session = session
        self._shared = shared_memory
        self._patience = Patience(patience_s)
        self._source = _Source()
        self._started = False

    def run(self, frames: Iterator[Frame]) -> Iterator[Steady | Refused]:
        """Results in order; see Client.stabilize."""
        first = next(frames, None)
        if first is None:
            return
        self._source.start(first, frames)
        layout = planar_layout(first.format)
        with ExitStack() as held:
            held.callback(self._source.stop)
            while True:
                try:
                    for result in self._call(layout, first):
                        self._patience.result_came()
                        yield result
                    return
                except ServerError as error:
                    if self._source.error is not None:
                        raise self._source.error from None
                    # A server that was started anew knows no session; it is given the frames without one.
                    if error.reason == "SESSION_UNKNOWN" and self._started:
                        self._session = None
                    elif not error.is_passing or self._patience.ends():
                        raise
                    self._source.wait(error.retry_s or _PAUSE_S)

    def _call(self, layout: Layout, first: Frame) -> Iterator[Steady | Refused]:
        with ExitStack() as held:
            session, own = self._session, None
            if session is not None:
                # Should the server forget the session, the stream goes on with the settings that it had.
                self._config = config_from(self._client.get_session(session).config)
            elif self._shared is not None:
                # Shared memory belongs to a session.
                session = own = self._client.call("CreateSession", own_session(self._config)).session.name
                held.callback(self._forget, own)
            sender = _Sender(self._source, layout)
            held.callback(sender.stop)
            lending = held.enter_context(ExitStack())
            opening = stream_opening(
                self._config, layout, self._source.unfinished, first.time_base, session, transient=own is not None
            )
            requests = sender.requests(opening)
            responses = held.enter_context(self._client.open_call("Stream", requests))
            self._source.when_failing(responses.cancel)
            for response in responses:
                match kind_of(response):
                    case "started":
                        self._started = True
                        if self._shared is not None and session is not None:
                            sender.lent = Lent(self._shared, response.started, layout)
                            lending.callback(self._unregister, sender.lent.removals(session))
                            for registration in sender.lent.registrations(session):
                                self._client.call("RegisterSharedMemory", registration)
                        sender.add_credit(response.started.credits)
                    case "credit":
                        if sender.lent is not None:
                            sender.lent.take_back(response.credit)
                        sender.add_credit(response.credit.frames)
                    case "frame":
                        yield self._result(pictured(response), layout, sender)
                    case "frame_error":
                        self._source.drop(response.frame_error.sequence)
                        yield refused(response.frame_error)

    def _result(self, response: Pictured, layout: Layout, sender: _Sender) -> Steady:
        message = response.frame
        data = result_bytes(response, sender.lent)
        source = self._source.find(message.sequence)
        result = steady(message, data, layout, time_base=source.time_base, key_frame=source.key_frame)
        self._source.done(message.sequence)
        return result

    def _unregister(self, removals: list[pb.UnregisterSharedMemoryRequest]) -> None:
        for removal in removals:
            with suppress(ServerError):  # the session may have ended, and the region with it
                self._client.call("UnregisterSharedMemory", removal)

    def _forget(self, session: str) -> None:
        with suppress(ServerError):  # it is gone, or will expire
            self._client.delete_session(session)


class _Source:
    """The clip's frames, read when there is credit for them, and kept until their results have come."""

    def __init__(self) -> None:
        self.unfinished = Unfinished()
        """Frames kept. Changed with the lock held."""
        self.error: BaseException | None = None
        """What reading the clip raised."""
        self.is_whole = False
        """The clip has been read to its end."""
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._ended = threading.Event()
        self._frames: Iterator[Frame] = iter(())
        self._cancel: Callable[[], object] = lambda: None

    def start(self, first: Frame, frames: Iterator[Frame]) -> None:
        """Set the clip: its first frame, and the others."""
        self.unfinished.add(first)
        self._frames = frames

    def stop(self) -> None:
        """Read no more."""
        self._ended.set()

    def wait(self, seconds: float) -> None:
        """Pause, unless the stream is stopped."""
        self._ended.wait(seconds)

    def next(self, after: int) -> tuple[int, Frame] | None:
        """The first frame beyond a number, kept or read; None at the end. Called by one call's thread after another,
        and at a break for a moment by two."""
        with self._reading:
            with self._lock:
                kept = self.unfinished.after(after)
            if kept is not None or self._ended.is_set():
                return kept
            try:
                frame = next(self._frames, None)
            except BaseException as error:  # raised again in the caller's thread
                self.error, frame = error, None
                self._cancel()
            if frame is None:
                self.is_whole = self.error is None
                self._frames = iter(())
                return None
            with self._lock:
                return self.unfinished.add(frame), frame

    def when_failing(self, cancel: Callable[[], object]) -> None:
        """What to call where reading the clip raises, or has."""
        self._cancel = cancel
        if self.error is not None:
            cancel()

    def find(self, sequence: int) -> Frame:
        """A frame whose result has come."""
        with self._lock:
            frame = self.unfinished.find(sequence)
        if frame is None:
            raise ServerError(f"the server sent a result for frame {sequence}, which was not sent", code="INTERNAL")
        return frame

    def done(self, sequence: int) -> None:
        """See Unfinished."""
        with self._lock:
            self.unfinished.done(sequence)

    def drop(self, sequence: int) -> None:
        """See Unfinished."""
        with self._lock:
            self.unfinished.drop(sequence)


class _Sender:
    """The requests of one call."""

    def __init__(self, source: _Source, layout: Layout) -> None:
        self._source = source
        self._layout = layout
        self._changed = threading.Condition()
        self._credit = 0
        self._stopped = False
        self.lent: Lent | None = None
        """Shared memory, where it is used."""

    def add_credit(self, frames: int) -> None:
        """So many frames more may be sent."""
        with self._changed:
            self._credit += frames
            self._changed.notify()

    def stop(self) -> None:
        """The call has ended."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def requests(self, opening: pb.StreamRequest) -> Iterator[pb.StreamRequest | Pictured]:
        """Run by gRPC in a thread of its own."""
        yield opening
        last, output_from = -1, opening.config.output_from_sequence
        while self._take_credit():
            item = self._source.next(last)
            if item is None:
                break
            last, frame = item
            yield frame_request(last, frame, self._layout, self.lent, output_from=output_from)
        if self._source.is_whole:
            yield pb.StreamRequest(end=pb.EndOfClip())
        else:
            self._wait_for_stop()

    def _take_credit(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._credit > 0 or self._stopped)
            self._credit -= 1
            return not self._stopped

    def _wait_for_stop(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped)

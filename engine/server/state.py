"""What all calls share: sessions, memory, tracks, counters, limits, and who may come in."""

from __future__ import annotations

import hmac
import math
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vs3r.engine.proto.layout import Layout, layout_of
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.server.file_frames import OpenFiles
from vs3r.engine.server.guard import Models
from vs3r.engine.server.memory import FrameMemory
from vs3r.engine.server.metrics import Metrics
from vs3r.engine.server.problems import Malformed, Problem, client_gone, draining, malformed, session_deleted
from vs3r.engine.server.sessions import Session, Sessions
from vs3r.engine.server.settings import ServeConfig
from vs3r.engine.server.shm import Regions
from vs3r.engine.server.store import TrackStore, default_folder
from vs3r.engine.server.stream_run import StreamRun
from vs3r.engine.threads import usable_cores

if TYPE_CHECKING:
    import grpc

Request = TypeVar("Request")
Response = TypeVar("Response")

_RETRY_S = 5.0
_REQUEST_S = 20.0
"""So long a call may take to send the one request that it has."""


class State:
    """The server's state. Safe to use from several threads."""

    def __init__(self, config: ServeConfig, *, token: str | None = None, models: Models | None = None) -> None:
        """
        Args:
            config: limits and folders.
            token: what every call must bring; None lets everyone in.
            models: makes the parts of the method.
        Raises:
            OutputError: the cache folder cannot be made.
        """
        self.config = config
        self.models = models or Models()
        self.metrics = Metrics()
        self.memory = FrameMemory(config.memory_mb << 20)
        folder = default_folder() if config.cache_dir is None else Path(config.cache_dir)
        self.store = TrackStore(folder, config.cache_mb << 20)
        self.files = OpenFiles()
        self.sessions = Sessions(config, self.memory, self.store)
        self.draining = False
        self._token = None if token is None else f"Bearer {token}".encode()
        self._lock = threading.Lock()
        self._runs: dict[StreamRun, grpc.ServicerContext] = {}
        self._waiting: dict[grpc.ServicerContext, float] = {}
        self._busy = 0
        self._quiet = threading.Condition()
        self._calls = 0
        self.drawing = threading.Semaphore(usable_cores())
        """Held while a picture is drawn for random access: more at once would only take more memory."""

    def admit(self, context: grpc.ServicerContext) -> None:
        """Raise a Problem unless the caller may come in. It is counted as running until told() is called."""
        with self._quiet:
            self._calls += 1
        self.check_token(context)
        if self.draining:
            raise draining()

    def check_token(self, context: grpc.ServicerContext) -> None:
        """Raise a Problem unless the caller has the server's token."""
        if self._token is not None:
            given = next((value for key, value in context.invocation_metadata() if key == "authorization"), "")
            raw = given if isinstance(given, bytes) else given.encode()
            if not hmac.compare_digest(raw, self._token):
                raise Problem(
                    "UNAUTHENTICATED", "TOKEN", "expected the server's token as metadata: authorization: Bearer TOKEN"
                )

    def told(self, method: str, code: str) -> None:
        """A call has ended with that status code."""
        self.metrics.call(method, code)
        with self._quiet:
            self._calls -= 1
            self._quiet.notify_all()

    def wait_until_quiet(self, limit_s: float) -> None:
        """Until no call runs, but not for ever."""
        with self._quiet:
            self._quiet.wait_for(lambda: self._calls == 0, limit_s)

    def regions(self, session: Session | None, context: grpc.ServicerContext) -> Regions:
        """The shared memory that a call may name: none but of its session, for a client of this machine."""
        return session.regions if session is not None and self.shares(context) else Regions()

    def shares(self, context: grpc.ServicerContext) -> bool:
        """The client may hand over shared memory."""
        return self.config.allow_shm and is_local(context)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """One of the calls that may stream frames or tracks at once.

        Raises:
            Problem: all are taken.
        """
        with self._lock:
            if self._busy >= self.config.max_streams:
                raise Problem(
                    "RESOURCE_EXHAUSTED",
                    "STREAMS",
                    f"{self.config.max_streams} calls that stream are running, the most; try again later",
                    retry_s=_RETRY_S,
                )
            self._busy += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1

    def only(self, requests: Iterator[Request | Malformed], context: grpc.ServicerContext) -> Request:
        """The request of a call that has one.

        Read by the call, not by gRPC before it: who may not come in is refused first, and who sends none is cut off. It
        would hold a thread until its connection ends.

        Raises:
            Problem: there is none, or the call is over.
        """
        request = next(self.watched(requests, context, limit_s=_REQUEST_S), None)
        if request is None or isinstance(request, Malformed):
            raise malformed()
        return request

    def watched(
        self, requests: Iterator[Request], context: grpc.ServicerContext, *, limit_s: float = math.inf
    ) -> Iterator[Request]:
        """Requests as they come; sweep cuts off a client that sends none for too long, or for `limit_s`.

        Raises:
            Problem: the call is over.
        """
        import grpc

        while True:
            self._waiting[context] = time.monotonic() + min(limit_s, self.config.stream_idle_s)
            try:
                request = next(requests, None)
            except grpc.RpcError:  # gRPC's way to say so
                raise client_gone() from None
            finally:
                self._waiting.pop(context, None)
            if request is None:
                return
            yield request

    def taken(self, responses: Generator[Response], context: grpc.ServicerContext) -> Iterator[Response]:
        """Responses as the client takes them; sweep cuts off one that takes none for too long."""
        with closing(responses):
            for response in responses:
                self._waiting[context] = time.monotonic() + self.config.stream_idle_s
                try:
                    yield response
                finally:
                    self._waiting.pop(context, None)

    @contextmanager
    def running(self, run: StreamRun, context: grpc.ServicerContext, session: Session | None) -> Iterator[None]:
        """Let drain, sweep, the end of the call and that of its session reach a stream."""
        with self._lock:
            self._runs[run] = context
            if self.draining:
                run.drain()
        try:
            if not context.add_callback(run.stop):
                run.stop()
            if session is None:
                yield
            else:
                with self.sessions.call(session, lambda: run.fail(session_deleted())):
                    yield
        finally:
            with self._lock:
                self._runs.pop(run, None)

    def drain(self) -> None:
        """Take nothing new; streams finish the frames they have taken."""
        with self._lock:
            self.draining = True
            runs = list(self._runs)
        for run in runs:
            run.drain()

    def sweep(self) -> None:
        """Drop idle sessions and end stalled streams; to be called every second or so."""
        self.sessions.expire()
        with self._lock:
            runs = list(self._runs.items())
        for context, end_s in list(self._waiting.items()):
            if time.monotonic() > end_s:
                context.cancel()
        for run, context in runs:
            if run.waits_for_client() and time.monotonic() - run.active_s > self.config.stream_idle_s:
                idle = Problem("DEADLINE_EXCEEDED", "IDLE", "no frame was sent or taken for too long")
                # A client that does not read never gets to see the error: the second time its call is cut.
                if not run.fail(idle):
                    context.cancel()

    def layout(self, message: pb.FrameFormat, *, field: str = "config.format") -> Layout:
        """Check a frame format against the limits; see layout_of."""
        return layout_of(message, field=field, max_pixels=self.config.max_frame_pixels)

    def use_layout(self, session: Session, layout: Layout) -> None:
        """From now on the session's frames look so."""
        with session.lock:
            old, session.layout = session.layout, layout
        if old is not None and old.format != layout.format:
            self.memory.forget(session)

    def status(self) -> pb.GetStatusResponse:
        """Counters and gauges."""
        with self._lock:
            streams = self._busy
        message = pb.GetStatusResponse(
            sessions=len(self.sessions),
            streams=streams,
            shared_memory_regions=self.sessions.regions(),
            held_frame_bytes=self.memory.held,
            reserved_bytes=self.memory.reserved,
            track_bytes=self.store.bytes,
            frames_received=self.metrics.count("frames_received"),
            frames_returned=self.metrics.count("frames_returned"),
            frames_refused=self.metrics.count("frames_refused"),
            frames_passed_through=self.metrics.count("frames_passed_through"),
            draining=self.draining,
        )
        message.uptime.FromNanoseconds(int(self.metrics.uptime_s * 1e9))
        return message

    def page(self) -> str:
        """For Prometheus."""
        status = self.status()
        names = ("sessions", "streams", "shared_memory_regions", "held_frame_bytes", "reserved_bytes", "track_bytes")
        gauges = {"uptime_seconds": self.metrics.uptime_s} | {name: float(getattr(status, name)) for name in names}
        return self.metrics.page(gauges)


def frame_bytes(layout: Layout) -> int:
    """Memory of a picture on its way: of its planes, or of its bytes on the wire where these are more."""
    return max(plane_bytes(layout), layout.byte_size)


def plane_bytes(layout: Layout) -> int:
    """Memory of a picture's planes, all that stays of it."""
    fmt = layout.format
    sample = 1 if fmt.bit_depth <= 8 else 2
    return sample * sum(rows * columns for rows, columns in map(fmt.plane_shape, range(fmt.num_planes)))


def host_of(context: grpc.ServicerContext) -> str:
    """The client's address without its port."""
    peer = context.peer()
    return "local" if is_local(context) else peer.rpartition(":")[0]


def is_local(context: grpc.ServicerContext) -> bool:
    """The client is on this machine."""
    return context.peer().startswith(("unix:", "ipv4:127.", "ipv6:%5B::1%5D", "ipv6:[::1]"))

"""The blocking client."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import EllipsisType, TracebackType
from typing import Any, Self

from vs3r.config import Config
from vs3r.engine.client.connection import Access, open_channel, stubs
from vs3r.engine.client.errors import ServerError, client_closed, server_error
from vs3r.engine.client.guarded import Guarded
from vs3r.engine.client.messages import Messages, track_requests
from vs3r.engine.client.shared import SharedFrames
from vs3r.engine.client.stream import Streaming
from vs3r.engine.client.unfinished import Refused, Steady, steady_of
from vs3r.engine.proto.convert import config_message
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.proto.wire import Pictured, whole
from vs3r.types import Frame

_TIMEOUT_S = 60.0


class Client:
    """A connection to a server. Safe to use from several threads. Every call may raise ServerError.

    with Client("127.0.0.1:50777") as client:
        for result in client.stabilize(frames):
            ...
    """

    def __init__(self, target: str, access: Access | None = None, *, timeout_s: float = _TIMEOUT_S) -> None:
        """
        Args:
            target: HOST:PORT or unix:PATH.
            access: token and certificates.
            timeout_s: of calls that do not stream.
        Raises:
            BackendError: gRPC is not installed.
        """
        self.target = target
        self._access = access or Access()
        self._timeout_s = timeout_s
        self._channel = open_channel(target, self._access, asyncio=False)
        self._stubs = stubs(self._channel)
        self._closed = False

    def close(self) -> None:
        """End all calls."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- the server

    def capabilities(self) -> pb.GetCapabilitiesResponse:
        """What the server can do."""
        return self.call("GetCapabilities", pb.GetCapabilitiesRequest())  # type: ignore[no-any-return]

    def status(self) -> pb.GetStatusResponse:
        """Its counters."""
        return self.call("GetStatus", pb.GetStatusRequest())  # type: ignore[no-any-return]

    # ---- sessions

    def create_session(self, media_key: str, config: Config | None = None) -> pb.Session:
        """The session of this clip and these settings."""
        request = pb.CreateSessionRequest(media_key=media_key, config=config_message(config or Config()))
        return self.call("CreateSession", request).session  # type: ignore[no-any-return]

    def get_session(self, session: str) -> pb.Session:
        """What a session holds."""
        return self.call("GetSession", pb.GetSessionRequest(name=session)).session  # type: ignore[no-any-return]

    def list_sessions(self) -> Iterator[pb.Session]:
        """All sessions."""
        token = None
        while token != "":
            page = self.call("ListSessions", pb.ListSessionsRequest(page_token=token or ""))
            yield from page.sessions
            token = page.next_page_token

    def delete_session(self, session: str) -> None:
        """Drop a session."""
        self.call("DeleteSession", pb.DeleteSessionRequest(name=session))

    # ---- frames

    def stabilize(
        self,
        frames: Iterable[Frame],
        config: Config | None = None,
        *,
        session: str | None = None,
        shared_memory: SharedFrames | None = None,
        patience_s: float = 30.0,
    ) -> Iterator[Steady | Refused]:
        """Stabilize frames as they come, results in order.

        Frames are read ahead by another thread, no further than the server's credit goes. Where the connection breaks,
        or the server is started anew, the stream goes on from the last result that came.

        Args:
            frames: all of one format and time base.
            config: settings; not with a session, which has its own.
            session: name of a session that gets the track.
            shared_memory: for a server on this machine that allows it: frames whose planes are of this memory are used
                where they lie, others are copied to it, and results lie in shared memory as well.
            patience_s: how long to try to go on after a break without a result; 0 raises at once.
        Raises:
            InputError: the shared memory is for frames of another format.
        """
        streaming = Streaming(self, config, session=session, shared_memory=shared_memory, patience_s=patience_s)
        return streaming.run(iter(frames))

    def analyze_file(
        self, session: str, path: str, *, progress: Callable[[pb.AnalyzeProgress], object] | None = None
    ) -> pb.Analysis:
        """Make the track of a file below the server's media root."""
        first = pb.AnalyzeRequest(config=pb.AnalyzeConfig(session=session, path=path))
        return self._analyze(iter([first]), progress)

    def analyze_frames(
        self,
        session: str,
        frames: Iterable[Frame],
        *,
        progress: Callable[[pb.AnalyzeProgress], object] | None = None,
    ) -> pb.Analysis:
        """Make the track of frames, numbered from 0."""

        def requests() -> Iterator[pb.AnalyzeRequest | Pictured]:
            messages = Messages()
            for number, frame in enumerate(frames):
                if number == 0:
                    config = pb.AnalyzeConfig(session=session, frames=messages.source(frame), explicit_end=True)
                    yield pb.AnalyzeRequest(config=config)
                yield messages.request(pb.AnalyzeRequest(), number, frame)
            yield pb.AnalyzeRequest(end=pb.EndOfClip())

        return self._analyze(requests(), progress)

    def download_track(self, session: str) -> bytes:
        """The session's track as a .vs3r file."""
        with self.open_call("DownloadTrack", pb.DownloadTrackRequest(session=session)) as chunks:
            return b"".join(message.chunk for message in chunks)

    def upload_track(self, session: str, track: bytes) -> pb.Analysis:
        """Give the session a .vs3r file as its track."""
        requests = track_requests(session, track)
        return self.call("UploadTrack", requests, timeout_s=None).analysis  # type: ignore[no-any-return]

    def set_smoothing(self, session: str, smooth: pb.SmoothConfig) -> pb.SetSmoothingResponse:
        """Smooth the path again; fields that are not set stay as they are."""
        request = pb.SetSmoothingRequest(session=session, smooth=smooth)
        return self.call("SetSmoothing", request)  # type: ignore[no-any-return]

    def upload_frames(self, session: str, frames: Iterable[tuple[int, Frame]]) -> pb.UploadFramesResponse:
        """Give the session source frames with their numbers, in order."""

        def requests() -> Iterator[pb.UploadFramesRequest | Pictured]:
            messages, begun = Messages(), False
            for number, frame in frames:
                if not begun:
                    begun = True
                    config = pb.UploadConfig(session=session, frames=messages.source(frame))
                    yield pb.UploadFramesRequest(config=config)
                yield messages.request(pb.UploadFramesRequest(), number, frame)

        source = Guarded(requests())
        source.stop()  # those sent so far may stay
        response: pb.UploadFramesResponse = self.call("UploadFrames", source, timeout_s=None)
        if source.error is not None:
            raise source.error
        return response

    def get_frame(self, session: str, index: int) -> Steady:
        """One stabilized frame; ServerError.missing names the source frames that the server lacks."""
        response = self._ask("GetFrame", pb.GetFrameRequest(session=session, index=index))
        return steady_of(response)

    def get_warp(self, session: str, index: int, *, map_only: bool = False) -> pb.GetWarpResponse:
        """Where to sample the source, and what to lay over it."""
        request = pb.GetWarpRequest(session=session, index=index, map_only=map_only)
        return self.call("GetWarp", request)  # type: ignore[no-any-return]

    # ---- below

    def call(self, name: str, request: Any, *, timeout_s: float | EllipsisType | None = ...) -> Any:
        """Call by the proto's name; for what has no function here.

        Args:
            name: of the call.
            request: its request, or an iterator of them.
            timeout_s: for this call instead of the client's; None waits for ever.
        """
        return whole(self._ask(name, request, timeout_s=timeout_s))

    def _ask(self, name: str, request: Any, *, timeout_s: float | EllipsisType | None = ...) -> Any:
        limit = self._timeout_s if isinstance(timeout_s, EllipsisType) else timeout_s
        with self._errors():
            return self._stubs[name](request, timeout=limit, metadata=self._access.metadata)

    @contextmanager
    def open_call(self, name: str, request: Any) -> Iterator[Any]:
        """A call whose responses stream, those with pixels as Pictured; it is cancelled on leaving."""
        with self._errors():
            call = self._stubs[name](request, metadata=self._access.metadata)
            try:
                yield call
            finally:
                call.cancel()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What gRPC raises as a ServerError."""
        import grpc

        try:
            yield
        except grpc.RpcError as error:
            raise server_error(error, self.target) from None
        except ValueError:  # gRPC's way to say that the channel is closed
            if not self._closed:
                raise
            raise client_closed(self.target) from None

    def _analyze(
        self, requests: Iterator[pb.AnalyzeRequest | Pictured], progress: Callable[[pb.AnalyzeProgress], object] | None
    ) -> pb.Analysis:
        analysis, source = pb.Analysis(), Guarded(requests)
        try:
            with self.open_call("Analyze", source) as responses:
                source.when_failing(responses.cancel)
                for response in responses:
                    kind = response.WhichOneof("message")
                    if kind == "progress" and progress is not None:
                        progress(response.progress)
                    elif kind == "analysis":
                        analysis = response.analysis
        except ServerError:
            if source.error is not None:
                raise source.error from None
            raise
        finally:
            source.stop()
        return analysis

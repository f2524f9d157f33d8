"""The asyncio client: the vocabulary of vs3r.engine.client.sync.Client, with await."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from types import EllipsisType, TracebackType
from typing import Any, Self

from vs3r.config import Config
from vs3r.engine.client.aio_stream import AsyncStreaming
from vs3r.engine.client.connection import Access, open_channel, stubs
from vs3r.engine.client.errors import client_closed, server_error
from vs3r.engine.client.messages import Messages, track_requests
from vs3r.engine.client.shared import SharedFrames
from vs3r.engine.client.unfinished import Refused, Steady, steady_of
from vs3r.engine.proto.convert import config_message
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.proto.wire import Pictured, whole
from vs3r.types import Frame

_TIMEOUT_S = 60.0


class AsyncClient:
    """A connection to a server, for one event loop. Every call may raise ServerError."""

    def __init__(self, target: str, access: Access | None = None, *, timeout_s: float = _TIMEOUT_S) -> None:
        """See Client."""
        self.target = target
        self._access = access or Access()
        self._timeout_s = timeout_s
        self._channel = open_channel(target, self._access, asyncio=True)
        self._stubs = stubs(self._channel)
        self._closed = False

    async def close(self) -> None:
        """End all calls."""
        self._closed = True
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def call(self, name: str, request: Any, *, timeout_s: float | EllipsisType | None = ...) -> Any:
        """See Client."""
        return whole(await self._ask(name, request, timeout_s=timeout_s))

    async def _ask(self, name: str, request: Any, *, timeout_s: float | EllipsisType | None = ...) -> Any:
        limit = self._timeout_s if isinstance(timeout_s, EllipsisType) else timeout_s
        with self._errors():
            return await self._stubs[name](request, timeout=limit, metadata=self._access.metadata)

    @asynccontextmanager
    async def open_call(self, name: str, request: Any) -> AsyncIterator[Any]:
        """See Client.open_call."""
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
        except grpc.aio.UsageError:  # gRPC's way to say that the channel is closed
            if not self._closed:
                raise
            raise client_closed(self.target) from None
        except asyncio.CancelledError:  # and where it is closed meanwhile; or the caller's task is cancelled
            task = asyncio.current_task()
            if not self._closed or (task is not None and task.cancelling()):
                raise
            raise client_closed(self.target) from None

    async def _analyze(self, requests: Any, progress: Callable[[pb.AnalyzeProgress], object] | None) -> pb.Analysis:
        analysis, source = pb.Analysis(), _Noted(requests)
        try:
            async with self.open_call("Analyze", source.items()) as call:
                async for response in call:
                    kind = response.WhichOneof("message")
                    if kind == "progress" and progress is not None:
                        progress(response.progress)
                    elif kind == "analysis":
                        analysis = response.analysis
        except asyncio.CancelledError:
            if source.error is not None:
                raise source.error from None
            raise
        return analysis

    # ---- the server

    async def capabilities(self) -> pb.GetCapabilitiesResponse:
        """See Client."""
        return await self.call("GetCapabilities", pb.GetCapabilitiesRequest())  # type: ignore[no-any-return]

    async def status(self) -> pb.GetStatusResponse:
        """See Client."""
        return await self.call("GetStatus", pb.GetStatusRequest())  # type: ignore[no-any-return]

    # ---- sessions

    async def create_session(self, media_key: str, config: Config | None = None) -> pb.Session:
        """See Client."""
        request = pb.CreateSessionRequest(media_key=media_key, config=config_message(config or Config()))
        response: pb.CreateSessionResponse = await self.call("CreateSession", request)
        return response.session

    async def get_session(self, session: str) -> pb.Session:
        """See Client."""
        response = await self.call("GetSession", pb.GetSessionRequest(name=session))
        return response.session  # type: ignore[no-any-return]

    async def list_sessions(self) -> AsyncIterator[pb.Session]:
        """See Client."""
        token = None
        while token != "":
            page = await self.call("ListSessions", pb.ListSessionsRequest(page_token=token or ""))
            for session in page.sessions:
                yield session
            token = page.next_page_token

    async def delete_session(self, session: str) -> None:
        """See Client."""
        await self.call("DeleteSession", pb.DeleteSessionRequest(name=session))

    # ---- tracks

    async def analyze_file(
        self, session: str, path: str, *, progress: Callable[[pb.AnalyzeProgress], object] | None = None
    ) -> pb.Analysis:
        """See Client."""

        async def requests() -> AsyncIterator[pb.AnalyzeRequest]:
            yield pb.AnalyzeRequest(config=pb.AnalyzeConfig(session=session, path=path))

        return await self._analyze(requests(), progress)

    async def analyze_frames(
        self,
        session: str,
        frames: AsyncIterable[Frame],
        *,
        progress: Callable[[pb.AnalyzeProgress], object] | None = None,
    ) -> pb.Analysis:
        """See Client."""
        messages = Messages()

        async def requests() -> AsyncIterator[pb.AnalyzeRequest | Pictured]:
            number = 0
            async for frame in frames:
                if number == 0:
                    config = pb.AnalyzeConfig(session=session, frames=messages.source(frame), explicit_end=True)
                    yield pb.AnalyzeRequest(config=config)
                yield messages.request(pb.AnalyzeRequest(), number, frame)
                number += 1
            yield pb.AnalyzeRequest(end=pb.EndOfClip())

        return await self._analyze(requests(), progress)

    async def download_track(self, session: str) -> bytes:
        """See Client."""
        async with self.open_call("DownloadTrack", pb.DownloadTrackRequest(session=session)) as call:
            return b"".join([message.chunk async for message in call])

    async def upload_track(self, session: str, track: bytes) -> pb.Analysis:
        """See Client."""
        response = await self.call("UploadTrack", track_requests(session, track), timeout_s=None)
        return response.analysis  # type: ignore[no-any-return]

    async def set_smoothing(self, session: str, smooth: pb.SmoothConfig) -> pb.SetSmoothingResponse:
        """See Client."""
        request = pb.SetSmoothingRequest(session=session, smooth=smooth)
        response: pb.SetSmoothingResponse = await self.call("SetSmoothing", request)
        return response

    # ---- frames

    async def upload_frames(self, session: str, frames: AsyncIterable[tuple[int, Frame]]) -> pb.UploadFramesResponse:
        """See Client."""
        messages, error = Messages(), list[Exception]()

        async def requests() -> AsyncIterator[pb.UploadFramesRequest | Pictured]:
            begun = False
            try:
                async for number, frame in frames:
                    if not begun:
                        begun = True
                        config = pb.UploadConfig(session=session, frames=messages.source(frame))
                        yield pb.UploadFramesRequest(config=config)
                    yield messages.request(pb.UploadFramesRequest(), number, frame)
            except Exception as raised:  # raised again in the caller; those sent so far may stay
                error.append(raised)

        response: pb.UploadFramesResponse = await self.call("UploadFrames", requests(), timeout_s=None)
        if error:
            raise error[0]
        return response

    async def get_warp(self, session: str, index: int, *, map_only: bool = False) -> pb.GetWarpResponse:
        """See Client."""
        request = pb.GetWarpRequest(session=session, index=index, map_only=map_only)
        return await self.call("GetWarp", request)  # type: ignore[no-any-return]

    async def get_frame(self, session: str, index: int) -> Steady:
        """See Client."""
        return steady_of(await self._ask("GetFrame", pb.GetFrameRequest(session=session, index=index)))

    async def stabilize(
        self,
        frames: AsyncIterable[Frame],
        config: Config | None = None,
        *,
        session: str | None = None,
        shared_memory: SharedFrames | None = None,
        patience_s: float = 30.0,
    ) -> AsyncGenerator[Steady | Refused]:
        """See Client."""
        streaming = AsyncStreaming(self, config, session=session, shared_memory=shared_memory, patience_s=patience_s)
        async with aclosing(streaming.run(frames)) as results:
            async for result in results:
                yield result


class _Noted:
    """Requests made of what a caller gives. Where they raise, gRPC cancels the call; the error is noted."""

    def __init__(self, requests: Any) -> None:
        self._requests = requests
        self.error: Exception | None = None
        """What they raised."""

    async def items(self) -> AsyncIterator[Any]:
        """The requests."""
        try:
            async for request in self._requests:
                yield request
        except Exception as error:
            self.error = error
            raise

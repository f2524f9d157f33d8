"""The asyncio client: the vocabulary of vs3r.engine.client.sync.Client, with await."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

from vs3r.config import Config
from vs3r.engine.client.connection import Access, open_channel, stubs
from vs3r.engine.client.errors import ServerError, server_error
from vs3r.engine.client.messages import Messages, track_requests
from vs3r.engine.client.unfinished import Refused, Steady, Unfinished, refused, steady, steady_of
from vs3r.engine.proto.convert import config_message
from vs3r.engine.proto.layout import Layout, layout_message, planar_layout, rational
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.proto.wire import Pictured, kind_of, pictured, whole
from vs3r.types import Frame

_TIMEOUT_S = 60.0
_PAUSE_S = 0.2


class AsyncClient:
    """A connection to a server, for one event loop. Every call may raise ServerError."""

    def __init__(self, target: str, access: Access | None = None, *, timeout_s: float = _TIMEOUT_S) -> None:
        """See Client."""
        self.target = target
        self._access = access or Access()
        self._timeout_s = timeout_s
        self._channel = open_channel(target, self._access, asyncio=True)
        self._stubs = stubs(self._channel)

    async def close(self) -> None:
        """End all calls."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def call(self, name: str, request: Any, *, timeout_s: float | None = _TIMEOUT_S) -> Any:
        """See Client."""
        return whole(await self._ask(name, request, timeout_s=timeout_s))

    async def _ask(self, name: str, request: Any, *, timeout_s: float | None = _TIMEOUT_S) -> Any:
        import grpc

        limit = None if timeout_s is None else self._timeout_s
        try:
            return await self._stubs[name](request, timeout=limit, metadata=self._access.metadata)
        except grpc.RpcError as error:
            raise server_error(error, self.target) from None

    @asynccontextmanager
    async def _opened(self, name: str, request: Any) -> AsyncIterator[Any]:
        """See Client.open_call."""
        import grpc

        call = self._stubs[name](request, metadata=self._access.metadata)
        try:
            yield call
        except grpc.RpcError as error:
            raise server_error(error, self.target) from None
        finally:
            call.cancel()

    async def _analyze(self, requests: Any, progress: Callable[[pb.AnalyzeProgress], object] | None) -> pb.Analysis:
        analysis, source = pb.Analysis(), _Noted(requests)
        try:
            async with self._opened("Analyze", source.items()) as call:
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
        async with self._opened("DownloadTrack", pb.DownloadTrackRequest(session=session)) as call:
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
        patience_s: float = 30.0,
    ) -> AsyncIterator[Steady | Refused]:
        """See Client; frames travel as bytes."""
        source = _Source(frames)
        if await source.next(-1) is None:
            return
        last_s = time.monotonic()
        started = False
        while True:
            opening = source.opening(config or Config(), session)
            try:
                async with self._call(source, opening) as responses:
                    async for result in responses:
                        started, last_s = True, time.monotonic()
                        yield result
                return
            except ServerError as error:
                if error.reason == "SESSION_UNKNOWN" and started:
                    session = None  # the server was started anew
                elif not error.is_passing or time.monotonic() - last_s > patience_s:
                    raise
                await asyncio.sleep(error.retry_s or _PAUSE_S)

    @asynccontextmanager
    async def _call(self, source: _Source, opening: pb.StreamRequest) -> AsyncIterator[AsyncIterator[Steady | Refused]]:
        credit = asyncio.Semaphore(0)

        async def results(call: Any) -> AsyncIterator[Steady | Refused]:
            async for response in call:
                match kind_of(response):
                    case "started":
                        _release(credit, response.started.credits)
                    case "credit":
                        _release(credit, response.credit.frames)
                    case "frame":
                        yield source.result(pictured(response))
                    case "frame_error":
                        source.unfinished.drop(response.frame_error.sequence)
                        yield refused(response.frame_error)

        try:
            async with self._opened("Stream", source.requests(opening, credit)) as call:
                yield results(call)
        except asyncio.CancelledError:
            if source.error is not None:
                raise source.error from None
            raise


class _Source:
    """The clip's frames, read when there is credit for them, and kept until their results have come."""

    def __init__(self, frames: AsyncIterable[Frame]) -> None:
        self.unfinished = Unfinished()
        """Frames kept."""
        self.error: Exception | None = None
        """What reading the clip raised."""
        self._frames = aiter(frames)
        self._reading = asyncio.Lock()
        self._layout: Layout | None = None

    async def next(self, after: int) -> tuple[int, Frame] | None:
        """The first frame beyond a number, kept or read; None at the end."""
        async with self._reading:
            kept = self.unfinished.after(after)
            if kept is not None:
                return kept
            try:
                frame = await anext(self._frames, None)
            except Exception as error:
                self.error = error
                raise  # gRPC cancels the call
            if frame is None:
                return None
            self._layout = self._layout or planar_layout(frame.format)
            return self.unfinished.add(frame), frame

    def opening(self, config: Config, session: str | None) -> pb.StreamRequest:
        """The first message of a call."""
        first = self.unfinished.after(-1)
        assert first is not None and self._layout is not None, "a frame was read"
        return pb.StreamRequest(
            config=pb.StreamConfig(
                session=session or "",
                config=None if session else config_message(config),
                format=layout_message(self._layout),
                time_base=rational(first[1].time_base),
                first_sequence=first[0],
                output_from_sequence=self.unfinished.returned_below,
                explicit_end=True,
            )
        )

    async def requests(
        self, opening: pb.StreamRequest, credit: asyncio.Semaphore
    ) -> AsyncIterator[pb.StreamRequest | Pictured]:
        """The requests of one call."""
        assert self._layout is not None, "a frame was read"
        yield opening
        last = -1
        while await credit.acquire():
            item = await self.next(last)
            if item is None:
                yield pb.StreamRequest(end=pb.EndOfClip())
                return
            last, frame = item
            message = pb.Frame(sequence=last, pts=frame.pts, duration=frame.duration)
            yield Pictured(rest=pb.StreamRequest(), frame=message, pixels=self._layout.pack(frame.planes))

    def result(self, response: Pictured) -> Steady:
        """A result, whose frame need not be sent again."""
        message = response.frame
        source = self.unfinished.find(message.sequence)
        if source is None or self._layout is None:
            raise ServerError(f"the server sent a result for frame {message.sequence}, not sent", code="INTERNAL")
        found = steady(
            message, response.pixels[0], self._layout, time_base=source.time_base, key_frame=source.key_frame
        )
        self.unfinished.done(message.sequence)
        return found


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


def _release(credit: asyncio.Semaphore, count: int) -> None:
    for _ in range(count):
        credit.release()

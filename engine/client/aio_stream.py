"""The asyncio client's Stream call: credit, shared memory, and going on where the connection broke."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import AsyncExitStack, aclosing, suppress
from typing import TYPE_CHECKING, Any

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
    from vs3r.engine.client.aio import AsyncClient

_PAUSE_S = 0.2


class AsyncStreaming:
    """One stream of frames, over as many calls as it takes."""

    def __init__(
        self,
        client: AsyncClient,
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
        self._started = False

    async def run(self, frames: AsyncIterable[Frame]) -> AsyncGenerator[Steady | Refused]:
        """Results in order; see Client.stabilize."""
        source = _Source(frames)
        first = await source.next(-1)
        if first is None:
            return
        layout = planar_layout(first[1].format)
        while True:
            try:
                async with aclosing(self._call(source, layout, first[1])) as results:
                    async for result in results:
                        self._patience.result_came()
                        yield result
                return
            except ServerError as error:
                # A server that was started anew knows no session; it is given the frames without one.
                if error.reason == "SESSION_UNKNOWN" and self._started:
                    self._session = None
                elif not error.is_passing or self._patience.ends():
                    raise
                await asyncio.sleep(error.retry_s or _PAUSE_S)

    async def _call(self, source: _Source, layout: Layout, first: Frame) -> AsyncGenerator[Steady | Refused]:
        async with AsyncExitStack() as held:
            session, own = self._session, None
            if session is not None:
                # Should the server forget the session, the stream goes on with the settings that it had.
                self._config = config_from((await self._client.get_session(session)).config)
            elif self._shared is not None:
                # Shared memory belongs to a session. Cancelled meanwhile, its name is waited for, to delete it.
                made = asyncio.ensure_future(self._client.call("CreateSession", own_session(self._config)))
                held.push_async_callback(self._forget, made)
                session = own = (await asyncio.shield(made)).session.name
            sender = _Sender(source, layout)
            held.callback(sender.stop)
            lending = await held.enter_async_context(AsyncExitStack())
            opening = stream_opening(
                self._config, layout, source.unfinished, first.time_base, session, transient=own is not None
            )
            requests = sender.requests(opening)
            try:
                responses = await held.enter_async_context(self._client.open_call("Stream", requests))
                async for response in responses:
                    match kind_of(response):
                        case "started":
                            self._started = True
                            if self._shared is not None and session is not None:
                                sender.lent = Lent(self._shared, response.started, layout)
                                await self._register(sender.lent, session, lending)
                            sender.add_credit(response.started.credits)
                        case "credit":
                            if sender.lent is not None:
                                sender.lent.take_back(response.credit)
                            sender.add_credit(response.credit.frames)
                        case "frame":
                            yield _result(pictured(response), source, sender, layout)
                        case "frame_error":
                            source.unfinished.drop(response.frame_error.sequence)
                            yield refused(response.frame_error)
            except asyncio.CancelledError:
                if source.error is not None:
                    raise source.error from None
                raise

    async def _register(self, lent: Lent, session: str, held: AsyncExitStack) -> None:
        """Lend memory until the stack is left, which waits for what was cancelled under way."""
        for registration, removal in zip(lent.registrations(session), lent.removals(session), strict=True):
            made = asyncio.ensure_future(self._client.call("RegisterSharedMemory", registration))
            held.push_async_callback(self._unregister, made, removal)
            await asyncio.shield(made)

    async def _unregister(self, made: asyncio.Future[Any], removal: pb.UnregisterSharedMemoryRequest) -> None:
        with suppress(ServerError):  # the session may have ended, and the region with it
            await made
            await self._client.call("UnregisterSharedMemory", removal)

    async def _forget(self, made: asyncio.Future[pb.CreateSessionResponse]) -> None:
        with suppress(ServerError):  # it is gone, or will expire
            await self._client.delete_session((await made).session.name)


def _result(response: Pictured, source: _Source, sender: _Sender, layout: Layout) -> Steady:
    """A result, whose frame need not be sent again."""
    message = response.frame
    frame = source.unfinished.find(message.sequence)
    if frame is None:
        raise ServerError(f"the server sent a result for frame {message.sequence}, not sent", code="INTERNAL")
    data = result_bytes(response, sender.lent)
    found = steady(message, data, layout, time_base=frame.time_base, key_frame=frame.key_frame)
    source.unfinished.done(message.sequence)
    return found


class _Source:
    """The clip's frames, read when there is credit for them, and kept until their results have come."""

    def __init__(self, frames: AsyncIterable[Frame]) -> None:
        self.unfinished = Unfinished()
        """Frames kept."""
        self.error: Exception | None = None
        """What reading the clip raised."""
        self._frames = aiter(frames)
        self._reading = asyncio.Lock()

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
            return None if frame is None else (self.unfinished.add(frame), frame)


class _Sender:
    """The requests of one call."""

    def __init__(self, source: _Source, layout: Layout) -> None:
        self._source = source
        self._layout = layout
        self._credit = asyncio.Semaphore(0)
        self._stopped = False
        self.lent: Lent | None = None
        """Shared memory, where it is used."""

    def add_credit(self, frames: int) -> None:
        """So many frames more may be sent."""
        for _ in range(frames):
            self._credit.release()

    def stop(self) -> None:
        """The call has ended; gRPC leaves what it reads waiting where the server has ended it."""
        self._stopped = True
        self._credit.release()

    async def requests(self, opening: pb.StreamRequest) -> AsyncGenerator[pb.StreamRequest | Pictured]:
        """Read by gRPC."""
        yield opening
        last, output_from = -1, opening.config.output_from_sequence
        while await self._credit.acquire() and not self._stopped:
            item = await self._source.next(last)
            if item is None:
                break
            last, frame = item
            yield frame_request(last, frame, self._layout, self.lent, output_from=output_from)
        if not self._stopped:
            yield pb.StreamRequest(end=pb.EndOfClip())

"""A stream that goes on after its call broke, by the blocking client and the asyncio one alike."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.server.conftest import CONFIG, FRAMES, Serve, connected, message, opening, refusal, still_models
from tests.server.relay import BreakingRelay
from vs3r.config import Config
from vs3r.engine.client.aio import AsyncClient
from vs3r.engine.client.errors import ServerError, server_error
from vs3r.engine.client.sync import Client
from vs3r.engine.client.unfinished import Refused, Steady
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.proto.wire import kind_of
from vs3r.types import Frame, PictureFormat

Result = Steady | Refused
Stabilize = Callable[..., list[Result]]


def blocking(address: str, frames: Iterator[Frame], seen: Callable[[Result], object], **options: Any) -> list[Result]:
    """What a blocking client gets for frames; each result is shown to `seen` when it comes."""
    results = []
    with Client(address) as client:
        for result in client.stabilize(frames, **options):
            results.append(result)
            seen(result)
    return results


def awaited(address: str, frames: Iterator[Frame], seen: Callable[[Result], object], **options: Any) -> list[Result]:
    """The same by an asyncio client."""

    async def source() -> AsyncIterator[Frame]:
        while (frame := await asyncio.to_thread(next, frames, None)) is not None:
            yield frame

    async def run() -> list[Result]:
        results = []
        async with AsyncClient(address) as client:
            async for result in client.stabilize(source(), **options):
                results.append(result)
                await asyncio.to_thread(seen, result)
        return results

    return asyncio.run(run())


clients = pytest.mark.parametrize("stabilize", [blocking, awaited])


@clients
def test_a_session_that_is_forgotten_keeps_its_settings(serve: Serve, stabilize: Stabilize) -> None:
    """A server that was started anew draws on with those that the session had, SetSmoothing included."""
    wide = replace(CONFIG, render=replace(CONFIG.render, camera="ultra-wide"))
    first, drawn_with, go_on = serve(still_models()), list[Config](), threading.Event()

    def renderer(config: Config, fmt: PictureFormat) -> Any:
        drawn_with.append(config)
        return still_models().renderer(config, fmt)

    def frames() -> Iterator[Frame]:
        yield from FRAMES[:12]
        go_on.wait(30)
        yield from FRAMES[12:]

    def seen(result: Result) -> None:
        if result.sequence == 4:
            first.stop()
            serve(replace(still_models(), renderer=renderer), listen=first.address)
            go_on.set()

    with connected(first) as client:
        session = client.create_session("clip", wide).name
        client.set_smoothing(session, pb.SmoothConfig(smoothness=0.9))
    results = stabilize(first.address, frames(), seen, session=session)
    assert [r.sequence for r in results] == list(range(len(FRAMES)))
    assert drawn_with == [replace(wide, smooth=replace(CONFIG.smooth, smoothness=0.9))]


def test_a_message_that_cannot_be_sent_is_a_break() -> None:
    """gRPC's asyncio says INTERNAL, now and then, where the connection breaks while a frame is on its way."""
    none = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, none, none, details="Internal error from Core")
    assert server_error(error, "here").is_passing
    bug = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, none, none, details="this is a bug in vs3r")
    assert not server_error(bug, "here").is_passing


@clients
def test_patience_is_for_the_time_after_a_break(serve: Serve, stabilize: Stabilize) -> None:
    """However long no result came before, as from a camera that stood still."""
    server, patience_s = serve(still_models()), 0.2
    with BreakingRelay(server.address, []) as relay:

        def frames() -> Iterator[Frame]:
            yield from FRAMES[:12]
            threading.Event().wait(2 * patience_s)
            relay.reset()
            yield from FRAMES[12:]

        results = stabilize(relay.address, frames(), lambda _: None, config=CONFIG, patience_s=patience_s)
    assert [r.sequence for r in results] == list(range(len(FRAMES)))


@clients
@pytest.mark.parametrize("patience_s", [0.0, 0.5])
def test_patience_ends(serve: Serve, stabilize: Stabilize, patience_s: float) -> None:
    server, go_on = serve(still_models()), threading.Event()

    def frames() -> Iterator[Frame]:
        yield from FRAMES[:12]
        go_on.wait(30)  # a clip whose end has come would be finished
        yield from FRAMES[12:]

    def seen(result: Result) -> None:
        if result.sequence == 4:
            server.stop()
            go_on.set()

    with pytest.raises(ServerError) as caught:
        stabilize(server.address, frames(), seen, config=CONFIG, patience_s=patience_s)
    assert caught.value.code == "UNAVAILABLE"


def test_a_stream_that_lacked_frames_is_named_where_its_track_is_missing(client: Client) -> None:
    """The stream itself ends well: all of its pictures have come."""
    session = client.create_session("clip", CONFIG).name
    config = opening(session=session, explicit_end=True, first_sequence=16).config
    requests = [pb.StreamRequest(config=config), *(message(i, FRAMES[i]) for i in range(16, 24))]
    with client.open_call("Stream", iter([*requests, pb.StreamRequest(end=pb.EndOfClip())])) as responses:
        assert len([r for r in responses if kind_of(r) == "frame"]) == 8
    error = refusal(client, "GetFrame", pb.GetFrameRequest(session=session, index=18))
    assert error.reason == "TRACK_MISSING"
    assert "lacked frames" in str(error)
    client.analyze_frames(session, FRAMES)
    assert client.get_frame(session, 18).sequence == 18

"""Both clients around their calls: closed, and how long they wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from tests.server.conftest import CONFIG, FRAMES, Serve, still_models, wait_until
from tests.server.test_files import no_turns
from vs3r.config import RefineConfig
from vs3r.engine.client.aio import AsyncClient
from vs3r.engine.client.connection import Access
from vs3r.engine.client.errors import ServerError
from vs3r.engine.client.shared import SharedFrames
from vs3r.engine.client.sync import Client
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.server.problems import Problem
from vs3r.engine.server.sessions import Session, Sessions
from vs3r.engine.server.shm import Regions
from vs3r.errors import InputError
from vs3r.types import Frame


async def source() -> AsyncIterator[Frame]:
    for frame in FRAMES:
        yield frame


def memory(wanted: bool) -> SharedFrames | None:
    return SharedFrames(FRAMES[0].format) if wanted else None


def test_a_closed_client_says_so(serve: Serve) -> None:
    client = Client(serve().address)
    client.close()
    for call in (client.status, lambda: list(client.stabilize(FRAMES)), lambda: client.upload_track("none", b"")):
        with pytest.raises(ServerError, match="is closed") as caught:
            call()
        assert caught.value.code == "CANCELLED"


@pytest.mark.parametrize("shared_memory", [False, True])
def test_a_client_that_is_closed_while_it_streams_says_so(serve: Serve, shared_memory: bool) -> None:
    client = Client(serve(still_models(), allow_shm=True).address)
    results = client.stabilize(FRAMES, CONFIG, shared_memory=memory(shared_memory))
    next(results)
    client.close()
    with pytest.raises(ServerError) as caught:
        list(results)
    assert caught.value.code == "CANCELLED"


@pytest.mark.parametrize("shared_memory", [False, True])
def test_an_asyncio_client_that_is_closed_says_so(serve: Serve, shared_memory: bool) -> None:
    """Not by CancelledError, which would end the caller's task without a word."""
    address = serve(still_models(), allow_shm=True).address

    async def session() -> None:
        client = AsyncClient(address)
        results = client.stabilize(source(), CONFIG, shared_memory=memory(shared_memory))
        await anext(results)
        await client.close()
        with pytest.raises(ServerError, match="is closed"):
            async for _ in results:
                pass
        with pytest.raises(ServerError, match="is closed") as caught:
            await client.status()
        assert caught.value.code == "CANCELLED"

    asyncio.run(session())


def test_a_stream_that_is_cancelled_as_it_begins_leaves_no_session(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixty-four of them would keep the host's others out."""
    server = serve(still_models(), allow_shm=True)
    create, asked, go_on, made = Sessions.create, threading.Event(), threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Session:
        asked.set()
        assert go_on.wait(30)
        session = create(*arguments)
        made.set()
        return session

    monkeypatch.setattr(Sessions, "create", slow)

    async def session() -> None:
        async with AsyncClient(server.address) as client:
            stream = asyncio.ensure_future(anext(client.stabilize(source(), CONFIG, shared_memory=memory(True))))
            assert await asyncio.to_thread(asked.wait, 30)
            stream.cancel()
            await asyncio.wait([stream], timeout=0.1)
            go_on.set()
            assert await asyncio.to_thread(made.wait, 30)
            with pytest.raises(asyncio.CancelledError):
                await stream
            assert len(server.state.sessions) == 0

    asyncio.run(session())


def test_a_stream_that_is_cancelled_as_it_registers_memory_leaves_no_region(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session may have sixty-four."""
    server = serve(still_models(), allow_shm=True)
    add, asked, go_on, made = Regions.add, threading.Event(), threading.Event(), threading.Event()

    def slow(regions: Regions, request: pb.RegisterSharedMemoryRequest) -> None:
        if request.region.startswith("results"):
            asked.set()
            assert go_on.wait(30)
        add(regions, request)
        if request.region.startswith("results"):
            made.set()

    monkeypatch.setattr(Regions, "add", slow)

    async def session() -> None:
        async with AsyncClient(server.address) as client:
            name = (await client.create_session("clip", CONFIG)).name
            stream = asyncio.ensure_future(anext(client.stabilize(source(), session=name, shared_memory=memory(True))))
            assert await asyncio.to_thread(asked.wait, 30)
            stream.cancel()
            await asyncio.wait([stream], timeout=0.1)
            go_on.set()
            assert await asyncio.to_thread(made.wait, 30)
            with pytest.raises(asyncio.CancelledError):
                await stream
            assert server.state.sessions.regions() == 0

    asyncio.run(session())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_region_that_is_refused_leaves_none(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    """The other one was known by then."""
    server, add = serve(still_models(), allow_shm=True), Regions.add

    def full(regions: Regions, request: pb.RegisterSharedMemoryRequest) -> None:
        if request.region.startswith("results"):
            raise Problem("RESOURCE_EXHAUSTED", "REGIONS", "too many regions")
        add(regions, request)

    monkeypatch.setattr(Regions, "add", full)

    def first(name: str) -> object:
        return next(client.stabilize(FRAMES, session=name, shared_memory=memory(True), patience_s=0))

    async def first_of_asyncio(name: str) -> object:
        async with AsyncClient(server.address) as client:
            return await anext(client.stabilize(source(), session=name, shared_memory=memory(True), patience_s=0))

    with Client(server.address) as client:
        name = client.create_session("clip", CONFIG).name
        with pytest.raises(ServerError) as caught:
            asyncio.run(first_of_asyncio(name)) if asynchronous else first(name)
    assert caught.value.reason == "REGIONS"
    assert server.state.sessions.regions() == 0


def test_a_refused_asyncio_stream_leaves_no_task(serve: Serve) -> None:
    """asyncio would say of it, sometime, that it was destroyed but is pending."""
    address = serve().address

    async def session() -> None:
        async with AsyncClient(address) as client:
            with pytest.raises(ServerError, match="refine"):
                await anext(client.stabilize(source(), replace(CONFIG, refine=RefineConfig(backend="wan"))))
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left or not (await asyncio.wait(left, timeout=10))[1]

    asyncio.run(session())


def test_many_frames_may_be_asked_for_at_once(serve: Serve) -> None:
    """More than the server has threads: the others wait."""
    server = serve(still_models(), max_streams=1)
    with Client(server.address) as client:
        name = client.create_session("clip", CONFIG).name
        client.analyze_frames(name, FRAMES)

    async def session() -> None:
        async with AsyncClient(server.address) as client:
            with no_turns(server):
                asked = [asyncio.ensure_future(client.get_frame(name, i % len(FRAMES))) for i in range(60)]
                await asyncio.to_thread(wait_until, lambda: server.state._calls >= 17)
                assert not any(one.done() for one in asked)
            assert [one.sequence for one in await asyncio.gather(*asked)] == [i % len(FRAMES) for i in range(60)]

    asyncio.run(session())


@pytest.mark.parametrize("value", ["x" * 100_000, "\U0001f3a5" * 25_000])
def test_a_refused_value_may_be_long(serve: Serve, value: str) -> None:
    """gRPC would refuse the refusal, and say nothing of the value."""
    request = pb.CreateSessionRequest(media_key="clip")
    request.config.reconstruct.lens = value
    with Client(serve().address) as client, pytest.raises(ServerError, match="lens") as caught:
        client.call("CreateSession", request)
    assert (caught.value.code, caught.value.reason) == ("INVALID_ARGUMENT", "INVALID_FIELDS")
    assert [v.field for v in caught.value.violations] == ["config.reconstruct"]


@pytest.mark.parametrize(
    "parts",
    [
        {"ca": b"-", "cert": b"-"},
        {"ca": b"-", "key": b"-"},
        {"cert": b"-", "key": b"-"},
        {"token": "two\nlines"},
        {"token": "geheim-\u00fc"},
        {"token": ""},
    ],
)
def test_access_that_grpc_cannot_use_is_refused(parts: dict[str, Any]) -> None:
    """For a certificate without a key it ends the process; without an authority it leaves TLS out, without a word."""
    with pytest.raises(InputError, match="expected"):
        Access(**parts)


def test_a_calls_own_time_limit_counts(serve: Serve) -> None:
    """One that is over before the call begins."""
    address = serve().address
    with Client(address) as client, pytest.raises(ServerError) as caught:
        client.call("GetStatus", pb.GetStatusRequest(), timeout_s=-1.0)
    assert caught.value.code == "DEADLINE_EXCEEDED"

    async def session() -> None:
        async with AsyncClient(address) as client:
            with pytest.raises(ServerError) as caught:
                await client.call("GetStatus", pb.GetStatusRequest(), timeout_s=-1.0)
            assert caught.value.code == "DEADLINE_EXCEEDED"

    asyncio.run(session())

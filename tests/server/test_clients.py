"""Both clients around their calls: closed, and how long they wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.server.conftest import CONFIG, FRAMES, Serve, still_models
from vs3r.engine.client.aio import AsyncClient
from vs3r.engine.client.errors import ServerError
from vs3r.engine.client.shared import SharedFrames
from vs3r.engine.client.sync import Client
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
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


def test_a_calls_own_time_limit_counts(serve: Serve) -> None:
    address = serve().address
    with Client(address) as client, pytest.raises(ServerError) as caught:
        client.call("GetStatus", pb.GetStatusRequest(), timeout_s=1e-6)
    assert caught.value.code == "DEADLINE_EXCEEDED"

    async def session() -> None:
        async with AsyncClient(address) as client:
            with pytest.raises(ServerError) as caught:
                await client.call("GetStatus", pb.GetStatusRequest(), timeout_s=1e-6)
            assert caught.value.code == "DEADLINE_EXCEEDED"

    asyncio.run(session())

"""The asyncio client says and gets what the blocking one does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.server.conftest import CONFIG, FRAMES, Serve, connected, pixels, still_models
from tests.server.test_serve import Process
from vs3r.engine.client.aio import AsyncClient
from vs3r.engine.client.errors import ServerError
from vs3r.engine.client.unfinished import Refused, Steady
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.types import Frame


async def source() -> AsyncIterator[Frame]:
    for frame in FRAMES:
        yield frame


def summary(results: list[Steady | Refused]) -> list[tuple[int, bytes]]:
    return [(r.sequence, pixels(r.frame)) for r in results if isinstance(r, Steady)]


def test_the_same_results(serve: Serve) -> None:
    server = serve()

    async def session() -> tuple[list[Steady | Refused], Steady, bytes]:
        async with AsyncClient(server.address) as client:
            name = (await client.create_session("clip", CONFIG)).name
            results = [r async for r in client.stabilize(source(), session=name)]
            await client.set_smoothing(name, pb.SmoothConfig(smoothness=0.9))
            with pytest.raises(ServerError) as caught:
                await client.get_frame(name, 99)
            assert caught.value.code == "OUT_OF_RANGE"
            return results, await client.get_frame(name, 5), name.encode()

    results, frame, name = asyncio.run(session())
    with connected(server) as client:
        assert summary(results) == summary(list(client.stabilize(FRAMES, CONFIG)))
        assert pixels(frame.frame) == pixels(client.get_frame(name.decode(), 5).frame)


def test_it_goes_on_where_a_server_was_killed(tmp_path: Path) -> None:
    async def run() -> list[int]:
        server = Process(tmp_path)
        port = server.address.rpartition(":")[2]
        got = []
        async with AsyncClient(server.address) as client:
            async for result in client.stabilize(source(), CONFIG):
                got.append(result.sequence)
                if len(got) == 9:
                    server.kill()
                    server = Process(tmp_path, f"127.0.0.1:{port}")
        server.kill()
        return got

    assert asyncio.run(run()) == list(range(len(FRAMES)))


def test_errors_of_the_source_reach_the_caller(serve: Serve) -> None:
    """And half a clip does not become the session's track."""

    async def broken() -> AsyncIterator[Frame]:
        for frame in FRAMES[:10]:
            yield frame
        raise OSError("the disk is gone")

    async def run(address: str) -> int:
        async with AsyncClient(address) as client:
            name = (await client.create_session("clip", CONFIG)).name
            with pytest.raises(OSError, match="the disk is gone"):
                [_ async for _ in client.stabilize(broken(), session=name)]
            return int((await client.call("GetSession", pb.GetSessionRequest(name=name))).session.frame_count)

    assert asyncio.run(run(serve(still_models(1)).address)) == 0

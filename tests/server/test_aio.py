"""The asyncio client says and gets what the blocking one does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine.clips import Clip, write_clip
from tests.server.conftest import CONFIG, FRAMES, Serve, connected, pixels, still_models
from tests.server.test_serve import Process
from vs3r.engine.client.aio import AsyncClient
from vs3r.engine.client.errors import ServerError
from vs3r.engine.client.shared import SharedFrames
from vs3r.engine.client.sync import Client
from vs3r.engine.client.unfinished import Refused, Steady
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.types import Frame


async def source() -> AsyncIterator[Frame]:
    for frame in FRAMES:
        yield frame


def memory(wanted: bool) -> SharedFrames | None:
    return SharedFrames(FRAMES[0].format) if wanted else None


def summary(results: list[Steady | Refused]) -> list[tuple[int, bytes]]:
    return [(r.sequence, pixels(r.frame)) for r in results if isinstance(r, Steady)]


@pytest.mark.parametrize("shared_memory", [False, True])
def test_the_same_results(serve: Serve, shared_memory: bool) -> None:
    server = serve(allow_shm=True)

    async def session() -> tuple[list[Steady | Refused], Steady, bytes]:
        async with AsyncClient(server.address) as client:
            name = (await client.create_session("clip", CONFIG)).name
            results = [r async for r in client.stabilize(source(), session=name, shared_memory=memory(shared_memory))]
            await client.set_smoothing(name, pb.SmoothConfig(smoothness=0.9))
            with pytest.raises(ServerError) as caught:
                await client.get_frame(name, 99)
            assert caught.value.code == "OUT_OF_RANGE"
            return results, await client.get_frame(name, 5), name.encode()

    results, frame, name = asyncio.run(session())
    with connected(server) as client:
        assert summary(results) == summary(list(client.stabilize(FRAMES, CONFIG)))
        assert pixels(frame.frame) == pixels(client.get_frame(name.decode(), 5).frame)
        assert client.status().shared_memory_regions == 0


def test_shared_memory_without_a_session(serve: Serve) -> None:
    """Results are right as long as they are held, more of them than there are slots; nothing is left behind."""

    async def long() -> AsyncIterator[Frame]:
        for turn in range(4):
            for frame in FRAMES:
                yield replace(frame, pts=frame.pts + turn * len(FRAMES) * frame.duration)

    async def run() -> list[Steady | Refused]:
        async with AsyncClient(server.address) as client:
            results = [r async for r in client.stabilize(long(), CONFIG, shared_memory=memory(True))]
            assert (await client.status()).sessions == 0
            return results

    server = serve(still_models(), allow_shm=True)
    assert summary(asyncio.run(run())) == [(i, pixels(FRAMES[i % len(FRAMES)])) for i in range(4 * len(FRAMES))]


def test_a_stream_that_is_left_early_leaves_nothing(serve: Serve) -> None:
    async def run() -> None:
        async with AsyncClient(server.address) as client:
            async with aclosing(client.stabilize(source(), CONFIG, shared_memory=memory(True))) as results:
                async for result in results:
                    assert result.sequence == 0
                    break
            status = await client.status()
            assert (status.sessions, status.shared_memory_regions) == (0, 0)

    server = serve(still_models(), allow_shm=True)
    asyncio.run(run())


def test_shared_memory_that_is_refused(serve: Serve) -> None:
    async def run() -> None:
        async with AsyncClient(serve().address) as client:
            with pytest.raises(ServerError, match="--allow-shm"):
                [_ async for _ in client.stabilize(source(), CONFIG, shared_memory=memory(True))]
            assert (await client.status()).sessions == 0

    asyncio.run(run())


@pytest.mark.parametrize("shared_memory", [False, True])
def test_it_goes_on_where_a_server_was_killed(tmp_path: Path, shared_memory: bool) -> None:
    async def run() -> list[int]:
        server = Process(tmp_path)
        port = server.address.rpartition(":")[2]
        got = []
        async with AsyncClient(server.address) as client:
            async for result in client.stabilize(source(), CONFIG, shared_memory=memory(shared_memory)):
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


def test_the_same_vocabulary(serve: Serve, tmp_path: Path) -> None:
    """Every function of the blocking client is there, and does the same."""
    mine = {name for name in vars(Client) if not name.startswith("_")}
    assert mine <= set(vars(AsyncClient)), "functions that are missing"
    write_clip(tmp_path / "in.mkv", Clip(frames=24, width=64, height=48, codec="ffv1"))

    async def run(address: str) -> bytes:
        async with AsyncClient(address) as client:
            assert (await client.capabilities()).file_paths
            name = (await client.create_session("clip", CONFIG)).name
            seen: list[int] = []
            analysis = await client.analyze_frames(name, source(), progress=lambda p: seen.append(p.frames))
            assert (analysis.frame_count, seen) == (24, [8, 16, 24])
            track = await client.download_track(name)
            other = (await client.create_session("file", CONFIG)).name
            assert (await client.analyze_file(other, "in.mkv")).frame_count == 24
            third = (await client.create_session("third", CONFIG)).name
            assert (await client.upload_track(third, track)).frame_count == 24

            async def numbered() -> AsyncIterator[tuple[int, Frame]]:
                for item in enumerate(FRAMES):
                    yield item

            assert (await client.upload_frames(third, numbered())).frames == 24
            assert (await client.get_warp(third, 4, map_only=True)).sequence == 4
            assert [s.name async for s in client.list_sessions()] == sorted([name, other, third])
            assert (await client.get_session(third)).held_frames == 24
            frame = await client.get_frame(third, 5)
            await client.delete_session(third)
            assert (await client.status()).sessions == 2

            async def broken() -> AsyncIterator[Frame]:
                yield FRAMES[0]
                raise OSError("the disk is gone")

            fourth = (await client.create_session("fourth", CONFIG)).name
            with pytest.raises(OSError, match="the disk is gone"):
                await client.analyze_frames(fourth, broken())
            assert (await client.get_session(fourth)).frame_count == 0
            return pixels(frame.frame)

    server = serve(media_root=str(tmp_path))
    got = asyncio.run(run(server.address))
    with connected(server) as client:
        assert got == pixels(client.get_frame(client.create_session("clip", CONFIG).name, 5).frame)

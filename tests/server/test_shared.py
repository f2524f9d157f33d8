"""Shared memory: registered regions, bad slots, segments that shrink."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest

from tests.server.conftest import CONFIG, FRAMES, Serve, connected, message, opening, refusal, still_models
from vs3r.engine.client.shared import SlotPool
from vs3r.engine.client.sync import Client
from vs3r.engine.proto import wire
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb


@pytest.fixture
def segment() -> Iterator[SharedMemory]:
    memory = SharedMemory(create=True, size=4096)
    yield memory
    memory.close()
    memory.unlink()


def register(session: str, segment: SharedMemory, **more: object) -> pb.RegisterSharedMemoryRequest:
    given = {"region": "r", "key": segment.name, "byte_size": 4096} | more
    return pb.RegisterSharedMemoryRequest(session=session, **given)  # type: ignore[arg-type]


def test_shared_memory_is_off(client: Client, segment: SharedMemory) -> None:
    session = client.create_session("clip", CONFIG).name
    assert not client.capabilities().shared_memory
    assert refusal(client, "RegisterSharedMemory", register(session, segment)).code == "PERMISSION_DENIED"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"byte_size": 4097}, "SLOT_TOO_SMALL"),
        ({"byte_size": 0}, "SLOT_TOO_SMALL"),
        ({"offset": 1}, "SLOT_TOO_SMALL"),
        ({"offset": (1 << 64) - 1}, "SLOT_TOO_SMALL"),
        ({"key": "../../etc/passwd"}, "SEGMENT_NAME"),
        ({"key": "none-such"}, "SEGMENT_UNKNOWN"),
        ({"key": ""}, "SEGMENT_NAME"),
        ({"region": ""}, "REGION_NAME"),
    ],
)
def test_regions_are_checked(serve: Serve, segment: SharedMemory, more: dict[str, object], reason: str) -> None:
    with connected(serve(allow_shm=True)) as client:
        session = client.create_session("clip", CONFIG).name
        assert refusal(client, "RegisterSharedMemory", register(session, segment, **more)).reason == reason
        assert client.status().shared_memory_regions == 0


def test_bad_slots_and_shrunken_segments_cost_a_frame(serve: Serve, segment: SharedMemory) -> None:
    """Also a segment cut short by its owner: an error, where a mapping would have killed the server."""
    shape = pb.FrameFormat(pixel_format=pb.PIXEL_FORMAT_PLANAR, planar_name="gray", width=32, height=32)
    with connected(serve(still_models(), allow_shm=True)) as client:
        session = client.create_session("clip", CONFIG).name
        client.call("RegisterSharedMemory", register(session, segment))
        slots = [
            pb.SharedMemorySlot(region="r", byte_size=1024),
            pb.SharedMemorySlot(region="x", byte_size=1024),
            pb.SharedMemorySlot(region="r", byte_size=1023),
            pb.SharedMemorySlot(region="r", offset=4000, byte_size=1024),
            pb.SharedMemorySlot(region="r", offset=(1 << 64) - 512, byte_size=1024),
            pb.SharedMemorySlot(region="r", offset=2048, byte_size=1024),
        ]

        def sending() -> Iterator[pb.StreamRequest]:
            yield pb.StreamRequest(
                config=pb.StreamConfig(session=session, format=shape, time_base=pb.Rational(numerator=1, denominator=9))
            )
            for i, slot in enumerate(slots):
                if i == 5:
                    os.truncate(f"/dev/shm/{segment.name}", 2048)
                yield pb.StreamRequest(frame=pb.Frame(sequence=i, pts=i, slot=slot))

        with client.open_call("Stream", sending()) as responses:
            found = [wire.whole(response) for response in responses]
        errors = [(r.frame_error.sequence, r.frame_error.reason) for r in found if r.HasField("frame_error")]
        assert errors == [(1, "REGION_UNKNOWN"), *((i, "SLOT_TOO_SMALL") for i in (2, 3, 4, 5))]
        assert [r.frame.sequence for r in found if r.HasField("frame")] == [0]
        client.delete_session(session)
        assert client.status().shared_memory_regions == 0


def test_regions_go_with_a_vanished_client(serve: Serve, segment: SharedMemory) -> None:
    def held() -> int:
        links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
        return sum(segment.name in os.readlink(link) for link in links if link.is_symlink())

    before = held()
    server = serve(still_models(), allow_shm=True)
    with connected(server) as client:
        session = client.create_session("clip", CONFIG).name
        client.call("RegisterSharedMemory", register(session, segment))
        with client.open_call("Stream", iter([opening(session=session)])) as responses:
            next(responses)
            assert held() > before
    with connected(server) as client:
        client.delete_session(session)
        assert client.status().shared_memory_regions == 0
        assert held() == before


# ---- sealed segments, which are mapped

NAME = "vs3r-0123456789abcdef"
SEALED = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING


@pytest.mark.parametrize(
    ("flags", "seals", "more", "reason"),
    [
        (SEALED, 0, {}, "SEGMENT_NAME"),
        (os.MFD_CLOEXEC, 0, {}, "SEGMENT_NAME"),
        (SEALED, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE, {}, "SEGMENT_NAME"),
        (SEALED | os.MFD_HUGETLB, fcntl.F_SEAL_SHRINK, {}, "SEGMENT_NAME"),
        (SEALED, fcntl.F_SEAL_SHRINK, {"key": "vs3r-another-name-of-some-length"}, "SEGMENT_UNKNOWN"),
        (SEALED, fcntl.F_SEAL_SHRINK, {"key": "vs3r-test"}, "SEGMENT_NAME"),
        (SEALED, fcntl.F_SEAL_SHRINK, {"key": ""}, "SEGMENT_NAME"),
        (SEALED, fcntl.F_SEAL_SHRINK, {"file": 0}, "SEGMENT_UNKNOWN"),
        (SEALED, fcntl.F_SEAL_SHRINK, {"file": (1 << 32) - 1}, "SEGMENT_UNKNOWN"),
        (SEALED, fcntl.F_SEAL_SHRINK, {"process": (1 << 32) - 1}, "SEGMENT_UNKNOWN"),
        (SEALED, fcntl.F_SEAL_SHRINK, {"byte_size": (2 << 20) + 1}, "SLOT_TOO_SMALL"),
        (SEALED, fcntl.F_SEAL_SHRINK, {"offset": (1 << 64) - 1}, "SLOT_TOO_SMALL"),
    ],
)
def test_sealed_segments_are_checked(
    serve: Serve, flags: int, seals: int, more: dict[str, object], reason: str
) -> None:
    """What can shrink, have holes that nothing fills, or is not the client's own, is refused; nothing stays open."""
    try:
        file = os.memfd_create(NAME, flags)
    except OSError:
        pytest.skip("this system has no large pages")
    os.ftruncate(file, 2 << 20)
    if seals:
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
    with connected(serve(allow_shm=True)) as client:
        given = {"region": "r", "key": NAME, "byte_size": 4096, "process": os.getpid(), "file": file} | more
        session = client.create_session("clip", CONFIG).name
        request = pb.RegisterSharedMemoryRequest(session=session, **given)  # type: ignore[arg-type]
        before = sorted(os.listdir("/proc/self/fd"))
        assert refusal(client, "RegisterSharedMemory", request).reason == reason
        assert sorted(os.listdir("/proc/self/fd")) == before
        assert client.status().shared_memory_regions == 0
    os.close(file)


def test_a_mapped_segment_cannot_be_cut_short(serve: Serve) -> None:
    """The client cannot shrink it, and may let it grow or punch holes; slots beyond the region are refused."""
    pool = SlotPool(4096, 4)
    with connected(serve(still_models(batch=1), allow_shm=True)) as client:
        session = client.create_session("clip", CONFIG).name
        request = pool.registration(session)
        client.call("RegisterSharedMemory", request)
        with pytest.raises(PermissionError):
            os.ftruncate(request.file, 4096)
        os.ftruncate(request.file, 5 * 4096)
        size = len(message(0, FRAMES[0]).frame.data)
        slots = [
            pb.SharedMemorySlot(region=request.region, offset=0, byte_size=size),
            pb.SharedMemorySlot(region=request.region, offset=4 * 4096 - size + 1, byte_size=size),
            pb.SharedMemorySlot(region=request.region, offset=4 * 4096 - size, byte_size=size),
        ]
        os.pwrite(request.file, message(0, FRAMES[0]).frame.data, 0)

        def sending() -> Iterator[pb.StreamRequest]:
            yield opening(session=session, transient=True)
            for i, slot in enumerate(slots):
                yield pb.StreamRequest(frame=pb.Frame(sequence=i, pts=i, slot=slot, output_slot=slots[2]))

        with client.open_call("Stream", sending()) as responses:
            found = [wire.whole(response) for response in responses]
        errors = [(r.frame_error.sequence, r.frame_error.reason) for r in found if r.HasField("frame_error")]
        assert errors == [(1, "SLOT_TOO_SMALL")]
        assert [r.frame.sequence for r in found if r.HasField("frame")] == [0, 2]
        assert os.pread(request.file, size, slots[2].offset) in (message(0, FRAMES[0]).frame.data, bytes(size))

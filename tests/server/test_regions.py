"""Whose shared memory goes when a stream breaks off."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator

import pytest

from tests.server.conftest import CONFIG, FRAMES, Serve, connected, refusal, still_models, wait_until
from vs3r.engine.client.shared import SharedFrames, Slots
from vs3r.engine.client.unfinished import Steady
from vs3r.engine.proto.layout import planar_layout
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.server.problems import Problem
from vs3r.engine.server.shm import Lending, Regions
from vs3r.types import Frame

SIZE = planar_layout(FRAMES[0].format).byte_size


def test_a_stream_that_breaks_off_leaves_others_their_memory(serve: Serve) -> None:
    """Two streams of one session: the one that goes on loses no frame."""
    server, go_on = serve(still_models(), allow_shm=True), threading.Event()

    def frames() -> Iterator[Frame]:
        yield from FRAMES[:12]
        go_on.wait(30)
        yield from FRAMES[12:]

    with connected(server) as first, connected(server) as second:
        session = first.create_session("clip", CONFIG).name
        cut, whole = (
            client.stabilize(source, session=session, shared_memory=SharedFrames(FRAMES[0].format))
            for client, source in ((first, iter(FRAMES)), (second, frames()))
        )
        results = [next(whole)]
        next(cut)
        cut.close()  # type: ignore[attr-defined]
        wait_until(lambda: second.status().streams == 1)
        assert second.status().shared_memory_regions == 2
        go_on.set()
        results += list(whole)
        assert second.status().shared_memory_regions == 0
    assert [r.sequence for r in results if isinstance(r, Steady)] == list(range(len(FRAMES)))


def test_a_break_that_is_heard_of_late_leaves_what_came_after_it() -> None:
    """A client that connects anew registers its memory again before the server knows that the old call is over."""
    regions, slots = Regions(), [Slots(SIZE, 1) for _ in range(3)]
    old, new = Lending(regions), Lending(regions)
    slot = pb.SharedMemorySlot(region="frames", byte_size=SIZE)
    regions.add(slots[0].registration("", "frames"))
    old.borrow(slot, SIZE)
    regions.add(slots[1].registration("", "frames"))
    regions.add(slots[2].registration("", "never used"))
    new.borrow(slot, SIZE)
    old.break_off()
    assert regions.find("frames").memory(slot, SIZE).size == SIZE
    new.break_off()
    with pytest.raises(Problem, match="no region 'frames'"):
        regions.find("frames")
    assert len(regions) == 1


def test_a_server_without_descriptors_does_not_blame_the_client(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """NOT_FOUND would tell it that its session is gone."""
    server, slots = serve(allow_shm=True), Slots(SIZE, 1)
    with connected(server) as client:
        session = client.create_session("clip", CONFIG).name

        def none_left(*_arguments: object) -> int:
            raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr("vs3r.engine.server.shm.os.open", none_left)
            error = refusal(client, "RegisterSharedMemory", slots.registration(session, "frames"))
        assert (error.code, error.reason, error.retry_s is not None) == ("RESOURCE_EXHAUSTED", "CANNOT_WRITE", True)

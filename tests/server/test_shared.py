"""Shared memory: regions, bad slots, slots that are lent and come back, whatever the client does meanwhile."""

from __future__ import annotations

import fcntl
import gc
import itertools
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.fakes import CopyingRenderer
from tests.server.conftest import CONFIG, FRAMES, Serve, connected, opening, pixels, refusal, still_models, wait_until
from vs3r.config import Config, RenderConfig, SmoothConfig
from vs3r.engine.client.errors import ServerError
from vs3r.engine.client.shared import Lent, SharedFrames, Slots
from vs3r.engine.client.sync import Client
from vs3r.engine.client.unfinished import Refused, Steady
from vs3r.engine.proto import wire
from vs3r.engine.proto.layout import planar_layout
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.errors import InputError
from vs3r.types import Frame, Plane, RenderedFrame

NAME = "vs3r-0123456789abcdef"
SEALED = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
SIZE = planar_layout(FRAMES[0].format).byte_size
STEP = -(-SIZE // 64) * 64
# Nothing is looked ahead, nothing filled in: a slot is needed no longer than its frame.
AT_ONCE = Config(smooth=SmoothConfig(lookahead_frames=0), render=RenderConfig(fill_window_frames=0))


def slot(number: int, *, region: str = "r", size: int = SIZE) -> pb.SharedMemorySlot:
    return pb.SharedMemorySlot(region=region, offset=number * STEP, byte_size=size)


def mapped(slots: Slots) -> int:
    """How often this process, which is client and server in one, has a segment mapped or open."""
    name = slots.registration("", "").key
    links = (Path("/proc/self/fd") / number for number in os.listdir("/proc/self/fd"))
    opened = sum(name in os.readlink(link) for link in links if link.is_symlink())
    return opened + Path("/proc/self/maps").read_text().count(name)


class Talk:
    """A stream by hand: frames in slots of a segment, one at a time."""

    def __init__(self, client: Client, slots: Slots, config: Config = CONFIG, **fields: object) -> None:
        self.session = client.create_session("clip", config).name
        self.memory = np.zeros((0, STEP), np.uint8)
        client.call("RegisterSharedMemory", slots.registration(self.session, "r"))
        taken = [slots.take() for _ in range(len(slots._free))]
        self.memory_of = {t.offset // STEP: t.memory for t in taken if t is not None}
        """The memory of each slot."""
        self.returned: list[int] = []
        """Numbers of the slots that came back."""
        self.refused: list[tuple[int, str]] = []
        """Frames that were refused, and why."""
        self.results: list[pb.StabilizedFrame] = []
        """Results."""
        self._fields = {"session": self.session, "transient": True, "explicit_end": True} | fields
        self._client = client
        self._requests: deque[pb.StreamRequest | None] = deque([opening(**self._fields)])  # type: ignore[arg-type]
        self._more = threading.Semaphore(1)

    def put(self, number: int, frame: Frame) -> None:
        """Write a frame into a slot."""
        self.memory_of[number][:] = np.frombuffer(pixels(frame), np.uint8)

    def send(self, sequence: int, source: pb.SharedMemorySlot, output: pb.SharedMemorySlot | None = None) -> None:
        """Send a frame that lies in a slot."""
        frame = FRAMES[sequence]
        self.request(
            pb.Frame(sequence=sequence, pts=frame.pts, duration=frame.duration, slot=source, output_slot=output)
        )

    def request(self, frame: pb.Frame | None) -> None:
        """Send a frame, or None for the end."""
        self._requests.append(pb.StreamRequest(end=pb.EndOfClip()) if frame is None else pb.StreamRequest(frame=frame))
        self._more.release()

    def __iter__(self) -> Iterator[pb.StreamResponse]:
        """Responses, noted as they come."""

        def sending() -> Iterator[pb.StreamRequest]:
            while True:
                self._more.acquire()
                request = self._requests.popleft()
                if request is None:
                    return
                yield request

        try:
            with self._client.open_call("Stream", sending()) as responses:
                for response in map(wire.whole, responses):
                    self.returned += [s.offset // STEP for s in response.credit.returned]
                    if response.HasField("frame"):
                        self.results.append(response.frame)
                    if response.HasField("frame_error"):
                        self.refused.append((response.frame_error.sequence, response.frame_error.reason))
                    yield response
        finally:
            self._requests.append(None)
            self._more.release()


def talk_all(talk: Talk) -> None:
    """The rest of the responses."""
    deque(talk, maxlen=0)


# ---- regions


def test_shared_memory_is_off(client: Client) -> None:
    session = client.create_session("clip", CONFIG).name
    assert not client.capabilities().shared_memory
    request = Slots(100, 1).registration(session, "r")
    assert refusal(client, "RegisterSharedMemory", request).code == "PERMISSION_DENIED"


@pytest.mark.parametrize(
    ("flags", "seals", "more", "reason"),
    [
        (SEALED, 0, {}, "SEGMENT_NAME"),
        (os.MFD_CLOEXEC, 0, {}, "SEGMENT_NAME"),
        (SEALED, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE, {}, "SEGMENT_NAME"),
        (SEALED | os.MFD_HUGETLB, fcntl.F_SEAL_SHRINK, {}, "SEGMENT_NAME"),
        (SEALED, fcntl.F_SEAL_SHRINK, {"key": "vs3r-another-name-of-some-length"}, "SEGMENT_UNKNOWN"),
        (SEALED, fcntl.F_SEAL_SHRINK, {"key": "vs3r-test"}, "SEGMENT_NAME"),
        (SEALED, fcntl.F_SEAL_SHRINK, {"key": "../../etc/passwd"}, "SEGMENT_NAME"),
        (SEALED, fcntl.F_SEAL_SHRINK, {"key": ""}, "SEGMENT_NAME"),
        (SEALED, fcntl.F_SEAL_SHRINK, {"file": 0}, "SEGMENT_UNKNOWN"),
        (SEALED, fcntl.F_SEAL_SHRINK, {"file": (1 << 32) - 1}, "SEGMENT_UNKNOWN"),
        (SEALED, fcntl.F_SEAL_SHRINK, {"process": 0}, "SEGMENT_UNKNOWN"),
        (SEALED, fcntl.F_SEAL_SHRINK, {"process": (1 << 32) - 1}, "SEGMENT_UNKNOWN"),
        (SEALED, fcntl.F_SEAL_SHRINK, {"byte_size": (2 << 20) + 1}, "SLOT_TOO_SMALL"),
        (SEALED, fcntl.F_SEAL_SHRINK, {"byte_size": 0}, "SLOT_TOO_SMALL"),
        (SEALED, fcntl.F_SEAL_SHRINK, {"offset": (1 << 64) - 1}, "SLOT_TOO_SMALL"),
        (SEALED, fcntl.F_SEAL_SHRINK, {"region": ""}, "REGION_NAME"),
    ],
)
def test_segments_are_checked(serve: Serve, flags: int, seals: int, more: dict[str, object], reason: str) -> None:
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


def test_a_segment_cannot_be_cut_short(serve: Serve) -> None:
    """The client cannot shrink it, and may let it grow: slots beyond the region are refused all the same."""
    slots = Slots(SIZE, 2)
    with connected(serve(still_models(batch=1), allow_shm=True)) as client:
        talk = Talk(client, slots)
        file = slots.registration("", "").file
        with pytest.raises(PermissionError):
            os.ftruncate(file, STEP)
        os.ftruncate(file, 9 * STEP)
        talk.send(0, slot(2))
        talk.request(None)
        talk_all(talk)
        assert talk.refused == [(0, "SLOT_TOO_SMALL")]


# ---- lending


def test_bad_slots_cost_a_frame_and_come_back(serve: Serve) -> None:
    """Of a frame that is refused neither slot is lent."""
    bad = [
        (slot(0, region="x"), None, "REGION_UNKNOWN"),
        (slot(0, size=SIZE - 1), None, "SLOT_TOO_SMALL"),
        (slot(4), None, "SLOT_TOO_SMALL"),
        (pb.SharedMemorySlot(region="r", offset=(1 << 64) - 64, byte_size=SIZE), None, "SLOT_TOO_SMALL"),
        (slot(1), slot(2, region="x"), "REGION_UNKNOWN"),
        (slot(1), slot(2, size=1), "SLOT_TOO_SMALL"),
    ]
    with connected(serve(still_models(), allow_shm=True)) as client:
        talk = Talk(client, Slots(SIZE, 4))
        talk.put(3, FRAMES[6])
        for i, (source, output, _) in enumerate(bad):
            talk.send(i, source, output)
        talk.send(6, slot(3))
        talk.request(None)
        talk_all(talk)
        assert talk.refused == [(i, reason) for i, (*_, reason) in enumerate(bad)]
        assert [(r.sequence, r.data) for r in talk.results] == [(6, pixels(FRAMES[6]))]
        wanted = [s.offset // STEP for source, output, _ in bad for s in (source, output) if s is not None]
        assert talk.returned[: len(wanted)] == wanted
        client.delete_session(talk.session)
        assert client.status().shared_memory_regions == 0


def test_every_slot_comes_back_once_and_not_before_its_time(serve: Serve) -> None:
    """A frame may fill the eight after it, so its slot stays lent until those are drawn."""
    config = replace(CONFIG, render=RenderConfig(fill_window_frames=8))
    with connected(serve(still_models(batch=1), allow_shm=True)) as client:
        talk = Talk(client, Slots(SIZE, 2 * len(FRAMES)), config)
        drawn_at: dict[int, int] = {}
        sent = iter(range(len(FRAMES)))
        for response in talk:
            # In step: a frame for every result.
            for i in itertools.islice(sent, response.started.credits + response.HasField("frame")):
                talk.put(i, FRAMES[i])
                talk.send(i, slot(i), slot(len(FRAMES) + i))
                if i == len(FRAMES) - 1:
                    talk.request(None)
            for number in (s.offset // STEP for s in response.credit.returned):
                assert number not in drawn_at, "given back twice"
                drawn_at[number] = len(talk.results)
        assert [r.sequence for r in talk.results] == list(range(len(FRAMES)))
        for i, result in enumerate(talk.results):
            assert result.slot == slot(len(FRAMES) + i)
            assert bytes(talk.memory_of[len(FRAMES) + i]) == pixels(FRAMES[i])
        assert set(drawn_at) >= set(range(5))
        # Four pictures may be drawn and wait to be sent, a fifth is on its way.
        assert all(results > number + 8 - 5 for number, results in drawn_at.items()), drawn_at


def test_pixels_are_used_where_they_lie_and_results_drawn_there(serve: Serve) -> None:
    """No copy: what the models see is the client's memory, which they cannot write to; what they draw on is its too."""
    slots = Slots(SIZE, 2)
    seen: list[tuple[str, bool, bool]] = []
    memory: dict[int, Any] = {}

    class Looking(CopyingRenderer):
        def render(self, index: int, camera: Any, sources: Any, out: Any = None, /) -> RenderedFrame:
            (source,) = sources.values()
            for plane in source.frame.planes:
                memory[0][0] ^= 255  # the client's first pixel, by another mapping
                changed = source.frame.planes[0][0, 0] == memory[0][0]
                seen.append(("source", changed, plane.flags.writeable))
            seen.extend(("result", True, plane.flags.writeable) for plane in out)
            return super().render(index, camera, sources, out)

    models = replace(still_models(batch=1), renderer=lambda _config, _fmt: Looking())
    with connected(serve(models, allow_shm=True)) as client:
        talk = Talk(client, slots, AT_ONCE)
        memory.update(talk.memory_of)
        talk.put(0, FRAMES[0])
        talk.send(0, slot(0), slot(1))
        talk.request(None)
        talk_all(talk)
        assert seen == [("source", True, False)] * 3 + [("result", True, True)] * 3
        np.testing.assert_array_equal(talk.memory_of[1], talk.memory_of[0])


def test_a_slot_that_is_used_again_too_early_spoils_its_own_picture(serve: Serve) -> None:
    """The client writes to a lent slot all the time, and lends it a second time: the stream goes on, and another
    client's pictures are right."""
    server = serve(still_models(), allow_shm=True)
    with connected(server) as client, connected(server) as other:
        talk = Talk(client, Slots(SIZE, 4))
        talk.put(1, FRAMES[2])
        rng = np.random.default_rng(0)
        for response in talk:
            if response.HasField("started"):
                for i, number in enumerate((0, 0, 1)):
                    talk.send(i, slot(number), slot(2) if number == 0 else slot(3))
                talk.request(None)
            talk.memory_of[0][:] = rng.integers(0, 256, SIZE, dtype=np.uint8)
        assert [r.sequence for r in talk.results] == [0, 1, 2]
        assert bytes(talk.memory_of[3]) == pixels(FRAMES[2]), "another slot is another picture"
        assert [pixels(r.frame) for r in results(other)] == [pixels(f) for f in FRAMES]


def results(client: Client) -> list[Steady]:
    memory = SharedFrames(FRAMES[0].format)
    found = list(client.stabilize(FRAMES, CONFIG, shared_memory=memory))
    return [r for r in found if isinstance(r, Steady)]


@pytest.fixture
def no_collections() -> Iterator[None]:
    """What is only freed when Python looks for circles stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collections")
@pytest.mark.parametrize("end", ["unregister", "replace", "delete", "vanish"])
def test_the_end_of_a_region_with_slots_lent(serve: Serve, end: str) -> None:
    """A region that is forgotten stays mapped until nobody looks at it: its frames are finished, or the stream ends;
    then nothing of it is left in the server."""
    slots, others = Slots(SIZE, 8), Slots(SIZE, 8)
    held = mapped(slots)
    server = serve(still_models(), allow_shm=True)
    with connected(server) as client:
        talk = Talk(client, slots)
        with suppress(ServerError):
            for response in talk:
                if response.HasField("started"):
                    for i in range(3):
                        talk.put(i, FRAMES[i])
                        talk.send(i, slot(i), slot(3 + i))
                if response.credit.acknowledged_sequence == 2:
                    assert mapped(slots) > held
                    if end == "unregister":
                        client.call(
                            "UnregisterSharedMemory", pb.UnregisterSharedMemoryRequest(session=talk.session, region="r")
                        )
                        talk.send(3, slot(6))
                    elif end == "replace":
                        client.call("RegisterSharedMemory", others.registration(talk.session, "r"))
                        talk.send(3, slot(6))
                    elif end == "delete":
                        client.delete_session(talk.session)
                    else:
                        client.close()
                    talk.request(None)
        if end in ("unregister", "replace"):
            assert talk.refused == ([(3, "REGION_UNKNOWN")] if end == "unregister" else [])
            assert [bytes(talk.memory_of[3 + i]) for i in range(3)] == [pixels(f) for f in FRAMES[:3]]
    with connected(server) as client:
        wait_until(lambda: client.status().streams == 0)
        with suppress(ServerError):
            client.delete_session(talk.session)
        assert client.status().shared_memory_regions == 0
        wait_until(lambda: mapped(slots) == held)
        assert len(results(client)) == len(FRAMES)


def test_frames_that_stay_are_copied(serve: Serve) -> None:
    """A stream whose frames are kept for random access gives the slots back at once, and what is written to them later
    changes nothing."""
    with connected(serve(still_models(), allow_shm=True)) as client:
        talk = Talk(client, Slots(SIZE, 1), transient=False)
        for response in talk:
            if not response.HasField("started") and not response.HasField("credit"):
                continue
            number = response.credit.acknowledged_sequence + 1 if response.HasField("credit") else 0
            if number < len(FRAMES):
                talk.put(0, FRAMES[number])
                talk.send(number, slot(0))
            else:
                talk.request(None)
        assert talk.returned == [0] * len(FRAMES)
        assert [r.data for r in talk.results] == [pixels(f) for f in FRAMES]
        talk.memory_of[0][:] = 0
        assert pixels(client.get_frame(talk.session, 7).frame) == pixels(FRAMES[7])
        request = pb.GetFrameRequest(session=talk.session, index=7, output_slot=slot(0))
        assert client.call("GetFrame", request).frame.slot == slot(0)
        assert bytes(talk.memory_of[0]) == pixels(FRAMES[7])
        request.output_slot.byte_size -= 1
        assert refusal(client, "GetFrame", request).reason == "SLOT_TOO_SMALL"


def test_results_that_nobody_wants_give_their_slots_back(serve: Serve) -> None:
    with connected(serve(still_models(batch=1), allow_shm=True)) as client:
        talk = Talk(client, Slots(SIZE, 8), AT_ONCE, output_from_sequence=2)
        for i in range(3):
            talk.put(i, FRAMES[i])
            talk.send(i, slot(i), slot(4 + i))
        for response in talk:
            if response.HasField("frame") and response.frame.sequence == 2:
                talk.send(3, slot(0), slot(7))
                talk.request(None)
        assert [r.sequence for r in talk.results] == [2, 3]
        assert {4, 5} <= set(talk.returned)
        assert not {6, 7} & set(talk.returned), "these came with their results"


# ---- the clients' memory


def test_memory_is_used_again_when_nobody_needs_it() -> None:
    slots = Slots(1000, 2)
    first, second = slots.take(), slots.take()
    assert first is not None and second is not None and slots.take() is None
    assert (first.offset, second.offset) == (1024, 0), "aligned, the one used last first"
    view = first.memory[10:20].reshape(2, 5)
    del first
    assert slots.take() is None, "a view is in use"
    del view
    again = slots.take()
    assert again is not None and again.offset == 1024
    second.memory[:] = 5
    del slots
    assert second.memory.sum() == 5000, "memory outlives its segment's object"


def test_memory_from_many_threads() -> None:
    slots, wrong = Slots(64, 3), []

    def work(value: int) -> None:
        for _ in range(500):
            taken = slots.take()
            if taken is not None:
                taken.memory[:] = value
                if (taken.memory != value).any():
                    wrong.append(value)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_is_lent_is_kept_until_it_comes_back() -> None:
    memory = SharedFrames(FRAMES[0].format, frames=2)
    lent = Lent(memory, pb.StreamStarted(credits=1), planar_layout(FRAMES[0].format))
    there = made_in(memory, FRAMES[0])
    first, copied = lent.frame(there), lent.frame(FRAMES[1])
    assert first is not None and copied is not None and first != copied
    assert lent.frame(FRAMES[2]) is None, "no slot for it: it goes as bytes"
    del there
    assert memory.slots.take() is None, "the server looks at it"
    lent.take_back(pb.Credit(returned=[first]))
    assert memory.slots.take() is not None
    with pytest.raises(ServerError, match="not lent"):
        lent.take_back(pb.Credit(returned=[first]))
    outputs = [lent.output() for _ in range(3)]
    assert [o is None for o in outputs] == [False, False, True]
    assert outputs[0] is not None and len(lent.result(outputs[0])) == SIZE
    assert lent.output() is not None, "the result was dropped"


def made_in(memory: SharedFrames, frame: Frame) -> Frame:
    """A frame in shared memory."""
    planes = memory.planes()
    for plane, source in zip(planes, frame.planes, strict=True):
        np.copyto(plane, source)
    return replace(frame, planes=planes)


def test_planes_that_are_no_slot_are_copied() -> None:
    """Of another segment, in another order, not side by side, not from a slot's begin."""
    memory = SharedFrames(FRAMES[0].format, frames=4)
    y, u, v = memory.planes()
    others = SharedFrames(FRAMES[0].format).planes()
    wrong: list[tuple[Plane, ...]] = [others, (y, v, u), (y, others[1], v), (y[::2], u, v), (u, v)]
    for planes in wrong:
        assert memory.slots.find(planes) is None
    assert memory.slots.find((y, u, v)) is not None


@pytest.mark.parametrize("frames", [256, 3])
def test_frames_made_in_shared_memory(serve: Serve, frames: int) -> None:
    """Also more of them than there are slots: the rest goes as bytes. All results are held to the end."""
    memory = SharedFrames(FRAMES[0].format, frames=frames)
    clip = [replace(f, pts=f.pts + turn * len(FRAMES) * f.duration) for turn in range(4) for f in FRAMES]
    with connected(serve(still_models(), allow_shm=True)) as client:
        found: list[Steady | Refused] = list(
            client.stabilize((made_in(memory, f) for f in clip), CONFIG, shared_memory=memory)
        )
        assert client.status().sessions == 0
    assert [(r.sequence, pixels(r.frame)) for r in found if isinstance(r, Steady)] == [
        (i, pixels(f)) for i, f in enumerate(clip)
    ]
    gc.collect()
    assert len(memory.slots._free) == frames, "all slots are free again"


def test_memory_of_another_format_is_refused(serve: Serve) -> None:
    memory = SharedFrames(replace(FRAMES[0].format, width=66))
    with connected(serve(still_models(), allow_shm=True)) as client:
        with pytest.raises(InputError, match="format of the frames"):
            list(client.stabilize(FRAMES, CONFIG, shared_memory=memory))
        wait_until(lambda: client.status().sessions == 0)

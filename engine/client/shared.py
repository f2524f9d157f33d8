"""Shared memory of both clients: frames are lent to the server where they lie, and so is room for their results."""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
import uuid
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vs3r.config import Config
from vs3r.engine.client.errors import ServerError
from vs3r.engine.proto.convert import config_message
from vs3r.engine.proto.layout import Layout, planar_layout
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.proto.wire import Bytes, Pictured
from vs3r.errors import InputError
from vs3r.types import Frame, PictureFormat, Plane

_ALIGNED = 64
"""Slots begin at multiples of so many bytes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slot:
    """A piece of a segment."""

    offset: int
    """Where it begins."""
    memory: Bytes
    """Its bytes. It is in use as long as they are referred to, or a view of them is."""


class Slots:
    """Pieces of a new segment, which lives as long as they. Safe to use from several threads."""

    def __init__(self, size: int, count: int) -> None:
        """
        Args:
            size: bytes of a slot.
            count: slots; those that are never used take no memory.
        """
        self.size = size
        """Bytes of a slot."""
        self._step = -(-size // _ALIGNED) * _ALIGNED
        self._name = f"vs3r-{uuid.uuid4()}"
        # Slots come back in whatever thread drops them, also one that is in here: so the lock may be taken twice.
        self._lock = threading.RLock()
        self._free = list(range(count))
        self._file = os.memfd_create(self._name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, self._file)
        os.ftruncate(self._file, count * self._step)
        # The server maps only what cannot shrink.
        fcntl.fcntl(self._file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self._memory = np.frombuffer(mmap.mmap(self._file, count * self._step), np.uint8)
        self._begin = _address(self._memory)

    def registration(self, session: str, region: str) -> pb.RegisterSharedMemoryRequest:
        """Makes the segment known to a session, as long as this object lives."""
        return pb.RegisterSharedMemoryRequest(
            session=session,
            region=region,
            key=self._name,
            byte_size=self._memory.size,
            process=os.getpid(),
            file=self._file,
        )

    def take(self) -> Slot | None:
        """A free slot; None where there is none."""
        with self._lock:
            if not self._free:
                return None
            # The one used last: it is still in the processor's cache.
            number = self._free.pop()
        start = number * self._step
        memory: Bytes = np.frombuffer(self._memory[start : start + self.size].data, np.uint8)
        weakref.finalize(memory, self._give_back, number).atexit = False
        return Slot(offset=start, memory=memory)

    def find(self, planes: Sequence[Plane]) -> int | None:
        """Offset of the slot that holds these planes one behind the other; None where none does."""
        begin = at = _address(planes[0])
        for plane in planes:
            if _address(plane) != at or not plane.flags.c_contiguous:
                return None
            at += plane.nbytes
        offset = begin - self._begin
        inside = 0 <= offset < self._memory.size and offset % self._step == 0
        return offset if inside and at - begin == self.size else None

    def _give_back(self, number: int) -> None:
        with self._lock:
            self._free.append(number)


def _address(array: npt.NDArray[np.generic]) -> int:
    # Quicker than array.ctypes.data.
    return int(array.__array_interface__["data"][0])


class SharedFrames:
    """Memory for source frames that a server on this machine uses where they lie.

    memory = SharedFrames(fmt)
    frame = Frame(format=fmt, planes=memory.planes(), ...)  # to be written into
    """

    def __init__(self, fmt: PictureFormat, frames: int = 256) -> None:
        """
        Args:
            fmt: of the frames.
            frames: so many at once; those that are never used take no memory.
        """
        self.layout = planar_layout(fmt)
        """How the frames lie in a slot."""
        self.slots = Slots(self.layout.byte_size, frames)
        """What the frames lie in."""

    def planes(self) -> tuple[Plane, ...]:
        """Planes for a frame, of any content. They are used again when nobody refers to them, nor the server does. Of
        ordinary memory where all are in use."""
        slot = self.slots.take()
        memory = np.empty(self.slots.size, np.uint8) if slot is None else slot.memory
        return self.layout.unpack(memory.data)


class Lent:
    """What one call lends to the server: slots of frames, and slots for their results.

    It holds what is lent until the server returns it, or the call is over. Safe to use from several threads.
    """

    def __init__(self, frames: SharedFrames, started: pb.StreamStarted, layout: Layout) -> None:
        """
        Raises:
            InputError: the memory is for frames of another format.
        """
        if frames.layout != layout:
            raise InputError("expected shared memory made for the format of the frames")
        self._layout = layout
        self._frames = frames.slots
        self._results = Slots(layout.byte_size, started.latency_frames + 2 * started.credits)
        # Names of this call's own: a session may have several that use the same frames.
        call = uuid.uuid4()
        self._frames_region, self._results_region = f"frames-{call}", f"results-{call}"
        self._lock = threading.Lock()
        self._lent: dict[tuple[str, int], list[object]] = {}

    def registrations(self, session: str) -> list[pb.RegisterSharedMemoryRequest]:
        """Make the memory known to a session."""
        return [
            self._frames.registration(session, self._frames_region),
            self._results.registration(session, self._results_region),
        ]

    def removals(self, session: str) -> list[pb.UnregisterSharedMemoryRequest]:
        """Make the session forget it."""
        regions = self._frames_region, self._results_region
        return [pb.UnregisterSharedMemoryRequest(session=session, region=region) for region in regions]

    def frame(self, frame: Frame) -> pb.SharedMemorySlot | None:
        """Lend a frame where it lies, or else a copy of it; None where there is no slot for that."""
        offset = self._frames.find(frame.planes)
        if offset is not None:
            return self._lend(self._frames_region, offset, frame.planes)
        slot = self._frames.take()
        if slot is None:
            return None
        self._layout.write(slot.memory, frame.planes)
        return self._lend(self._frames_region, slot.offset, slot.memory)

    def output(self) -> pb.SharedMemorySlot | None:
        """Lend a slot for a result; None where there is none."""
        slot = self._results.take()
        return None if slot is None else self._lend(self._results_region, slot.offset, slot.memory)

    def take_back(self, credit: pb.Credit) -> None:
        """What comes back with credit is the client's again."""
        for slot in credit.returned:
            self._take(slot)

    def result(self, slot: pb.SharedMemorySlot) -> memoryview:
        """A result where it lies; its slot is free once nobody refers to it."""
        memory = self._take(slot)
        assert isinstance(memory, np.ndarray)
        return memory.data

    def _lend(self, region: str, offset: int, what: object) -> pb.SharedMemorySlot:
        with self._lock:
            self._lent.setdefault((region, offset), []).append(what)
        return pb.SharedMemorySlot(region=region, offset=offset, byte_size=self._frames.size)

    def _take(self, slot: pb.SharedMemorySlot) -> object:
        with self._lock:
            lent = self._lent.get((slot.region, slot.offset))
            if not lent:
                raise ServerError(f"the server returned slot {slot.region}:{slot.offset}, not lent", code="INTERNAL")
            return lent.pop()


def own_session(config: Config) -> pb.CreateSessionRequest:
    """For a stream that needs a session only because shared memory belongs to one; to be deleted behind it."""
    return pb.CreateSessionRequest(media_key=f"stream-{uuid.uuid4()}", config=config_message(config))


def frame_request(
    sequence: int, frame: Frame, layout: Layout, lent: Lent | None, *, output_from: int
) -> pb.StreamRequest | Pictured:
    """A frame of a stream; as bytes where there is no slot for it, likewise its result. No result is sent for frames
    before `output_from`."""
    slot = lent.frame(frame) if lent is not None else None
    output = lent.output() if lent is not None and sequence >= output_from else None
    message = pb.Frame(sequence=sequence, pts=frame.pts, duration=frame.duration, slot=slot, output_slot=output)
    if slot is None:
        return Pictured(rest=pb.StreamRequest(), frame=message, pixels=layout.pack(frame.planes))
    return pb.StreamRequest(frame=message)


def result_bytes(response: Pictured, lent: Lent | None) -> bytes | memoryview:
    """The pixels of a result, as bytes or where they lie."""
    if not response.frame.HasField("slot"):
        return response.pixels[0]
    assert lent is not None, "only slots that were lent come back"
    return lent.result(response.frame.slot)

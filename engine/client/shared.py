"""Shared memory of both clients: one segment of equal slots, each for a frame and then for its result."""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
import uuid
import weakref
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vs3r.config import Config
from vs3r.engine.proto.convert import config_message
from vs3r.engine.proto.layout import Layout
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.proto.wire import Pictured
from vs3r.types import Frame

_SPARE = 4
"""Slots that results never hold: frames must go on."""


class SlotPool:
    """The slots of a new segment, which lives as long as the pool or a result in it. Safe in several threads."""

    def __init__(self, slot_bytes: int, slots: int) -> None:
        self._name = f"vs3r-{uuid.uuid4()}"
        self._size = slot_bytes
        # Slots come back in whatever thread drops a result, also one that is in here: so the lock may be taken twice.
        self._lock = threading.RLock()
        self._free = list(range(slots))
        self._file = os.memfd_create(self._name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, self._file)
        os.ftruncate(self._file, slots * slot_bytes)
        # What cannot shrink may be mapped by the server.
        fcntl.fcntl(self._file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self._slots = np.frombuffer(mmap.mmap(self._file, slots * slot_bytes), np.uint8).reshape(slots, -1)

    @classmethod
    def of_stream(cls, started: pb.StreamStarted, layout: Layout) -> SlotPool:
        """Slots for all frames that a stream may have on their way."""
        return cls(layout.byte_size, started.latency_frames + 2 * started.credits)

    def registration(self, session: str) -> pb.RegisterSharedMemoryRequest:
        """Makes the segment known to a session, as long as the pool lives."""
        return pb.RegisterSharedMemoryRequest(
            session=session,
            region=self._name,
            key=self._name,
            byte_size=self._slots.size,
            process=os.getpid(),
            file=self._file,
        )

    def removal(self, session: str) -> pb.UnregisterSharedMemoryRequest:
        """Makes the session forget it."""
        return pb.UnregisterSharedMemoryRequest(session=session, region=self._name)

    def put(self, data: Sequence[memoryview]) -> pb.SharedMemorySlot | None:
        """Copy a frame into a free slot; None where there is none."""
        with self._lock:
            if not self._free:
                return None
            # The one used last: it is still in the processor's cache.
            slot = self._free.pop()
        at = 0
        for piece in data:
            self._slots[slot, at : at + len(piece)] = np.frombuffer(piece, np.uint8)
            at += len(piece)
        return pb.SharedMemorySlot(region=self._name, offset=slot * self._size, byte_size=self._size)

    def take_back(self, slot: pb.SharedMemorySlot) -> memoryview:
        """A result where it lies; its slot is free once nobody refers to it. A copy where slots are few."""
        number = slot.offset // self._size
        with self._lock:
            few = len(self._free) < _SPARE
        result: npt.NDArray[np.uint8] = (
            self._slots[number].copy() if few else np.frombuffer(self._slots[number].data, np.uint8)
        )
        if few:
            self._release(number)
        else:
            weakref.finalize(result, self._release, number).atexit = False
        return result.data

    def _release(self, number: int) -> None:
        with self._lock:
            self._free.append(number)


def own_session(config: Config) -> pb.CreateSessionRequest:
    """For a stream that needs a session only because shared memory belongs to one; to be deleted behind it."""
    return pb.CreateSessionRequest(media_key=f"stream-{uuid.uuid4()}", config=config_message(config))


def frame_request(sequence: int, frame: Frame, layout: Layout, pool: SlotPool | None) -> pb.StreamRequest | Pictured:
    """A frame of a stream; as bytes where there is no slot for it."""
    message = pb.Frame(sequence=sequence, pts=frame.pts, duration=frame.duration)
    data = layout.pack(frame.planes)
    slot = pool.put(data) if pool is not None else None
    if slot is None:
        return Pictured(rest=pb.StreamRequest(), frame=message, pixels=data)
    message.slot.CopyFrom(slot)
    message.output_slot.CopyFrom(slot)
    return pb.StreamRequest(frame=message)


def result_bytes(response: Pictured, pool: SlotPool | None) -> bytes | memoryview:
    """The pixels of a result, as bytes or where they lie."""
    if not response.frame.HasField("slot"):
        return response.pixels[0]
    assert pool is not None, "only slots that were given come back"
    return pool.take_back(response.frame.slot)

"""Shared memory of a client: one segment of equal slots, each for a frame and then for its result."""

from __future__ import annotations

import mmap
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vs3r.engine.client.errors import ServerError
from vs3r.engine.proto.layout import Layout
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb

if TYPE_CHECKING:
    from vs3r.engine.client.sync import Client

_FOLDER = Path("/dev/shm")
_SPARE = 4
"""Slots that results never hold: frames must go on."""


class SlotPool:
    """The slots of a segment. Safe to use from several threads."""

    def __init__(self, name: str, slot_bytes: int, slots: int) -> None:
        """
        Args:
            name: of a segment of at least slots * slot_bytes bytes.
        """
        self._name = name
        self._size = slot_bytes
        # Slots come back in whatever thread drops a result, also one that is in here: so the lock may be taken twice.
        self._lock = threading.RLock()
        self._free = list(range(slots))
        # Unlike SharedMemory, a mapping of our own lives as long as a result lies in it.
        with (_FOLDER / name).open("r+b") as file:
            self._slots = np.frombuffer(mmap.mmap(file.fileno(), slots * slot_bytes), np.uint8).reshape(slots, -1)

    @classmethod
    @contextmanager
    def registered(cls, client: Client, session: str, layout: Layout, slots: int) -> Iterator[SlotPool]:
        """A segment for frames of a layout that a session may use, until leaving."""
        size = layout.byte_size
        memory = SharedMemory(create=True, size=size * slots)
        try:
            request = pb.RegisterSharedMemoryRequest(
                session=session, region=memory.name, key=memory.name, byte_size=size * slots
            )
            client.call("RegisterSharedMemory", request)
            yield cls(memory.name, size, slots)
            # The session may have ended, and the region with it.
            with suppress(ServerError):
                client.call(
                    "UnregisterSharedMemory", pb.UnregisterSharedMemoryRequest(session=session, region=memory.name)
                )
        finally:
            memory.close()
            memory.unlink()

    def put(self, data: Sequence[memoryview]) -> pb.SharedMemorySlot | None:
        """Copy a frame into a free slot; None where there is none."""
        with self._lock:
            if not self._free:
                return None
            # The one used last: it is still in the processor's cache.
            slot = self._free.pop()
        target, at = self._slots[slot].data, 0
        for piece in data:
            target[at : at + len(piece)] = piece
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

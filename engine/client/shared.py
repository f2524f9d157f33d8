"""Shared memory of a client: one segment of equal slots, each for a frame and then for its result."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from multiprocessing.shared_memory import SharedMemory
from typing import TYPE_CHECKING

from vs3r.engine.client.errors import ServerError
from vs3r.engine.proto.buffers import Buffers
from vs3r.engine.proto.layout import Layout
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb

if TYPE_CHECKING:
    from vs3r.engine.client.sync import Client


class SlotPool:
    """The slots of a segment. Safe to use from several threads."""

    def __init__(self, memory: SharedMemory, slot_bytes: int, slots: int) -> None:
        assert memory.buf is not None, "it is open"
        self._name = memory.name
        self._bytes = memory.buf
        self._size = slot_bytes
        self._lock = threading.Lock()
        self._free = list(range(slots))
        self._results = Buffers(slot_bytes)

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
            pool = cls(memory, size, slots)
            with closing(pool._results):
                yield pool
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
            # The one used last: its pages are in the cache.
            start = self._free.pop() * self._size
        end = start
        for piece in data:
            self._bytes[end : end + len(piece)] = piece
            end += len(piece)
        return pb.SharedMemorySlot(region=self._name, offset=start, byte_size=self._size)

    def take_back(self, slot: pb.SharedMemorySlot) -> memoryview:
        """Copy a result out of its slot, which is then free."""
        data = self._results.take().data
        data[:] = self._bytes[slot.offset : slot.offset + self._size]
        with self._lock:
            self._free.append(slot.offset // self._size)
        return data

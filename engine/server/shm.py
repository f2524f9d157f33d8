"""Shared-memory regions of clients, and the slots of them that are lent to the server.

A region is mapped, so frames are used where the client wrote them and results are written where it reads them. Only
segments that cannot shrink are taken: one that shrank would kill the server with SIGBUS.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import threading
import weakref
from collections import deque
from collections.abc import Container

import numpy as np

from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.proto.wire import Bytes
from vs3r.engine.server.problems import NO_ROOM, Problem

_KEY = re.compile(r"vs3r-[A-Za-z0-9-]{16,200}")
_MAX_REGIONS = 64


class Region:
    """A segment of a client's, mapped as long as it is registered, or anybody refers to memory in it."""

    def __init__(self, mapping: Bytes) -> None:
        self._mapping = mapping

    def memory(self, slot: pb.SharedMemorySlot, size: int) -> Bytes:
        """The first `size` bytes of a slot where they lie, in an array of their own.

        Raises:
            Problem: the slot is smaller, or reaches beyond the region.
        """
        have = len(self._mapping)
        if slot.offset + slot.byte_size > have:
            raise _outside(f"the slot: {slot.byte_size} bytes from {slot.offset} on in a region of {have}")
        if slot.byte_size < size:
            raise _outside(f"a frame of {size} bytes, the slot has {slot.byte_size}")
        # Not a view of the mapping: such a view's views would not keep the view itself.
        return np.frombuffer(self._mapping[slot.offset : slot.offset + size].data, np.uint8)


class Regions:
    """The regions of one session. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._regions: dict[str, Region] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._regions)

    def add(self, request: pb.RegisterSharedMemoryRequest) -> None:
        """Map a client's segment; registering the same name again replaces it.

        Raises:
            Problem: the segment is missing, too small, or none that can be mapped safely.
        """
        name = request.region
        if not 1 <= len(name) <= 200:
            raise Problem("INVALID_ARGUMENT", "REGION_NAME", "expected a region's name of 1 to 200 characters")
        file = _open(request)
        try:
            region = Region(_map(file, request.offset, request.byte_size))
        finally:
            os.close(file)
        with self._lock:
            if self._closed:
                raise Problem("NOT_FOUND", "SESSION_UNKNOWN", "the session has ended")
            if name not in self._regions and len(self._regions) >= _MAX_REGIONS:
                raise Problem("RESOURCE_EXHAUSTED", "REGIONS", f"expected at most {_MAX_REGIONS} regions a session")
            self._regions[name] = region

    def remove(self, name: str) -> None:
        """Forget a region, or all where the name is empty.

        Raises:
            Problem: there is none of that name.
        """
        with self._lock:
            if name and name not in self._regions:
                raise _unknown(name)
            for gone in [name] if name else list(self._regions):
                del self._regions[gone]

    def discard(self, gone: Container[Region]) -> None:
        """Forget these, but not what has been registered under the same names since."""
        with self._lock:
            for name in [name for name, region in self._regions.items() if region in gone]:
                del self._regions[name]

    def close(self) -> None:
        """Forget all, and take no more."""
        self._closed = True
        self.remove("")

    def find(self, name: str) -> Region:
        """A region by its name.

        Raises:
            Problem: there is none.
        """
        with self._lock:
            region = self._regions.get(name)
        if region is None:
            raise _unknown(name)
        return region


class Lending:
    """What a call's client lends, and which slots it has back. Safe to use from several threads.

    A slot is lent from when its frame is taken to when nobody refers to the frame's pixels any more, whoever that was
    and whatever became of them.
    """

    def __init__(self, regions: Regions) -> None:
        """
        Args:
            regions: what the call may name slots of.
        """
        self._regions = regions
        self._used = weakref.WeakSet[Region]()  # they stay mapped no longer for having been used
        self._returned: deque[pb.SharedMemorySlot] = deque()

    def memory(self, slot: pb.SharedMemorySlot, size: int) -> Bytes:
        """See Region.

        Raises:
            Problem: the slot is unknown, or smaller than `size` bytes.
        """
        region = self._regions.find(slot.region)
        self._used.add(region)
        return region.memory(slot, size)

    def break_off(self) -> None:
        """The client has vanished: forget the regions that this call has used, and no others."""
        self._regions.discard(self._used)

    def borrow(self, slot: pb.SharedMemorySlot, size: int) -> memoryview:
        """The pixels in a slot, read only. The client may change them meanwhile, and so spoil its own picture.

        Raises:
            Problem: the slot is unknown, or smaller than `size` bytes.
        """
        memory = self.memory(slot, size)
        memory.flags.writeable = False
        weakref.finalize(memory, self._returned.append, slot).atexit = False
        return memory.data

    def give_back(self, slot: pb.SharedMemorySlot) -> None:
        """A slot that the call leaves alone from now on."""
        self._returned.append(slot)

    def returned(self) -> list[pb.SharedMemorySlot]:
        """The slots given back since it was last asked. For one thread."""
        return [self._returned.popleft() for _ in range(len(self._returned))]


def _map(file: int, offset: int, size: int) -> Bytes:
    end = offset + size
    if size < 1 or end > os.fstat(file).st_size:
        raise _outside(f"the region: {size} bytes from {offset} on in {os.fstat(file).st_size}")
    try:
        return np.frombuffer(mmap.mmap(file, end), np.uint8)[offset:]
    except OSError as error:
        raise Problem("INVALID_ARGUMENT", "SEGMENT_NAME", f"the segment cannot be mapped: {error.strerror}") from None


def _open(request: pb.RegisterSharedMemoryRequest) -> int:
    """Open a memfd of the client's. It must have the name that is given: by numbers one could reach anybody's.

    And a name of this kind: other programs' can be guessed.
    """
    if _KEY.fullmatch(request.key) is None:
        raise Problem("INVALID_ARGUMENT", "SEGMENT_NAME", "expected a memfd named vs3r- and 16 characters or more")
    try:
        # Without opening anything but a memfd of that name, which could have effects.
        place = os.open(f"/proc/{request.process}/fd/{request.file}", os.O_PATH | os.O_CLOEXEC)
        try:
            if os.readlink(f"/proc/self/fd/{place}") != f"/memfd:{request.key} (deleted)":
                raise Problem("NOT_FOUND", "SEGMENT_UNKNOWN", "the descriptor is not a memfd of that name")
            file = os.open(f"/proc/self/fd/{place}", os.O_RDWR | os.O_CLOEXEC)
        finally:
            os.close(place)
    except OSError as error:
        if error.errno in NO_ROOM:  # the server's own trouble
            raise
        raise Problem(
            "NOT_FOUND",
            "SEGMENT_UNKNOWN",
            f"the client's memfd cannot be opened: {error.strerror}; the server must run as the same user and see the "
            "client's process",
        ) from None
    # Memory of large pages can have holes that nothing can fill, which is a SIGBUS too.
    if not fcntl.fcntl(file, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK or os.fstat(file).st_blksize != mmap.PAGESIZE:
        os.close(file)
        raise Problem(
            "INVALID_ARGUMENT", "SEGMENT_NAME", "expected a memfd of ordinary pages, sealed with F_SEAL_SHRINK"
        )
    return file


def _unknown(name: str) -> Problem:
    return Problem("NOT_FOUND", "REGION_UNKNOWN", f"no region {name!r} is registered in this session")


def _outside(what: str) -> Problem:
    return Problem("OUT_OF_RANGE", "SLOT_TOO_SMALL", f"shared memory is too small for {what}")

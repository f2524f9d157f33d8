"""Shared-memory regions of clients.

A sealed segment cannot shrink, so it is mapped. Any other is read and written through its file descriptor: a client
that shrinks it meanwhile gets an error, where a mapping would kill the server with SIGBUS.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import stat
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.server.problems import Problem

_FOLDER = Path("/dev/shm")
_KEY = re.compile(r"/?([A-Za-z0-9_][A-Za-z0-9_.-]{0,200})")
_SEALED_KEY = re.compile(r"vs3r-[A-Za-z0-9-]{16,200}")
_MAX_REGIONS = 64


class _Region:
    """A registered part of a segment."""

    def __init__(self, file: int, offset: int, size: int, *, sealed: bool) -> None:
        """Takes the descriptor over.

        Raises:
            Problem: the segment cannot be mapped for writing.
        """
        self.offset = offset
        """Start in the segment."""
        self.size = size
        """Bytes."""
        self.memory: npt.NDArray[np.uint8] | None = None
        """The mapping of a sealed segment. It lives as long as somebody copies."""
        if sealed:
            try:
                self.memory = np.frombuffer(mmap.mmap(file, offset + size), np.uint8)[offset:]
            except OSError as error:
                raise Problem(
                    "INVALID_ARGUMENT", "SEGMENT_NAME", f"the segment cannot be mapped: {error.strerror}"
                ) from None
        self.file = file
        """Descriptor of the segment."""

    def close(self) -> None:
        """Forget the segment."""
        os.close(self.file)
        self.memory = None


class Regions:
    """The regions of one session. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._regions: dict[str, _Region] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._regions)

    def add(self, request: pb.RegisterSharedMemoryRequest) -> None:
        """Open a client's segment; registering the same name again replaces it.

        Raises:
            Problem: the segment is missing, too small, or no segment.
        """
        name, offset, size = request.region, request.offset, request.byte_size
        if not 1 <= len(name) <= 200:
            raise Problem("INVALID_ARGUMENT", "REGION_NAME", "expected a region's name of 1 to 200 characters")
        sealed = request.process != 0
        file = _open_sealed(request) if sealed else _open(request.key)
        try:
            if size < 1 or offset + size > os.fstat(file).st_size:
                raise _outside(f"the region: {size} bytes from {offset} on in {os.fstat(file).st_size}")
            with self._lock:
                if self._closed:
                    raise Problem("NOT_FOUND", "SESSION_GONE", "the session has ended")
                if name not in self._regions and len(self._regions) >= _MAX_REGIONS:
                    raise Problem("RESOURCE_EXHAUSTED", "REGIONS", f"expected at most {_MAX_REGIONS} regions a session")
                old = self._regions.get(name)
                self._regions[name] = _Region(file, offset, size, sealed=sealed)
        except BaseException:
            os.close(file)
            raise
        if old is not None:
            old.close()

    def remove(self, name: str) -> None:
        """Forget a region, or all where the name is empty.

        Raises:
            Problem: there is none of that name.
        """
        with self._lock:
            if name and name not in self._regions:
                raise Problem("NOT_FOUND", "REGION_UNKNOWN", f"no region {name!r} is registered in this session")
            gone = [self._regions.pop(n) for n in ([name] if name else list(self._regions))]
            for region in gone:
                region.close()

    def close(self) -> None:
        """Forget all, and take no more."""
        self._closed = True
        self.remove("")

    def read(self, slot: pb.SharedMemorySlot, data: npt.NDArray[np.uint8]) -> None:
        """Fill `data` from a slot.

        Raises:
            Problem: the slot is unknown, or smaller.
        """
        with self._lock:
            region = self._checked(slot, len(data))
            memory = region.memory
            # With the lock held, so that nobody closes the descriptor.
            if memory is None and os.preadv(region.file, [data.data], region.offset + slot.offset) != len(data):
                raise _outside("the segment has shrunk")
        if memory is not None:
            np.copyto(data, memory[slot.offset : slot.offset + len(data)])

    def write(self, slot: pb.SharedMemorySlot, data: Sequence[memoryview]) -> None:
        """Copy bytes, given in pieces, into a slot.

        Raises:
            Problem: the slot is unknown, or smaller.
        """
        size = sum(len(piece) for piece in data)
        with self._lock:
            region = self._checked(slot, size)
            memory = region.memory
            if memory is None:
                _write(region.file, data, region.offset + slot.offset, size)
        if memory is not None:
            at = slot.offset
            for piece in data:
                memory[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
                at += len(piece)

    def check(self, slot: pb.SharedMemorySlot, size: int) -> None:
        """Raise a Problem unless `size` bytes fit into a slot."""
        with self._lock:
            self._checked(slot, size)

    def _checked(self, slot: pb.SharedMemorySlot, size: int) -> _Region:
        region = self._regions.get(slot.region)
        if region is None:
            raise Problem("NOT_FOUND", "REGION_UNKNOWN", f"no region {slot.region!r} is registered in this session")
        if slot.offset + slot.byte_size > region.size:
            raise _outside(f"the slot: {slot.byte_size} bytes from {slot.offset} on in a region of {region.size}")
        if slot.byte_size < size:
            raise _outside(f"a frame of {size} bytes, the slot has {slot.byte_size}")
        return region


def _write(file: int, data: Sequence[memoryview], start: int, size: int) -> None:
    # Writing beyond the end would make it grow.
    if start + size > os.fstat(file).st_size:
        raise _outside("the segment has shrunk")
    if os.pwritev(file, data, start) != size:
        raise Problem("RESOURCE_EXHAUSTED", "SHM_FULL", "the system has no room for the shared memory")


def _open_sealed(request: pb.RegisterSharedMemoryRequest) -> int:
    """Open a memfd of the client's. It must have the name that is given: by numbers one could reach anybody's.

    And a name of this kind: other programs' can be guessed.
    """
    if _SEALED_KEY.fullmatch(request.key) is None:
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


def _open(key: str) -> int:
    match = _KEY.fullmatch(key)
    if match is None:
        raise Problem("INVALID_ARGUMENT", "SEGMENT_NAME", "expected a shared-memory segment's name, without folders")
    try:
        file = os.open(_FOLDER / match[1], os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Problem("NOT_FOUND", "SEGMENT_UNKNOWN", f"the segment cannot be opened: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise Problem("INVALID_ARGUMENT", "SEGMENT_NAME", "expected a shared-memory segment, got something else")
    return file


def _outside(what: str) -> Problem:
    return Problem("OUT_OF_RANGE", "SLOT_TOO_SMALL", f"shared memory is too small for {what}")

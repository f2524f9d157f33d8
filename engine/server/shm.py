"""Shared-memory regions of clients.

A segment is read and written through its file descriptor, not mapped: a client that shrinks its segment meanwhile
gets an error, where a mapping would kill the server with SIGBUS.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.server.problems import Problem

_FOLDER = Path("/dev/shm")
_KEY = re.compile(r"/?([A-Za-z0-9_][A-Za-z0-9_.-]{0,200})")
_MAX_REGIONS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Region:
    """A registered part of a segment."""

    file: int
    """Descriptor of the segment."""
    offset: int
    """Start in the segment."""
    size: int
    """Bytes."""


class Regions:
    """The regions of one session. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._regions: dict[str, _Region] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._regions)

    def add(self, name: str, key: str, offset: int, size: int) -> None:
        """Open a client's segment; registering the same name again replaces it.

        Raises:
            Problem: the segment is missing, too small, or no segment.
        """
        if not 1 <= len(name) <= 200:
            raise Problem("INVALID_ARGUMENT", "REGION_NAME", "expected a region's name of 1 to 200 characters")
        file = _open(key)
        try:
            if size < 1 or offset + size > os.fstat(file).st_size:
                raise _outside(f"the region: {size} bytes from {offset} on in {os.fstat(file).st_size}")
            with self._lock:
                if self._closed:
                    raise Problem("NOT_FOUND", "SESSION_GONE", "the session has ended")
                if name not in self._regions and len(self._regions) >= _MAX_REGIONS:
                    raise Problem("RESOURCE_EXHAUSTED", "REGIONS", f"expected at most {_MAX_REGIONS} regions a session")
                old = self._regions.get(name)
                self._regions[name] = _Region(file=file, offset=offset, size=size)
        except BaseException:
            os.close(file)
            raise
        if old is not None:
            os.close(old.file)

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
                os.close(region.file)

    def close(self) -> None:
        """Forget all, and take no more."""
        self._closed = True
        self.remove("")

    def read(self, slot: pb.SharedMemorySlot, data: memoryview) -> None:
        """Fill `data` from a slot.

        Raises:
            Problem: the slot is unknown, or smaller.
        """
        with self._lock:
            region = self._checked(slot, len(data))
            done = os.preadv(region.file, [data], region.offset + slot.offset)
        if done != len(data):
            raise _outside("the segment has shrunk")

    def write(self, slot: pb.SharedMemorySlot, data: Sequence[memoryview]) -> None:
        """Copy bytes, given in pieces, into a slot.

        Raises:
            Problem: the slot is unknown, or smaller.
        """
        with self._lock:
            size = sum(len(piece) for piece in data)
            region = self._checked(slot, size)
            start = region.offset + slot.offset
            # Writing beyond the end would make it grow.
            if start + size > os.fstat(region.file).st_size:
                raise _outside("the segment has shrunk")
            if os.pwritev(region.file, data, start) != size:
                raise Problem("RESOURCE_EXHAUSTED", "SHM_FULL", "the system has no room for the shared memory")

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

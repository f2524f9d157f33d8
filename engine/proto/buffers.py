"""Memory for frames that is used again. Pages that a process has not touched before cost more than copying them."""

from __future__ import annotations

import threading
import weakref

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

_FREE = 16


class Buffers:
    """Arrays of one size. One that nobody refers to any more is given out again. Safe to use from several threads."""

    def __init__(self, size: int) -> None:
        """
        Args:
            size: bytes of each.
        """
        self._size = size
        # Buffers come back in whatever thread drops them, also one that is in here: so the lock may be taken twice.
        self._lock = threading.RLock()
        self._free: list[Bytes] = []
        self._closed = False

    def take(self) -> Bytes:
        """An array of any content; it is in use as long as it, or a view of it, is referred to."""
        with self._lock:
            memory = self._free.pop() if self._free else np.empty(self._size, np.uint8)
        array = np.frombuffer(memory.data, np.uint8)
        weakref.finalize(array, self._give_back, memory).atexit = False
        return array

    def close(self) -> None:
        """Keep nothing from now on. Arrays in use stay."""
        with self._lock:
            self._closed = True
            self._free.clear()

    def _give_back(self, memory: Bytes) -> None:
        with self._lock:
            if not self._closed and len(self._free) < _FREE:
                self._free.append(memory)

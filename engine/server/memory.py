"""The server's memory for frames: what calls may need is reserved, what is left holds frames for random access."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from vs3r.engine.server.problems import Problem
from vs3r.types import Frame

_RETRY_S = 5.0


class FrameMemory:
    """Held frames by owner and number, least recently used first out. Safe to use from several threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._lock = threading.Lock()
        self._frames: OrderedDict[tuple[object, int], Frame] = OrderedDict()
        self.held = 0
        """Bytes of frames held."""
        self.reserved = 0
        """Bytes reserved."""

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Memory for a call, taken from the frames held where it must.

        Raises:
            Problem: other calls have it.
        """
        with self._lock:
            if self.reserved + size > self._max:
                raise self.exhausted(size)
            self.reserved += size
            self._shrink()
        try:
            yield
        finally:
            with self._lock:
                self.reserved -= size

    def exhausted(self, size: int) -> Problem:
        """For a call that needs more bytes than are left."""
        never = size > self._max
        return Problem(
            "RESOURCE_EXHAUSTED",
            "MEMORY",
            f"this call may need {_mb(size)} MB for frames; the server has {_mb(self._max)} MB (--memory-mb) and "
            f"{_mb(self.reserved)} MB in use; try "
            + ("smaller frames, less of lookahead_frames or fill_window_frames" if never else "again later"),
            retry_s=None if never else _RETRY_S,
        )

    def hold(self, owner: object, index: int, frame: Frame) -> bool:
        """Keep a frame as long as there is room; False where what is reserved leaves none even for this one."""
        with self._lock:
            self._drop((owner, index))
            self._frames[owner, index] = frame
            self.held += _size(frame)
            self._shrink()
            return (owner, index) in self._frames

    def find(self, owner: object, index: int) -> Frame | None:
        """A frame that is held, None otherwise."""
        with self._lock:
            frame = self._frames.get((owner, index))
            if frame is not None:
                self._frames.move_to_end((owner, index))
            return frame

    def count(self, owner: object) -> int:
        """Number of an owner's frames."""
        with self._lock:
            return sum(whose is owner for whose, _ in self._frames)

    def forget(self, owner: object) -> None:
        """Drop all frames of an owner."""
        with self._lock:
            for key in [k for k in self._frames if k[0] is owner]:
                self._drop(key)

    def _shrink(self) -> None:
        while self._frames and self.held + self.reserved > self._max:
            self._drop(next(iter(self._frames)))

    def _drop(self, key: tuple[object, int]) -> None:
        frame = self._frames.pop(key, None)
        if frame is not None:
            self.held -= _size(frame)


def _size(frame: Frame) -> int:
    return sum(plane.nbytes for plane in frame.planes)


def _mb(size: int) -> int:
    return -(-size >> 20)

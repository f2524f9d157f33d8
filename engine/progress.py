"""How far a long run is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is."""

    frames: int
    """Frames finished."""
    total: int | None
    """Frames expected, None when unknown; an estimate, never less than `frames`."""
    elapsed_s: float
    """Seconds since the run started."""
    first_frame_s: float
    """Seconds from the start to the first finished frame."""

    @property
    def fps(self) -> float:
        """Frames per second, start-up included."""
        return self.frames / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds left, judged by the speed since the first frame; None when unknown."""
        busy_s = self.elapsed_s - self.first_frame_s
        if self.total is None or self.frames < 2 or busy_s <= 0:
            return None
        return (self.total - self.frames) * busy_s / (self.frames - 1)


ProgressCallback = Callable[[Progress], object]


class Meter:
    """Counts finished frames and tells a callback."""

    def __init__(self, callback: ProgressCallback | None, total: int | None = None) -> None:
        self.total = total
        """Frames expected; may be set later."""
        self.frames = 0
        """Frames finished."""
        self.first_frame_s = 0.0
        """See Progress."""
        self._callback = callback
        self._start = time.perf_counter()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the meter was made."""
        return time.perf_counter() - self._start

    def tick(self) -> None:
        """One more frame is finished."""
        self.frames += 1
        elapsed_s = self.elapsed_s
        if self.frames == 1:
            self.first_frame_s = elapsed_s
        if self._callback is not None:
            total = None if self.total is None else max(self.total, self.frames)
            self._callback(
                Progress(frames=self.frames, total=total, elapsed_s=elapsed_s, first_frame_s=self.first_frame_s)
            )

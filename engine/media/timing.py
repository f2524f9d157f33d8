"""Presentation times that only ever grow."""

from __future__ import annotations

from fractions import Fraction


class Timeline:
    """Repairs the times of one stream, changing as little as possible.

    - A time that is not after the one before (duplicate, small step back) becomes one unit after it: the frames that
      follow keep their own times, so picture and sound stay together.
    - A step back of a second or more means that the clock was restarted (broadcast recordings, joined files): all
      later times move, so that they go on where the stream was.
    - A missing time continues from the one before.
    - Gaps are kept: variable frame rate stays variable.
    """

    def __init__(self, time_base: Fraction, nominal: int) -> None:
        """`nominal` is the usual length of a frame or packet in units of time_base, at least 1."""
        self._second = max(1, round(1 / time_base))
        self._step = max(1, nominal)
        self._offset = 0
        self._previous: int | None = None
        self.repaired = 0
        """How many times had to be changed."""

    def place(self, time: int | None, duration: int = 0) -> int:
        """The repaired time of the next frame; `duration` is its own, 0 when unknown."""
        expected = 0 if self._previous is None else self._previous + self._step
        placed = expected if time is None else time + self._offset
        if self._previous is not None and placed <= self._previous:
            self.repaired += 1
            if self._previous - placed >= self._second:
                self._offset += expected - placed
                placed = expected
            else:
                placed = self._previous + 1
        elif time is None:
            self.repaired += 1
        if duration > 0:
            self._step = duration
        self._previous = placed
        return placed

"""Times that only ever grow."""

from __future__ import annotations

from fractions import Fraction

_HOLE_S = 3600
"""Nothing is missing for so long: seconds."""
_DISORDER_S = Fraction(1, 5)
"""Decoding times of one recording may be out of order by less: seconds."""
_APART_S = 5
"""Pictures and sound of one time may lie so far apart in the file: seconds."""


class Timeline:
    """Repairs the times of one stream, changing as little as possible.

    - A time that is not after the one before (duplicate, small step back) becomes a little after it: the frames that
      follow keep their own times, so picture and sound stay together.
    - A step back of a second or more means that the clock was restarted (broadcast recordings, joined files): all
      later times move, so that they go on where the stream was.
    - A missing time continues from the one before.
    - Gaps are kept: variable frame rate stays variable.
    """

    def __init__(self, time_base: Fraction, nominal: int, *, least: int = 1) -> None:
        """
        Args:
            time_base: seconds per unit of the times.
            nominal: the usual length of a frame or packet in units, at least 1.
            least: units between times of which one was repaired, at least 1.
        """
        self._least = least
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
                placed = self._previous + self._least
        elif time is None:
            self.repaired += 1
        if duration > 0:
            self._step = duration
        self._previous = placed
        return placed


class Joins:
    """Recordings joined end to end in a broadcast format, each of which counts from anywhere.

    A step of a fifth of a second back begins the next one, or of an hour on: FFmpeg takes a step far back for the
    clock's overflow. It follows the pictures of the one before, with all its streams: moved by itself, sound would
    drift by what it is longer than the pictures of each recording.
    """

    def __init__(self, time_base: Fraction, begun: Joins | None = None) -> None:
        """
        Args:
            time_base: seconds per unit of the times.
            begun: the pictures', for a stream that may begin in a later recording.
        """
        self._time_base = time_base
        self._previous: int | None = None
        self._step = 0
        self.shifts: list[Fraction] = [Fraction(0)] if begun is None else list(begun.shifts)
        """Seconds to add to the times of each recording so far, by this stream alone."""
        self._spans: list[list[int]] = [[0, 0] for _ in self.shifts]  # first and last time of each
        # A recording of this stream, the same of the pictures'.
        self._alike = len(self.shifts) - 1, len(self.shifts) - 1

    def meet(self, time: int | None, duration: int) -> None:
        """Look at the next packet: its decoding time, and how long it is (0 when unknown)."""
        if time is None:
            return
        step = 0 if self._previous is None else time - self._previous
        if not -_DISORDER_S < step * self._time_base < _HOLE_S:
            self.shifts.append(self.shifts[-1] + (self._step - step) * self._time_base)
            self._spans.append([time, time])
        self._spans[-1][1] = time
        self._step = duration or max(step, 0)
        self._previous = time

    def shift_like(self, pictures: Joins) -> Fraction:
        """Seconds to add to the packet met last; those of the pictures, as far as they have been met.

        A step of one of the two alone, as where a packet's time is damaged, is no other recording.
        """
        for own in range(self._alike[0] + 1, len(self.shifts)):
            begin_s = self._spans[own][0] * self._time_base
            later = range(self._alike[1] + 1, len(pictures.shifts))
            same = next((number for number in later if pictures._shows(number, begin_s)), None)
            if same is not None:
                self._alike = own, same
        own, same = self._alike
        return pictures.shifts[same] + self.shifts[-1] - self.shifts[own]

    def _shows(self, number: int, time_s: Fraction) -> bool:
        begin, end = self._spans[number]
        return begin * self._time_base - _APART_S < time_s < end * self._time_base + _APART_S

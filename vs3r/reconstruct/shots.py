"""Which frames belong to one shot, and which show nothing of it: a flash, black for a moment, another shot for a blink.

Whether a picture that no flow joins to the one before begins another shot is known when the next ones have come: where
one of them is joined to what was before, it does not.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from vs3r.reconstruct.observe import CONNECTED, GAPS, ObservedFrame, agreement

# So many frames in a row may show nothing of their shot.
BLINK_FRAMES = 3


class Shots:
    """Finds where shots begin, at most BLINK_FRAMES later."""

    def __init__(self) -> None:
        self._waiting: list[ObservedFrame] = []
        self._first: int | None = None  # of the shot
        self._blank: deque[int] = deque(maxlen=max(GAPS))  # the newest; flow leads to no older one
        self._last_agreement = 1.0
        self._begun = False  # with the frame before

    def push(self, observed: ObservedFrame) -> list[ObservedFrame]:
        """Take the next frame; returns those of which it is known by now where they belong, in order."""
        self._waiting.append(observed)
        return self._known(BLINK_FRAMES)

    def flush(self) -> list[ObservedFrame]:
        """The rest: no more frames come."""
        return self._known(0)

    def _known(self, patience: int) -> list[ObservedFrame]:
        done: list[ObservedFrame] = []
        while self._waiting:
            frame = self._waiting[0]
            if self._first is None:  # whatever was before a reset
                frame = replace(frame, agreement=1.0)
            # In the middle of a whipped pan no flow is found either; a cut comes out of the blue, or after one picture,
            # as a flash between two shots.
            sudden = self._last_agreement > CONNECTED
            doubtful = (sudden or self._begun) and is_cut(frame)
            joined = self._back(frame.index) if doubtful else None
            if joined is not None:
                done += [replace(blank, blank=True) for blank in self._waiting[:joined]]
                self._blank += [blank.index for blank in self._waiting[:joined]]
                self._waiting[:joined] = []
                self._waiting[0] = replace(self._waiting[0], agreement=1.0)
                continue
            if doubtful and len(self._waiting) <= patience:
                break
            goes_on = len(self._waiting) > 1 and self._waiting[1].agreement > CONNECTED
            self._begun = doubtful and (sudden or goes_on)
            if self._begun or self._first is None:
                self._first = frame.index
            done.append(replace(frame, begins=self._begun))
            self._last_agreement = frame.agreement
            del self._waiting[0]
        return done

    def _back(self, index: int) -> int | None:
        """Which of those that wait is the first that shows the shot as before `index`."""
        # What shows one picture twice, and something else for longer in between, may be two flashes.
        most = 1 if self._begun else BLINK_FRAMES
        return next((k for k, later in enumerate(self._waiting[: most + 1]) if self._joined(later, index)), None)

    def _joined(self, later: ObservedFrame, index: int) -> bool:
        """Flow joins it to a frame before `index` that shows the shot."""
        assert self._first is not None
        return any(
            self._first <= before < index and before not in self._blank and agreement(found) > CONNECTED
            for before, found in later.pairs().items()
        )


def is_cut(observed: ObservedFrame) -> bool:
    """The picture changed, no flow explains it, and nothing in it is found again."""
    if observed.agreement > CONNECTED or any(o.aligned for o in observed.found):
        return False
    return observed.change > (0.25 if observed.agreement < CONNECTED / 5 else 0.5)

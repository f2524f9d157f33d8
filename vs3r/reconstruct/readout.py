"""What is known of a camera's read-out time, from one block of frames to the next.

Errors of a lens look like a short read-out, and where little shakes nothing tells them apart. So beforehand there is
thought to be none, but only of a short one: what is found far away from none is believed as it is (Geman-McClure loss).
"""

from __future__ import annotations

from vs3r.reconstruct.problem import State

# How much observations say of the read-out: the sum of squares in px^2 by which a read-out of one interval between
# frames would move them. That there is none is believed as if this much said so: a car that drives steadily gives
# 1,300 in 5 s; a hand gives 5,000 to 100,000 in half a second.
PRIOR_PX2 = 2e3
# In intervals between frames: from here on it is believed less and less.
SHORT_FRAMES = 0.3
# From here on it is settled; a cut takes it back to this, for it may have been to another camera.
SETTLED_PX2 = 1e5
AFTER_CUT_PX2 = 1e4
# In intervals between frames: what is longer was not found in such frames.
MUCH_FASTER = 2.0


class ReadoutBelief:
    """The read-out as found so far, and how much was seen of it."""

    def __init__(self, given_s: float | None) -> None:
        """
        Args:
            given_s: where it is known, in seconds.
        """
        self._given_s = given_s
        self.reset()

    def reset(self) -> None:
        """Forget what was found."""
        self.readout_s = 0.0 if self._given_s is None else self._given_s
        """The best guess in seconds."""
        self._seen_s, self._seen_px2 = 0.0, 0.0

    def cut(self) -> None:
        """What follows may be from another camera."""
        self._seen_px2 = min(self._seen_px2, AFTER_CUT_PX2)

    @property
    def unsettled(self) -> bool:
        """More observations may change it."""
        return self._given_s is None and self._seen_px2 < SETTLED_PX2

    def prior(self, readout_s: float, interval_s: float) -> tuple[float, float]:
        """Expected read-out in seconds and its inverse variance, see Problem.readout_prior, for one near the given."""
        total = self._seen_px2 + _doubt_px2(readout_s / interval_s)
        return clipped(self._seen_s * self._seen_px2 / total, interval_s), total / interval_s**2

    def learn(self, state: State, interval_s: float) -> None:
        """Take what a block of frames says, which was adjusted with that prior."""
        # Frames that follow each other much faster than before say nothing of a read-out that is longer than they take.
        if self._given_s is not None or abs(self.readout_s) > MUCH_FASTER * interval_s:
            return
        self.readout_s = float(state.readout)
        total = float(state.readout_info) * interval_s**2
        self._seen_px2 = max(total - _doubt_px2(self.readout_s / interval_s), 1e-3)
        # It is the mean of what was seen and of none.
        self._seen_s = self.readout_s * total / self._seen_px2


def clipped(readout_s: float, interval_s: float) -> float:
    """No camera reads longer than from one picture to the next, nor is the motion within a frame known for longer."""
    return min(max(readout_s, -interval_s), interval_s)


def _doubt_px2(readout_frames: float) -> float:
    """What says that there is none, for a read-out in intervals between frames."""
    return PRIOR_PX2 / (1 + 0.5 * (readout_frames / SHORT_FRAMES) ** 2) ** 2

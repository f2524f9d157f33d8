"""The noise levels that the denoising passes, and which of the two experts is asked at each."""

from __future__ import annotations

SHIFT = 5.0
"""Of flow matching: sigma = SHIFT u / (1 + (SHIFT - 1) u) for u from 1 to 0."""
BOUNDARY = 0.9
"""From this sigma up the high-noise expert (`transformer`) is asked, below the low-noise one (`transformer_2`)."""
TRAIN_TIMESTEPS = 1000
"""The models' time is sigma times this."""


def sigma_table(steps: int) -> list[float]:
    """Noise levels of `steps` Euler steps, from 1 to 0, both included; the shift is in them.

    With four steps these are 1, 0.9375, 0.8333, 0.625, 0: what few-step LoRAs are distilled for.
    """
    return [SHIFT * u / (1.0 + (SHIFT - 1.0) * u) for u in (1.0 - k / steps for k in range(steps))] + [0.0]


def low_noise_part(sigmas: list[float]) -> list[float]:
    """The levels below the boundary: a start from the render with noise on it, for the low-noise expert alone."""
    return [sigma for sigma in sigmas if sigma < BOUNDARY]

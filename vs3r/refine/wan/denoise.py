"""From noise to a repaired window, in latent space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor


class Velocity(Protocol):
    """The two experts behind one function; see vs3r.refine.wan.model.Experts. C channels: 16, of TI2V-5B 48."""

    def velocity(self, model_input: Tensor, sigma: float, /) -> Tensor:
        """(1, C + 4 + C, T, h, w), noisy latents, mask and render, to (1, C, T, h, w): noise minus picture, float32."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Condition:
    """What is known of a window."""

    render: Tensor
    """(1, C, T, h, w) latents of the prefilled pictures, float32."""
    mask: Tensor
    """(1, 4, T, h, w) 1 where the pictures are right, see fold_mask."""
    before: Tensor | None = None
    """(1, C, n, h, w) final latents that the window before has for latent frames 1 to n of this one; None at the
    start of a scene."""


def denoise(
    experts: Velocity, condition: Condition, noise: Tensor, *, sigmas: list[float], check: Callable[[], None]
) -> Tensor:
    """Euler steps along the flow (paper, section 3.4; the input is noise, mask and render, stacked).

    Args:
        experts: predict the velocity.
        condition: of the window.
        noise: (1, C, T, h, w) float32.
        sigmas: levels, falling to 0. Below 1 at the start, the render with that much noise is where it starts.
        check: called before every step; what it raises ends the work.
    Returns:
        (1, C, T, h, w) latents. What the window before had settled stays as it was.
    """
    render, mask = condition.render, condition.mask
    if condition.before is not None:
        settled = slice(1, 1 + condition.before.shape[2])
        render, mask = render.clone(), mask.clone()
        render[:, :, settled] = condition.before
        mask[:, :, settled] = 1.0
    latents = sigmas[0] * noise + (1.0 - sigmas[0]) * render
    for sigma, following in pairwise(sigmas):
        check()
        model_input = torch.cat([latents, mask, render], dim=1)
        latents = latents + (following - sigma) * experts.velocity(model_input, sigma)
    if condition.before is not None:
        latents[:, :, settled] = condition.before
    return latents

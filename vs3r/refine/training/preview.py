"""What an expert in training makes of a clip, alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from vs3r.refine.training.objective import Part
from vs3r.refine.training.pairs import Pair
from vs3r.refine.wan.ask import predict
from vs3r.refine.wan.denoise import Condition, denoise
from vs3r.refine.wan.schedule import BOUNDARY, low_noise_part, sigma_table
from vs3r.refine.wan.windows import window_noise


class Decoder(Protocol):
    """See vs3r.refine.wan.model.VideoCodec."""

    def decode(self, latents: Tensor) -> Tensor: ...


class _Alone:
    def __init__(self, expert: Any, text: Tensor) -> None:
        self._expert = expert
        self._text = text

    def velocity(self, model_input: Tensor, sigma: float, /) -> Tensor:
        """See vs3r.refine.wan.denoise.Velocity."""
        return predict(self._expert, model_input, self._text, sigma)


@torch.no_grad()
def preview(
    expert: Any, part: Part, pair: Pair, text: Tensor, *, steps: int, told: str, check: Callable[[], None]
) -> Tensor:
    """Denoise a pair's render with one expert.

    The low-noise expert starts from the render with noise on it; the high-noise one goes the last way to a picture in
    one step, so what it shows has no detail.

    Args:
        expert: WanTransformer3DModel.
        part: which of the two it is.
        pair: on the expert's device.
        text: (1, N, D) embedded prompt, there too.
        steps: of the whole table of noise levels, of which the expert has a part.
        told: see flow_loss.
        check: called before every step; what it raises ends the work.
    Returns:
        (1, 16, T, h, w) latents.
    """
    table = sigma_table(steps)
    high = [sigma for sigma in table if sigma >= BOUNDARY]
    sigmas = [*high, 0.0] if part == "transformer" else low_noise_part(table)
    mask = pair.mask if told == "validity" else torch.ones_like(pair.mask)
    noise = window_noise(tuple(pair.render.shape[1:]), seed=0, scene=0, first_latent=0).to(pair.render.device)
    condition = Condition(render=pair.render, mask=mask)
    return denoise(_Alone(expert, text), condition, noise, sigmas=sigmas, check=check)


@torch.no_grad()
def side_by_side(decoder: Decoder, pair: Pair, made: Tensor) -> Tensor:
    """(T, H, 3 W, 3) uint8: the render, what was made of it, and the clean clip."""
    rows = [decoder.decode(latents)[0].cpu() for latents in (pair.render, made, pair.clean)]
    video = torch.cat(rows, dim=-1).permute(1, 2, 3, 0)
    return ((video / 2 + 0.5).clamp(0, 1) * 255).round().byte()

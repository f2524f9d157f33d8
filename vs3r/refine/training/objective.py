"""What an expert is taught: the velocity of flow matching at noise levels of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from vs3r.refine.training.pairs import Pair
from vs3r.refine.wan.ask import predict
from vs3r.refine.wan.schedule import BOUNDARY, SHIFT

Part = Literal["transformer", "transformer_2"]


def draw_sigma(part: Part, generator: torch.Generator) -> float:
    """A noise level of one expert: sigma = 5u / (1 + 4u), u uniform over what falls on its side of the boundary.

    Args:
        part: `transformer` for levels in (0.9, 1], `transformer_2` for those in [0, 0.9).
        generator: of the CPU; one number is drawn from it.
    """
    middle = BOUNDARY / (SHIFT - (SHIFT - 1.0) * BOUNDARY)
    share = float(torch.rand((), generator=generator, dtype=torch.float64))
    u = 1.0 - (1.0 - middle) * share if part == "transformer" else middle * share
    return SHIFT * u / (1.0 + (SHIFT - 1.0) * u)


def flow_loss(
    expert: Any, pair: Pair, text: Tensor, *, noise: Tensor, sigma: float, known_weight: float, told: str = "validity"
) -> Tensor:
    """Squared error of the velocity, noise minus picture, with a weight of its own where the render is right.

    Args:
        expert: WanTransformer3DModel with 36 input channels.
        pair: on the expert's device.
        text: (1, N, D) embedding of the prompt.
        noise: (1, 16, T, h, w) float32.
        sigma: noise level, 0 to 1.
        known_weight: of known cells, above 0; those not known weigh 1.
        told: as WanConfig.wan_condition: with `authors` the expert is told that all is right.
    Returns:
        The weighted mean, a scalar in float32.
    """
    shown = pair if told == "validity" else replace(pair, mask=torch.ones_like(pair.mask))
    noisy = sigma * noise + (1.0 - sigma) * pair.clean
    predicted = predict(expert, torch.cat([noisy, shown.mask, pair.render], dim=1), text, sigma)
    known = pair.mask.mean(1, keepdim=True)
    weight = torch.lerp(torch.ones_like(known), torch.full_like(known, known_weight), known)
    error = (predicted - (noise - pair.clean)).square().mean(1, keepdim=True)
    return (weight * error).sum() / weight.sum()

"""What an expert is taught: the velocity of flow matching at noise levels of its own."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from vs3r.refine.wan.schedule import BOUNDARY, SHIFT, TRAIN_TIMESTEPS

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
    expert: Any,
    clean: Tensor,
    render: Tensor,
    mask: Tensor,
    text: Tensor,
    *,
    noise: Tensor,
    sigma: float,
    known_weight: float,
) -> Tensor:
    """Squared error of the velocity, noise minus picture, with a weight of its own where the render is right.

    Args:
        expert: WanTransformer3DModel with 36 input channels.
        clean: (1, 16, T, h, w) latents that it should reach, float32.
        render: (1, 16, T, h, w) latents of the prefilled render, float32.
        mask: (1, 4, T, h, w) 1 where the render is right, see vs3r.refine.wan.pictures.fold_mask.
        text: (1, N, D) embedding of the prompt.
        noise: (1, 16, T, h, w) float32.
        sigma: noise level, 0 to 1.
        known_weight: of known cells, above 0; those not known weigh 1.
    Returns:
        The weighted mean, a scalar in float32.
    """
    noisy = sigma * noise + (1.0 - sigma) * clean
    model_input = torch.cat([noisy, mask, render], dim=1).to(expert.dtype)
    time = torch.full((1,), sigma * TRAIN_TIMESTEPS, device=clean.device)
    predicted: Tensor = expert(
        hidden_states=model_input, timestep=time, encoder_hidden_states=text.to(expert.dtype), return_dict=False
    )[0]
    weight = torch.lerp(torch.ones_like(mask[:, :1]), torch.full_like(mask[:, :1], known_weight), mask.mean(1, True))
    error = (predicted.float() - (noise - clean)).square().mean(1, True)
    return (weight * error).sum() / weight.sum()

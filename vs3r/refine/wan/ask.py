"""The one place where a transformer of Wan2.2 is asked, whichever way it wants to be told what is known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vs3r.refine.wan.schedule import TRAIN_TIMESTEPS
from vs3r.refine.wan.windows import FRAMES, PATCH, TI2V_5B


def predict(expert: Any, stacked: Tensor, prompt: Tensor, sigma: float) -> Tensor:
    """The velocity, noise minus picture.

    Args:
        expert: WanTransformer3DModel, or that wrapped for several GPUs.
        stacked: (1, C + 4 + C, T, h, w) noisy latents, mask (1 where right) and render.
        prompt: (1, N, D) embedded.
        sigma: noise level, 0 to 1.
    Returns:
        (1, C, T, h, w) float32.
    """
    dtype = getattr(expert, "module", expert).patch_embedding.weight.dtype
    channels = (stacked.shape[1] - FRAMES) // 2
    time = torch.tensor([sigma * TRAIN_TIMESTEPS], device=stacked.device)
    if channels != TI2V_5B.channels:
        return _ask(expert, stacked.to(dtype), prompt.to(dtype), time)
    latents, mask, render = torch.split(stacked, [channels, FRAMES, channels], dim=1)
    tokens = known_tokens(mask)
    known = tokens.repeat_interleave(PATCH, -2).repeat_interleave(PATCH, -1)
    times = time * (1.0 - tokens.flatten(1).float())
    found = _ask(expert, torch.where(known, render, latents).to(dtype), prompt.to(dtype), times)
    # What is known is no noise: this leads straight to it.
    return torch.where(known, (latents - render) / max(sigma, 1e-6), found)


def known_tokens(mask: Tensor) -> Tensor:
    """(1, 4, T, h, w) to (1, 1, T, h / 2, w / 2): true where all cells of a token are known in all their frames."""
    cells = mask.amin(1, keepdim=True)
    return (-torch.nn.functional.max_pool3d(-cells, (1, PATCH, PATCH))) > 0.5


def _ask(expert: Any, hidden: Tensor, prompt: Tensor, time: Tensor) -> Tensor:
    (found,) = expert(hidden_states=hidden, timestep=time, encoder_hidden_states=prompt, return_dict=False)
    return found.float()  # type: ignore[no-any-return]

"""Which implementation of attention the experts use: the fastest that is installed and gives the same numbers."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch
from torch import Tensor

from vs3r.errors import BackendError

log = logging.getLogger(__name__)

PLAIN = "sdpa"
DIFFUSERS = {PLAIN: "native", "flash3": "_flash_3", "sage": "sage"}
"""Our names to diffusers'."""
_PACKAGE = {"flash3": "flash_attn_interface", "sage": "sageattention"}
_CAPABILITY = {"flash3": ((9, 0), (9, 0)), "sage": ((8, 0), (12, 0))}
"""CUDA compute capabilities, first and last, that they are made for."""
LEAST_PSNR_DB = 40.0
"""Between an implementation and PyTorch's own, with the largest value of the latter as peak. On a processor the same
sums in another order gave 75, queries and keys in 8-bit integers and values in FP8 46, queries off by a tenth 36."""


def choose_attention(asked: str, device: torch.device) -> str:
    """The implementation that is used; where `auto` was asked for, FlashAttention-3 or else Sage if they are fit.

    Raises:
        BackendError: one that was asked for by name is not fit.
    """
    if asked == PLAIN:
        return PLAIN
    for name in _PACKAGE if asked == "auto" else (asked,):
        amiss = _amiss(name, device)
        if amiss is None:
            log.info("wan: attention by %s", name)
            return name
        if asked != "auto":
            raise BackendError(f"--wan-attention {name} {amiss}; use --wan-attention {PLAIN}")
        if importlib.util.find_spec(_PACKAGE[name]) is not None:
            log.warning("wan: attention is not by %s, which %s", name, amiss)
    return PLAIN


def _amiss(name: str, device: torch.device) -> str | None:
    if importlib.util.find_spec(_PACKAGE[name]) is None:
        return f"needs the package {_PACKAGE[name]}, which is not installed"
    first, last = _CAPABILITY[name]
    if device.type != "cuda" or not first <= torch.cuda.get_device_capability(device) <= last:
        return f"is made for GPUs of compute capability {first[0]}.{first[1]} to {last[0]}.{last[1]}"
    try:
        psnr_db = agreement_db(DIFFUSERS[name], device)
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        return f"cannot run here ({' '.join(str(error).split())[:200]})"
    if not psnr_db >= LEAST_PSNR_DB:
        return f"differs too much from PyTorch's own ({psnr_db:.0f} dB, expected at least {LEAST_PSNR_DB:.0f})"
    return None


@torch.no_grad()
def agreement_db(backend: str, device: torch.device) -> float:
    """PSNR in dB between an implementation, by diffusers' name, and PyTorch's, on noise with the 14B model's heads."""
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 1024, 4, 128, generator=generator).to(device, torch.bfloat16) for _ in range(3))

    def attend(name: str) -> Tensor:
        # Sharper than noise would make it, so that what is compared is not a mean.
        found: Tensor = dispatch_attention_fn(2.0 * query, 2.0 * key, value, backend=name)
        return found.float()

    expected = attend(DIFFUSERS[PLAIN])
    error = (attend(backend) - expected).square().mean().clamp_min(1e-20)
    return float(10.0 * torch.log10(expected.abs().max().square() / error))


def set_attention(expert: Any, name: str) -> None:
    """Let an expert use an implementation, as choose_attention returns it."""
    if name != PLAIN:
        expert.set_attention_backend(DIFFUSERS[name])

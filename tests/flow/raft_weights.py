"""Weights and pictures for tests of RAFT that are the same everywhere, and the names in torchvision's checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vs3r.flow.raft import Raft


def some_weights(network: Raft) -> dict[str, Tensor]:
    """Weights that neither fade nor blow up, from a generator that no PyTorch version changes."""
    rng = np.random.default_rng(1)
    found = {}
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            found[name] = value
            continue
        spread = (2 / value[0].numel()) ** 0.5 if value.dim() == 4 else 0.05
        if name.startswith("update_block.flow_head.conv2"):
            spread /= 5  # flows of a few pixels
        random = torch.from_numpy(rng.normal(0, spread, value.shape).astype(np.float32))
        one = value.dim() == 1 and name.endswith(("running_var", "norm1.weight", "norm2.weight", "downsample.1.weight"))
        found[name] = 1 + random if one else random
    return found


def some_pictures() -> tuple[Tensor, Tensor]:
    """A smooth random picture and itself moved by (3, -2) px, (1, 3, 128, 160) in [-1, 1]."""
    noise = torch.from_numpy(np.random.default_rng(2).uniform(-1, 1, (1, 3, 128, 160)).astype(np.float32))
    smooth = (2 * torch.nn.functional.avg_pool2d(noise, 7, 1, 3)).clamp(-1, 1)
    return smooth, torch.roll(smooth, (-2, 3), (2, 3))


def torchvision_names() -> dict[str, str]:
    """Every name in torchvision's checkpoint, and what Raft calls it."""
    return dict(_torchvision_names())


def _torchvision_names() -> Iterator[tuple[str, str]]:
    for theirs, ours, batch in (("feature_encoder", "fnet", False), ("context_encoder", "cnet", True)):
        yield from _layer(f"{theirs}.convnormrelu", f"{ours}.conv1", f"{ours}.norm1", batch)
        for layer in (1, 2, 3):
            for block in (0, 1):
                their_block, our_block = f"{theirs}.layer{layer}.{block}", f"{ours}.layer{layer}.{block}"
                for k in (1, 2):
                    conv, norm = f"{our_block}.conv{k}", f"{our_block}.norm{k}"
                    yield from _layer(f"{their_block}.convnormrelu{k}", conv, norm, batch)
                if layer > 1 and block == 0:
                    down = f"{our_block}.downsample"
                    yield from _layer(f"{their_block}.downsample", f"{down}.0", f"{down}.1", batch)
        yield from _both(f"{theirs}.conv", f"{ours}.conv2")
    motion = "update_block.motion_encoder"
    for name, ours in (
        ("convcorr1", "convc1"),
        ("convcorr2", "convc2"),
        ("convflow1", "convf1"),
        ("convflow2", "convf2"),
    ):
        yield from _both(f"{motion}.{name}.0", f"update_block.encoder.{ours}")
    yield from _both(f"{motion}.conv.0", "update_block.encoder.conv")
    for k in (1, 2):
        for gate in "zrq":
            yield from _both(f"update_block.recurrent_block.convgru{k}.conv{gate}", f"update_block.gru.conv{gate}{k}")
    for k in (1, 2):
        yield from _both(f"update_block.flow_head.conv{k}", f"update_block.flow_head.conv{k}")
    yield from _both("mask_predictor.convrelu.0", "update_block.mask.0")
    yield from _both("mask_predictor.conv", "update_block.mask.2")


def _both(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    for part in ("weight", "bias"):
        yield f"{theirs}.{part}", f"{ours}.{part}"


def _layer(theirs: str, conv: str, norm: str, batch: bool) -> Iterator[tuple[str, str]]:
    yield from _both(f"{theirs}.0", conv)
    if batch:
        yield from _both(f"{theirs}.1", norm)
        for part in ("running_mean", "running_var", "num_batches_tracked"):
            yield f"{theirs}.1.{part}", f"{norm}.{part}"

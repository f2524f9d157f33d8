"""A small VGGT with seeded weights, and pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from vs3r.reconstruct.vggt.cues import CueLayers
from vs3r.reconstruct.vggt.model import Vggt, VggtSize, load_state

SMALL = VggtSize(
    width=64,
    heads=4,
    encoder_depth=2,
    pairs=5,
    kept=(1, 2, 3, 4),
    position_grid=6,
    camera_depth=2,
    depth_features=32,
    depth_channels=(16, 32, 64, 64),
    cues=CueLayers(shallow=(0,), middle=(1, 2), deep=(2, 3, 4), deep_spread=(3, 4)),
    dropping=2,
)


def seeded_state(network: torch.nn.Module) -> dict[str, Tensor]:
    """Weights that let every part matter: depths of the golden pictures span a factor of two and more."""
    random = torch.Generator().manual_seed(0)
    state = {}
    for key, value in sorted(network.state_dict().items()):
        noise = torch.randn(value.shape, generator=random)
        if value.ndim == 1:
            state[key] = 0.2 * noise + (
                0.3 if key.endswith("gamma") else 1.0 if "norm" in key and "weight" in key else 0
            )
        elif "token" in key or "pos_embed" in key:
            state[key] = 0.5 * noise
        else:
            state[key] = noise * 1.4 * value[0].numel() ** -0.5
        if "output_conv2.2" in key:
            state[key] *= 0.02
    return state


def pictures(frames: int, height: int, width: int) -> Tensor:
    return torch.rand(frames, 3, height, width, generator=torch.Generator().manual_seed(frames))


def small() -> Vggt:
    network = Vggt(SMALL).eval()
    load_state(network, seeded_state(network))
    return network

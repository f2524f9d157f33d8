"""What VGGT reads from its tokens: cameras and depth. In float32."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vs3r.networks import part
from vs3r.reconstruct.vggt.layers import Block, Mlp

CAMERA_ITERATIONS = 4
# Frames whose depth is computed together: the maps of more take gigabytes.
_CHUNK = 8


class CameraHead(nn.Module):
    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.token_norm = nn.LayerNorm(width)
        self.trunk_norm = nn.LayerNorm(width)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, 9))
        self.embed_pose = nn.Linear(9, width)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))
        self.pose_branch = Mlp(width, width // 2, 9)

    def forward(self, tokens: Tensor) -> Tensor:
        """(S, width) camera tokens to (S, 9)."""
        x = self.token_norm(tokens)[None]
        normed = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        pose = torch.zeros(1, len(tokens), 9, dtype=x.dtype, device=x.device)
        for step in range(CAMERA_ITERATIONS):
            shift, scale, gate = self.poseLN_modulation(
                self.embed_pose(pose if step else self.empty_pose_tokens.expand_as(pose))
            ).chunk(3, dim=-1)
            pose = pose + self.pose_branch(self.trunk_norm(self.trunk(x + gate * (normed * (1 + scale) + shift))))
        return torch.cat([pose[0, :, :7], pose[0, :, 7:].relu()], dim=-1)


class ResidualUnit(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()  # the checkpoint was trained with an in-place ReLU: the skip, too, is after it
        return x + self.conv2(self.conv1(x).relu())  # type: ignore[no-any-return]


class Fusion(nn.Module):
    def __init__(self, features: int, *, two: bool) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(features, features, 1)
        if two:
            self.resConfUnit1 = ResidualUnit(features)
        self.resConfUnit2 = ResidualUnit(features)

    def forward(self, x: Tensor, finer: Tensor | None, size: tuple[int, int]) -> Tensor:
        if finer is not None:
            x = x + self.resConfUnit1(finer)
        x = F.interpolate(self.resConfUnit2(x), size=size, mode="bilinear", align_corners=True)
        return self.out_conv(x)  # type: ignore[no-any-return]


class Places(nn.Module):
    """Adds sines and cosines of the place in a picture of a diagonal of 2 to a map, x in the first channels."""

    x: Tensor
    y: Tensor

    def __init__(self, rows: int, cols: int, *, aspect: float, channels: int) -> None:
        super().__init__()
        diagonal = math.hypot(aspect, 1.0)
        omega = 100.0 ** -(torch.arange(channels // 4, dtype=torch.float64) / (channels // 4))

        def waves(reach: float, count: int) -> Tensor:
            place = torch.linspace(-reach * (count - 1) / count, reach * (count - 1) / count, count)
            angle = omega[:, None] * place.double()
            return 0.1 * torch.cat([angle.sin(), angle.cos()]).float()

        self.register_buffer("x", waves(aspect / diagonal, cols)[:, None], persistent=False)
        self.register_buffer("y", waves(1 / diagonal, rows)[:, :, None], persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        rows, cols = values.shape[-2:]
        return values + torch.cat([self.x.expand(-1, rows, -1), self.y.expand(-1, -1, cols)])


class DepthHead(nn.Module):
    """DPT (Ranftl et al. 2021)."""

    def __init__(self, width: int, *, patch: int, special: int, features: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.patch, self.special = patch, special
        self.features, self.channels = features, tuple(channels)
        self.norm = nn.LayerNorm(width)
        self.projects = nn.ModuleList(nn.Conv2d(width, each, 1) for each in channels)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(channels[0], channels[0], 4, 4),
                nn.ConvTranspose2d(channels[1], channels[1], 2, 2),
                nn.Identity(),
                nn.Conv2d(channels[3], channels[3], 3, 2, 1),
            ]
        )
        self.scratch = nn.Module()
        for level, each in enumerate(channels, 1):
            self.scratch.add_module(f"layer{level}_rn", nn.Conv2d(each, features, 3, padding=1, bias=False))
            self.scratch.add_module(f"refinenet{level}", Fusion(features, two=level < 4))
        self.scratch.add_module("output_conv1", nn.Conv2d(features, features // 2, 3, padding=1))
        self.scratch.add_module(
            "output_conv2",
            nn.Sequential(nn.Conv2d(features // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 2, 1)),
        )

    def places(self, height: int, width: int) -> nn.ModuleList:
        """What `forward` adds to its maps, for pictures of a size: one for each level, and one for the last."""
        rows, cols, aspect = height // self.patch, width // self.patch, width / height
        levels = [Places(rows, cols, aspect=aspect, channels=each) for each in self.channels]
        return nn.ModuleList([*levels, Places(height, width, aspect=aspect, channels=self.features // 2)])

    def forward(self, kept: Sequence[Tensor], places: nn.ModuleList, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Four (S, N, width) to depth and confidence, (S, *size) each."""
        chunks = zip(*(torch.split(tokens, _CHUNK) for tokens in kept), strict=True)
        some = part(DepthHead._some)
        parts = [some(self, chunk, places, size) for chunk in chunks]
        depth, confidence = (torch.cat(part) for part in zip(*parts, strict=True))
        return depth, confidence

    def _some(self, kept: Sequence[Tensor], places: nn.ModuleList, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        grid = size[0] // self.patch, size[1] // self.patch
        maps = []
        for level, tokens in enumerate(kept):
            x = self.norm(tokens[:, self.special :]).transpose(1, 2).unflatten(2, grid)
            x = self.resize_layers[level](places[level](self.projects[level](x)))
            maps.append(self.scratch.get_submodule(f"layer{level + 1}_rn")(x))
        x = maps[3]
        for level in (4, 3, 2, 1):
            target = maps[level - 2].shape[-2:] if level > 1 else [2 * side for side in maps[0].shape[-2:]]
            fuse = self.scratch.get_submodule(f"refinenet{level}")
            x = fuse(x, maps[level - 1] if level < 4 else None, tuple(target))
        x = self.scratch.get_submodule("output_conv1")(x)
        x = places[4](F.interpolate(x, size=size, mode="bilinear", align_corners=True))
        x = self.scratch.get_submodule("output_conv2")(x)
        return x[:, 0].exp(), 1 + x[:, 1].exp()

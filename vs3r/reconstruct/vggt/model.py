"""VGGT (Wang et al. 2025): cameras and depth of a window of frames, at the key names of the public checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vs3r.errors import InputError, ShapeError

IGNORED_PREFIXES = ("point_head.", "track_head.")
CAMERA_ITERATIONS = 4
ROPE_BASE = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VggtSize:
    """How large a network is; the defaults are VGGT-1B's."""

    width: int = 1024
    """Channels of a token."""
    heads: int = 16
    """Of every attention; divides width, and width / heads is a multiple of 4."""
    encoder_depth: int = 24
    """Blocks of the DINOv2 encoder."""
    pairs: int = 24
    """Pairs of a frame block and a global block."""
    kept: tuple[int, int, int, int] = (4, 11, 17, 23)
    """Pairs whose outputs the heads read, ascending."""
    patch: int = 14
    """Side of a patch in pixels."""
    position_grid: int = 37
    """Side of the grid that the encoder's positions were trained on."""
    registers: int = 4
    """Register tokens, of the encoder and of the pairs."""
    camera_depth: int = 4
    """Blocks of the camera head."""
    depth_features: int = 256
    """Channels that the depth head fuses."""
    depth_channels: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    """Channels of the four maps that the depth head fuses."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VggtOutput:
    """What the network says of a window of S frames."""

    pose: Tensor
    """(S, 9) cam_from_world translation, quaternion xyzw (not normalised), vertical and horizontal field of view."""
    depth: Tensor
    """(S, H, W) z in the camera, > 0, in the window's own unit."""
    confidence: Tensor
    """(S, H, W) of the depth, > 1."""


def rope_table(rows: int, cols: int, *, special: int, head: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (special + rows * cols, head) each, of the rotary positions of a frame's tokens."""
    y, x = torch.meshgrid(torch.arange(1, rows + 1), torch.arange(1, cols + 1), indexing="ij")
    place = torch.cat([torch.zeros(special, 2), torch.stack([y, x], dim=-1).reshape(-1, 2).float()])
    half = head // 2
    frequency = 1.0 / ROPE_BASE ** (torch.arange(0, half, 2).float() / half)
    angle = (place[:, :, None] * frequency).repeat(1, 1, 2).reshape(len(place), head)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(..., N, head) turned by the table's angles, y in the first half of the channels, x in the second."""
    a, b, c, d = x.chunk(4, dim=-1)
    return x * cos + torch.cat([-b, a, -d, c], dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, *, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.q_norm: nn.Module = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm: nn.Module = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        mixed = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 0.01))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, width: int, heads: int, *, eps: float = 1e-5, qk_norm: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, qk_norm=qk_norm)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, 4 * width, width)
        self.ls2 = LayerScale(width)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), rope))
        return x + self.ls2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class PatchProjection(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)


class Encoder(nn.Module):
    """DINOv2 with registers."""

    def __init__(self, size: VggtSize) -> None:
        super().__init__()
        self.grid = size.position_grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + size.position_grid**2, size.width))
        self.register_tokens = nn.Parameter(torch.zeros(1, size.registers, size.width))
        self.mask_token = nn.Parameter(torch.zeros(1, size.width))
        self.patch_embed = PatchProjection(size.width, size.patch)
        self.blocks = nn.ModuleList(Block(size.width, size.heads, eps=1e-6) for _ in range(size.encoder_depth))
        self.norm = nn.LayerNorm(size.width, eps=1e-6)

    def positions(self, rows: int, cols: int) -> Tensor:
        """(1, rows * cols, width) of a grid of patches."""
        table = self.pos_embed[:, 1:].float()
        if (rows, cols) == (self.grid, self.grid):
            return table
        table = table.reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        table = F.interpolate(table, size=(rows, cols), mode="bicubic", antialias=True)
        return table.flatten(2).transpose(1, 2)

    def forward(self, pictures: Tensor) -> Tensor:
        patches = self.patch_embed.proj(pictures)
        x = patches.flatten(2).transpose(1, 2) + self.positions(*patches.shape[-2:])
        count = len(x)
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(count, -1, -1)
        x = torch.cat([cls, self.register_tokens.expand(count, -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1 + self.register_tokens.shape[1] :]  # type: ignore[no-any-return]


class Aggregator(nn.Module):
    """Pairs of attention within a frame and over all frames."""

    mean: Tensor
    std: Tensor

    def __init__(self, size: VggtSize) -> None:
        super().__init__()
        self.size = size
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, size.width))
        self.register_token = nn.Parameter(torch.zeros(1, 2, size.registers, size.width))
        self.patch_embed = Encoder(size)
        blocks = [Block(size.width, size.heads, qk_norm=True) for _ in range(2 * size.pairs)]
        self.frame_blocks, self.global_blocks = nn.ModuleList(blocks[::2]), nn.ModuleList(blocks[1::2])
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """(S, 3, H, W) in [0, 1] to four (S, N, 2 width), the pairs in `kept`."""
        frames, _, height, width = pictures.shape
        special = torch.cat([self.camera_token, self.register_token], dim=2)[0]
        special = torch.cat([special[:1], special[1:].expand(frames - 1, -1, -1)])
        x = torch.cat([special, self.patch_embed((pictures - self.mean) / self.std)], dim=1)
        rope = rope_table(
            height // self.size.patch,
            width // self.size.patch,
            special=special.shape[1],
            head=self.size.width // self.size.heads,
        )
        cos, sin = (table.to(x.device) for table in rope)
        everywhere = cos.repeat(frames, 1), sin.repeat(frames, 1)
        kept = []
        for pair, (within, across) in enumerate(zip(self.frame_blocks, self.global_blocks, strict=True)):
            alone = within(x, (cos, sin))
            x = across(alone.reshape(1, -1, self.size.width), everywhere).view_as(alone)
            if pair in self.size.kept:
                kept.append(torch.cat([alone, x], dim=-1))
        return kept


class CameraHead(nn.Module):
    def __init__(self, size: VggtSize) -> None:
        super().__init__()
        width = 2 * size.width
        self.trunk = nn.Sequential(*(Block(width, size.heads) for _ in range(size.camera_depth)))
        self.token_norm = nn.LayerNorm(width)
        self.trunk_norm = nn.LayerNorm(width)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, 9))
        self.embed_pose = nn.Linear(9, width)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))
        self.pose_branch = Mlp(width, width // 2, 9)

    def forward(self, tokens: Tensor) -> Tensor:
        """(S, 2 width) camera tokens to (S, 9)."""
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


def uv_embedding(rows: int, cols: int, *, aspect: float, channels: int) -> Tensor:
    """(channels, rows, cols) sines and cosines of the place in a picture of a diagonal of 2, x before y."""
    diagonal = math.hypot(aspect, 1.0)
    reach = [aspect / diagonal * (cols - 1) / cols, 1 / diagonal * (rows - 1) / rows]
    x, y = torch.linspace(-reach[0], reach[0], cols), torch.linspace(-reach[1], reach[1], rows)
    quarter = channels // 4
    omega = 100.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)

    def waves(place: Tensor) -> Tensor:
        angle = omega[:, None] * place.double()
        return torch.cat([angle.sin(), angle.cos()])

    return torch.cat([waves(x)[:, None, :].expand(-1, rows, -1), waves(y)[:, :, None].expand(-1, -1, cols)]).float()


class DepthHead(nn.Module):
    """DPT (Ranftl et al. 2021)."""

    def __init__(self, size: VggtSize) -> None:
        super().__init__()
        features, channels = size.depth_features, size.depth_channels
        self.patch = size.patch
        self.special = 1 + size.registers
        self.norm = nn.LayerNorm(2 * size.width)
        self.projects = nn.ModuleList(nn.Conv2d(2 * size.width, each, 1) for each in channels)
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

    def forward(self, kept: list[Tensor], height: int, width: int) -> tuple[Tensor, Tensor]:
        """Four (S, N, 2 width) to (S, height, width) depth and confidence."""

        def placed(x: Tensor) -> Tensor:
            table = uv_embedding(*x.shape[-2:], aspect=width / height, channels=x.shape[1])
            return x + 0.1 * table.to(x)

        rows, cols = height // self.patch, width // self.patch
        maps = []
        for level, tokens in enumerate(kept):
            x = self.norm(tokens[:, self.special :]).transpose(1, 2).unflatten(2, (rows, cols))
            x = self.resize_layers[level](placed(self.projects[level](x)))
            maps.append(self.scratch.get_submodule(f"layer{level + 1}_rn")(x))
        x = maps[3]
        for level in (4, 3, 2, 1):
            target = maps[level - 2].shape[-2:] if level > 1 else [2 * side for side in maps[0].shape[-2:]]
            fuse = self.scratch.get_submodule(f"refinenet{level}")
            x = fuse(x, maps[level - 1] if level < 4 else None, tuple(target))
        x = self.scratch.get_submodule("output_conv1")(x)
        x = placed(F.interpolate(x, size=(height, width), mode="bilinear", align_corners=True))
        x = self.scratch.get_submodule("output_conv2")(x)
        return x[:, 0].exp(), 1 + x[:, 1].exp()


class Vggt(nn.Module):
    """The network without its point and track heads."""

    def __init__(self, size: VggtSize = VggtSize()) -> None:
        super().__init__()
        self.size = size
        self.aggregator = Aggregator(size)
        self.camera_head = CameraHead(size)
        self.depth_head = DepthHead(size)

    def forward(self, pictures: Tensor) -> VggtOutput:
        """
        Args:
            pictures: (S, 3, H, W) RGB in [0, 1], H and W multiples of the patch, S >= 1.
        Raises:
            ShapeError: the pictures are not so.
        """
        if pictures.ndim != 4 or pictures.shape[1] != 3 or any(n % self.size.patch for n in pictures.shape[-2:]):
            raise ShapeError(
                f"expected pictures (S, 3, H, W) with H and W multiples of {self.size.patch}, "
                f"got {tuple(pictures.shape)}; resize them"
            )
        kept = self.aggregator(pictures)
        depth, confidence = self.depth_head(kept, *pictures.shape[-2:])
        return VggtOutput(pose=self.camera_head(kept[-1][:, 0]), depth=depth, confidence=confidence)


def load_state(network: Vggt, state: Mapping[str, Tensor]) -> None:
    """Fill a network from a public checkpoint, heads that are not needed left out.

    Raises:
        InputError: keys are missing, unexpected, or of another shape.
    """
    given = {key: value for key, value in state.items() if not key.startswith(IGNORED_PREFIXES)}
    wanted = network.state_dict()
    for what, keys in (
        ("lacks", sorted(wanted.keys() - given.keys())),
        ("has the unexpected", sorted(given.keys() - wanted.keys())),
        ("has another shape of", sorted(k for k in wanted.keys() & given.keys() if wanted[k].shape != given[k].shape)),
    ):
        if keys:
            raise InputError(
                f"expected a checkpoint of VGGT, this one {what} {', '.join(keys[:3])}"
                f"{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}; use vggt-1b or vggt-1b-commercial"
            )
    network.load_state_dict(given)

"""VGGT (Wang et al. 2025): cameras and depth of a window of frames, at the key names of the public checkpoint.

FirstPass and SecondPass are what VGGT4D runs of it, for pictures of one size, with all tables as constants.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vs3r.errors import ShapeError
from vs3r.reconstruct.vggt.cues import CueLayers, Cues
from vs3r.reconstruct.vggt.heads import CameraHead, DepthHead
from vs3r.reconstruct.vggt.layers import DROPPED, Attending, Block, Linear, Rope, rope_table
from vs3r.weights import check_state

IGNORED_PREFIXES = ("point_head.", "track_head.")


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
    cues: CueLayers = field(default_factory=CueLayers)
    """Global blocks that VGGT4D reads."""
    dropping: int = 5
    """The first pairs: those in which the second pass leaves moving patches out."""

    @property
    def special(self) -> int:
        """Tokens of a frame before its patches: camera and registers."""
        return 1 + self.registers


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VggtOutput:
    """What the network says of a window of S frames."""

    pose: Tensor
    """(S, 9) cam_from_world translation, quaternion xyzw (not normalised), vertical and horizontal field of view."""
    depth: Tensor
    """(S, H, W) z in the camera, > 0, in the window's own unit."""
    confidence: Tensor
    """(S, H, W) of the depth, > 1."""


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
        table = self.pos_embed[:, 1:].detach().float()
        if (rows, cols) == (self.grid, self.grid):
            return table
        table = table.reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        table = F.interpolate(table, size=(rows, cols), mode="bicubic", antialias=True)
        return table.flatten(2).transpose(1, 2)

    def forward(self, pictures: Tensor, positions: Tensor) -> Tensor:
        """(S, 3, H, W) normalised pictures to (S, n, width)."""
        projection = self.patch_embed.proj
        patches = projection(pictures.to(projection.weight.dtype)).float()
        x = patches.flatten(2).transpose(1, 2) + positions
        count = len(x)
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(count, -1, -1)
        x = torch.cat([cls, self.register_tokens.expand(count, -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1 + self.register_tokens.shape[1] :]  # type: ignore[no-any-return]


class Aggregator(nn.Module):
    """Pairs of attention within a frame and over all frames."""

    def __init__(self, size: VggtSize) -> None:
        super().__init__()
        self.size = size
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, size.width))
        self.register_token = nn.Parameter(torch.zeros(1, 2, size.registers, size.width))
        self.patch_embed = Encoder(size)
        blocks = [Block(size.width, size.heads, qk_norm=True) for _ in range(2 * size.pairs)]
        self.frame_blocks, self.global_blocks = nn.ModuleList(blocks[::2]), nn.ModuleList(blocks[1::2])

    def encode(self, pictures: Tensor, tables: Tables) -> Tensor:
        """(S, 3, H, W) in [0, 1] to (S, n, width), each frame for itself."""
        return self.patch_embed((pictures - tables.mean) / tables.std, tables.positions)  # type: ignore[no-any-return]

    def forward(
        self, features: Tensor, rope: Rope, *, keep: Tensor | None = None, cues: Cues | None = None
    ) -> list[Tensor]:
        """
        Args:
            features: (S, n, width), see `encode`.
            rope: places of the tokens of a frame.
            keep: (S, n) above 1/2 for patches that the first pairs may attend to; None: all.
            cues: is shown what it wants of the global blocks.
        Returns:
            Four (S, N, 2 width), the pairs in `kept`.
        """
        frames = len(features)
        special = torch.cat([self.camera_token, self.register_token], dim=2)[0]
        special = torch.cat([special[:1], special[1:].expand(frames - 1, -1, -1)])
        x = torch.cat([special, features], dim=1)
        within, across = Attending(rope=rope), Attending(rope=rope)
        if keep is not None:
            bias = F.pad(torch.where(keep > 0.5, 0.0, DROPPED), (special.shape[1], 0))
            within = Attending(rope=rope, bias=bias[:, None, None])
            across = Attending(rope=rope, bias=bias.reshape(1, 1, 1, -1))
        kept = []
        for pair, (alone, together) in enumerate(zip(self.frame_blocks, self.global_blocks, strict=True)):
            if pair == self.size.dropping:
                within = across = Attending(rope=rope)
            how = across
            if cues is not None and cues.wants(pair):
                how = Attending(rope=rope, bias=across.bias, tap=functools.partial(cues.show, pair))
            own = alone(x, within)
            x = together(own.reshape(1, -1, self.size.width), how).view_as(own)
            if pair in self.size.kept:
                kept.append(torch.cat([own, x], dim=-1))
        return kept


class Tables(nn.Module):
    """Constants of a picture size."""

    mean: Tensor
    std: Tensor
    positions: Tensor
    cos: Tensor
    sin: Tensor

    def __init__(self, network: Vggt, height: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)
        size = network.size
        grid = height // size.patch, width // size.patch
        cos, sin = rope_table(*grid, special=size.special, head=size.width // size.heads)
        self.register_buffer("positions", network.aggregator.patch_embed.positions(*grid), persistent=False)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.places = network.depth_head.places(height, width)
        self.to(self.positions.device)

    @property
    def rope(self) -> Rope:
        """Places of the tokens of a frame."""
        return Rope(cos=self.cos, sin=self.sin)


class Vggt(nn.Module):
    """The network without its point and track heads."""

    def __init__(self, size: VggtSize = VggtSize()) -> None:
        super().__init__()
        self.size = size
        self.aggregator = Aggregator(size)
        self.camera_head = CameraHead(2 * size.width, size.heads, size.camera_depth)
        self.depth_head = DepthHead(
            2 * size.width,
            patch=size.patch,
            special=size.special,
            features=size.depth_features,
            channels=size.depth_channels,
        )

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
        pose, depth, confidence, _, _ = FirstPass(self, *pictures.shape[-2:])(pictures)
        return VggtOutput(pose=pose, depth=depth, confidence=confidence)


class FirstPass(nn.Module):
    """Everything of a window, for pictures of one size."""

    def __init__(self, network: Vggt, height: int, width: int, *, cues: bool = False) -> None:
        """
        Args:
            network: its weights are shared.
            height, width: of the pictures, multiples of a patch.
            cues: also look for motion.
        """
        super().__init__()
        self.network, self.tables = network, Tables(network, height, width)
        self.height, self.width, self.cues = height, width, cues

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(S, 3, H, W) in [0, 1] to pose, depth and confidence, see VggtOutput; dynamic (S, n), see Cues.dynamic (0
        where not looked for); features (S, n, width) of the patches, see Aggregator.encode."""
        network, size = self.network, (self.height, self.width)
        features = network.aggregator.encode(pictures, self.tables)
        frames, patches = features.shape[:2]
        cues = Cues(network.size.cues, frames, patches, features.device) if self.cues else None
        kept = network.aggregator(features, self.tables.rope, cues=cues)
        pose = network.camera_head(kept[-1][:, 0])
        depth, confidence = network.depth_head(kept, self.tables.places, size)
        dynamic = features.new_zeros(frames, patches) if cues is None else cues.dynamic()
        return pose, depth, confidence, dynamic, features


def depth_frames(frames: int) -> list[int]:
    """Frames of a window of which the second pass gives depth: enough for the scale between the passes."""
    return sorted({0, frames // 2, frames - 1})


class SecondPass(nn.Module):
    """Poses from what stands still, for pictures of one size."""

    def __init__(self, network: Vggt, height: int, width: int) -> None:
        super().__init__()
        self.network, self.tables = network, Tables(network, height, width)
        self.height, self.width = height, width

    def forward(self, features: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            features: (S, n, width) of the first pass.
            keep: (S, n) above 1/2 where nothing moves.
        Returns:
            pose (S, 9); depth (K, H, W) of the frames `depth_frames`.
        """
        network = self.network
        kept = network.aggregator(features, self.tables.rope, keep=keep)
        pose = network.camera_head(kept[-1][:, 0])
        some = depth_frames(len(features))
        depth, _ = network.depth_head([x[some] for x in kept], self.tables.places, (self.height, self.width))
        return pose, depth


def lower_precision(network: Vggt, dtype: torch.dtype) -> None:
    """Let matrices and attention compute in another number format; the sums between them, norms and heads do not."""
    for module in network.aggregator.modules():
        if isinstance(module, Linear | nn.Conv2d):
            module.to(dtype)


def load_state(network: Vggt, state: Mapping[str, Tensor]) -> None:
    """Fill a network from a public checkpoint, heads that are not needed left out.

    Raises:
        InputError: keys are missing, unexpected, or of another shape.
    """
    given = {key: value for key, value in state.items() if not key.startswith(IGNORED_PREFIXES)}
    check_state("VGGT", network.state_dict(), given, advice="use vggt-1b or vggt-1b-commercial")
    # Not copied: the network may have been made without memory of its own.
    network.load_state_dict({key: value.float() for key, value in given.items()}, assign=True)

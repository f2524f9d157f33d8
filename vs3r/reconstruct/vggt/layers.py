"""What VGGT's transformers are made of. Matrices may be of low precision; what runs between them is float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vs3r.networks import part

ROPE_BASE = 100.0

DROPPED = -3e4
"""Added to the logits of keys that are left out: their weight is then exactly zero; float16 holds it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rope:
    """Rotary positions of the tokens of a frame."""

    cos: Tensor
    """(N, head)."""
    sin: Tensor
    """(N, head)."""

    def __call__(self, x: Tensor) -> Tensor:
        """(B, heads, F * N, head), F frames one after the other, turned by their places."""
        x = torch.unflatten(x, 2, (-1, len(self.cos)))
        a, b, c, d = x.chunk(4, dim=-1)
        turned = x * self.cos + torch.cat([-b, a, -d, c], dim=-1) * self.sin
        return turned.flatten(2, 3)


def rope_table(rows: int, cols: int, *, special: int, head: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (special + rows * cols, head) each: y in the first half of the channels, x in the second."""
    y, x = torch.meshgrid(torch.arange(1, rows + 1), torch.arange(1, cols + 1), indexing="ij")
    place = torch.cat([torch.zeros(special, 2), torch.stack([y, x], dim=-1).reshape(-1, 2).float()])
    half = head // 2
    frequency = 1.0 / ROPE_BASE ** (torch.arange(0, half, 2).float() / half)
    angle = (place[:, :, None] * frequency).repeat(1, 1, 2).reshape(len(place), head)
    return angle.cos(), angle.sin()


class Linear(nn.Linear):
    """Takes any floating input in the precision of its own weights."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attending:
    """How a block attends, beside its weights."""

    rope: Rope | None = None
    """None: the tokens have no places."""
    bias: Tensor | None = None
    """(B or 1, 1, 1, T) added to the logits of the keys."""
    tap: Callable[[Tensor, Tensor], None] | None = None
    """Is shown queries and keys, (B, heads, T, head) in float32, as they are multiplied but for the scale."""


PLAINLY = Attending()


class Attention(nn.Module):
    """The attention of a block in two parts, with the product of queries, keys and values between them."""

    def __init__(self, width: int, heads: int, *, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)
        self.q_norm: nn.Module = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm: nn.Module = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()

    def asked(self, x: Tensor, rope: Rope | None, exact: bool) -> tuple[Tensor, ...]:
        """Queries times the scale, keys and values, (B, heads, T, head) in the weights' precision; where exact is true
        also queries and keys in float32."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q.float()), self.k_norm(k.float())
        if rope is not None:
            q, k = rope(q), rope(k)
        # The scale before the product, so that compilers see the attention as one.
        product = (q * self.scale).to(v.dtype), k.to(v.dtype), v
        return (*product, q, k) if exact else product

    def answered(self, mixed: Tensor) -> Tensor:
        """(B, heads, T, head) of the product to (B, T, width)."""
        return self.proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 0.01))

    def forward(self, x: Tensor) -> Tensor:
        return x.float() * self.gamma


class Block(nn.Module):
    """The sum that runs through all blocks stays in float32."""

    def __init__(self, width: int, heads: int, *, eps: float = 1e-5, qk_norm: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, qk_norm=qk_norm)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, 4 * width, width)
        self.ls2 = LayerScale(width)

    def forward(self, x: Tensor, how: Attending = PLAINLY) -> Tensor:
        scaled, k, v, *exact = part(Block.before)(self, x, how.rope, how.tap is not None)
        if how.tap is not None:
            how.tap(*exact)
        bias = None if how.bias is None else how.bias.to(v.dtype)
        return part(Block.after)(self, x, F.scaled_dot_product_attention(scaled, k, v, attn_mask=bias, scale=1.0))  # type: ignore[no-any-return]

    def before(self, x: Tensor, rope: Rope | None, exact: bool) -> tuple[Tensor, ...]:
        """What is multiplied, see Attention.asked."""
        return self.attn.asked(self.norm1(x), rope, exact)

    def after(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The block's output, from its input and the product."""
        x = x + self.ls1(self.attn.answered(mixed))
        return x + self.ls2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]

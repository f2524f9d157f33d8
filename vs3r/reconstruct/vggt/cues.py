"""What the attention of VGGT knows of motion (VGGT4D, Hu et al. 2025, section 3.2): no training, no labels.

Queries and keys of some global blocks, after their norm and rotary places, patches only, are multiplied between a frame
and those 2, 4 and 6 before and after it, without scale or softmax. Means of these products are linear in both factors,
so the mean over frames, and where it is asked for over patches, is taken before the product: neither the queries and
keys of all layers nor a product of two frames is ever kept, only one of n x n patches per frame. (A covariance of the
averaged keys would give the same spread; of 1,024 or 2,048 channels it is larger than n x n of 777 patches.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

OFFSETS = (-6, -4, -2, 2, 4, 6)
_TINY = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class CueLayers:
    """Global blocks whose attention tells of motion."""

    shallow: tuple[int, ...] = (0,)
    """Keys against keys: mean. Queries against keys: spread."""
    middle: tuple[int, ...] = (3, 4, 5, 6, 7)
    """Queries against queries: mean."""
    deep: tuple[int, ...] = (17, 18, 19, 20, 21)
    """Queries against queries: mean."""
    deep_spread: tuple[int, ...] = (18, 19)
    """Queries against queries: spread."""


def sources_of(frame: int, frames: int) -> list[int]:
    """The frames that a frame of a window is compared with; its neighbours where those asked for do not exist."""
    found = [frame + o for o in OFFSETS if 0 <= frame + o < frames]
    return found or [frame + o for o in (-1, 1) if 0 <= frame + o < frames]


def normalised(x: Tensor) -> Tensor:
    """(S, ...) from 0 to 1 within each frame; 0 where all is equal."""
    low, high = x.flatten(1).amin(1), x.flatten(1).amax(1)
    shape = (-1, *[1] * (x.ndim - 1))
    return (x - low.view(shape)) / (high - low + _TINY).view(shape)


class Cues:
    """Gathers the products while the network runs."""

    def __init__(self, layers: CueLayers, frames: int, patches: int, device: torch.device) -> None:
        """
        Args:
            layers: which blocks are to be shown.
            frames: S of the window.
            patches: n of a frame.
            device: where the network computes.
        """
        self._layers = layers
        self._patches = patches
        mean = torch.zeros(frames, frames)
        for frame in range(frames):
            for source in sources_of(frame, frames):
                mean[frame, source] = 1 / len(sources_of(frame, frames))
        self._mean = mean.to(device)
        self._means: dict[str, Tensor] = {}
        self._products: dict[str, Tensor] = {}

    def wants(self, pair: int) -> bool:
        """Whether a global block is to be shown."""
        layers = self._layers
        return pair in (*layers.shallow, *layers.middle, *layers.deep, *layers.deep_spread)

    def show(self, pair: int, q: Tensor, k: Tensor) -> None:
        """Queries and keys (1, heads, S * N, head) of a global block; the patches are the last n of every N."""
        frames = len(self._mean)
        q, k = (torch.unflatten(x[0], 1, (frames, -1))[:, :, -self._patches :] for x in (q, k))
        layers = self._layers
        if pair in layers.shallow:
            self._add(self._means, "shallow", self._mean_product(k, k))
            self._add(self._products, "shallow", self._product(q, k))
        if pair in layers.middle:
            self._add(self._means, "middle", self._mean_product(q, q))
        if pair in layers.deep:
            self._add(self._means, "deep", self._mean_product(q, q))
        if pair in layers.deep_spread:
            self._add(self._products, "deep", self._product(q, q))

    def dynamic(self) -> Tensor:
        """(S, n) from 0 to 1 within each frame: how much a patch looks as if it moved. 0 in a window of one frame."""
        shallow, middle, deep = (normalised(self._means[name]) for name in ("shallow", "middle", "deep"))
        spread, deep_spread = (normalised(self._products[name].std(-1)) for name in ("shallow", "deep"))
        return normalised((1 - middle) * (1 - deep_spread) * deep * (1 - shallow) * spread)

    @staticmethod
    def _add(store: dict[str, Tensor], name: str, value: Tensor) -> None:
        # Sums instead of means over layers: what follows normalises.
        store[name] = store[name] + value if name in store else value

    def _mean_product(self, a: Tensor, b: Tensor) -> Tensor:
        """(S, n) of (heads, S, n, head): each patch's product with the patches of its frame's sources, on average."""
        other = torch.einsum("rs,hsd->hrd", self._mean, b.mean(2))
        return torch.einsum("hrnd,hrd->rn", a, other) / len(a)

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        """(S, n, n): each patch's product with every place in its frame's sources, averaged over heads and sources."""
        heads, frames, patches, head = b.shape
        other = (self._mean @ b.transpose(0, 1).flatten(1)).view(frames, heads, patches, head)
        return a.permute(1, 2, 0, 3).flatten(2) @ other.permute(0, 1, 3, 2).flatten(1, 2) / heads

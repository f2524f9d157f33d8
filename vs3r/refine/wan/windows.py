"""How frames become latent frames: padding, windows, masks and noise. Frames are counted from the start of a scene.

The VAE takes 4k + 1 frames to k + 1 latent frames: the first is of one frame, every other of four. So latent frame
j > 0 of a window that starts at a multiple of four covers the same frames as one of any other such window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FRAMES = 4
"""Frames in a latent frame, but for a window's first."""
PATCH = 2
"""Latent cells in a token of the transformer, each way."""
BUCKET_FRAMES = 16
"""Where shapes are to be few, windows are padded to one more than a multiple of this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The latents of a model."""

    channels: int
    """Of a latent frame."""
    cell_px: int
    """Pixels in a latent cell, each way."""

    @property
    def size_step(self) -> int:
        """Width and height of the model's pictures are multiples of this."""
        return self.cell_px * PATCH


A14B = Layout(channels=16, cell_px=8)
"""Two experts, which see noise, mask and render side by side."""
TI2V_5B = Layout(channels=48, cell_px=16)
"""One network, which sees the render in place of the noise where it is known, with a time for every token."""


def latent_count(frames: int) -> int:
    """Latent frames of a window: (frames - 1) / 4 + 1, rounded up, so that no frame is dropped."""
    return -(-(frames - 1) // FRAMES) + 1


def padded_length(frames: int) -> int:
    """The next length that the VAE takes wholly, 4k + 1."""
    return FRAMES * (latent_count(frames) - 1) + 1


def bucket_length(frames: int, window_frames: int) -> int:
    """A length of few, at least `frames`: one more than a multiple of BUCKET_FRAMES, or that of a whole window."""
    return min(BUCKET_FRAMES * -(-(frames - 1) // BUCKET_FRAMES) + 1, window_frames)


def working_size(width: int, height: int, pixels: int, layout: Layout = A14B) -> tuple[int, int]:
    """Width and height at about `pixels` pixels; the aspect ratio is kept, small pictures are not enlarged."""
    scale = min(1.0, (pixels / (width * height)) ** 0.5)
    return max(layout.size_step, round(width * scale)), max(layout.size_step, round(height * scale))


def padded_size(size: tuple[int, int], layout: Layout = A14B) -> tuple[int, int]:
    """Width and height that the model takes for pictures of a size."""
    step = layout.size_step
    return -(-size[0] // step) * step, -(-size[1] // step) * step


def fold_mask(known: npt.NDArray[np.bool_], layout: Layout = A14B) -> Tensor:
    """The mask as the model reads it: four frames to a latent frame, the first one four times.

    Args:
        known: (T, H, W), T = 4k + 1, H and W multiples of a cell's size; true where a pixel may be kept.
        layout: says how large a cell is.
    Returns:
        (1, 4, k + 1, H / cell, W / cell) float32: 1 where all pixels of a cell are known.
    """
    count, height, width = known.shape
    side = layout.cell_px
    cells = np.all(known.reshape(count, height // side, side, width // side, side), axis=(2, 4))
    quads = np.concatenate([np.repeat(cells[:1], FRAMES, axis=0), cells[1:]])
    folded = quads.reshape(-1, FRAMES, *cells.shape[1:]).swapaxes(0, 1)
    return torch.from_numpy(np.ascontiguousarray(folded, dtype=np.float32))[None]


def window_noise(shape: tuple[int, ...], *, seed: int, scene: int, first_latent: int) -> Tensor:
    """Noise for a window, (1, C, T, H, W): every latent frame has its own, which any window that holds it gets.

    Args:
        shape: (C, T, H, W).
        seed: the user's.
        scene: number of the scene in the stream.
        first_latent: number of the window's first latent frame in the scene.
    """
    channels, count, height, width = shape
    frames = [
        torch.randn((channels, height, width), generator=seeded(seed, scene, first_latent + j)) for j in range(count)
    ]
    return torch.stack(frames, dim=1)[None]


def seeded(*key: int) -> torch.Generator:
    """Random numbers of a stream that some numbers name."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))

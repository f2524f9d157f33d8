"""Pairs of a degraded and a clean clip, in latent space: what fine-tuning reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from vs3r.errors import InputError
from vs3r.refine.training.degrade import DegradedClip
from vs3r.refine.wan.pictures import model_mask, model_video, prefill, rgb_from_frame
from vs3r.refine.wan.windows import FRAMES, Layout, padded_length
from vs3r.types import Frame, PictureFormat, Plane

STORED = torch.float16
"""Latents are of the order of one: its rounding is 0.05 % of a value."""


class Encoder(Protocol):
    """See vs3r.refine.wan.model.VideoCodec."""

    def encode(self, video: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """A clip as refinement gets it, and as it should become. T latent frames, C channels."""

    clean: Tensor
    """(1, C, T, h, w) float32."""
    render: Tensor
    """(1, C, T, h, w) latents of the prefilled render, float32."""
    mask: Tensor
    """(1, 4, T, h, w) 1 where the render is called right, float32; see vs3r.refine.wan.windows.fold_mask."""

    def to(self, device: torch.device) -> Pair:
        """The same on a device."""
        return Pair(clean=self.clean.to(device), render=self.render.to(device), mask=self.mask.to(device))


def working_frame(frame: Frame, size: tuple[int, int]) -> Frame:
    """A frame at the model's size (width, height), as 8-bit RGB planes."""
    rgb = np.rint(255.0 * rgb_from_frame(frame, size)).astype(np.uint8)
    fmt = PictureFormat(
        pix_fmt="gbrp", width=size[0], height=size[1], bit_depth=8, chroma_shift=(0, 0), num_planes=3, is_rgb=True
    )
    planes = tuple(np.ascontiguousarray(rgb[..., i]) for i in (1, 2, 0))
    return replace(frame, format=fmt, planes=cast("tuple[Plane, ...]", planes))


@torch.no_grad()
def encode_pair(encoder: Encoder, clip: DegradedClip, layout: Layout) -> Pair:
    """Prefilled and encoded as for refinement itself."""
    fmt = clip.clean[0].format
    size = fmt.width, fmt.height
    given = [prefill(rendered, size) for rendered in clip.rendered]
    frames = padded_length(len(given))
    clean = model_video([rgb_from_frame(frame, size) for frame in clip.clean], frames, layout)
    return Pair(
        clean=encoder.encode(clean).float().cpu(),
        render=encoder.encode(model_video([one.rgb for one in given], frames, layout)).float().cpu(),
        mask=model_mask(given, frames, layout),
    )


def pack(pair: Pair) -> dict[str, Tensor]:
    """Tensors for a file."""
    return {
        "clean": pair.clean[0].to(STORED).contiguous(),
        "render": pair.render[0].to(STORED).contiguous(),
        "mask": pair.mask[0].to(torch.uint8).contiguous(),
    }


def unpack(tensors: dict[str, Tensor]) -> Pair:
    """The inverse.

    Raises:
        InputError: they are not those of a pair.
    """
    try:
        clean, render, mask = (tensors[name][None].float() for name in ("clean", "render", "mask"))
    except KeyError as error:
        raise InputError(f"expected the latents of a pair, got no {error}; make pairs anew") from None
    if clean.dim() != 5 or clean.shape != render.shape or mask.shape != (1, FRAMES, *clean.shape[2:]):
        shapes = ", ".join(str(tuple(value.shape[1:])) for value in (clean, render, mask))
        raise InputError(f"expected latents of one size and their mask, got {shapes}; make pairs anew")
    return Pair(clean=clean, render=render, mask=mask)

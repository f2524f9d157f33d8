"""Where the scene went between two frames, where it went further than an adjustment would find by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from vs3r.geometry import so3_exp

# Flow agrees on a shift if it lies about this near to it: in pixels, and of the shift, for perspective and roll make
# far ones differ over the picture.
ALIKE_PX = 8.0
ALIKE_SHARE = 0.25
# A shift this much other than the one before it is half as likely.
CHANGE_PX = 40.0
# About so many vectors are tried, from all over the picture, of those that are trusted more than this.
TRIED = 128
TRUSTED = 0.1


def shared_shift(source: Tensor, target: Tensor, weight: Tensor, before: Tensor) -> Tensor:
    """The shift of the scene, roughly: what flow agrees on all over the picture, and goes on from the frame before.

    Little flow is trusted in the blurred background of a whipped pan, and it may be less than that of somebody in the
    middle, whom the camera follows.

    Args:
        source: (2, P) points in pixels.
        target: (2, P) where they went.
        weight: (P,) trust in it.
        before: (2,) shift from the frame before, in pixels.
    Returns:
        (2,) float64; that from the frame before where no flow is trusted.
    """
    flow = target - source
    trusted = (weight > TRUSTED).nonzero().flatten()
    if not len(trusted):
        return before
    tried = flow[:, trusted[:: max(1, len(trusted) // TRIED)]].T
    alike = (ALIKE_SHARE * tried.norm(dim=1)).clamp_min(ALIKE_PX)
    off = (torch.cdist(tried, flow.T) / alike[:, None]).square_()
    support = weight / off.add_(1).square_()
    total = support.sum(1)
    at, at2 = ((support @ power.T) / total[:, None] for power in (source, source.square()))
    spread = (at2 - at.square()).clamp_min(0).prod(1).sqrt()
    change = (tried - before).square().sum(1)
    best = (total * spread / (1 + change / CHANGE_PX**2)).argmax()
    return tried[best].double()


def turn(shift: Tensor, focal: float) -> Tensor:
    """(3, 3) rotation of a camera of that focal length, in pixels, that shifts the picture's centre so, (2,)."""
    far = shift.norm().clamp_min(1e-9)
    axis = torch.stack([-shift[1], shift[0], torch.zeros_like(far)]) / far
    return so3_exp(axis * (far / focal).atan())

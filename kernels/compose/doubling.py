"""A picture doubled in size: what composing layers samples the frame itself from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vs3r.kernels.compose.layers import HALFWAY, PICTURES, PlaneLayout
from vs3r.kernels.dispatch import check_tensor


def doubled(picture: Tensor, planes: Sequence[PlaneLayout]) -> Tensor:
    """Put between a picture's pixels what lies halfway, so that it stays sharper when sampled. Not differentiable.

    Pixel (y, x) of a plane is found again at (2 y, 2 x). Halfway values are Lanczos's from eight pixels in a row, first
    down, then across; the border is repeated outward. Computed in float32; after each of the two passes integers are
    rounded, a half to the even one, and all is clipped to what the dtype holds, as OpenCV's filter2D does.

    Args:
        picture: (N,) uint8, uint16 or float16: all planes row by row, one after the other.
        planes: of the picture.
    Returns:
        (4 N,) likewise: planes of twice the rows and columns; same device and dtype.
    Raises:
        ShapeError: shape or dtype does not fit.
    """
    check_tensor("picture", picture, (sum(plane.size for plane in planes),), dtypes=PICTURES)
    out = picture.new_empty(4 * len(picture))
    begin = 0
    for plane in planes:
        end = begin + plane.size
        pixels = picture[begin:end].reshape(plane.rows, plane.columns)
        into = out[4 * begin : 4 * end].view(plane.rows, 2, plane.columns, 2)
        into[:, 0, :, 0] = pixels
        into[:, 1, :, 0] = _halfway(pixels, 0)
        into[..., 1] = _halfway(into[..., 0], 2)
        begin = end
    return out


def _halfway(pixels: Tensor, axis: int) -> Tensor:
    """Between each pixel and the next along an axis."""
    length, before = pixels.shape[axis], len(HALFWAY) // 2 - 1
    at = torch.arange(-before, length + before + 1, device=pixels.device).clamp(0, length - 1)
    wide = pixels.float().index_select(axis, at)
    total = torch.zeros(pixels.shape, device=pixels.device)
    # No convolution of PyTorch's: on a GPU it may compute in TF32.
    for tap, weight in enumerate(HALFWAY):
        total.add_(wide.narrow(axis, tap, length), alpha=weight)
    if pixels.dtype.is_floating_point:
        largest = torch.finfo(pixels.dtype).max
        return total.clamp_(-largest, largest).to(pixels.dtype)
    return total.round_().clamp_(0, torch.iinfo(pixels.dtype).max).to(torch.int32).to(pixels.dtype)

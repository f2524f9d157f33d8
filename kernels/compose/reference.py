"""The definition of composing layers in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vs3r.kernels.compose.layers import FAINT, HIDDEN, SEEN, SHARPNESS, Layers, PlaneLayout


def compose_layers_reference(layers: Layers, planes: Sequence[PlaneLayout], feather_px: float, peak: float) -> Tensor:
    """See vs3r.kernels.compose.compose_layers."""
    parts = []
    begin = 0
    for number, plane in enumerate(planes):
        own, *others = layers.pictures
        end = begin + plane.size
        pictures = [own[4 * begin : 4 * end].view(2 * plane.rows, 2 * plane.columns)]
        pictures += [other[begin:end].view(plane.rows, plane.columns) for other in others]
        offsets = None if layers.offsets is None else layers.offsets[:, number]
        mixed = _compose(layers, pictures, offsets, plane, feather_px, peak)
        parts.append(_converted(mixed.clamp(0, peak), pictures[0].dtype).flatten())
        begin = end
    return torch.cat(parts)


def _compose(
    layers: Layers,
    pictures: Sequence[Tensor],
    offsets: Tensor | None,
    plane: PlaneLayout,
    feather_px: float,
    peak: float,
) -> Tensor:
    """One plane (rows, columns), neither rounded nor clipped.

    Args:
        layers: the fields count.
        pictures: per layer, this plane; the first is doubled.
        offsets: (L - 1, R, C) of this plane.
        plane: its layout.
        feather_px: see compose_layers.
        peak: see compose_layers.
    """
    weight = torch.zeros(plane.rows, plane.columns, dtype=layers.x.dtype, device=layers.x.device)
    total = torch.zeros_like(weight)
    for number, picture in enumerate(pictures):
        x, y, opacity = (_expand(field[number], plane) for field in (layers.x, layers.y, layers.opacity))
        right, bottom = plane.columns * plane.scale_x - x, plane.rows * plane.scale_y - y
        depth = torch.minimum(torch.minimum(x, right), torch.minimum(y, bottom)) - layers.margin_px[number]
        alpha = _smoothstep(depth / feather_px).clamp_min(FAINT) * opacity * (depth > 0)
        if number == 0:
            alpha = torch.where(alpha > 0, torch.maximum(alpha, _expand(layers.keep, plane)), 0)
        through = 1 - weight
        alpha = torch.where(through > HIDDEN, alpha * through, 0)
        at = alpha > 0
        across, down = x[at] / plane.scale_x - 0.5, y[at] / plane.scale_y - 0.5
        if number == 0:
            across, down = 2 * across, 2 * down
        colour = _bicubic(picture, across, down).clamp(0, peak)
        if offsets is not None and number > 0:
            colour += _expand(offsets[number - 1], plane)[at]
        total[at] += alpha[at] * colour
        weight += alpha
    seen = weight > SEEN
    return torch.where(seen, total / torch.where(seen, weight, 1), plane.empty)


def _expand(field: Tensor, plane: PlaneLayout) -> Tensor:
    """A node field (R, C), interpolated to the pixels of a plane."""
    for axis, (length, step) in enumerate(((plane.rows, plane.step_y), (plane.columns, plane.step_x))):
        at = (torch.arange(length, dtype=field.dtype, device=field.device) + 0.5) / step + 0.5
        before = at.long()
        share = (at - before).unsqueeze(1 - axis)
        field = torch.lerp(field.index_select(axis, before), field.index_select(axis, before + 1), share)
    return field


def _smoothstep(x: Tensor) -> Tensor:
    """0 up to x = 0, 1 from x = 1, smooth between."""
    t = x.clamp(0, 1)
    return t * t * (3 - 2 * t)


def _converted(values: Tensor, dtype: torch.dtype) -> Tensor:
    """As the pictures' dtype, integers rounded."""
    return values.to(dtype) if dtype.is_floating_point else (values + 0.5).floor().to(torch.int32).to(dtype)


def _bicubic(picture: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A picture (H, W) at positions (M,), the first centre at 0: (M,) of the positions' dtype."""
    H, W = picture.shape
    # PyTorch has no indexing for uint16.
    flat = (picture.view(torch.int16) if picture.dtype == torch.uint16 else picture).flatten()
    # Two pixels outside, all that is repeated is the border.
    x, y = x.clamp(-2, W + 1), y.clamp(-2, H + 1)
    left, top = x.floor(), y.floor()
    across, down = _weights(x - left), _weights(y - top)
    total = torch.zeros_like(x)
    for i in range(4):
        row = (top.long() + i - 1).clamp(0, H - 1) * W
        line = torch.zeros_like(total)
        for j in range(4):
            tap = flat[row + (left.long() + j - 1).clamp(0, W - 1)]
            tap = tap.to(torch.int32) & 0xFFFF if picture.dtype == torch.uint16 else tap
            line += across[j] * tap.to(x.dtype)
        total += down[i] * line
    return total


def _weights(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the four pixels around a position that lies a share t beyond the second (Keys 1981)."""
    a, s = SHARPNESS, 1 - t
    return (
        a * t * s * s,
        1 + t * t * ((a + 2) * t - (a + 3)),
        1 + s * s * ((a + 2) * s - (a + 3)),
        a * s * t * t,
    )

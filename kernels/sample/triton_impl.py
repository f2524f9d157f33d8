"""Backward sampling in one pass: find each pixel's source, then its sixteen neighbours there."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vs3r.kernels.camera import View
from vs3r.kernels.camera.triton_impl import lens, unproject
from vs3r.kernels.sample import reference
from vs3r.kernels.sample.reference import Sampled, SamplePictures

BLOCK = 256
SHARPNESS = tl.constexpr(reference.SHARPNESS)
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def _on_cells(cells, x, y, height, width, within):
    """Cells interpolated linearly between their centres, at positions in [0, 1]."""
    gx = tl.minimum(tl.maximum(tl.where(within, x, 0.0) * width - 0.5, 0.0), width - 1.0)
    gy = tl.minimum(tl.maximum(tl.where(within, y, 0.0) * height - 0.5, 0.0), height - 1.0)
    left = gx.to(tl.int32)
    top = gy.to(tl.int32)
    right = tl.minimum(left + 1, width - 1)
    bottom = tl.minimum(top + 1, height - 1)
    x_share = gx - left
    y_share = gy - top
    a = tl.load(cells + top * width + left, within, other=0.0).to(tl.float32)
    b = tl.load(cells + top * width + right, within, other=0.0).to(tl.float32)
    c = tl.load(cells + bottom * width + left, within, other=0.0).to(tl.float32)
    d = tl.load(cells + bottom * width + right, within, other=0.0).to(tl.float32)
    above = a + (b - a) * x_share
    below = c + (d - c) * x_share
    return above + (below - above) * y_share


@triton.jit
def _weight(t, TAP: tl.constexpr):
    """Of the four pixels around a position that lies a share t beyond the second."""
    s = 1 - t
    if TAP == 0:
        return SHARPNESS * t * s * s
    if TAP == 1:
        return 1 + t * t * ((SHARPNESS + 2) * t - (SHARPNESS + 3))
    if TAP == 2:
        return 1 + s * s * ((SHARPNESS + 2) * s - (SHARPNESS + 3))
    return SHARPNESS * s * t * t


@triton.jit
def sample_kernel(
    inv_depth, pictures, K_source, source_from_view, source_depth, dynamic, picture_out, source_out, K,
    p0, p1, p2, p3, limit, margin, tolerance, least, peak,
    view_height, view_width, height, width, depth_height, depth_width, source_depth_height, source_depth_width, count,
    HAS_DYNAMIC: tl.constexpr, INTEGER: tl.constexpr, CHANNELS: tl.constexpr, MODEL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    target = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    within = target < view_height * view_width
    u = target % view_width + 0.5
    v = target // view_width + 0.5
    rho = _on_cells(inv_depth, u / view_width, v / view_height, depth_height, depth_width, within)
    ray_x, ray_y, ray_z, visible = unproject(u, v, K, p0, p1, p2, p3, limit, MODEL)
    missing = within & visible & (rho >= 0) & (rho < INFINITY)
    rho = tl.where(missing, rho, 0.0)
    source = tl.full((BLOCK,), -1, tl.int32)
    at_x = tl.zeros((BLOCK,), tl.float32)
    at_y = tl.zeros((BLOCK,), tl.float32)
    for number in range(count):
        # Where the frame itself sees all, its neighbours are not looked at.
        if tl.max(missing.to(tl.int32), 0) > 0:
            # The pose of the source's middle row: a rolling shutter iterates from here with that of the row found.
            T = source_from_view + number * 12
            L = K_source + number * 9
            x = tl.load(T) * ray_x + tl.load(T + 1) * ray_y + tl.load(T + 2) * ray_z + tl.load(T + 3) * rho
            y = tl.load(T + 4) * ray_x + tl.load(T + 5) * ray_y + tl.load(T + 6) * ray_z + tl.load(T + 7) * rho
            z = tl.load(T + 8) * ray_x + tl.load(T + 9) * ray_y + tl.load(T + 10) * ray_z + tl.load(T + 11) * rho
            ahead = missing & (z > 0)
            z = tl.where(ahead, z, 1.0)
            x /= z
            y /= z
            x = tl.load(L) * x + tl.load(L + 1) * y + tl.load(L + 2)
            y = tl.load(L + 4) * y + tl.load(L + 5)
            sees = ahead & (x >= margin) & (width - x >= margin) & (y >= margin) & (height - y >= margin)
            cells = source_depth_height * source_depth_width * number
            surface = _on_cells(
                source_depth + cells, x / width, y / height, source_depth_height, source_depth_width, sees
            )
            sees &= surface <= rho / z * (1 + tolerance)
            if HAS_DYNAMIC:
                row = tl.where(sees, y / height * source_depth_height, 0.0)
                column = tl.where(sees, x / width * source_depth_width, 0.0)
                row = tl.minimum(tl.maximum(row, 0.0).to(tl.int32), source_depth_height - 1)
                column = tl.minimum(tl.maximum(column, 0.0).to(tl.int32), source_depth_width - 1)
                moves = tl.load(dynamic + cells + row * source_depth_width + column, sees, other=0) != 0
                sees &= (number == 0) | (moves == 0)
            source = tl.where(sees, number, source)
            at_x = tl.where(sees, x, at_x)
            at_y = tl.where(sees, y, at_y)
            missing &= sees == 0
    shown = source >= 0
    left = tl.floor(at_x - 0.5)
    top = tl.floor(at_y - 0.5)
    x_share = at_x - 0.5 - left
    y_share = at_y - 0.5 - top
    first = tl.maximum(source, 0).to(tl.int64) * height
    for channel in tl.static_range(CHANNELS):
        total = tl.zeros((BLOCK,), tl.float32)
        for i in tl.static_range(4):
            row = tl.minimum(tl.maximum(top.to(tl.int32) + (i - 1), 0), height - 1)
            line = tl.zeros((BLOCK,), tl.float32)
            for j in tl.static_range(4):
                column = tl.minimum(tl.maximum(left.to(tl.int32) + (j - 1), 0), width - 1)
                at = ((first + row) * width + column) * CHANNELS + channel
                line += _weight(x_share, j) * tl.load(pictures + at, shown, other=0).to(tl.float32)
            total += _weight(y_share, i) * line
        if INTEGER:
            total = tl.floor(total + 0.5)
        total = tl.where(shown, tl.minimum(tl.maximum(total, least), peak), 0.0)
        if INTEGER:
            total = total.to(tl.int32)
        at = target.to(tl.int64) * CHANNELS + channel
        tl.store(picture_out + at, total.to(picture_out.dtype.element_ty), within)
    tl.store(source_out + target, source, within)


def sample_backward_triton(
    inv_depth: Tensor, view: View, sources: SamplePictures, margin_px: float, depth_tolerance: float
) -> Sampled:
    """See vs3r.kernels.sample.sample_backward; arguments are checked there."""
    count, height, width, channels = sources.pictures.shape
    shape, device = (view.height, view.width), inv_depth.device
    picture = torch.empty(*shape, channels, dtype=sources.pictures.dtype, device=device)
    source = torch.empty(shape, dtype=torch.int32, device=device)
    T = view.from_sources(sources.cameras)
    turn = T[:, :3, :3].mT
    source_from_view = torch.cat([turn, -turn @ T[:, :3, 3:]], -1).float().contiguous()
    dynamic = None if sources.dynamic is None else sources.dynamic.contiguous().view(torch.uint8)
    size = view.height * view.width
    sample_kernel[(triton.cdiv(size, BLOCK),)](
        inv_depth.contiguous(), sources.pictures.contiguous(), sources.cameras.K.float().contiguous(), source_from_view,
        sources.inv_depth.contiguous(), dynamic, picture, source, view.K.float().contiguous(),
        *lens(view), margin_px, depth_tolerance, *sources.range,
        *shape, height, width, *inv_depth.shape, *sources.inv_depth.shape[1:], count,
        HAS_DYNAMIC=dynamic is not None, INTEGER=not picture.dtype.is_floating_point, CHANNELS=channels,
        MODEL=view.number, BLOCK=BLOCK,
    )  # fmt: skip
    return Sampled(picture=picture, source=source)

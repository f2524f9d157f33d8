"""Backward sampling in one pass: find each pixel's source, then its sixteen neighbours there."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vs3r.kernels.camera import View
from vs3r.kernels.camera.triton_impl import lens, relative, unproject
from vs3r.kernels.sample import reference
from vs3r.kernels.sample.reference import Sampled, SamplePictures

ROWS, COLUMNS = 4, 128
"""Of a program's tile of the view."""
SHARPNESS = tl.constexpr(reference.SHARPNESS)
ROW_STEPS = tl.constexpr(reference.ROW_STEPS)
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def _on_cells(cells, x, y, per_x, per_y, height, width, asked):
    """Cells (height, width), interpolated linearly between their centres, at positions; per_x and per_y cells each."""
    # Of NaN and zero the larger is zero.
    gx = tl.minimum(tl.maximum(x * per_x - 0.5, 0.0), width - 1.0)
    gy = tl.minimum(tl.maximum(y * per_y - 0.5, 0.0), height - 1.0)
    left = gx.to(tl.int32)
    top = gy.to(tl.int32)
    right = tl.minimum(left + 1, width - 1)
    upper = cells + top * width
    lower = cells + tl.minimum(top + 1, height - 1) * width
    a = tl.load(upper + left, asked).to(tl.float32)
    b = tl.load(upper + right, asked).to(tl.float32)
    c = tl.load(lower + left, asked).to(tl.float32)
    d = tl.load(lower + right, asked).to(tl.float32)
    above = a + (b - a) * (gx - left)
    below = c + (d - c) * (gx - left)
    return above + (below - above) * (gy - top)


@triton.jit
def _entry(T, above, below, share, NUMBER: tl.constexpr, ROLLING: tl.constexpr):
    """A number of a pose; of a rolling shutter between those of two rows."""
    value = tl.load(T + above * 12 + NUMBER)
    if ROLLING:
        value += (tl.load(T + below * 12 + NUMBER) - value) * share
    return value


@triton.jit
def _land(T, L, ray_x, ray_y, ray_z, rho, row, height, ROLLING: tl.constexpr):
    """Where points lie in a source's picture as the camera of a row sees them, and their depth there times rho."""
    above, below, share = 0, 0, 0.0
    if ROLLING:
        at = tl.minimum(tl.maximum(row - 0.5, 0.0), height - 1.0)
        above = at.to(tl.int32)
        below = tl.minimum(above + 1, height - 1)
        share = at - above
    x = _entry(T, above, below, share, 0, ROLLING) * ray_x + _entry(T, above, below, share, 3, ROLLING) * rho
    y = _entry(T, above, below, share, 4, ROLLING) * ray_x + _entry(T, above, below, share, 7, ROLLING) * rho
    z = _entry(T, above, below, share, 8, ROLLING) * ray_x + _entry(T, above, below, share, 11, ROLLING) * rho
    # Of a pinhole view the rest depends on the row alone.
    x += _entry(T, above, below, share, 1, ROLLING) * ray_y + _entry(T, above, below, share, 2, ROLLING) * ray_z
    y += _entry(T, above, below, share, 5, ROLLING) * ray_y + _entry(T, above, below, share, 6, ROLLING) * ray_z
    z += _entry(T, above, below, share, 9, ROLLING) * ray_y + _entry(T, above, below, share, 10, ROLLING) * ray_z
    per_z = 1 / tl.where(z > 0, z, 1.0)
    x *= per_z
    y *= per_z
    return tl.load(L) * x + tl.load(L + 1) * y + tl.load(L + 2), tl.load(L + 4) * y + tl.load(L + 5), z, per_z


@triton.jit
def _weights(t):
    """Of the four pixels around a position that lies a share t beyond the second."""
    s = 1 - t
    outer = SHARPNESS * t * s
    first = outer * s
    last = outer * t
    second = 1 + t * t * ((SHARPNESS + 2) * t - (SHARPNESS + 3))
    return first, second, 1 - first - second - last, last


@triton.jit
def _line(row, c0, c1, c2, c3, w0, w1, w2, w3):
    """Four taps of a row of the picture."""
    line = w0 * tl.load(row + c0).to(tl.float32)
    line += w1 * tl.load(row + c1).to(tl.float32)
    line += w2 * tl.load(row + c2).to(tl.float32)
    return line + w3 * tl.load(row + c3).to(tl.float32)


@triton.jit
def sample_kernel(
    inv_depth, pictures, K_source, source_from_view, source_depth, dynamic, picture_out, source_out, K,
    p0, p1, p2, p3, limit, margin, tolerance, least, peak, depth_per_x, depth_per_y, cells_per_x, cells_per_y,
    view_height, view_width, height, width, depth_height, depth_width, source_depth_height, source_depth_width, count,
    HAS_DYNAMIC: tl.constexpr, ROLLING: tl.constexpr, INTEGER: tl.constexpr, CHANNELS: tl.constexpr,
    MODEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    # What depends on the row alone is computed once a row.
    view_row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    within = (view_row < view_height) & (column < view_width)
    u = column + 0.5
    v = view_row + 0.5
    rho = _on_cells(inv_depth, u, v, depth_per_x, depth_per_y, depth_height, depth_width, within)
    ray_x, ray_y, ray_z, visible = unproject(u, v, K, p0, p1, p2, p3, limit, MODEL)
    missing = within & visible & (rho >= 0) & (rho < INFINITY)
    rho = tl.where(missing, rho, 0.0)
    source = tl.full((ROWS, COLUMNS), -1, tl.int32)
    at_x = tl.zeros((ROWS, COLUMNS), tl.float32)
    at_y = tl.zeros((ROWS, COLUMNS), tl.float32)
    for number in range(count):
        # Where the frame itself sees all, its neighbours are not looked at.
        if tl.max(missing.to(tl.int32)) > 0:
            T = source_from_view + number * 12 * (height if ROLLING else 1)
            L = K_source + number * 9
            middle = tl.zeros((ROWS, COLUMNS), tl.float32) + height * 0.5
            x, y, z, per_z = _land(T, L, ray_x, ray_y, ray_z, rho, middle, height, ROLLING)
            if ROLLING:
                for _ in tl.static_range(ROW_STEPS):
                    x, y, z, per_z = _land(T, L, ray_x, ray_y, ray_z, rho, y, height, ROLLING)
            sees = missing & (z > 0)
            sees &= (x >= margin) & (width - x >= margin) & (y >= margin) & (height - y >= margin)
            cells = tl.full((), source_depth_height, tl.int64) * source_depth_width * number
            surface = _on_cells(
                source_depth + cells, x, y, cells_per_x, cells_per_y, source_depth_height, source_depth_width, sees
            )
            sees &= surface <= rho * per_z * (1 + tolerance)
            if HAS_DYNAMIC:
                row = tl.minimum(tl.maximum(y * cells_per_y, 0.0), source_depth_height - 1.0).to(tl.int32)
                cell = tl.minimum(tl.maximum(x * cells_per_x, 0.0), source_depth_width - 1.0).to(tl.int32)
                moves = tl.load(dynamic + cells + row * source_depth_width + cell, sees) != 0
                sees &= (number == 0) | (moves == 0)
            source = tl.where(sees, number, source)
            at_x = tl.where(sees, x, at_x)
            at_y = tl.where(sees, y, at_y)
            missing &= sees == 0
    shown = source >= 0
    # Where nothing is shown the first picture's corner is read.
    left = tl.floor(at_x - 0.5)
    top = tl.floor(at_y - 0.5)
    w0, w1, w2, w3 = _weights(at_x - 0.5 - left)
    v0, v1, v2, v3 = _weights(at_y - 0.5 - top)
    left = left.to(tl.int32)
    top = top.to(tl.int32)
    c0 = tl.minimum(tl.maximum(left - 1, 0), width - 1) * CHANNELS
    c1 = tl.minimum(tl.maximum(left, 0), width - 1) * CHANNELS
    c2 = tl.minimum(tl.maximum(left + 1, 0), width - 1) * CHANNELS
    c3 = tl.minimum(tl.maximum(left + 2, 0), width - 1) * CHANNELS
    stride = width * CHANNELS
    whole = pictures + tl.maximum(source, 0).to(tl.int64) * height * stride
    r0 = whole + tl.minimum(tl.maximum(top - 1, 0), height - 1) * stride
    r1 = whole + tl.minimum(tl.maximum(top, 0), height - 1) * stride
    r2 = whole + tl.minimum(tl.maximum(top + 1, 0), height - 1) * stride
    r3 = whole + tl.minimum(tl.maximum(top + 2, 0), height - 1) * stride
    target = view_row.to(tl.int64) * view_width + column
    for channel in tl.static_range(CHANNELS):
        total = v0 * _line(r0 + channel, c0, c1, c2, c3, w0, w1, w2, w3)
        total += v1 * _line(r1 + channel, c0, c1, c2, c3, w0, w1, w2, w3)
        total += v2 * _line(r2 + channel, c0, c1, c2, c3, w0, w1, w2, w3)
        total += v3 * _line(r3 + channel, c0, c1, c2, c3, w0, w1, w2, w3)
        if INTEGER:
            total = tl.floor(total + 0.5)
        total = tl.where(shown, tl.minimum(tl.maximum(total, least), peak), 0.0)
        if INTEGER:
            total = total.to(tl.int32)
        tl.store(picture_out + target * CHANNELS + channel, total.to(picture_out.dtype.element_ty), within)
    tl.store(source_out + target, source, within)


def sample_backward_triton(
    inv_depth: Tensor, view: View, sources: SamplePictures, margin_px: float, depth_tolerance: float
) -> Sampled:
    """See vs3r.kernels.sample.sample_backward; arguments are checked there."""
    count, height, width, channels = sources.pictures.shape
    (depth_height, depth_width), (_, cells_height, cells_width) = inv_depth.shape, sources.inv_depth.shape
    shape, device = (view.height, view.width), inv_depth.device
    picture = torch.empty(*shape, channels, dtype=sources.pictures.dtype, device=device)
    source = torch.empty(shape, dtype=torch.int32, device=device)
    source_from_view = relative(sources.cameras.cam_from_world, view.cam_from_world)
    dynamic = None if sources.dynamic is None else sources.dynamic.contiguous().view(torch.uint8)
    sample_kernel[(triton.cdiv(view.width, COLUMNS), triton.cdiv(view.height, ROWS))](
        inv_depth.contiguous(), sources.pictures.contiguous(), sources.cameras.K.float().contiguous(), source_from_view,
        sources.inv_depth.contiguous(), dynamic, picture, source, view.K.float().contiguous(),
        *lens(view), margin_px, depth_tolerance, *sources.range,
        depth_width / view.width, depth_height / view.height, cells_width / width, cells_height / height,
        *shape, height, width, depth_height, depth_width, cells_height, cells_width, count,
        HAS_DYNAMIC=dynamic is not None, ROLLING=sources.cameras.rolling, INTEGER=not picture.dtype.is_floating_point,
        CHANNELS=channels, MODEL=view.number, ROWS=ROWS, COLUMNS=COLUMNS,
    )  # fmt: skip
    return Sampled(picture=picture, source=source)

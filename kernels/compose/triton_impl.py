"""Composing layers in one pass over the pixels: a program draws a strip of a few rows between two rows of nodes."""

from __future__ import annotations

import functools
import itertools

import torch
import triton
import triton.language as tl
from torch import Tensor

from vs3r.kernels.compose import layers as definition
from vs3r.kernels.compose.layers import MAX_LAYERS, Layers, PlaneLayout

COLUMNS = 32
"""Pixels of a strip's row: one a thread."""
ROWS = 4
"""Of a strip, at most. Where several layers meet a row takes a warp microseconds, and the last strip to be done is what
the picture takes: with all rows between two rows of nodes and 128 columns a strip, 98 us on an H200, now 35. One row
after the other, so that the taps of the next are at hand: four rows at once took 59."""
SHARPNESS = tl.constexpr(definition.SHARPNESS)
FAINT = tl.constexpr(definition.FAINT)
HIDDEN = tl.constexpr(definition.HIDDEN)
SEEN = tl.constexpr(definition.SEEN)
NUMBERS = tl.constexpr(8)
"""Of a plane in the table."""
INSIDE_PX = tl.constexpr(2.0)
"""So far from the border no tap of the cubic kernel leaves the picture."""


@triton.jit
def _ends(field, left, share, nodes):
    """A node field at a row of nodes and at the next one, interpolated across."""
    a = tl.load(field + left)
    b = tl.load(field + left + 1)
    c = tl.load(field + nodes + left)
    d = tl.load(field + nodes + left + 1)
    return a + (b - a) * share, c + (d - c) * share


@triton.jit
def _depth(x, y, width, height):
    """Distance to the border of a picture, positive inside."""
    return tl.minimum(tl.minimum(x, width - x), tl.minimum(y, height - y))


@triton.jit
def _alpha(depth, opacity, per_feather):
    """Opacity with the ramp inside the source's border; depth is counted from where it begins."""
    t = tl.minimum(tl.maximum(depth * per_feather, 0.0), 1.0)
    return tl.where(depth > 0, tl.maximum(t * t * (3 - 2 * t), FAINT) * opacity, 0.0)


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
def _sample(picture, x, y, rows, columns, peak, INSIDE: tl.constexpr):
    """A plane at positions (the first centre at 0), clipped; INSIDE promises that no tap leaves it."""
    if not INSIDE:
        # Two pixels outside, all that is repeated is the border.
        x = tl.minimum(tl.maximum(x, -2.0), columns + 1.0)
        y = tl.minimum(tl.maximum(y, -2.0), rows + 1.0)
    left = tl.floor(x)
    top = tl.floor(y)
    w0, w1, w2, w3 = _weights(x - left)
    v0, v1, v2, v3 = _weights(y - top)
    left = left.to(tl.int32)
    top = top.to(tl.int32)
    if INSIDE:
        r1 = picture + (top * columns + left)
        r0 = r1 - columns
        r2 = r1 + columns
        r3 = r2 + columns
        total = v0 * _line(r0, -1, 0, 1, 2, w0, w1, w2, w3)
        total += v1 * _line(r1, -1, 0, 1, 2, w0, w1, w2, w3)
        total += v2 * _line(r2, -1, 0, 1, 2, w0, w1, w2, w3)
        total += v3 * _line(r3, -1, 0, 1, 2, w0, w1, w2, w3)
    else:
        c0 = tl.minimum(tl.maximum(left - 1, 0), columns - 1)
        c1 = tl.minimum(tl.maximum(left, 0), columns - 1)
        c2 = tl.minimum(tl.maximum(left + 1, 0), columns - 1)
        c3 = tl.minimum(tl.maximum(left + 2, 0), columns - 1)
        r0 = picture + tl.minimum(tl.maximum(top - 1, 0), rows - 1) * columns
        r1 = picture + tl.minimum(tl.maximum(top, 0), rows - 1) * columns
        r2 = picture + tl.minimum(tl.maximum(top + 1, 0), rows - 1) * columns
        r3 = picture + tl.minimum(tl.maximum(top + 2, 0), rows - 1) * columns
        total = v0 * _line(r0, c0, c1, c2, c3, w0, w1, w2, w3)
        total += v1 * _line(r1, c0, c1, c2, c3, w0, w1, w2, w3)
        total += v2 * _line(r2, c0, c1, c2, c3, w0, w1, w2, w3)
        total += v3 * _line(r3, c0, c1, c2, c3, w0, w1, w2, w3)
    return tl.minimum(tl.maximum(total, 0.0), peak)


@triton.jit
def _store(out, value, within, INTEGER: tl.constexpr):
    """Values in [0, peak], integers rounded."""
    if INTEGER:
        value = (value + 0.5).to(tl.int32)
    tl.store(out, value.to(out.dtype.element_ty), within)


@triton.jit
def _picture(p0, p1, p2, p3, p4, p5, p6, p7, p8, number):
    """The picture of a layer."""
    p = tl.where(number == 1, p1, p0)
    p = tl.where(number == 2, p2, p)
    p = tl.where(number == 3, p3, p)
    p = tl.where(number == 4, p4, p)
    p = tl.where(number == 5, p5, p)
    p = tl.where(number == 6, p6, p)
    p = tl.where(number == 7, p7, p)
    return tl.where(number == 8, p8, p)


@triton.jit(
    do_not_specialize=["count"], do_not_specialize_on_alignment=["x", "y", "opacity", "margin", "keep", "offsets"]
)
def compose_kernel(
    p0, p1, p2, p3, p4, p5, p6, p7, p8, x, y, opacity, margin, keep, offsets, table, out,
    per_feather, peak, count, nodes_y, nodes_x, parts,
    HAS_OFFSETS: tl.constexpr, INTEGER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    plane = tl.program_id(2)
    numbers = table + plane * NUMBERS
    begin = tl.load(numbers)
    rows = tl.load(numbers + 1)
    columns = tl.load(numbers + 2)
    step_y = tl.load(numbers + 3)
    step_x = tl.load(numbers + 4)
    scale_y = tl.load(numbers + 5)
    scale_x = tl.load(numbers + 6)
    empty = tl.load(numbers + 7).to(tl.float32)
    if tl.program_id(0) * COLUMNS >= columns:
        return
    out += begin
    width = (columns * scale_x).to(tl.float32)
    height = (rows * scale_y).to(tl.float32)
    per_x = 1.0 / scale_x
    per_y = 1.0 / scale_y
    # The frame itself is doubled: 4 pixels for one, and twice the position, 2 (x / scale - 0.5).
    own = p0 + 4 * begin
    own_rows = 2 * rows
    own_columns = 2 * columns
    own_x = 2 * per_x
    own_y = 2 * per_y
    # Between two rows of nodes a column's fields are linear: two values a field describe the strip.
    above = tl.program_id(1) // parts
    begins = above * step_y - step_y // 2 + tl.program_id(1) % parts * ROWS
    first = tl.maximum(begins, 0)
    last = tl.minimum(tl.minimum(begins + ROWS, above * step_y + step_y // 2), rows)
    if first >= last:
        return
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    within = column < columns
    across = (tl.minimum(column, columns - 1) + 0.5) * (1.0 / step_x) + 0.5
    left = across.to(tl.int32)
    share = across - left
    node = above * nodes_x
    x_top, x_low = _ends(x + node, left, share, nodes_x)
    y_top, y_low = _ends(y + node, left, share, nodes_x)
    opacity_top, opacity_low = _ends(opacity + node, left, share, nodes_x)
    keep_top, keep_low = _ends(keep + node, left, share, nodes_x)
    # The distance to the border is concave: nowhere in the strip is it less than at the ends of its columns.
    depth = tl.minimum(_depth(x_top, y_top, width, height), _depth(x_low, y_low, width, height))
    start = tl.load(margin)
    ramped = (depth - start) * per_feather < 1
    solid = tl.minimum(opacity_top, opacity_low)
    kept = (tl.minimum(keep_top, keep_low) >= 1) & (solid > 0)
    opaque = (depth > start) & (kept | ((ramped == 0) & (solid >= 1)))
    opaque &= depth >= tl.maximum(scale_x, scale_y) * INSIDE_PX
    if tl.min(opaque.to(tl.int32)) > 0:
        for row in range(first, last):
            down = (row + 0.5) * (1.0 / step_y) + 0.5 - above
            at_x = (x_top + (x_low - x_top) * down) * own_x - 1
            at_y = (y_top + (y_low - y_top) * down) * own_y - 1
            value = _sample(own, at_x, at_y, own_rows, own_columns, peak, True)
            _store(out + row * columns + column, value, within, INTEGER)
    else:
        shows = 0
        for number in range(1, count):
            field = (number * nodes_y + above) * nodes_x
            a, b = _ends(x + field, left, share, nodes_x)
            c, d = _ends(y + field, left, share, nodes_x)
            e, f = _ends(opacity + field, left, share, nodes_x)
            rim = tl.load(margin + number)
            reach = tl.minimum(tl.maximum(a, b), width - tl.minimum(a, b))
            reach = tl.minimum(reach, tl.minimum(tl.maximum(c, d), height - tl.minimum(c, d)))
            seen = (reach > rim) & (tl.maximum(e, f) > 0)
            shows += tl.max(seen.to(tl.int32)) << number
        for row in range(first, last):
            down = (row + 0.5) * (1.0 / step_y) + 0.5 - above
            at_x = x_top + (x_low - x_top) * down
            at_y = y_top + (y_low - y_top) * down
            solid = opacity_top + (opacity_low - opacity_top) * down
            weight = _alpha(_depth(at_x, at_y, width, height) - start, solid, per_feather)
            weight = tl.where(weight > 0, tl.maximum(weight, keep_top + (keep_low - keep_top) * down), 0.0)
            value = _sample(own, at_x * own_x - 1, at_y * own_y - 1, own_rows, own_columns, peak, False)
            total = weight * value
            for number in range(1, count):
                through = 1 - weight
                if ((shows >> number) & 1) & (tl.max(through) > HIDDEN).to(tl.int32):
                    field = (number * nodes_y + above) * nodes_x
                    a, b = _ends(x + field, left, share, nodes_x)
                    c, d = _ends(y + field, left, share, nodes_x)
                    e, f = _ends(opacity + field, left, share, nodes_x)
                    at_x = a + (b - a) * down
                    at_y = c + (d - c) * down
                    behind = _depth(at_x, at_y, width, height) - tl.load(margin + number)
                    alpha = _alpha(behind, e + (f - e) * down, per_feather)
                    alpha = tl.where(through > HIDDEN, alpha * through, 0.0)
                    source = _picture(p0, p1, p2, p3, p4, p5, p6, p7, p8, number) + begin
                    value = _sample(source, at_x * per_x - 0.5, at_y * per_y - 0.5, rows, columns, peak, False)
                    if HAS_OFFSETS:
                        entry = ((number - 1) * tl.num_programs(2) + plane) * nodes_y + above
                        a, b = _ends(offsets + entry * nodes_x, left, share, nodes_x)
                        value += a + (b - a) * down
                    total += alpha * value
                    weight += alpha
            value = tl.where(weight > SEEN, total / tl.where(weight > SEEN, weight, 1.0), empty)
            value = tl.minimum(tl.maximum(value, 0.0), peak)
            _store(out + row * columns + column, value, within, INTEGER)


@functools.lru_cache(maxsize=16)
def _table(planes: tuple[PlaneLayout, ...], device: torch.device) -> Tensor:
    """(planes, 8) int32 what the kernel knows of the planes."""
    begins = itertools.accumulate((plane.size for plane in planes[:-1]), initial=0)
    numbers = [
        (begin, p.rows, p.columns, p.step_y, p.step_x, p.scale_y, p.scale_x, p.empty)
        for begin, p in zip(begins, planes, strict=True)
    ]
    return torch.tensor(numbers, dtype=torch.int32, device=device)


def compose_layers_triton(layers: Layers, planes: tuple[PlaneLayout, ...], feather_px: float, peak: float) -> Tensor:
    """See vs3r.kernels.compose.compose_layers; arguments are checked there."""
    count, nodes_y, nodes_x = layers.x.shape
    pictures = [picture.contiguous() for picture in layers.pictures]
    out = pictures[0].new_empty(sum(plane.size for plane in planes))
    fields = (layers.x, layers.y, layers.opacity, layers.margin_px, layers.keep)
    parts = triton.cdiv(max(plane.step_y for plane in planes), ROWS)
    compose_kernel[(triton.cdiv(max(plane.columns for plane in planes), COLUMNS), (nodes_y - 1) * parts, len(planes))](
        *pictures, *pictures[:1] * (MAX_LAYERS - count), *(field.contiguous() for field in fields),
        None if layers.offsets is None else layers.offsets.contiguous(), _table(planes, out.device), out,
        1 / feather_px, peak, count, nodes_y, nodes_x, parts,
        HAS_OFFSETS=layers.offsets is not None, INTEGER=not out.dtype.is_floating_point, ROWS=ROWS, COLUMNS=COLUMNS,
        num_warps=1,
    )  # fmt: skip
    return out

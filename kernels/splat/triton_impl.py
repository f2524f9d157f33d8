"""Splatting in Triton: points are unprojected in the kernel and reduced into the view by integer atomics.

Here the nearest surface; triton_discs.py lays discs over one another.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vs3r.kernels.camera import View
from vs3r.kernels.splat import points as definition
from vs3r.kernels.splat.points import Alpha, DepthPoints, Nearest, Splat, WorldPoints
from vs3r.kernels.splat.triton_discs import draw_discs
from vs3r.kernels.splat.triton_place import arguments, depth_of, key_of, place, store_source

BLOCK = 1024
"""Pixels or values a program."""
STRIP = 2
"""Rows a thread sums up, one after the other. Of the pixels of a source it takes four neighbours at a time, and of each
the corner of its footprint that points to the other three: most often that is the same pixel, and one atomic does for
four. Points given by coordinates have no neighbours: of each it takes all four corners."""
ROWS, COLUMNS = 1, 128
"""Strips a program: one a thread, so that the points of a warp lie side by side also in its atomics."""
MIN_WEIGHT = tl.constexpr(definition.MIN_WEIGHT)
FIXED = tl.constexpr(definition.FIXED)
EMPTY = tl.constexpr(definition.EMPTY)
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def _corner(u, v, drawn, height, width, CORNER: tl.constexpr):
    """Pixel, bilinear weight and whether it counts, of one of the four pixels around a point."""
    left = tl.floor(u - 0.5)
    top = tl.floor(v - 0.5)
    x_share = u - 0.5 - left
    y_share = v - 0.5 - top
    if CORNER % 2 == 1:
        left += 1
    else:
        x_share = 1 - x_share
    if CORNER // 2 == 1:
        top += 1
    else:
        y_share = 1 - y_share
    weight = x_share * y_share
    hit = drawn & (left >= 0) & (left < width) & (top >= 0) & (top < height) & (weight >= MIN_WEIGHT)
    pixel = tl.where(hit, top, 0.0).to(tl.int32) * width + tl.where(hit, left, 0.0).to(tl.int32)
    return pixel, weight, hit


@triton.jit
def _point(source, row, column, where, kind: tl.constexpr):
    """u, v, depth, whether it is drawn, and number of the point at row and column of a source, which may have none."""
    count, width = where[5], where[6]
    number = row * width + column
    within = (row >= 0) & (column >= 0) & (column < width) & (number < count)
    u, v, depth, drawn = place(source, row, column, within, where, kind)
    return u, v, depth, drawn, source.to(tl.int64) * count + number


@triton.jit
def _tile(number, columns, STRIP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """First rows and columns of the strips of a tile."""
    across = tl.cdiv(columns, COLUMNS)
    row = (number // across * ROWS + tl.arange(0, ROWS)[:, None]) * STRIP
    return row, number % across * COLUMNS + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def nearest_kernel(
    best, view_height, view_width, tiles,
    places, valid, dynamic, source_of, current, count, width, K_source, distortion, view_from_source,
    K, p0, p1, p2, p3, limit,
    HAS_DEPTH: tl.constexpr, HAS_VALID: tl.constexpr, HAS_DYNAMIC: tl.constexpr, HAS_SOURCE: tl.constexpr,
    ROLLING: tl.constexpr, MODEL: tl.constexpr, BENDS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The key of the nearest point of each pixel."""
    where = (
        places, valid, dynamic, source_of, current, count, width, K_source, distortion, view_from_source,
        K, p0, p1, p2, p3, limit,
    )  # fmt: skip
    kind: tl.constexpr = (HAS_DEPTH, HAS_VALID, HAS_DYNAMIC, HAS_SOURCE, ROLLING, MODEL, BENDS)
    # A source after the other: where one has been, the next seldom has anything nearer.
    source = tl.program_id(0) // tiles
    row, column = _tile(tl.program_id(0) % tiles, width, 1, ROWS, COLUMNS)
    u, v, depth, drawn, number = _point(source, row, column, where, kind)
    key = key_of(depth, number)
    for corner in tl.static_range(4):
        pixel, _, hit = _corner(u, v, drawn, view_height, view_width, corner)
        # Keys only fall, so what is not below an older one need not be tried.
        hit &= key < tl.load(best + pixel, hit, other=0)
        tl.atomic_min(best + pixel, key, hit, sem="relaxed")


@triton.jit
def _join(to_a, hit_a, to_b, hit_b):
    """Whether b goes to the pixel of a, and whether it is still to be brought to its own."""
    same = hit_a & hit_b & (to_a == to_b)
    return same, hit_b & (same == 0)


@triton.jit
def _share(best, point, height, width, per_tolerance, CORNER: tl.constexpr):
    """Of a point's corner: pixel, whether it is of the nearest surface, weight times FIXED, excess of depth."""
    u, v, depth, drawn, _ = point
    pixel, weight, hit = _corner(u, v, drawn, height, width, CORNER)
    nearest = depth_of(tl.load(best + pixel, hit, other=EMPTY))
    excess = (depth / nearest - 1) * per_tolerance
    hit &= excess <= 1  # false for an empty pixel, whose depth is NaN
    return pixel, hit, tl.where(hit, weight * FIXED, 0.0), tl.where(hit, tl.maximum(excess, 0.0), 0.0)


@triton.jit
def _value(attributes, point, hit, weight, unit, CHANNEL: tl.constexpr, CHANNELS: tl.constexpr):
    """A weighted attribute as an integer."""
    value = tl.load(attributes + point[4] * CHANNELS + CHANNEL, hit, other=0.0).to(tl.float32)
    return (tl.where(tl.abs(value) < INFINITY, value, 0.0) * unit * weight).to(tl.int32)


@triton.jit
def _add(plane, pixels, hits, joined, a, b, c, d):
    """Add four integers to pixels, those that go to one pixel together."""
    ab, ac, ad, bc, bd, cd = joined
    a += tl.where(ab, b, 0) + tl.where(ac, c, 0) + tl.where(ad, d, 0)
    b += tl.where(bc, c, 0) + tl.where(bd, d, 0)
    c += tl.where(cd, d, 0)
    tl.atomic_add(plane + pixels[0], a.to(tl.int64), hits[0], sem="relaxed")
    tl.atomic_add(plane + pixels[1], b.to(tl.int64), hits[1], sem="relaxed")
    tl.atomic_add(plane + pixels[2], c.to(tl.int64), hits[2], sem="relaxed")
    tl.atomic_add(plane + pixels[3], d.to(tl.int64), hits[3], sem="relaxed")


@triton.jit
def _add_four(
    best, sums, attributes, unit, per_tolerance, height, width,
    point_a, point_b, point_c, point_d, HAS_DEPTH: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Add what four points give to the pixels of their corners."""
    a, hit_a, w_a, e_a = _share(best, point_a, height, width, per_tolerance, 3 if HAS_DEPTH else 0)
    b, hit_b, w_b, e_b = _share(best, point_b, height, width, per_tolerance, 2 if HAS_DEPTH else 1)
    c, hit_c, w_c, e_c = _share(best, point_c, height, width, per_tolerance, 1 if HAS_DEPTH else 2)
    d, hit_d, w_d, e_d = _share(best, point_d, height, width, per_tolerance, 0 if HAS_DEPTH else 3)
    ab, on_b = _join(a, hit_a, b, hit_b)
    ac, on_c = _join(a, hit_a, c, hit_c)
    ad, on_d = _join(a, hit_a, d, hit_d)
    bc, on_c = _join(b, on_b, c, on_c)
    bd, on_d = _join(b, on_b, d, on_d)
    cd, on_d = _join(c, on_c, d, on_d)
    joined, hits, pixels = (ab, ac, ad, bc, bd, cd), (hit_a, on_b, on_c, on_d), (a, b, c, d)
    size = height * width
    _add(sums, pixels, hits, joined, w_a.to(tl.int32), w_b.to(tl.int32), w_c.to(tl.int32), w_d.to(tl.int32))
    e_a = (w_a * e_a).to(tl.int32)
    e_b = (w_b * e_b).to(tl.int32)
    e_c = (w_c * e_c).to(tl.int32)
    e_d = (w_d * e_d).to(tl.int32)
    _add(sums + size, pixels, hits, joined, e_a, e_b, e_c, e_d)
    for channel in tl.static_range(CHANNELS):
        v_a = _value(attributes, point_a, hit_a, w_a, unit, channel, CHANNELS)
        v_b = _value(attributes, point_b, hit_b, w_b, unit, channel, CHANNELS)
        v_c = _value(attributes, point_c, hit_c, w_c, unit, channel, CHANNELS)
        v_d = _value(attributes, point_d, hit_d, w_d, unit, channel, CHANNELS)
        _add(sums + tl.full((), channel + 2, tl.int64) * size, pixels, hits, joined, v_a, v_b, v_c, v_d)


@triton.jit
def sum_kernel(
    best, sums, attributes, largest, per_tolerance, view_height, view_width, sources,
    places, valid, dynamic, source_of, current, count, width, K_source, distortion, view_from_source,
    K, p0, p1, p2, p3, limit,
    HAS_DEPTH: tl.constexpr, HAS_VALID: tl.constexpr, HAS_DYNAMIC: tl.constexpr, HAS_SOURCE: tl.constexpr,
    ROLLING: tl.constexpr, MODEL: tl.constexpr, BENDS: tl.constexpr, CHANNELS: tl.constexpr,
    STRIP: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Fixed-point sums per pixel, a plane each: weights, weighted excess of depth, weighted attributes."""
    where = (
        places, valid, dynamic, source_of, current, count, width, K_source, distortion, view_from_source,
        K, p0, p1, p2, p3, limit,
    )  # fmt: skip
    kind: tl.constexpr = (HAS_DEPTH, HAS_VALID, HAS_DYNAMIC, HAS_SOURCE, ROLLING, MODEL, BENDS)
    # The same part of all sources together: they add to the same pixels, which are then in the cache.
    source = tl.program_id(0) % sources
    row, column = _tile(tl.program_id(0) // sources, width + 1, STRIP, ROWS, COLUMNS)
    unit = 1 / tl.load(largest)
    lower_left = _point(source, row - 1, column - 1, where, kind)
    lower_right = _point(source, row - 1, column, where, kind)
    for step in tl.static_range(STRIP):
        upper_left, upper_right = lower_left, lower_right
        lower_right = _point(source, row + step, column, where, kind)
        if HAS_DEPTH:
            lower_left = _point(source, row + step, column - 1, where, kind)
        else:
            upper_left, upper_right, lower_left = lower_right, lower_right, lower_right
        _add_four(
            best, sums, attributes, unit, per_tolerance, view_height, view_width,
            upper_left, upper_right, lower_left, lower_right, HAS_DEPTH, CHANNELS,
        )  # fmt: skip


@triton.jit
def mean_kernel(
    best, sums, largest, tolerance, source_of, attributes_out, depth_out, valid_out, source_out, count, size,
    HAS_SOURCE: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """From sums to means, per pixel."""
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    within = pixel < size
    key = tl.load(best + pixel, within, other=EMPTY)
    weight = tl.load(sums + pixel, within, other=0)
    drawn = weight > 0
    # Of exact sums a float's precision is enough.
    share = 1 / tl.where(drawn, weight, 1).to(tl.float32)
    excess = tl.load(sums + size + pixel, within, other=0).to(tl.float32) * share
    depth = depth_of(key) * (1 + excess * tolerance)
    tl.store(depth_out + pixel, tl.where(drawn, depth, 0.0), within)
    tl.store(valid_out + pixel, drawn.to(tl.uint8), within)
    store_source(key, drawn, source_of, source_out, pixel, within, count, HAS_SOURCE)
    for channel in tl.static_range(CHANNELS):
        plane = sums + tl.full((), channel + 2, tl.int64) * size
        value = tl.load(plane + pixel, within, other=0).to(tl.float32) * share * tl.load(largest)
        tl.store(attributes_out + pixel.to(tl.int64) * CHANNELS + channel, tl.where(drawn, value, 0.0), within)


@triton.jit
def largest_kernel(values, largest, size, BLOCK: tl.constexpr):
    """The largest finite magnitude. As bits: those of floats that are not negative are ordered like them."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.abs(tl.load(values + at, at < size, other=0.0).to(tl.float32))
    value = tl.where(value < INFINITY, value, 0.0)
    tl.atomic_max(largest, tl.max(value, 0).to(tl.int32, bitcast=True), sem="relaxed")


def splat_points_triton(points: DepthPoints | WorldPoints, view: View, blending: Nearest | Alpha) -> Splat:
    """See vs3r.kernels.splat.splat_points; arguments are checked there."""
    shape, device = (view.height, view.width), points.places.device
    attributes = None if points.attributes is None else points.attributes.contiguous()
    channels = None if attributes is None else attributes.shape[-1]
    # Drawing writes every pixel; of the attributes discs make sums.
    make = torch.empty if points.count else torch.zeros
    splat = Splat(
        attributes=None if channels is None else torch.zeros(*shape, channels, device=device),
        depth=make(shape, device=device),
        valid=make(shape, dtype=torch.bool, device=device),
        source=make(shape, dtype=torch.int32, device=device),
    )
    if not points.count:
        splat.source.fill_(-1)
    elif isinstance(blending, Nearest):
        _draw_nearest(points, view, blending, attributes, splat)
    else:
        draw_discs(points, view, blending, attributes, splat)
    return splat


def _draw_nearest(
    points: DepthPoints | WorldPoints, view: View, blending: Nearest, attributes: Tensor | None, splat: Splat
) -> None:
    size, device = view.height * view.width, points.places.device
    channels = 0 if attributes is None else attributes.shape[-1]
    given = arguments(points, view)
    sources = points.count // given["count"]
    width, height = given["width"], triton.cdiv(given["count"], given["width"])
    tiles = triton.cdiv(height, ROWS) * triton.cdiv(width, COLUMNS)
    strips = triton.cdiv(height + 1, STRIP * ROWS) * triton.cdiv(width + 1, COLUMNS)
    best = torch.full((size,), definition.EMPTY, device=device)
    sums = torch.zeros(channels + 2, size, dtype=torch.int64, device=device)
    largest = torch.full((1,), definition.LEAST_DEPTH, device=device)
    if attributes is not None and channels:
        largest_kernel[(triton.cdiv(attributes.numel(), 4 * BLOCK),)](
            attributes, largest.view(torch.int32), attributes.numel(), BLOCK=4 * BLOCK
        )
    tile = {"ROWS": ROWS, "COLUMNS": COLUMNS}
    nearest_kernel[(sources * tiles,)](best, view.height, view.width, tiles, **given, **tile)
    sum_kernel[(sources * strips,)](
        best, sums, attributes, largest, 1 / blending.depth_tolerance, view.height, view.width, sources,
        **given, CHANNELS=channels, STRIP=STRIP, **tile,
    )  # fmt: skip
    mean_kernel[(triton.cdiv(size, BLOCK),)](
        best, sums, largest, blending.depth_tolerance, given["source_of"],
        splat.attributes, splat.depth, splat.valid.view(torch.uint8), splat.source, given["count"], size,
        HAS_SOURCE=given["HAS_SOURCE"], CHANNELS=channels, BLOCK=BLOCK,
    )  # fmt: skip

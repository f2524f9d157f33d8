"""Splatting in Triton: a program takes a block of points, unprojects them and reduces into the view by integer atomics.

The arguments from inv_depth to MODEL tell where points are; _arguments makes them and _place reads them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vs3r.kernels.camera import View
from vs3r.kernels.camera.triton_impl import lens, project
from vs3r.kernels.splat import points as definition
from vs3r.kernels.splat.points import Alpha, DepthPoints, Nearest, Splat, WorldPoints

BLOCK = 1024
MIN_WEIGHT = tl.constexpr(definition.MIN_WEIGHT)
FIXED = tl.constexpr(definition.FIXED)
EMPTY = tl.constexpr(definition.EMPTY)
LEAST_DEPTH = tl.constexpr(definition.LEAST_DEPTH)
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def _place(
    source, pixel, within,
    places, valid, dynamic, source_of, current, count, width, K_source, view_from_source, K, p0, p1, p2, p3, limit,
    HAS_DEPTH: tl.constexpr, HAS_VALID: tl.constexpr, HAS_DYNAMIC: tl.constexpr, HAS_SOURCE: tl.constexpr,
    ROLLING: tl.constexpr, MODEL: tl.constexpr,
):  # fmt: skip
    """u, v, depth and whether it is drawn, of point number `pixel` of a source; both may be blocks."""
    at = source.to(tl.int64) * count + pixel
    T = view_from_source + source * 12
    if ROLLING:
        T = view_from_source + (source * (count // width) + pixel // width) * 12
    if HAS_DEPTH:
        K_source += source * 9
        rho = tl.load(places + at, within, other=0.0).to(tl.float32)
        drawn = within & (rho > 0) & (rho < INFINITY)
        rho = tl.where(drawn, rho, 1.0)
        y = (pixel // width + 0.5 - tl.load(K_source + 5)) / tl.load(K_source + 4)
        x = (pixel % width + 0.5 - tl.load(K_source + 2) - tl.load(K_source + 1) * y) / tl.load(K_source)
        z = x * 0.0 + 1.0
        one = rho
    else:
        x = tl.load(places + at * 3, within, other=0.0).to(tl.float32)
        y = tl.load(places + at * 3 + 1, within, other=0.0).to(tl.float32)
        z = tl.load(places + at * 3 + 2, within, other=0.0).to(tl.float32)
        drawn = within
        one = x * 0.0 + 1.0
        rho = 1.0
    X = tl.load(T) * x + tl.load(T + 1) * y + tl.load(T + 2) * z + tl.load(T + 3) * one
    Y = tl.load(T + 4) * x + tl.load(T + 5) * y + tl.load(T + 6) * z + tl.load(T + 7) * one
    Z = tl.load(T + 8) * x + tl.load(T + 9) * y + tl.load(T + 10) * z + tl.load(T + 11) * one
    u, v, depth, seen = project(X, Y, Z, K, p0, p1, p2, p3, limit, MODEL)
    depth = depth / rho
    drawn &= seen & (depth >= LEAST_DEPTH) & (depth < INFINITY)
    if HAS_VALID:
        drawn &= tl.load(valid + at, within, other=0) != 0
    if HAS_DYNAMIC:
        own = source
        if HAS_SOURCE:
            own = tl.load(source_of + at, within, other=0)
        drawn &= (tl.load(dynamic + at, within, other=0) == 0) | (own == current)
    return u, v, depth, drawn


@triton.jit
def _key(depth, number):
    return (depth.to(tl.int32, bitcast=True).to(tl.int64) << 32) | number


@triton.jit
def _depth_of(key):
    return (key >> 32).to(tl.int32).to(tl.float32, bitcast=True)


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
def nearest_kernel(
    best, view_height, view_width,
    places, valid, dynamic, source_of, current, count, width, K_source, view_from_source, K, p0, p1, p2, p3, limit,
    HAS_DEPTH: tl.constexpr, HAS_VALID: tl.constexpr, HAS_DYNAMIC: tl.constexpr, HAS_SOURCE: tl.constexpr,
    ROLLING: tl.constexpr, MODEL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The key of the nearest point of each pixel."""
    source = tl.program_id(1)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    u, v, depth, drawn = _place(
        source, pixel, pixel < count,
        places, valid, dynamic, source_of, current, count, width, K_source, view_from_source, K, p0, p1, p2, p3, limit,
        HAS_DEPTH, HAS_VALID, HAS_DYNAMIC, HAS_SOURCE, ROLLING, MODEL,
    )  # fmt: skip
    key = _key(depth, source.to(tl.int64) * count + pixel)
    for corner in tl.static_range(4):
        target, _, hit = _corner(u, v, drawn, view_height, view_width, corner)
        # Keys only fall, so what is not below an older one need not be tried.
        hit &= key < tl.load(best + target, hit, other=0)
        tl.atomic_min(best + target, key, hit, sem="relaxed")


@triton.jit
def sum_kernel(
    best, sums, attributes, largest, tolerance, view_height, view_width,
    places, valid, dynamic, source_of, current, count, width, K_source, view_from_source, K, p0, p1, p2, p3, limit,
    HAS_DEPTH: tl.constexpr, HAS_VALID: tl.constexpr, HAS_DYNAMIC: tl.constexpr, HAS_SOURCE: tl.constexpr,
    ROLLING: tl.constexpr, MODEL: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Fixed-point sums per pixel, a plane each: weights, weighted excess of depth, weighted attributes."""
    source = tl.program_id(1)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    u, v, depth, drawn = _place(
        source, pixel, pixel < count,
        places, valid, dynamic, source_of, current, count, width, K_source, view_from_source, K, p0, p1, p2, p3, limit,
        HAS_DEPTH, HAS_VALID, HAS_DYNAMIC, HAS_SOURCE, ROLLING, MODEL,
    )  # fmt: skip
    at = (source.to(tl.int64) * count + pixel) * CHANNELS
    size = view_height * view_width
    if CHANNELS > 0:
        scale = tl.load(largest)
    for corner in tl.static_range(4):
        target, weight, hit = _corner(u, v, drawn, view_height, view_width, corner)
        nearest = _depth_of(tl.load(best + target, hit, other=EMPTY))
        excess = (depth / nearest - 1) / tolerance
        hit &= excess <= 1  # false for an empty pixel, whose depth is NaN
        excess = tl.where(hit, tl.maximum(excess, 0.0), 0.0)
        weight = tl.where(hit, weight, 0.0)
        tl.atomic_add(sums + target, (weight * FIXED).to(tl.int64), hit, sem="relaxed")
        tl.atomic_add(sums + size + target, (weight * excess * FIXED).to(tl.int64), hit, sem="relaxed")
        for channel in tl.static_range(CHANNELS):
            value = tl.load(attributes + at + channel, hit, other=0.0).to(tl.float32)
            value = tl.where(tl.abs(value) < INFINITY, value / scale, 0.0)
            plane = sums + tl.full((), channel + 2, tl.int64) * size
            tl.atomic_add(plane + target, (weight * value * FIXED).to(tl.int64), hit, sem="relaxed")


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
    depth = _depth_of(key) * (1 + excess * tolerance)
    tl.store(depth_out + pixel, tl.where(drawn, depth, 0.0), within)
    tl.store(valid_out + pixel, drawn.to(tl.uint8), within)
    _store_source(key, drawn, source_of, source_out, pixel, within, count, HAS_SOURCE)
    for channel in tl.static_range(CHANNELS):
        plane = sums + tl.full((), channel + 2, tl.int64) * size
        value = tl.load(plane + pixel, within, other=0).to(tl.float32) * share * tl.load(largest)
        tl.store(attributes_out + pixel.to(tl.int64) * CHANNELS + channel, tl.where(drawn, value, 0.0), within)


@triton.jit
def _store_source(key, drawn, source_of, source_out, pixel, within, count, HAS_SOURCE: tl.constexpr):
    number = tl.where(drawn, key & 0xFFFFFFFF, 0)
    source = tl.load(source_of + number, within & drawn, other=0) if HAS_SOURCE else (number // count).to(tl.int32)
    tl.store(source_out + pixel, tl.where(drawn, source, -1), within)


@triton.jit
def largest_kernel(values, largest, size, BLOCK: tl.constexpr):
    """The largest finite magnitude. As bits: those of floats that are not negative are ordered like them."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.abs(tl.load(values + at, at < size, other=0.0).to(tl.float32))
    value = tl.where(value < INFINITY, value, 0.0)
    tl.atomic_max(largest, tl.max(value, 0).to(tl.int32, bitcast=True), sem="relaxed")


@triton.jit
def next_kernel(
    best, last, radius2, view_height, view_width,
    places, valid, dynamic, source_of, current, count, width, K_source, view_from_source, K, p0, p1, p2, p3, limit,
    HAS_DEPTH: tl.constexpr, HAS_VALID: tl.constexpr, HAS_DYNAMIC: tl.constexpr, HAS_SOURCE: tl.constexpr,
    ROLLING: tl.constexpr, MODEL: tl.constexpr, REACH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The key of the nearest disc of each pixel among those behind the last one."""
    source = tl.program_id(1)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    u, v, depth, drawn = _place(
        source, pixel, pixel < count,
        places, valid, dynamic, source_of, current, count, width, K_source, view_from_source, K, p0, p1, p2, p3, limit,
        HAS_DEPTH, HAS_VALID, HAS_DYNAMIC, HAS_SOURCE, ROLLING, MODEL,
    )  # fmt: skip
    key = _key(depth, source.to(tl.int64) * count + pixel)
    for offset in range((2 * REACH + 1) * (2 * REACH + 1)):
        x = tl.floor(u) + (offset % (2 * REACH + 1) - REACH)
        y = tl.floor(v) + (offset // (2 * REACH + 1) - REACH)
        off_x = x + 0.5 - u
        off_y = y + 0.5 - v
        hit = drawn & (x >= 0) & (x < view_width) & (y >= 0) & (y < view_height)
        hit &= off_x * off_x + off_y * off_y < radius2
        target = tl.where(hit, y, 0.0).to(tl.int32) * view_width + tl.where(hit, x, 0.0).to(tl.int32)
        hit &= (key > tl.load(last + target, hit, other=EMPTY)) & (key < tl.load(best + target, hit, other=0))
        tl.atomic_min(best + target, key, hit, sem="relaxed")


@triton.jit
def shade_kernel(
    best, last, through, attributes, attributes_out, depth_out, valid_out, source_out, radius2, view_width, size,
    places, valid, dynamic, source_of, current, count, width, K_source, view_from_source, K, p0, p1, p2, p3, limit,
    HAS_DEPTH: tl.constexpr, HAS_VALID: tl.constexpr, HAS_DYNAMIC: tl.constexpr, HAS_SOURCE: tl.constexpr,
    ROLLING: tl.constexpr, MODEL: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Lay the discs that next_kernel found under those before them, and make room for the next."""
    target = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    within = target < size
    key = tl.load(best + target, within, other=EMPTY)
    last_key = tl.load(last + target, within, other=EMPTY)
    found = key < EMPTY
    number = tl.where(found, key & 0xFFFFFFFF, 0)
    u, v, _, _ = _place(
        (number // count).to(tl.int32), (number % count).to(tl.int32), found,
        places, valid, dynamic, source_of, current, count, width, K_source, view_from_source, K, p0, p1, p2, p3, limit,
        HAS_DEPTH, HAS_VALID, HAS_DYNAMIC, HAS_SOURCE, ROLLING, MODEL,
    )  # fmt: skip
    off_x = target % view_width + 0.5 - u
    off_y = target // view_width + 0.5 - v
    opacity = tl.where(found, tl.maximum(1 - (off_x * off_x + off_y * off_y) / radius2, 0.0), 0.0)
    clear = tl.load(through + target, within, other=0.0)
    tl.store(through + target, clear * (1 - opacity), within)
    for channel in tl.static_range(CHANNELS):
        value = tl.load(attributes + number * CHANNELS + channel, found, other=0.0).to(tl.float32)
        value = tl.where(tl.abs(value) < INFINITY, value, 0.0)
        at = attributes_out + target.to(tl.int64) * CHANNELS + channel
        tl.store(at, tl.load(at, within, other=0.0) + clear * opacity * value, within)
    first = within & (last_key < 0)
    tl.store(depth_out + target, tl.where(found, _depth_of(key), 0.0), first)
    tl.store(valid_out + target, found.to(tl.uint8), first)
    _store_source(key, found, source_of, source_out, target, first, count, HAS_SOURCE)
    tl.store(last + target, key, within)
    tl.store(best + target, tl.full((BLOCK,), EMPTY, tl.int64), within)


def splat_points_triton(points: DepthPoints | WorldPoints, view: View, blending: Nearest | Alpha) -> Splat:
    """See vs3r.kernels.splat.splat_points; arguments are checked there."""
    shape, device = (view.height, view.width), points.places.device
    attributes = None if points.attributes is None else points.attributes.contiguous()
    splat = Splat(
        attributes=None if attributes is None else torch.zeros(*shape, attributes.shape[-1], device=device),
        depth=torch.zeros(shape, device=device),
        valid=torch.zeros(shape, dtype=torch.bool, device=device),
        source=torch.full(shape, -1, dtype=torch.int32, device=device),
    )
    if points.count:
        draw = _draw_nearest if isinstance(blending, Nearest) else _draw_alpha
        draw(points, view, blending, attributes, splat)  # type: ignore[arg-type]
    return splat


def _arguments(points: DepthPoints | WorldPoints, view: View) -> dict[str, Any]:
    """The arguments from `places` to MODEL."""
    if isinstance(points, DepthPoints):
        _, height, width = points.inv_depth.shape
        count, K_source, source_of = height * width, points.cameras.K.float().contiguous(), None
        view_from_source = view.from_sources(points.cameras)[..., :3, :]
    else:
        count, width, K_source, source_of = len(points.xyz), 1, None, points.source
        view_from_source = view.cam_from_world[None, :3]
    p0, p1, p2, p3, limit = lens(view)
    return {
        "places": points.places.contiguous(),
        "valid": None if points.valid is None else points.valid.contiguous().view(torch.uint8),
        "dynamic": None if points.dynamic is None else points.dynamic.contiguous().view(torch.uint8),
        "source_of": None if source_of is None else source_of.contiguous(),
        "current": points.current,
        "count": count,
        "width": width,
        "K_source": K_source,
        "view_from_source": view_from_source.float().contiguous(),
        "K": view.K.float().contiguous(),
        "p0": p0,
        "p1": p1,
        "p2": p2,
        "p3": p3,
        "limit": limit,
        "HAS_DEPTH": isinstance(points, DepthPoints),
        "HAS_VALID": points.valid is not None,
        "HAS_DYNAMIC": points.dynamic is not None,
        "HAS_SOURCE": source_of is not None,
        "ROLLING": isinstance(points, DepthPoints) and points.cameras.rolling,
        "MODEL": view.number,
    }


def _draw_nearest(
    points: DepthPoints | WorldPoints, view: View, blending: Nearest, attributes: Tensor | None, splat: Splat
) -> None:
    size, device = view.height * view.width, points.places.device
    channels = 0 if attributes is None else attributes.shape[-1]
    given = _arguments(points, view)
    grid = triton.cdiv(given["count"], BLOCK), points.count // given["count"]
    best = torch.full((size,), definition.EMPTY, device=device)
    sums = torch.zeros(channels + 2, size, dtype=torch.int64, device=device)
    largest = torch.full((1,), definition.LEAST_DEPTH, device=device)
    if attributes is not None and channels:
        largest_kernel[(triton.cdiv(attributes.numel(), 4 * BLOCK),)](
            attributes, largest.view(torch.int32), attributes.numel(), BLOCK=4 * BLOCK
        )
    nearest_kernel[grid](best, view.height, view.width, **given, BLOCK=BLOCK)
    sum_kernel[grid](
        best, sums, attributes, largest, blending.depth_tolerance, view.height, view.width,
        **given, CHANNELS=channels, BLOCK=BLOCK,
    )  # fmt: skip
    mean_kernel[(triton.cdiv(size, BLOCK),)](
        best, sums, largest, blending.depth_tolerance, given["source_of"],
        splat.attributes, splat.depth, splat.valid.view(torch.uint8), splat.source, given["count"], size,
        HAS_SOURCE=given["HAS_SOURCE"], CHANNELS=channels, BLOCK=BLOCK,
    )  # fmt: skip


def _draw_alpha(
    points: DepthPoints | WorldPoints, view: View, blending: Alpha, attributes: Tensor | None, splat: Splat
) -> None:
    size, device = view.height * view.width, points.places.device
    channels = 0 if attributes is None else attributes.shape[-1]
    given = _arguments(points, view)
    grid = triton.cdiv(given["count"], BLOCK), points.count // given["count"]
    best = torch.full((size,), definition.EMPTY, device=device)
    last = torch.full((size,), -1, device=device)
    through = torch.ones(size, device=device)
    radius = blending.radius_px(view)
    for _ in range(blending.points_per_pixel):
        next_kernel[grid](best, last, radius**2, view.height, view.width, **given, REACH=int(radius + 0.5), BLOCK=BLOCK)
        shade_kernel[(triton.cdiv(size, BLOCK),)](
            best, last, through, attributes, splat.attributes, splat.depth, splat.valid.view(torch.uint8), splat.source,
            radius**2, view.width, size, **given, CHANNELS=channels, BLOCK=BLOCK,
        )  # fmt: skip

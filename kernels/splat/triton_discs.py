"""Discs laid over one another, the nearest few of each pixel: a pass over the points per layer."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vs3r.kernels.camera import View
from vs3r.kernels.splat import points as definition
from vs3r.kernels.splat.points import Alpha, DepthPoints, Splat, WorldPoints
from vs3r.kernels.splat.triton_place import arguments, depth_of, key_of, place, store_source

BLOCK = 1024
EMPTY = tl.constexpr(definition.EMPTY)
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def next_kernel(
    best, last, radius2, view_height, view_width,
    places, valid, dynamic, source_of, current, count, width, K_source, distortion, view_from_source,
    K, p0, p1, p2, p3, limit,
    HAS_DEPTH: tl.constexpr, HAS_VALID: tl.constexpr, HAS_DYNAMIC: tl.constexpr, HAS_SOURCE: tl.constexpr,
    ROLLING: tl.constexpr, MODEL: tl.constexpr, BENDS: tl.constexpr, REACH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The key of the nearest disc of each pixel among those behind the last one."""
    source = tl.program_id(1)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    where = (
        places, valid, dynamic, source_of, current, count, width, K_source, distortion, view_from_source,
        K, p0, p1, p2, p3, limit,
    )  # fmt: skip
    kind: tl.constexpr = (HAS_DEPTH, HAS_VALID, HAS_DYNAMIC, HAS_SOURCE, ROLLING, MODEL, BENDS)
    row, column = pixel // width, pixel % width
    u, v, depth, drawn = place(source, row, column, pixel < count, where, kind)
    key = key_of(depth, source.to(tl.int64) * count + pixel)
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
    places, valid, dynamic, source_of, current, count, width, K_source, distortion, view_from_source,
    K, p0, p1, p2, p3, limit,
    HAS_DEPTH: tl.constexpr, HAS_VALID: tl.constexpr, HAS_DYNAMIC: tl.constexpr, HAS_SOURCE: tl.constexpr,
    ROLLING: tl.constexpr, MODEL: tl.constexpr, BENDS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Lay the discs that next_kernel found under those before them, and make room for the next."""
    target = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    within = target < size
    key = tl.load(best + target, within, other=EMPTY)
    last_key = tl.load(last + target, within, other=EMPTY)
    found = key < EMPTY
    number = tl.where(found, key & 0xFFFFFFFF, 0)
    where = (
        places, valid, dynamic, source_of, current, count, width, K_source, distortion, view_from_source,
        K, p0, p1, p2, p3, limit,
    )  # fmt: skip
    kind: tl.constexpr = (HAS_DEPTH, HAS_VALID, HAS_DYNAMIC, HAS_SOURCE, ROLLING, MODEL, BENDS)
    source, point = (number // count).to(tl.int32), (number % count).to(tl.int32)
    u, v, _, _ = place(source, point // width, point % width, found, where, kind)
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
    tl.store(depth_out + target, tl.where(found, depth_of(key), 0.0), first)
    tl.store(valid_out + target, found.to(tl.uint8), first)
    store_source(key, found, source_of, source_out, target, first, count, HAS_SOURCE)
    tl.store(last + target, key, within)
    tl.store(best + target, tl.full((BLOCK,), EMPTY, tl.int64), within)


def draw_discs(
    points: DepthPoints | WorldPoints, view: View, blending: Alpha, attributes: Tensor | None, splat: Splat
) -> None:
    """Into a splat that holds nothing yet; see vs3r.kernels.splat.splat_points."""
    size, device = view.height * view.width, points.places.device
    channels = 0 if attributes is None else attributes.shape[-1]
    given = arguments(points, view)
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

"""Where points lie in the view: what the kernels of both ways of blending begin with.

The arguments from `places` to `limit` tell where the points are, those from HAS_DEPTH to BENDS what is given of them:
arguments() makes them, place() reads them as two tuples.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from vs3r.kernels.camera import View
from vs3r.kernels.camera.triton_impl import lens, project, relative
from vs3r.kernels.splat import points as definition
from vs3r.kernels.splat.points import DepthPoints, WorldPoints
from vs3r.lens import LEAST as LEAST_OF_LENS

WORLD_WIDTH = 1024
"""Points given by coordinates are numbered as in a picture of this width."""
LEAST = tl.constexpr(LEAST_OF_LENS)
LEAST_DEPTH = tl.constexpr(definition.LEAST_DEPTH)
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def place(source, row, column, within, where, kind: tl.constexpr):
    """u, v, depth and whether it is drawn, of the point at row and column of a source; all may be blocks."""
    (
        places, valid, dynamic, source_of, current, count, width, K_source, distortion, view_from_source,
        K, p0, p1, p2, p3, limit,
    ) = where  # fmt: skip
    HAS_DEPTH: tl.constexpr = kind[0]
    HAS_VALID: tl.constexpr = kind[1]
    HAS_DYNAMIC: tl.constexpr = kind[2]
    HAS_SOURCE: tl.constexpr = kind[3]
    ROLLING: tl.constexpr = kind[4]
    MODEL: tl.constexpr = kind[5]
    BENDS: tl.constexpr = kind[6]
    at = source.to(tl.int64) * count + row * width + column
    T = view_from_source + source * 12
    if ROLLING:
        # The rows above and below the picture hold no points.
        rows = count // width
        T = view_from_source + (source * rows + tl.minimum(tl.maximum(row, 0), rows - 1)) * 12
    if HAS_DEPTH:
        K_source += source * 9
        rho = tl.load(places + at, within, other=0.0).to(tl.float32)
        drawn = within & (rho > 0) & (rho < INFINITY)
        rho = tl.where(drawn, rho, 1.0)
        y = (row + 0.5 - tl.load(K_source + 5)) / tl.load(K_source + 4)
        x = (column + 0.5 - (tl.load(K_source + 2) + tl.load(K_source + 1) * y)) * (1 / tl.load(K_source))
        z = 1.0
        if BENDS:
            # The point in the direction (x, y, z), and all else in that unit.
            z = tl.maximum(1 + distortion * (x * x + y * y), LEAST)
            rho *= z
        one = rho
    else:
        x = tl.load(places + at * 3, within, other=0.0).to(tl.float32)
        y = tl.load(places + at * 3 + 1, within, other=0.0).to(tl.float32)
        z = tl.load(places + at * 3 + 2, within, other=0.0).to(tl.float32)
        drawn = within
        one = 1.0
        rho = 1.0
    # Of a source with depth what is in brackets depends on the row alone.
    X = tl.load(T) * x + (tl.load(T + 1) * y + tl.load(T + 2) * z) + tl.load(T + 3) * one
    Y = tl.load(T + 4) * x + (tl.load(T + 5) * y + tl.load(T + 6) * z) + tl.load(T + 7) * one
    Z = tl.load(T + 8) * x + (tl.load(T + 9) * y + tl.load(T + 10) * z) + tl.load(T + 11) * one
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
def key_of(depth, number):
    """See definition.EMPTY."""
    return (depth.to(tl.int32, bitcast=True).to(tl.int64) << 32) | number


@triton.jit
def depth_of(key):
    """Of a point by its key."""
    return (key >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def store_source(key, drawn, source_of, source_out, pixel, within, count, HAS_SOURCE: tl.constexpr):
    """The source of the point with that key, -1 for none."""
    number = tl.where(drawn, key & 0xFFFFFFFF, 0)
    source = tl.load(source_of + number, within & drawn, other=0) if HAS_SOURCE else (number // count).to(tl.int32)
    tl.store(source_out + pixel, tl.where(drawn, source, -1), within)


def arguments(points: DepthPoints | WorldPoints, view: View) -> dict[str, Any]:
    """What place() reads, by name."""
    if isinstance(points, DepthPoints):
        _, height, width = points.inv_depth.shape
        count, K_source, source_of = height * width, points.cameras.K.float().contiguous(), None
        view_from_source = relative(view.cam_from_world, points.cameras.cam_from_world)
    else:
        count, width, K_source, source_of = len(points.xyz), WORLD_WIDTH, None, points.source
        view_from_source = view.cam_from_world[:3].float().contiguous()
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
        "distortion": points.cameras.distortion if isinstance(points, DepthPoints) else 0.0,
        "view_from_source": view_from_source,
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
        "BENDS": isinstance(points, DepthPoints) and points.cameras.distortion != 0,
    }

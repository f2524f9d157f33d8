"""The definition of splatting in plain PyTorch, and its CPU path."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vs3r.kernels.camera import View
from vs3r.kernels.camera.reference import project
from vs3r.kernels.splat.points import (
    EMPTY,
    FIXED,
    LEAST_DEPTH,
    MIN_WEIGHT,
    Alpha,
    DepthPoints,
    Nearest,
    Splat,
    WorldPoints,
)
from vs3r.lens import straightened


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Placed:
    """The points that are drawn, in the view."""

    u: Tensor
    """(N,) pixels."""
    v: Tensor
    """(N,) pixels."""
    depth: Tensor
    """(N,) float32."""
    source: Tensor
    """(N,) int32."""
    attributes: Tensor
    """(N, C) finite, of the arithmetic's dtype."""

    def keys(self) -> Tensor:
        """(N,) int64, in the order of depth, then number."""
        bits = self.depth.view(torch.int32).long()
        return bits << 32 | torch.arange(len(bits), device=bits.device)


def splat_points_reference(points: DepthPoints | WorldPoints, view: View, blending: Nearest | Alpha) -> Splat:
    """See vs3r.kernels.splat.splat_points."""
    placed = _place(points, view)
    splat = _nearest(placed, view, blending) if isinstance(blending, Nearest) else _alpha(placed, view, blending)
    shape = view.height, view.width
    return Splat(
        attributes=None if points.attributes is None or splat.attributes is None else splat.attributes.view(*shape, -1),
        depth=splat.depth.view(shape),
        valid=splat.valid.view(shape),
        source=splat.source.view(shape),
    )


def _place(points: DepthPoints | WorldPoints, view: View) -> _Placed:
    dtype = torch.float64 if points.places.dtype == torch.float64 else torch.float32
    if isinstance(points, DepthPoints):
        S, H, W = points.inv_depth.shape
        rho = points.inv_depth.to(dtype).flatten()
        drawn = (rho > 0) & (rho < torch.inf)
        moved = _moved(points, rho, view)
        far = 1 / torch.where(drawn, rho, 1)
        source = torch.arange(S, dtype=torch.int32, device=rho.device).repeat_interleave(H * W)
    else:
        pose = view.cam_from_world.to(dtype)
        moved = points.xyz.to(dtype) @ pose[:3, :3].T + pose[:3, 3]
        drawn = torch.ones_like(moved[:, 0], dtype=torch.bool)
        far = torch.ones_like(moved[:, 0])
        source = torch.zeros_like(drawn, dtype=torch.int32) if points.source is None else points.source
    u, v, depth, seen = project(moved, view)
    depth = (depth * far).float()
    drawn = drawn & seen & (depth >= LEAST_DEPTH) & (depth < torch.inf)
    if points.valid is not None:
        drawn &= points.valid.flatten()
    if points.dynamic is not None:
        drawn &= ~points.dynamic.flatten() | (source == points.current)
    if points.attributes is None:
        attributes = torch.zeros(len(u), 0).to(u)
    else:
        attributes = points.attributes.flatten(0, -2).to(dtype).nan_to_num(0, 0, 0)
    return _Placed(u=u[drawn], v=v[drawn], depth=depth[drawn], source=source[drawn], attributes=attributes[drawn])


def _moved(points: DepthPoints, rho: Tensor, view: View) -> Tensor:
    """(S * H * W, 3) the points in the view's axes, times their inverse depth rho (S * H * W)."""
    S, H, W = points.inv_depth.shape
    rows, columns = (torch.arange(n).to(rho) + 0.5 for n in (H, W))
    v, u = torch.meshgrid(rows, columns, indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)], -1)
    view_from_source, distortion = view.from_sources(points.cameras), points.cameras.distortion
    if not points.cameras.rolling:
        view_from_source = view_from_source[:, None]
    turn, from_pixels = view_from_source[..., :3, :3], torch.linalg.inv(points.cameras.K.double())[:, None]
    if distortion:
        pixels = pixels @ from_pixels.to(rho).mT
        pixels[..., :2] *= straightened(distortion, pixels[..., :2].square().sum(-1, keepdim=True))
        turn = turn.to(rho)
    else:
        turn = (turn @ from_pixels).to(rho)
    shift = view_from_source[:, :, None, :3, 3].to(rho)
    moved: Tensor = pixels @ turn.mT + rho.view(S, H, W, 1) * shift
    return moved.reshape(-1, 3)


def _nearest(placed: _Placed, view: View, blending: Nearest) -> Splat:
    size, device = view.height * view.width, placed.u.device
    keys = placed.keys()
    best = torch.full((size,), EMPTY, device=device)
    for point, pixel, _ in _footprint(placed, view):
        best.scatter_reduce_(0, pixel, keys[point], "amin")
    nearest = (best >> 32).int().view(torch.float32)
    # Integers: their sum does not depend on the order.
    weights, depths = (torch.zeros(size, dtype=torch.int64, device=device) for _ in range(2))
    values = torch.zeros(size, placed.attributes.shape[1], dtype=torch.int64, device=device)
    largest = placed.attributes.abs().amax() if placed.attributes.numel() else torch.ones((), device=device)
    largest = largest.clamp_min(LEAST_DEPTH)
    for point, pixel, weight in _footprint(placed, view):
        excess = (placed.depth[point] / nearest[pixel] - 1) / blending.depth_tolerance
        same = excess <= 1
        point, pixel, weight, excess = point[same], pixel[same], weight[same], excess[same].to(weight)
        weights.index_add_(0, pixel, (weight * FIXED).long())
        depths.index_add_(0, pixel, (weight * excess * FIXED).long())
        values.index_add_(0, pixel, (weight[:, None] * (placed.attributes[point] / largest) * FIXED).long())
    valid = weights > 0
    share = 1 / weights.clamp_min(1).double()
    depth = nearest.double() * (1 + depths * share * blending.depth_tolerance)
    return Splat(
        attributes=(values * share[:, None] * largest.double()).to(placed.attributes),
        depth=torch.where(valid, depth, 0).to(placed.u),
        valid=valid,
        source=_sources(placed, best, valid),
    )


def _footprint(placed: _Placed, view: View) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The pixels of bilinear weight around each point, a corner at a time: point, pixel and weight, (M,) each."""
    left, top = (placed.u - 0.5).floor(), (placed.v - 0.5).floor()
    right_share, lower_share = placed.u - 0.5 - left, placed.v - 0.5 - top
    for dy, dx in itertools.product((0, 1), (0, 1)):
        x, y = left + dx, top + dy
        weight = (right_share if dx else 1 - right_share) * (lower_share if dy else 1 - lower_share)
        inside = (x >= 0) & (x < view.width) & (y >= 0) & (y < view.height)
        (point,) = torch.nonzero(inside & (weight >= MIN_WEIGHT), as_tuple=True)
        yield point, y[point].long() * view.width + x[point].long(), weight[point]


def _alpha(placed: _Placed, view: View, blending: Alpha) -> Splat:
    size, radius = view.height * view.width, blending.radius_px(view)
    point, pixel, d2 = _discs(placed, view, radius)
    # By pixel, and within one by key.
    order = torch.argsort(placed.keys()[point], stable=True)
    order = order[torch.argsort(pixel[order], stable=True)]
    point, pixel, d2 = point[order], pixel[order], d2[order]
    first = torch.searchsorted(pixel, pixel)
    rank = torch.arange(len(pixel), device=pixel.device) - first
    values = torch.zeros(size, placed.attributes.shape[1]).to(placed.attributes)
    through = torch.ones(size).to(placed.attributes)
    for k in range(blending.points_per_pixel):
        at = rank == k
        if not at.any():
            break
        opacity = 1 - d2[at] / radius**2
        share = through[pixel[at]] * opacity
        values[pixel[at]] += share[:, None] * placed.attributes[point[at]]
        through[pixel[at]] -= share
    best = torch.full((size,), EMPTY, device=placed.u.device)
    best[pixel[rank == 0]] = placed.keys()[point[rank == 0]]
    valid = best < EMPTY
    depth = torch.where(valid, (best >> 32).int().view(torch.float32), 0).to(placed.u)
    return Splat(attributes=values, depth=depth, valid=valid, source=_sources(placed, best, valid))


def _discs(placed: _Placed, view: View, radius: float) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels whose centres lie within the radius of each point: point, pixel and squared distance, (M,) each."""
    reach = int(radius + 0.5)
    found = []
    for dy, dx in itertools.product(range(-reach, reach + 1), repeat=2):
        x, y = placed.u.floor() + dx, placed.v.floor() + dy
        d2 = (x + 0.5 - placed.u) ** 2 + (y + 0.5 - placed.v) ** 2
        inside = (x >= 0) & (x < view.width) & (y >= 0) & (y < view.height)
        (point,) = torch.nonzero(inside & (d2 < radius**2), as_tuple=True)
        found.append((point, y[point].long() * view.width + x[point].long(), d2[point]))
    points, pixels, distances = zip(*found, strict=True)
    return torch.cat(points), torch.cat(pixels), torch.cat(distances)


def _sources(placed: _Placed, best: Tensor, valid: Tensor) -> Tensor:
    """The source of each pixel's nearest point, -1 where there is none."""
    if not len(placed.source):
        return torch.full_like(best, -1, dtype=torch.int32)
    number = torch.where(valid, best & 0xFFFFFFFF, 0)
    return torch.where(valid, placed.source[number], -1)

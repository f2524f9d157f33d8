"""The backward map: for every node of the target, the point of the source that is seen there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import cv2
import numpy as np

from vs3r.cameras import OutputCamera
from vs3r.errors import InputError
from vs3r.lens import bent
from vs3r.render.nodes import make_grid, shrink
from vs3r.render.pullpush import f32, pull_push
from vs3r.types import DoubleArray, FloatArray, Frame, FrameGeometry, PictureFormat, Plane, read_axis

ITERATIONS = 4
"""Each step of the fixed point shrinks the error by the map's stretch through parallax, well below 0.3 in practice."""
FRONT = 0.05
"""Least cosine between a source's axis and a ray that it can see."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceFrame:
    """A full-size picture and what is known of its camera."""

    frame: Frame
    """The picture."""
    geometry: FrameGeometry
    """Its camera, depth and moving parts."""

    @cached_property
    def inv_depth(self) -> FloatArray:
        """(Gh, Gw) what it is rendered with, see calm_inv_depth."""
        return calm_inv_depth(self.geometry)

    @cached_property
    def small(self) -> tuple[Plane, ...]:
        """Its planes, all shrunk to the size of make_grid's small pictures."""
        shape = make_grid(self.frame.format).small_plane_shape
        return tuple(shrink(plane, shape) for plane in self.frame.planes)

    @cached_property
    def cells(self) -> tuple[Plane, ...]:
        """Its planes, all shrunk to one pixel per cell of make_grid's."""
        shape = make_grid(self.frame.format).shape
        return tuple(shrink(plane, shape) for plane in self.small)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Target:
    """The view to be rendered, by nodes."""

    camera: OutputCamera
    """The output camera."""
    cam_from_world: DoubleArray
    """(4, 4) its pose."""
    rays: DoubleArray
    """(rows + 2, cols + 2, 3) unit rays of the nodes in camera axes."""
    visible: FloatArray
    """(rows + 2, cols + 2) 1 where the camera model sees anything at all."""


def check_sources(index: int, sources: Mapping[int, SourceFrame], fmt: PictureFormat) -> None:
    """Raise InputError unless frame `index` is among the sources and all have the format."""
    if index not in sources:
        raise InputError(f"render: expected frame {index} among the sources; got frames {sorted(sources)}")
    for number, source in sources.items():
        if source.frame.format != fmt:
            raise InputError(f"render: expected frames of {fmt}; frame {number} is {source.frame.format}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BackwardMap:
    """Where in the source to look, per node."""

    x: FloatArray
    """(rows, cols) horizontal position in the source in its pixels; the first pixel's centre is 0.5."""
    y: FloatArray
    """(rows, cols) vertical position."""
    front: FloatArray
    """(rows, cols) 1 where the direction is in front of the source, else 0."""
    settled: FloatArray
    """(rows, cols) 1 where the fixed point settled, else 0: near a fold, where depth jumps."""

    def __getitem__(self, number: int) -> BackwardMap:
        """One of several maps that lie in one, see backward_maps."""
        return BackwardMap(x=self.x[number], y=self.y[number], front=self.front[number], settled=self.settled[number])


def calm_inv_depth(geometry: FrameGeometry) -> FloatArray:
    """Inverse depth with moving objects flattened into their surroundings, so that they are moved but not bent."""
    rho = np.ascontiguousarray(geometry.inv_depth, dtype=np.float32)
    if not geometry.dynamic.any():
        return rho
    moving = cv2.resize(
        np.ascontiguousarray(geometry.dynamic, dtype=np.float32), rho.shape[::-1], interpolation=cv2.INTER_LINEAR
    ).reshape(rho.shape)
    still = np.clip(1.0 - moving, 0.0, 1.0)
    if still.max() < 0.5:
        return rho
    around = pull_push(rho, still * still)
    return np.asarray(still * rho + (1.0 - still) * around, dtype=np.float32)


def sample_cells(cells: FloatArray, x: FloatArray, y: FloatArray, size: tuple[int, int]) -> FloatArray:
    """Interpolate a grid of cells that tile a picture of size (width, height) at its pixel positions x, y."""
    return cast("FloatArray", sample_each_cells(cells[None], x[None], y[None], size)[0])


def sample_each_cells(cells: FloatArray, x: FloatArray, y: FloatArray, size: tuple[int, int]) -> FloatArray:
    """The same for S grids (S, Gh, Gw) at once, each at its own positions x, y (S, rows, cols)."""
    rows, cols = cells.shape[1:]
    gx = x * np.float32(cols / size[0]) - np.float32(0.5)
    gy = y * np.float32(rows / size[1]) - np.float32(0.5)
    sampled = np.empty(gx.shape, np.float32)
    for grid, grid_x, grid_y, out in zip(cells, gx, gy, sampled, strict=True):
        cv2.remap(grid, grid_x, grid_y, cv2.INTER_LINEAR, out, cv2.BORDER_REPLICATE)
    return sampled


def backward_map(
    rays: DoubleArray,
    cam_from_world: DoubleArray,
    geometry: FrameGeometry,
    inv_depth: FloatArray,
    size: tuple[int, int],
) -> BackwardMap:
    """Follow rays of the virtual camera to the surface that the source's inverse depth describes.

    A source point x = (x, y, 1) with inverse depth rho is seen in direction Y = R x + rho t. In source axes, with
    t' = R^T t, that is d = (x + rho t') / |x + rho t'|, so x is proportional to d - s t' with s = rho / |x + rho t'|,
    which is iterated. Distances along the ray, not depths, so that rays beyond 90 degrees work as well. Where the
    source has a rolling shutter, x is seen by the camera of its own line, which is found in the same iteration.

    Args:
        rays: (rows, cols, 3) unit rays in virtual camera axes.
        cam_from_world: (4, 4) virtual camera.
        geometry: the source.
        inv_depth: (Gh, Gw) its inverse depth, see calm_inv_depth.
        size: width and height of the source in pixels.
    """
    return backward_maps(rays, cam_from_world, [geometry], inv_depth[None], size)[0]


def backward_maps(
    rays: DoubleArray,
    cam_from_world: DoubleArray,
    geometries: Sequence[FrameGeometry],
    inv_depths: FloatArray,
    size: tuple[int, int],
) -> BackwardMap:
    """The same for S sources at once, of inverse depths (S, Gh, Gw); its fields are (S, rows, cols)."""
    virtual_from_source = cam_from_world @ np.linalg.inv(np.stack([g.cam_from_world for g in geometries]))
    R, t = virtual_from_source[:, :3, :3], virtual_from_source[:, :3, 3:]
    dx, dy, dz = np.ascontiguousarray(np.moveaxis(rays @ R[:, None], -1, 0), dtype=np.float32)
    tx, ty, tz = f32(R.mT @ t).transpose(1, 0, 2)[..., None]
    K = f32([g.K for g in geometries])[..., None, None]
    fx, fy, skew, cx, cy = K[:, 0, 0], K[:, 1, 1], K[:, 0, 1], K[:, 0, 2], K[:, 1, 2]
    distortion = f32([g.distortion for g in geometries])[:, None, None]
    bends = bool(distortion.any())

    def over_z(px: FloatArray, py: FloatArray, pz: FloatArray) -> tuple[FloatArray, FloatArray]:
        z = np.maximum(pz, np.float32(FRONT))
        return f32(px / z), f32(py / z)

    def pixel(nx: FloatArray, ny: FloatArray) -> tuple[FloatArray, FloatArray]:
        if bends:
            scale = bent(distortion, nx * nx + ny * ny)
            nx, ny = f32(nx * scale), f32(ny * scale)
        return f32(fx * nx + skew * ny + cx), f32(fy * ny + cy)

    nx, ny = over_z(dx, dy, dz)
    u, v = pixel(nx, ny)
    pz = dz
    settled = np.ones(u.shape, np.bool_)
    row_motion, axis = _stacked_row_motion(geometries), read_axis(*size)
    rolls = bool(row_motion.any())
    if rolls or float(np.sqrt(tx * tx + ty * ty + tz * tz).max()) * float(inv_depths.max()) > 1e-7:
        for _ in range(ITERATIONS):
            rho = sample_each_cells(inv_depths, u, v, size)
            s = rho / np.sqrt((nx + rho * tx) ** 2 + (ny + rho * ty) ** 2 + (1 + rho * tz) ** 2)
            pz = dz - s * tz
            last_u, last_v = u, v
            nx, ny = over_z(dx - s * tx, dy - s * ty, pz)
            line = f32(np.clip((u, v)[axis] / np.float32(size[axis]), 0, 1) - np.float32(0.5))
            u, v = pixel(*over_z(*_at_row(nx, ny, rho, row_motion, line))) if rolls else pixel(nx, ny)
        settled = np.maximum(np.abs(u - last_u), np.abs(v - last_v)) < 0.004 * max(size)
    front = ((pz > FRONT) & (dz > FRONT)).astype(np.float32)
    return BackwardMap(x=u, y=v, front=front, settled=settled.astype(np.float32))


def _stacked_row_motion(geometries: Sequence[FrameGeometry]) -> FloatArray:
    """(N, 6, S, 1, 1) see FrameGeometry.row_motion."""
    stacked = np.zeros((max(len(g.row_motion) for g in geometries), 6, len(geometries), 1, 1), np.float32)
    for number, geometry in enumerate(geometries):
        stacked[: len(geometry.row_motion), :, number, 0, 0] = geometry.row_motion
    return stacked


def _at_row(
    x: FloatArray, y: FloatArray, inv_depth: FloatArray, row_motion: FloatArray, s: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Points (x, y, 1) of the middle line's camera in that of line s, see _stacked_row_motion."""
    motion = np.zeros((6, *s.shape), np.float32)
    for coefficients in row_motion[::-1]:
        motion += coefficients
        motion *= s
    tx, ty, tz, a, b, c = motion
    # Rotation by a small vector w to second order: v + w x v + w x (w x v) / 2.
    ux, uy, uz = b - c * y, c * x - a, a * y - b * x
    half = np.float32(0.5)
    return (
        f32(x + ux + half * (b * uz - c * uy) + inv_depth * tx),
        f32(y + uy + half * (c * ux - a * uz) + inv_depth * ty),
        f32(1 + uz + half * (a * uy - b * ux) + inv_depth * tz),
    )

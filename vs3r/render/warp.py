"""The backward map: for every node of the target, the point of the source that is seen there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from vs3r.errors import InputError
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
    rows, cols = cells.shape
    gx = x * np.float32(cols / size[0]) - np.float32(0.5)
    gy = y * np.float32(rows / size[1]) - np.float32(0.5)
    sampled = cv2.remap(cells, gx, gy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(sampled, dtype=np.float32)


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
    virtual_from_source = cam_from_world @ np.linalg.inv(geometry.cam_from_world)
    R, t = virtual_from_source[:3, :3], virtual_from_source[:3, 3]
    dx, dy, dz = np.ascontiguousarray(np.moveaxis(rays @ R, -1, 0), dtype=np.float32)
    tx, ty, tz = (R.T @ t).astype(np.float32)
    fx, fy, skew = (np.float32(geometry.K[i]) for i in ((0, 0), (1, 1), (0, 1)))
    cx, cy = np.float32(geometry.K[0, 2]), np.float32(geometry.K[1, 2])

    def over_z(px: FloatArray, py: FloatArray, pz: FloatArray) -> tuple[FloatArray, FloatArray]:
        z = np.maximum(pz, np.float32(FRONT))
        return f32(px / z), f32(py / z)

    def pixel(nx: FloatArray, ny: FloatArray) -> tuple[FloatArray, FloatArray]:
        return f32(fx * nx + skew * ny + cx), f32(fy * ny + cy)

    nx, ny = over_z(dx, dy, dz)
    u, v = pixel(nx, ny)
    pz = dz
    settled = np.ones(u.shape, np.bool_)
    rolls, axis = bool(geometry.row_motion.any()), read_axis(*size)
    if rolls or float(np.hypot(np.hypot(tx, ty), tz)) * float(inv_depth.max()) > 1e-7:
        for _ in range(ITERATIONS):
            rho = sample_cells(inv_depth, u, v, size)
            s = rho / np.sqrt((nx + rho * tx) ** 2 + (ny + rho * ty) ** 2 + (1 + rho * tz) ** 2)
            pz = dz - s * tz
            last_u, last_v = u, v
            nx, ny = over_z(dx - s * tx, dy - s * ty, pz)
            line = f32(np.clip((u, v)[axis] / np.float32(size[axis]), 0, 1) - np.float32(0.5))
            u, v = pixel(*over_z(*_at_row(nx, ny, rho, geometry.row_motion, line))) if rolls else pixel(nx, ny)
        settled = np.maximum(np.abs(u - last_u), np.abs(v - last_v)) < 0.004 * max(size)
    front = ((pz > FRONT) & (dz > FRONT)).astype(np.float32)
    return BackwardMap(x=u, y=v, front=front, settled=settled.astype(np.float32))


def _at_row(
    x: FloatArray, y: FloatArray, inv_depth: FloatArray, row_motion: DoubleArray, s: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Points (x, y, 1) of the middle line's camera in that of line s, see FrameGeometry.row_motion."""
    motion = np.zeros((6, *s.shape), np.float32)
    for coefficients in f32(row_motion)[::-1]:
        motion += coefficients[:, None, None]
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

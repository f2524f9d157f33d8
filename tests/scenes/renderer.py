"""A small ray caster with ground truth: textured rectangles, some of them moving, seen by a pinhole camera.

Everything in a scene is a rectangle (`Quad`): grounds, walls, the faces of boxes, alpha-cut billboards. Colour is
supersampled and filtered (mipmaps, several taps where the surface is seen at a slant), because aliasing would look like
motion to an optical flow. Depth, object and motion are exact at the pixel centres.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]
_Extent = tuple[slice, slice]
"""Rows and columns."""

SKY_DEPTH = 1e5
"""Depth reported for the sky, in metres; far enough to have no parallax, finite so that it can be unprojected."""
NEAR = 0.05
"""Nothing nearer than this to the camera's plane is seen, in metres."""
_BAND_ROWS = 360
_MAX_TAPS = 4


class Texture:
    """An RGB or RGBA picture with its mipmaps, all in one atlas so that one remap samples any level."""

    PAD = 2

    def __init__(self, picture: U8, *, wrap: bool = True) -> None:
        """
        Args:
            picture: (H, W, 3) RGB or (H, W, 4) RGBA, sides powers of two. What has alpha below 128 is cut out.
            wrap: the picture tiles; otherwise its border is repeated.
        """
        height, width = picture.shape[:2]
        if height & (height - 1) or width & (width - 1):
            raise ValueError(f"texture sides must be powers of two, got {width}x{height}")
        self.width, self.height = width, height
        self.has_alpha = picture.shape[2] == 4
        levels = _pyramid(picture)
        pad, border = self.PAD, cv2.BORDER_WRAP if wrap else cv2.BORDER_REPLICATE
        padded = [cv2.copyMakeBorder(level, pad, pad, pad, pad, border) for level in levels]
        rows = max(padded[0].shape[0], sum(p.shape[0] for p in padded[1:]))
        cols = padded[0].shape[1] + (padded[1].shape[1] if len(padded) > 1 else 0)
        atlas = np.zeros((rows, cols, picture.shape[2]), np.uint8)
        # The first level on the left, the others in a column beside it.
        heights = [p.shape[0] for p in padded[1:]]
        x0 = [0] + [padded[0].shape[1]] * len(heights)
        y0 = [0, *itertools.accumulate(heights[:-1], initial=0)][: len(padded)]
        for p, x, y in zip(padded, x0, y0, strict=True):
            atlas[y : y + p.shape[0], x : x + p.shape[1]] = p
        self.max_level = len(levels) - 1
        self._x0 = np.array(x0, np.float32) + (pad - 0.5)
        self._y0 = np.array(y0, np.float32) + (pad - 0.5)
        self._width = np.array([level.shape[1] for level in levels], np.float32)
        self._height = np.array([level.shape[0] for level in levels], np.float32)
        self._rgb = np.ascontiguousarray(atlas[..., :3])
        self._alpha = np.ascontiguousarray(atlas[..., 3]) if self.has_alpha else None

    def rgb(self, u: F32, v: F32, lod: F32) -> U8:
        """(H, W, 3) colours at u, v (1 = one whole picture) and mipmap level lod."""
        return self._sample(self._rgb, u, v, lod)

    def alpha(self, u: F32, v: F32, lod: F32) -> U8:
        """(H, W) alpha, 0 to 255, likewise. Only for pictures that have alpha."""
        assert self._alpha is not None
        return self._sample(self._alpha, u, v, lod)

    def _sample(self, atlas: U8, u: F32, v: F32, lod: F32) -> U8:
        u, v = u - np.floor(u), v - np.floor(v)
        lod = np.clip(lod, 0, self.max_level)
        low = np.minimum(lod.astype(np.int32), max(self.max_level - 1, 0))
        first = self._at_level(atlas, u, v, low)
        if not lod.any():
            return first
        second = self._at_level(atlas, u, v, np.minimum(low + 1, self.max_level))
        share = lod - low.astype(np.float32)
        return np.asarray(cv2.blendLinear(first, second, 1 - share, share), np.uint8)

    def _at_level(self, atlas: U8, u: F32, v: F32, level: I32) -> U8:
        if level.size and level.min() == level.max():
            at = int(level.flat[0])
            x, y = u * self._width[at] + self._x0[at], v * self._height[at] + self._y0[at]
        else:
            x = u * self._width[level] + self._x0[level]
            y = v * self._height[level] + self._y0[level]
        return np.asarray(cv2.remap(atlas, x, y, cv2.INTER_LINEAR), np.uint8)


def _pyramid(picture: U8) -> list[U8]:
    """Mipmaps by 2x2 averaging; colours weighted with alpha, so that what is cut out does not bleed in."""
    levels = [picture]
    fine = picture.astype(np.float32)
    while min(fine.shape[:2]) > 1:
        size = (fine.shape[1] // 2, fine.shape[0] // 2)
        if picture.shape[2] == 4:
            weight = fine[..., 3:] + 0.5
            colour = cv2.resize(fine[..., :3] * weight, size, interpolation=cv2.INTER_AREA)
            mean = cv2.resize(weight, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], 1)
            fine = np.concatenate([colour.reshape(size[1], size[0], 3) / mean, mean - 0.5], axis=2)
        else:
            half = np.asarray(cv2.resize(fine, size, interpolation=cv2.INTER_AREA), np.float32)
            fine = half.reshape(size[1], size[0], 3)
        levels.append(np.clip(np.rint(fine), 0, 255).astype(np.uint8))
    return levels


@dataclass(frozen=True, kw_only=True, eq=False)
class Quad:
    """A textured rectangle."""

    corner: tuple[float, float, float]
    """Where the texture's top left corner lies, in metres."""
    edge_u: tuple[float, float, float]
    """From the top left to the top right corner, in metres."""
    edge_v: tuple[float, float, float]
    """From the top left to the bottom left corner, in metres; at a right angle to edge_u."""
    textures: tuple[Texture, ...]
    """One texture, or the pictures of an animation."""
    repeat: tuple[float, float] = (1.0, 1.0)
    """How often the texture repeats along edge_u and edge_v."""
    gain: float = 1.0
    """Brightness."""
    object_id: int = 1
    """Reported where the quad is seen, >= 1 (0 is the sky)."""
    two_sided: bool = False
    """Also seen from behind. The front is where edge_u runs to the right and edge_v down."""
    motion: Callable[[float], F64] | None = None
    """world_from_object (4, 4) as a function of time in seconds; None stands still."""
    cycle_s: float = 1.0
    """Time in which the animation runs through its pictures once."""
    light: Texture | None = None
    """A picture over the whole quad that multiplies the texture: 255 is full light."""

    def texture_at(self, time_s: float) -> Texture:
        """The picture of the animation at a time."""
        return self.textures[int(time_s / self.cycle_s * len(self.textures)) % len(self.textures)]


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """A rendered picture and its ground truth."""

    rgb: U8
    """(H, W, 3) colours."""
    depth: F32
    """(H, W) z along the optical axis at the pixel centres, in metres; SKY_DEPTH for the sky."""
    object_id: I32
    """(H, W) which object is seen at the pixel centre; 0 is the sky."""
    moving: Bools
    """(H, W) what is seen at the pixel centre moves in the world."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rays:
    """One ray per sample: origin[r] + depth * (base[r] + x[c] * step[r]), in world axes.

    The pose stands in every row of its own: rows may be exposed one after the other.
    """

    origin: F64
    """(H, 3) the camera's centre, in metres."""
    base: F64
    """(H, 3) direction at x = 0, of unit length along the optical axis."""
    step: F64
    """(H, 3) change of the direction per unit of x."""
    x: F64
    """(W,) image position over the focal length."""
    row_step: F64
    """(H, 3) change of base from one row to the next."""

    def band(self, rows: slice) -> Rays:
        """The rays of some rows."""
        return Rays(
            origin=self.origin[rows], base=self.base[rows], step=self.step[rows], x=self.x, row_step=self.row_step[rows]
        )

    def dot(self, vector: F64, rows: slice, cols: slice, stride: int = 1) -> F32:
        """(rows, cols) inner product of the ray directions with a vector."""
        base, step = self.base[rows][::stride] @ vector, self.step[rows][::stride] @ vector
        out: F32 = base[:, None].astype(np.float32) + step[:, None].astype(np.float32) * self.x[cols][::stride].astype(
            np.float32
        )
        return out

    def bounds(self, corners: F64) -> _Extent:
        """Rows and columns of the samples that a rectangle with these (4, 3) corners can cover."""
        # Every row sees the corners with its own pose; the first, middle and last speak for those between.
        found_rows, found_cols = [], []
        for row in {0, len(self.base) // 2, len(self.base) - 1}:
            right, down = self.step[row], self.row_step[row]
            down_length = float(np.sqrt(down @ down))
            forward = _cross(right, down) / down_length
            relative = _clip_near(corners - self.origin[row], forward)
            if not len(relative):
                continue
            z = relative @ forward
            x = relative @ right / z
            y = (relative @ down / z - self.base[row] @ down) / down_length**2
            found_rows += [row + y.min(), row + y.max()]
            found_cols += [x.min(), x.max()]
        if not found_rows:
            return slice(0, 0), slice(0, 0)
        top = int(np.clip(np.floor(min(found_rows)) - 1, 0, len(self.base)))
        bottom = int(np.clip(np.ceil(max(found_rows)) + 2, 0, len(self.base)))
        left, right_ = np.searchsorted(self.x, [min(found_cols), max(found_cols)])
        return slice(top, bottom), slice(max(int(left) - 1, 0), min(int(right_) + 1, len(self.x)))


def _clip_near(corners: F64, forward: F64) -> F64:
    """The polygon's part in front of the near plane, as (N, 3) corners."""
    z = (corners @ forward - NEAR).tolist()
    if min(z) >= 0:
        return corners
    kept = []
    for k, za in enumerate(z):
        a, b, zb = corners[k], corners[(k + 1) % len(z)], z[(k + 1) % len(z)]
        if za >= 0:
            kept.append(a)
        if (za >= 0) != (zb >= 0):
            kept.append(a + (b - a) * (za / (za - zb)))
    return np.array(kept).reshape(-1, 3)


def _cross(a: F64, b: F64) -> F64:
    """np.cross costs 30 us on two vectors; a frame needs thousands."""
    (ax, ay, az), (bx, by, bz) = a.tolist(), b.tolist()
    return np.array([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx])


def pinhole_rays(cam_from_world: F64, K: F64, width: int, height: int, *, samples: int = 1) -> Rays:
    """The rays of a pinhole camera, samples x samples to a pixel, evenly spread about its centre.

    cam_from_world is one pose, (4, 4), or of a rolling shutter (k, 4, 4), the poses at k times evenly spaced from the
    first row's to the last row's.
    """
    v = (np.arange(height * samples) + 0.5) / samples
    x = ((np.arange(width * samples) + 0.5) / samples - K[0, 2]) / K[0, 0]
    y = (v - K[1, 2]) / K[1, 1]
    # Between poses so near to one another the entries of the matrices may be interpolated one by one.
    cam_from_world = cam_from_world.reshape(-1, 4, 4)
    at = v / height * (len(cam_from_world) - 1)
    before = np.minimum(at.astype(int), max(len(cam_from_world) - 2, 0))
    share = (at - before)[:, None, None]
    world_from_cam = np.linalg.inv(cam_from_world)
    after = np.minimum(before + 1, len(cam_from_world) - 1)
    pose = (1 - share) * world_from_cam[before] + share * world_from_cam[after]
    right, down, forward = pose[:, :3, 0], pose[:, :3, 1], pose[:, :3, 2]
    return Rays(
        origin=pose[:, :3, 3],
        base=forward + y[:, None] * down,
        step=right,
        x=x,
        row_step=down / (samples * K[1, 1]),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Placed:
    """A quad where it is at one time."""

    quad: Quad
    texture: Texture
    corner: F64
    edge_u: F64
    edge_v: F64
    normal: F64

    @property
    def corners(self) -> F64:
        return np.stack([np.zeros(3), self.edge_u, self.edge_u + self.edge_v, self.edge_v]) + self.corner

    def extent(self, rays: Rays) -> _Extent:
        """The rows and columns of rays that may meet the quad's front; none where it is seen from behind."""
        if not self.quad.two_sided and (rays.origin[0] - self.corner) @ self.normal <= 0:
            return slice(0, 0), slice(0, 0)
        return rays.bounds(self.corners)

    def hit(self, rays: Rays, rows: slice, cols: slice, stride: int = 1) -> tuple[F32, F32, F32]:
        """Depth and texture position (u, v; 0 to 1 over the quad) where the rays meet the plane."""
        relative = self.corner - rays.origin[rows][::stride]
        distance = (relative @ self.normal).astype(np.float32)[:, None]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            depth = distance / rays.dot(self.normal, rows, cols, stride)
            u, v = (
                depth * rays.dot(edge / (edge @ edge), rows, cols, stride)
                - (relative @ edge / (edge @ edge)).astype(np.float32)[:, None]
                for edge in (self.edge_u, self.edge_v)
            )
        return depth, u, v

    def footprint(self, rays: Rays, rows: slice, cols: slice) -> _Footprint:
        """How much of the texture lies between neighbouring rays."""
        shape = (rows.stop - rows.start, cols.stop - cols.start)
        stride = 8 if min(shape) >= 64 else 1  # it varies slowly
        depth, u, v = self.hit(rays, rows, cols, stride)
        over = rays.dot(self.normal, rows, cols, stride)
        relative = self.corner - rays.origin[rows][::stride]
        gradients = []
        steps = (rays.step[rows][::stride] * (rays.x[1] - rays.x[0]), rays.row_step[rows][::stride])
        for edge, at, texels in (
            (self.edge_u, u, self.quad.repeat[0] * self.texture.width),
            (self.edge_v, v, self.quad.repeat[1] * self.texture.height),
        ):
            dual = edge / (edge @ edge)
            inner = at + (relative @ dual).astype(np.float32)[:, None]  # depth * (direction . dual)
            for step in steps:  # to the next column, to the next row
                along, across = ((step @ axis).astype(np.float32)[:, None] for axis in (dual, self.normal))
                with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                    slope = np.float32(texels) * (depth * along - inner * across / over)
                gradients.append(np.nan_to_num(slope, nan=1e6, posinf=1e6, neginf=-1e6).clip(-1e6, 1e6))
        return _footprint(*gradients, shape=shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Footprint:
    lod: F32
    taps: int
    along_u: F32
    along_v: F32


def _footprint(ux: F32, uy: F32, vx: F32, vy: F32, *, shape: tuple[int, int]) -> _Footprint:
    """Mipmap level and, for a texture seen at a slant, the direction (in texels) along which to take more taps."""
    length_x, length_y = np.hypot(ux, vx), np.hypot(uy, vy)
    wide = length_x > length_y
    major = np.maximum(np.maximum(length_x, length_y), 1e-6)
    minor = np.minimum(np.abs(ux * vy - uy * vx) / major, major)
    slant = float(np.median(major / np.maximum(minor, 1e-6)))
    taps = 1 if slant < 1.5 else 2 if slant < 2.5 else _MAX_TAPS
    lod = np.log2(np.maximum(np.maximum(minor, major / taps), 1e-6))

    def full(values: F64 | F32) -> F32:
        size = (shape[1], shape[0])
        return np.asarray(cv2.resize(values.astype(np.float32), size, interpolation=cv2.INTER_LINEAR), np.float32)

    return _Footprint(
        lod=full(lod), taps=taps, along_u=full(np.where(wide, ux, uy)), along_v=full(np.where(wide, vx, vy))
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A world of quads under a sky. Axes as the camera's at rest: x right, y down, z forward; metres."""

    quads: Sequence[Quad]
    """Everything but the sky."""
    sky: Texture
    """Seen where nothing else is: longitude over the width (0 is backwards), latitude from the zenith down."""
    samples: int = 2
    """Rays per pixel in each direction."""

    def render(self, cam_from_world: F64, K: F64, width: int, height: int, time_s: float) -> View:
        """What a camera sees at a time.

        Args:
            cam_from_world: (4, 4) pose, or (k, 4, 4) poses from the first row's to the last row's; lengths in metres.
            K: (3, 3) intrinsics in pixels; the first pixel's centre is (0.5, 0.5).
            width: columns of the picture.
            height: rows of the picture.
            time_s: when; only moving objects depend on it.
        """
        placed = [_place(quad, time_s) for quad in self.quads]
        fine = pinhole_rays(cam_from_world, K, width, height, samples=self.samples)
        rgb = np.empty((height, width, 3), np.uint8)
        band_rows = _BAND_ROWS // self.samples * self.samples
        extents = [item.extent(fine) for item in placed]
        for start in range(0, height * self.samples, band_rows):
            band_slice = slice(start, min(start + band_rows, height * self.samples))
            band = fine.band(band_slice)
            within = [_within(extent, band_slice) for extent in extents]
            _, index = _visible(placed, band, within)
            colours = self._shade(placed, band, index, within)
            rows = slice(start // self.samples, start // self.samples + len(band.base) // self.samples)
            rgb[rows] = cv2.resize(colours, (width, len(rgb[rows])), interpolation=cv2.INTER_AREA)
        centres = pinhole_rays(cam_from_world, K, width, height)
        depth, index = _visible(placed, centres, [item.extent(centres) for item in placed])
        ids = np.array([p.quad.object_id for p in placed] + [0], np.int32)
        moves = np.array([p.quad.motion is not None for p in placed] + [False])
        return View(rgb=rgb, depth=depth, object_id=ids[index], moving=moves[index])

    def _shade(self, placed: list[_Placed], rays: Rays, index: I32, extents: list[_Extent]) -> U8:
        colours = np.empty((*index.shape, 3), np.uint8)
        everywhere = (slice(0, index.shape[0]), slice(0, index.shape[1]))
        # The sky comes last and stands for number -1.
        for number, (rows, cols) in zip([*range(len(placed)), -1], [*extents, everywhere], strict=True):
            seen = index[rows, cols] == number
            if not seen.any():
                continue
            inner = _extent(seen)
            rows = slice(rows.start + inner[0].start, rows.start + inner[0].stop)
            cols = slice(cols.start + inner[1].start, cols.start + inner[1].stop)
            if number < 0:
                colour = self._sky_colour(rays, rows, cols)
            else:
                colour = _surface_colour(placed[number], rays, rows, cols)
            np.copyto(colours[rows, cols], colour, where=seen[inner][..., None])
        return colours

    def _sky_colour(self, rays: Rays, rows: slice, cols: slice) -> U8:
        x, y, z = (rays.dot(axis, rows, cols) for axis in np.eye(3))
        u = np.asarray(np.arctan2(x, z) / (2 * np.pi) + 0.5, np.float32)
        v = np.asarray(np.arctan2(y, np.hypot(x, z)) / np.pi + 0.5, np.float32)
        texels = float(np.linalg.norm(rays.row_step[0])) * self.sky.height / np.pi
        return self.sky.rgb(u, v, np.full_like(u, np.log2(max(texels, 1e-6))))


def _place(quad: Quad, time_s: float) -> _Placed:
    corner, edge_u, edge_v = (np.array(part, np.float64) for part in (quad.corner, quad.edge_u, quad.edge_v))
    if quad.motion is not None:
        world_from_object = quad.motion(time_s)
        rotation = world_from_object[:3, :3]
        corner, edge_u, edge_v = rotation @ corner + world_from_object[:3, 3], rotation @ edge_u, rotation @ edge_v
    normal = _cross(edge_v, edge_u)
    return _Placed(
        quad=quad,
        texture=quad.texture_at(time_s),
        corner=corner,
        edge_u=edge_u,
        edge_v=edge_v,
        normal=normal / np.linalg.norm(normal),
    )


def _within(extent: _Extent, band: slice) -> _Extent:
    """The part of an extent that lies in a band of rows, counted from the band's first."""
    top, bottom = (min(max(row, band.start), band.stop) - band.start for row in (extent[0].start, extent[0].stop))
    return slice(top, bottom), extent[1]


def _visible(placed: list[_Placed], rays: Rays, extents: list[_Extent]) -> tuple[F32, I32]:
    """Depth and number of the quad that each ray meets first; -1 is the sky."""
    shape = (len(rays.base), len(rays.x))
    nearest = np.full(shape, SKY_DEPTH, np.float32)
    index = np.full(shape, -1, np.int32)
    for number, (item, (rows, cols)) in enumerate(zip(placed, extents, strict=True)):
        if rows.stop <= rows.start or cols.stop <= cols.start:
            continue
        depth, u, v = item.hit(rays, rows, cols)
        window = nearest[rows, cols]
        inside = (depth > NEAR) & (depth < window) & (u >= 0) & (u < 1) & (v >= 0) & (v < 1)
        if item.texture.has_alpha and inside.any():
            lod = item.footprint(rays, rows, cols).lod
            inside &= item.texture.alpha(u * item.quad.repeat[0], v * item.quad.repeat[1], lod) > 127
        np.copyto(window, depth, where=inside)
        np.copyto(index[rows, cols], number, where=inside)
    return nearest, index


def _extent(mask: Bools) -> _Extent:
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)


def _surface_colour(item: _Placed, rays: Rays, rows: slice, cols: slice) -> U8:
    quad, texture = item.quad, item.texture
    _, u, v = item.hit(rays, rows, cols)
    u, v = np.nan_to_num(np.clip(u, -1, 2)), np.nan_to_num(np.clip(v, -1, 2))
    foot = item.footprint(rays, rows, cols)
    colour = np.zeros((*u.shape, 3), np.float32)
    for tap in range(foot.taps):
        offset = np.float32((tap + 0.5) / foot.taps - 0.5)
        colour += texture.rgb(
            u * np.float32(quad.repeat[0]) + offset * foot.along_u / texture.width,
            v * np.float32(quad.repeat[1]) + offset * foot.along_v / texture.height,
            foot.lod,
        )
    colour *= quad.gain / foot.taps
    if quad.light is not None:
        colour *= quad.light.rgb(u, v, np.zeros_like(u)) / 255.0
    return np.asarray(cv2.convertScaleAbs(colour), np.uint8)

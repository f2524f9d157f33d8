"""Layers: a source picture with its map into the target view, and how layers are put over one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np

from vs3r.kernels.compose.layers import FAINT, HALFWAY, HIDDEN
from vs3r.render.nodes import CellRect, NodeGrid, expand
from vs3r.render.pullpush import f32
from vs3r.render.warp import BackwardMap, SourceFrame
from vs3r.types import FloatArray, PictureFormat, Plane

FEATHER = 0.015
"""Width of the blend at seams, of the longer side."""
OWN_MARGIN_PX = -1.0
"""The frame itself may be stretched over its border by this much, rather than call neighbours for a hair's breadth."""
FILL_MARGIN_PX = 1.25
"""A neighbour is not used nearer to its border: bicubic footprint, and the ragged edges that encoders leave."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """One source in the target view, by nodes."""

    source: SourceFrame
    """The source."""
    map: BackwardMap
    """Where to look in it."""
    opacity: FloatArray
    """(rows + 2, cols + 2) in [0, 1], beside the ramp at the source's border: 0 where it must not be seen."""
    margin_px: float
    """Distance from the source's border at which it begins to show, luma pixels."""
    offsets: tuple[FloatArray, ...] = ()
    """Per plane, (rows + 2, cols + 2) added to its values; empty adds nothing."""


def feather_px(size: tuple[int, int]) -> float:
    """Width of the blend at seams, luma pixels, in a picture of size (width, height)."""
    return max(4.0, FEATHER * max(size))


def inside_px(x: FloatArray, y: FloatArray, size: tuple[float, float]) -> FloatArray:
    """Distance of positions to the border of a picture of size (width, height), positive inside."""
    return f32(np.minimum(np.minimum(x, np.float32(size[0]) - x), np.minimum(y, np.float32(size[1]) - y)))


def smoothstep(x: FloatArray) -> FloatArray:
    """0 up to x = 0, 1 from x = 1, smooth between."""
    t = np.clip(x, 0.0, 1.0)
    rest = t * np.float32(-2.0)
    rest += np.float32(3.0)
    t *= t
    t *= rest
    return f32(t)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneView:
    """One plane of the pictures and its scale against luma."""

    number: int
    """Index of the plane."""
    shape: tuple[int, int]
    """Rows and columns."""
    step_y: int
    """Pixels per cell, down."""
    step_x: int
    """Pixels per cell, across."""
    scale_y: float
    """Luma pixels per pixel, down."""
    scale_x: float
    """Luma pixels per pixel, across."""

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in luma pixels."""
        return self.shape[1] * self.scale_x, self.shape[0] * self.scale_y

    def positions(self, layer: Layer, rect: CellRect) -> tuple[FloatArray, FloatArray]:
        """Backward map of a rectangle in OpenCV's convention (first centre at 0) of this plane."""
        part = rect.nodes
        x = layer.map.x[part] * np.float32(1 / self.scale_x) - np.float32(0.5)
        y = layer.map.y[part] * np.float32(1 / self.scale_y) - np.float32(0.5)
        return self.field(x, rect), self.field(y, rect)

    def alpha(self, layer: Layer, x: FloatArray, y: FloatArray, rect: CellRect, feather_px: float) -> FloatArray:
        """Opacity of a layer at plane positions (OpenCV's convention): ramps up inside the source's border."""
        part = rect.nodes
        opacity = layer.opacity[part]
        # Between nodes the border is no nearer than at the nearest of them.
        nearest = inside_px(layer.map.x[part], layer.map.y[part], self.size).min()
        if nearest >= layer.margin_px + feather_px:
            return self.field(opacity, rect)
        # In this order, in place: this is a main cost of filling.
        depth = np.minimum(x, np.float32(self.shape[1] - 1) - x)
        if self.scale_x != self.scale_y:
            depth = (depth + np.float32(0.5)) * np.float32(self.scale_x / self.scale_y) - np.float32(0.5)
        np.minimum(depth, y, out=depth)
        np.minimum(depth, np.float32(self.shape[0] - 1) - y, out=depth)
        depth += np.float32(0.5 - layer.margin_px / self.scale_y)
        shown = depth > 0
        depth *= np.float32(self.scale_y / feather_px)
        ramp = smoothstep(depth)
        # Where only this layer sees anything it must show, however faint: the sum of the weights is normalised later.
        np.maximum(ramp, np.float32(FAINT), out=ramp)
        ramp *= shown
        if opacity.min() < 1.0:
            ramp *= self.field(opacity, rect)
        return ramp

    def field(self, part: FloatArray, rect: CellRect) -> FloatArray:
        """A node field, cut to the nodes of a rectangle, at its pixels."""
        rows, cols = rect.pixels(self.step_y, self.step_x, self.shape)
        return expand(part, self.step_y, self.step_x)[: rows.stop - rows.start, : cols.stop - cols.start]


def plane_views(fmt: PictureFormat, grid: NodeGrid) -> list[PlaneView]:
    """The planes of a format."""
    views = []
    for number in range(fmt.num_planes):
        sx, sy = fmt.plane_shift(number)
        views.append(
            PlaneView(
                number=number,
                shape=fmt.plane_shape(number),
                step_y=grid.cell_px >> sy,
                step_x=grid.cell_px >> sx,
                scale_y=float(1 << sy),
                scale_x=float(1 << sx),
            )
        )
    return views


def sample(plane: Plane, x: FloatArray, y: FloatArray) -> Plane:
    """Bicubic samples; the border is repeated outward."""
    return cast("Plane", cv2.remap(plane, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE))


def doubled(plane: Plane) -> Plane:
    """(2 H, 2 W) a plane and what lies halfway between its pixels; pixel (y, x) is found again at (2 y, 2 x).

    Sampled from this, a picture stays sharper than from the plane itself, at half the cost of a kernel as long as that.
    """
    rows, columns = plane.shape
    out = np.empty((2 * rows, 2 * columns), plane.dtype)
    down = _halfway(plane, axis=0)
    for line, pixels in enumerate((plane, down)):
        out[line::2] = cv2.merge([pixels, _halfway(pixels, axis=1)]).reshape(rows, 2 * columns)
    return out


def _halfway(plane: Plane, *, axis: int) -> Plane:
    """Between each pixel and the next along an axis; the border is repeated outward."""
    taps = np.array(HALFWAY, np.float32)
    kernel, anchor = (taps[:, None], (0, 3)) if axis == 0 else (taps[None], (3, 0))
    return cast("Plane", cv2.filter2D(plane, -1, kernel, anchor=anchor, borderType=cv2.BORDER_REPLICATE))


class Canvas:
    """Front-to-back composition of layers on a rectangle of planes that have one shape.

    Where several layers show, their weights ramp; where one shows alone, it shows fully, however faint: the sum is
    divided by the sum of the weights.
    """

    def __init__(self, views: Sequence[PlaneView], rect: CellRect, *, keep: FloatArray, feather_px: float) -> None:
        """
        Args:
            views: the planes; they differ by their number only.
            rect: the rectangle.
            keep: (rows + 2, cols + 2) where the first layer stays alone, ramp or not: 1 far from anything to fill.
            feather_px: width of the ramps at the borders of sources, luma pixels.
        """
        self._numbers = [view.number for view in views]
        self._view, self._rect, self._keep, self._feather_px = views[0], rect, keep, feather_px
        rows, cols = rect.pixels(self._view.step_y, self._view.step_x, self._view.shape)
        size = rows.stop - rows.start, cols.stop - cols.start
        self._totals = [np.zeros(size, np.float32) for _ in views]
        self._through = np.ones(size, np.float32)
        self._empty = True

    def add(self, layer: Layer, planes: Sequence[Plane], *, sampled: Sequence[Plane] | None = None) -> None:
        """Put a layer behind those that are there.

        Args:
            layer: the first one is the frame itself.
            planes: its source's pictures of the views.
            sampled: the rectangle as sampled from them, where that is at hand.
        """
        rect = self._open()
        if rect is None or not (self._empty or self._shows(layer, rect)):
            return
        nodes, part = rect.nodes, self._within(rect)
        x, y = self._view.positions(layer, rect)
        alpha = self._view.alpha(layer, x, y, rect, self._feather_px)
        if self._empty:
            keep = self._view.field(self._keep[nodes], rect)
            alpha = f32(np.where(alpha > 0, np.maximum(alpha, keep), 0.0))
            self._empty = False
        alpha *= self._through[part]
        # Fainter than the faintest that stands alone: hidden behind what is there.
        if alpha.max() < 0.9 * FAINT:
            return
        if sampled is None:
            sampled = [sample(plane, x, y) for plane in planes]
        for number, total, values in zip(self._numbers, self._totals, sampled, strict=True):
            colour = values.astype(np.float32)
            if layer.offsets:
                colour += self._view.field(layer.offsets[number][nodes], rect)
            colour *= alpha
            total[part] += colour
        self._through[part] -= alpha

    def _open(self) -> CellRect | None:
        """The part of the rectangle where something can still be seen through what is there."""
        left, top, width, height = cv2.boundingRect((self._through > HIDDEN).view(np.uint8))
        if width == 0:
            return None
        return CellRect(
            self._rect.top + top // self._view.step_y,
            self._rect.top + (top + height - 1) // self._view.step_y + 1,
            self._rect.left + left // self._view.step_x,
            self._rect.left + (left + width - 1) // self._view.step_x + 1,
        )

    def _within(self, rect: CellRect) -> tuple[slice, slice]:
        """The pixels of a part of the rectangle, counted from its corner."""
        top, left = self._rect.top, self._rect.left
        inner = CellRect(rect.top - top, rect.bottom - top, rect.left - left, rect.right - left)
        return inner.pixels(self._view.step_y, self._view.step_x, self._through.shape)

    def _shows(self, layer: Layer, rect: CellRect) -> bool:
        """A quick test on the nodes, with a cell of slack: can the layer show anything here?"""
        nodes = rect.nodes
        depth = inside_px(layer.map.x[nodes], layer.map.y[nodes], self._view.size)
        slack = self._view.step_x * self._view.scale_x
        return bool(((depth > -slack) & (layer.opacity[nodes] > 0)).any())

    @property
    def weight(self) -> FloatArray:
        """How much there is, in [0, 1]."""
        return f32(1.0 - self._through)

    def pictures(self, empty: Sequence[float]) -> list[FloatArray]:
        """The composition per plane; its value of `empty` where no layer shows."""
        weight = self.weight
        seen = weight > 1e-6
        divisor = f32(np.where(seen, weight, 1.0))
        return [
            f32(np.where(seen, total / divisor, nothing)) for total, nothing in zip(self._totals, empty, strict=True)
        ]

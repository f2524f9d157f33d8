"""Fitting a neighbour to the picture so far: small shifts, so that lines go on across the seam, and brightness.

Depth and pose of frames far apart disagree by a pixel or a few. Where neighbour and picture overlap, the shift between
them and the difference in brightness are measured; into the part that only the neighbour shows, both are extended
smoothly. Exposure changes what is bright by more than what is dark; a lens that darkens its corners, or a shadow,
changes one place more than another.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from vs3r.render.align import MIN_SIDE, find_flow, flow_trust
from vs3r.render.layers import Canvas, Layer, PlaneView, sample
from vs3r.render.nodes import CellRect, NodeGrid
from vs3r.render.pullpush import f32, pull_push
from vs3r.render.warp import BackwardMap
from vs3r.types import FloatArray, PictureFormat, Plane

MAX_SHIFT = 0.03
"""Largest shift, of the longer side; what asks for more is not trusted."""
SHIFT_SMOOTH = 0.02
"""Width of the Gaussian over which shifts are averaged, of the longer side."""
MAX_OFFSET = 0.15
"""Largest change of a sample, of the full range."""
MAX_GAIN = 0.5
"""Largest change of the contrast with which exposure is explained; the less a picture's cells differ in brightness, the
less of it is believed:"""
GAIN_STD = 0.14
"""where they do by less than this, of MAX_OFFSET, hardly any."""
EXPOSURE_WIDTHS = (1.0, 1.0, 0.3, 0.3)
"""Of the loss with which exposure is found, of MAX_OFFSET;"""
EXPOSURE_STEP = 4
"""it is told from every so many-th cell."""
LOCAL_COLOUR = 0.3
"""By how much of MAX_OFFSET chroma may change in a part of the picture beside what exposure does."""
SAME_HUE = 0.2
"""What differs in chroma by more than this, of MAX_OFFSET, is something else, and tells nothing of brightness."""
OFFSET_SMOOTH = 0.012
"""Width of the Gaussian over which changes are averaged, of the longer side; at least a cell."""
REACH = 0.08
"""How far around the part to be filled shifts are measured, of the longer side."""
MIN_STRIP = 16
"""Nor are parts of small pictures below this, on which OpenCV's flow reads beyond them: a patch at the finest scale."""


class Fusion:
    """The picture so far, small, and the fitting of the next layer to it."""

    def __init__(self, grid: NodeGrid, fmt: PictureFormat, *, keep: FloatArray, feather_px: float) -> None:
        """
        Args:
            grid: the nodes.
            fmt: the pictures' format.
            keep: (rows + 2, cols + 2) see Canvas.
            feather_px: see Canvas.
        """
        self._grid, self._format = grid, fmt
        rows, cols = grid.shape
        self._rect = CellRect(0, rows, 0, cols)
        self._small = self._view(0, grid.small_plane_shape, grid.cell_px // grid.small_factor)
        cells = [self._view(number, grid.shape, 1) for number in range(fmt.num_planes)]
        self._cell = cells[0]
        self._shift_canvas = Canvas([self._small], self._rect, keep=keep, feather_px=feather_px)
        self._offset_canvas = Canvas(cells, self._rect, keep=keep, feather_px=feather_px)
        self._feather_px = feather_px

    def _view(self, number: int, shape: tuple[int, int], step: int) -> PlaneView:
        return PlaneView(
            number=number,
            shape=shape,
            step_y=step,
            step_x=step,
            scale_y=self._grid.height / shape[0],
            scale_x=self._grid.width / shape[1],
        )

    def add(self, layer: Layer) -> None:
        """Put a layer behind the picture so far."""
        self._shift_canvas.add(layer, layer.source.small[:1])
        self._offset_canvas.add(layer, layer.source.cells)

    def fit(self, layer: Layer) -> Layer:
        """Shift a layer and change its brightness so that it continues the picture so far."""
        if min(self._small.shape) >= MIN_SIDE:
            layer = self._shifted(layer)
        return self.level(layer)

    def level(self, layer: Layer) -> Layer:
        """Change its brightness alone."""
        return replace(layer, offsets=self._offsets(layer))

    def _shifted(self, layer: Layer) -> Layer:
        view = self._small
        rect = self._surroundings(layer)
        if rect is None:
            return layer
        x, y = view.positions(layer, rect)
        if min(x.shape) < MIN_STRIP:
            return layer
        part = rect.pixels(view.step_y, view.step_x, view.shape)
        known = self._shift_canvas.weight[part] > 0
        seen = view.alpha(layer, x, y, rect, self._feather_px) > 0
        both = (known & seen).astype(np.uint8)
        scale = np.float32(255.0 / ((1 << self._format.bit_depth) - 1))
        ours = self._shift_canvas.pictures([0.0])[0][part] * scale
        theirs = f32(sample(layer.source.small[0], x, y)) * scale
        theirs += _level(ours - theirs, both)
        # The overlap decides; outside of it both show the same, so that nothing pulls there.
        a = np.where(known, ours, theirs).clip(0, 255).astype(np.uint8)
        b = np.where(seen, theirs, ours).clip(0, 255).astype(np.uint8)
        # The next finer scale costs five times as much, the next coarser one 1 to 3 dB in what is filled.
        flow = find_flow(a, b, finest_scale=1)
        return replace(layer, map=self._moved(layer, rect, flow, self._trust(a, b, flow, both)))

    def _surroundings(self, layer: Layer) -> CellRect | None:
        """The part of the picture that the layer adds something to, with enough around it to measure a shift."""
        x, y = self._cell.positions(layer, self._rect)
        alpha = self._cell.alpha(layer, x, y, self._rect, self._feather_px)
        new = (self._offset_canvas.weight < 0.5) & (alpha > 0)
        if not new.any():
            return None
        rows, cols = np.flatnonzero(new.any(axis=1)), np.flatnonzero(new.any(axis=0))
        reach = int(np.ceil(REACH * max(new.shape)))
        top, bottom = max(0, int(rows[0]) - reach), min(new.shape[0], int(rows[-1]) + 1 + reach)
        left, right = max(0, int(cols[0]) - reach), min(new.shape[1], int(cols[-1]) + 1 + reach)
        return CellRect(top, bottom, left, right)

    def _trust(self, ours: Plane, theirs: Plane, flow: FloatArray, both: Plane) -> FloatArray:
        """(h, w) of flow (h, w, 2), how far it can be believed: well inside the overlap, where texture is met again."""
        inner = cv2.erode(both, np.ones((5, 5), np.uint8))
        # numpy takes fifty times as long for a maximum over an axis of two.
        shift = np.maximum(np.abs(flow[..., 0]), np.abs(flow[..., 1]))
        return f32(inner * flow_trust(ours, theirs, flow) * (shift < MAX_SHIFT * max(self._small.shape)))

    def _moved(self, layer: Layer, rect: CellRect, flow: FloatArray, trust: FloatArray) -> BackwardMap:
        """The layer's map with the trusted part of a flow (small pixels, target to target) put before it."""
        trusted = cv2.merge([flow[..., 0] * trust, flow[..., 1] * trust, trust])
        cells = np.zeros((*self._grid.shape, 3), np.float32)
        cells[rect.top : rect.bottom, rect.left : rect.right] = self._to_cells(f32(trusted), rect)
        sigma = SHIFT_SMOOTH * max(cells.shape)
        around = f32(cv2.GaussianBlur(cells, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT))
        *flows, trusts = cv2.split(around)
        means = f32(np.stack(flows) / np.maximum(trusts, 1e-6))
        shift = pull_push(means, f32(np.clip(trusts * 3.0, 0.0, 1.0)))
        per_node = np.float32(self._grid.small_factor / self._grid.cell_px)
        right, down = (cv2.copyMakeBorder(part, 1, 1, 1, 1, cv2.BORDER_REPLICATE) * per_node for part in shift)
        x_down, x_right = np.gradient(layer.map.x)
        y_down, y_right = np.gradient(layer.map.y)
        return replace(
            layer.map,
            x=f32(layer.map.x + x_right * right + x_down * down),
            y=f32(layer.map.y + y_right * right + y_down * down),
        )

    def _to_cells(self, small: FloatArray, rect: CellRect) -> FloatArray:
        """Means over the cells of a rectangle."""
        rows, cols = rect.bottom - rect.top, rect.right - rect.left
        per_cell = self._grid.cell_px // self._grid.small_factor
        below, beside = rows * per_cell - small.shape[0], cols * per_cell - small.shape[1]
        whole = cv2.copyMakeBorder(small, 0, below, 0, beside, cv2.BORDER_REPLICATE)
        return f32(cv2.resize(whole, (cols, rows), interpolation=cv2.INTER_AREA))

    def _offsets(self, layer: Layer) -> tuple[FloatArray, ...]:
        """What to add to each plane of the layer, at the nodes."""
        x, y = self._cell.positions(layer, self._rect)
        alpha = self._cell.alpha(layer, x, y, self._rect, self._feather_px)
        both = np.minimum(self._offset_canvas.weight, alpha) > 0.0
        overlap = f32(cv2.erode(f32(both), np.ones((3, 3), np.uint8)))
        planes = self._format.num_planes
        if not overlap.any():
            rows, cols = self._grid.shape
            return (np.zeros((rows + 2, cols + 2), np.float32),) * planes
        ours = self._offset_canvas.pictures([0.0] * planes)
        theirs = [f32(sample(plane, x, y)) for plane in layer.source.cells]
        limit = MAX_OFFSET * ((1 << self._format.bit_depth) - 1)
        weights = [overlap * _evenness(plane, limit) for plane in theirs]
        exposed, rest = [], []
        for mine, plane, weight in zip(ours, theirs, weights, strict=True):
            exposed.append(_exposure(plane, mine - plane, weight, limit))
            rest.append(mine - plane - exposed[-1])
        same_hue = _geman_mcclure(self._hue(rest), SAME_HUE * limit)
        offsets = []
        for number, weight in enumerate(weights):
            local = LOCAL_COLOUR * limit if self._is_chroma(number) else limit
            around = _mean_around(rest[number], weight * same_hue, local)
            field = f32(np.clip(exposed[number] + around, -limit, limit))
            offsets.append(f32(cv2.copyMakeBorder(field, 1, 1, 1, 1, cv2.BORDER_REPLICATE)))
        return tuple(offsets)

    def _is_chroma(self, plane: int) -> bool:
        return plane in (1, 2) and self._format.num_planes >= 3 and not self._format.is_rgb

    def _hue(self, rest: list[FloatArray]) -> FloatArray:
        """(rows, cols) how far colours are apart beside their brightness."""
        if self._format.num_planes < 3:
            return np.zeros_like(rest[0])
        colours = np.stack(rest[:3]) - np.mean(rest[:3], axis=0) if self._format.is_rgb else np.stack(rest[1:3])
        return f32(np.abs(colours).max(axis=0))


def _geman_mcclure(off_by: FloatArray, width: float) -> FloatArray:
    """Weights of what is off by so much under Geman and McClure's loss, in [0, 1]."""
    return f32(1.0 / np.square(1.0 + np.square(off_by * np.float32(1.0 / width))))


def _evenness(plane: FloatArray, limit: float) -> FloatArray:
    """How little cells change to their neighbours, in [0, 1]: on edges they differ by what is left of the shift."""
    slope = np.abs(cv2.Sobel(plane, cv2.CV_32F, 1, 0)) + np.abs(cv2.Sobel(plane, cv2.CV_32F, 0, 1))
    return f32(1.0 / (1.0 + slope * np.float32(1.0 / (0.2 * limit))))


def _exposure(theirs: FloatArray, difference: FloatArray, weight: FloatArray, limit: float) -> FloatArray:
    """The part of a difference that a change of exposure explains: a line over the neighbour's values, fitted robustly
    by reweighted least squares; beyond the values that were seen together it goes on level."""
    at = np.flatnonzero(weight)[::EXPOSURE_STEP]
    value, off, weight = (field.ravel()[at] for field in (theirs, difference, weight))
    low, middle, high = np.quantile(value, (0.02, 0.5, 0.98)).astype(np.float32)
    value = value.clip(low, high) - middle
    level, gain = np.median(off), np.float32(0.0)
    for width in EXPOSURE_WIDTHS:
        believed = weight * _geman_mcclure(off - level - gain * value, width * limit)
        believed /= believed.sum()
        mean_value, mean_off = believed @ value, believed @ off
        apart = believed * (value - mean_value)
        gain = (apart @ off / (apart @ value + np.float32(GAIN_STD * limit) ** 2)).clip(-MAX_GAIN, MAX_GAIN)
        level = mean_off - gain * mean_value
    return f32(level + gain * (theirs.clip(low, high) - middle))


def _mean_around(rest: FloatArray, weight: FloatArray, local: float) -> FloatArray:
    """What differs around each cell, at most `local`; where more does, something moved there, which counts little."""
    weight = weight * _geman_mcclure(rest, local)
    sigma = max(1.0, OFFSET_SMOOTH * max(weight.shape))
    total = f32(cv2.GaussianBlur(weight, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT))
    mean = f32(cv2.GaussianBlur(rest.clip(-local, local) * weight, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT))
    mean /= total + np.float32(0.02)
    return f32(pull_push(mean, f32(np.clip(total * 4.0, 0.0, 1.0))))


def _level(difference: FloatArray, both: Plane) -> FloatArray:
    """The difference in brightness where both show, blurred: without it the flow would follow the exposure."""
    size = 2 * (min(both.shape) // 8) + 1
    share = cv2.blur(f32(both), (size, size))
    return f32(cv2.blur(difference * both, (size, size)) / np.maximum(share, 1e-3))

"""From layers by nodes to the planes of a picture: what is done per pixel, on the CPU by OpenCV."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
import torch

from vs3r.config import RenderConfig
from vs3r.errors import BackendError
from vs3r.networks import chosen_device
from vs3r.render.layers import Canvas, Layer, PlaneView, doubled, feather_px, inside_px, plane_views, sample
from vs3r.render.nodes import CellRect, make_grid, tiles
from vs3r.types import FloatArray, PictureFormat, Plane

TILE_CELLS = 4
"""Side of the tiles that cover what has to be composed, see tiles."""
BAND_CELLS = 8
"""Rows of cells that are sampled at a time."""


class PlaneDrawer(Protocol):
    """Draws all planes of a picture."""

    def draw(self, layers: Sequence[Layer], keep: FloatArray, out: Sequence[Plane], /) -> None:
        """
        Args:
            layers: front to back; the first is the frame itself.
            keep: (rows + 2, cols + 2) see Canvas.
            out: planes that hold the picture afterwards.
        """


def make_drawer(config: RenderConfig, fmt: PictureFormat) -> PlaneDrawer:
    """What draws planes where the config says.

    Raises:
        BackendError: a GPU was asked for and cannot be used.
    """
    device = choose_device(config.render_device)
    if device.type == "cpu":
        return CpuDrawer(fmt)
    from vs3r.render.device import DeviceDrawer

    return DeviceDrawer(fmt, device)


def choose_device(name: str) -> torch.device:
    """The device that RenderConfig.render_device names.

    Raises:
        BackendError: a GPU was asked for and cannot be used.
    """
    device = chosen_device(name, "render_device")
    if device.type == "cpu" or importlib.util.find_spec("triton") is not None:
        return device
    if name == "cuda":
        raise BackendError(
            "render_device cuda: expected the package triton; it is not installed: pip install 'vs3r[gpu]'; or ask for "
            "auto or cpu"
        )
    return torch.device("cpu")


class CpuDrawer:
    """The frame itself everywhere, in bands whose maps stay in the cache, then the parts that are composed."""

    def __init__(self, fmt: PictureFormat) -> None:
        self._format = fmt
        self._grid = make_grid(fmt)
        same_shape: dict[tuple[int, int], list[PlaneView]] = {}
        for view in plane_views(fmt, self._grid):
            same_shape.setdefault((view.step_y, view.step_x), []).append(view)
        self._groups = list(same_shape.values())
        self._size = fmt.width, fmt.height
        self._feather_px = feather_px(self._size)

    def draw(self, layers: Sequence[Layer], keep: FloatArray, out: Sequence[Plane], /) -> None:
        """See PlaneDrawer."""
        base = layers[0]
        # Elsewhere the frame itself is opaque, and stays as it is.
        ramped = inside_px(base.map.x, base.map.y, self._size) < self._feather_px + 2 * self._grid.cell_px
        mixed = (keep < 1.0) & (ramped | (base.opacity < 1.0))
        rects = tiles(mixed[1:-1, 1:-1], TILE_CELLS)
        for views in self._groups:
            self._planes(views, layers, rects, keep, [out[view.number] for view in views])

    def _planes(
        self,
        views: Sequence[PlaneView],
        layers: Sequence[Layer],
        rects: Sequence[CellRect],
        keep: FloatArray,
        out: Sequence[Plane],
    ) -> None:
        """Planes that have one shape."""
        view = views[0]
        sources = [[layer.source.frame.planes[v.number] for v in views] for layer in layers]
        own = [doubled(plane) for plane in sources[0]]
        rows, cols = self._grid.shape
        for top in range(0, rows, BAND_CELLS):
            band = CellRect(top, min(top + BAND_CELLS, rows), 0, cols)
            part = band.pixels(view.step_y, view.step_x, view.shape)
            x, y = view.positions(layers[0], band)
            x *= 2
            y *= 2
            for plane, source in zip(out, own, strict=True):
                plane[part] = sample(source, x, y)
        peak = (1 << self._format.bit_depth) - 1
        for plane in out:
            if peak < np.iinfo(plane.dtype).max:
                np.minimum(plane, plane.dtype.type(peak), out=plane)
        empty = [self._format.black(v.number) for v in views]
        for rect in rects:
            part = rect.pixels(view.step_y, view.step_x, view.shape)
            if len(layers) == 1:
                # It stands alone, however faint.
                shown = view.alpha(layers[0], *view.positions(layers[0], rect), rect, self._feather_px) > 0
                for plane, nothing in zip(out, empty, strict=True):
                    plane[part][~shown] = nothing
                continue
            canvas = Canvas(views, rect, keep=keep, feather_px=self._feather_px)
            canvas.add(layers[0], sources[0], sampled=[plane[part] for plane in out])
            for layer, planes in zip(layers[1:], sources[1:], strict=True):
                canvas.add(layer, planes)
            for plane, mixed in zip(out, canvas.pictures(empty), strict=True):
                plane[part] = np.clip(np.rint(mixed), 0, peak)


def empty_planes(fmt: PictureFormat) -> tuple[Plane, ...]:
    """Planes of a format, of any content."""
    return tuple(cast("Plane", np.empty(fmt.plane_shape(n), fmt.sample_type)) for n in range(fmt.num_planes))

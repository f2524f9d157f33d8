"""The planes of a picture drawn on a GPU, see planes.py: sources are kept there, a picture comes back."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import pairwise
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from vs3r.kernels.compose import Layers, PlaneLayout, compose_layers, doubled
from vs3r.kernels.dispatch import Backend
from vs3r.networks import queue_of_its_own
from vs3r.render.layers import Layer, feather_px, plane_views
from vs3r.render.nodes import make_grid
from vs3r.render.warp import SourceFrame
from vs3r.types import FloatArray, PictureFormat, Plane


class DeviceDrawer:
    """Draws planes with the operator compose_layers; see PlaneDrawer.

    A source is sent to the device when it is first used, and stays there for as long as it lives. Several threads may
    draw at once.
    """

    def __init__(self, fmt: PictureFormat, device: torch.device, *, backend: Backend = "auto") -> None:
        """
        Args:
            fmt: of sources and result.
            device: where to draw.
            backend: of the operator.
        """
        self._peak = float((1 << fmt.bit_depth) - 1)
        self._feather_px = feather_px((fmt.width, fmt.height))
        self._device = device
        self._backend: Backend = backend
        self._planes = [
            PlaneLayout(
                rows=view.shape[0],
                columns=view.shape[1],
                step_y=view.step_y,
                step_x=view.step_x,
                scale_y=int(view.scale_y),
                scale_x=int(view.scale_x),
                empty=fmt.black(view.number),
            )
            for view in plane_views(fmt, make_grid(fmt))
        ]
        self._ends = np.cumsum([0, *(plane.size for plane in self._planes)])
        self._sent: WeakKeyDictionary[SourceFrame, Tensor] = WeakKeyDictionary()
        self._sending = threading.Lock()
        self._queue = queue_of_its_own(device, ahead=True)

    def draw(self, layers: Sequence[Layer], keep: FloatArray, out: Sequence[Plane], /) -> None:
        """See PlaneDrawer."""
        with self._queue():
            drawn = compose_layers(
                self._layers(layers, keep),
                self._planes,
                feather_px=self._feather_px,
                peak=self._peak,
                backend=self._backend,
            )
            flat = drawn.cpu().numpy()
        for (begin, end), plane in zip(pairwise(self._ends), out, strict=True):
            plane[:] = flat[begin:end].reshape(plane.shape)

    def _layers(self, layers: Sequence[Layer], keep: FloatArray) -> Layers:
        """The layers on the device, all their fields sent together."""
        fields = (
            np.stack([layer.map.x for layer in layers]),
            np.stack([layer.map.y for layer in layers]),
            np.stack([layer.opacity for layer in layers]),
            np.array([layer.margin_px for layer in layers], np.float32),
            keep,
            *(np.stack(layer.offsets) for layer in layers[1:]),
        )
        sent = torch.from_numpy(np.concatenate([field.ravel() for field in fields])).to(self._device)
        sizes = [field.size for field in fields[:5]]
        x, y, opacity, margin_px, kept, offsets = torch.split(sent, [*sizes, len(sent) - sum(sizes)])
        nodes = keep.shape
        own, *others = (self._picture(layer.source) for layer in layers)
        return Layers(
            pictures=(doubled(own, self._planes), *others),
            x=x.view(-1, *nodes),
            y=y.view(-1, *nodes),
            opacity=opacity.view(-1, *nodes),
            margin_px=margin_px,
            keep=kept.view(nodes),
            offsets=offsets.view(len(layers) - 1, len(self._planes), *nodes),
        )

    def _picture(self, source: SourceFrame) -> Tensor:
        with self._sending:
            if source not in self._sent:
                flat = np.concatenate([plane.ravel() for plane in source.frame.planes])
                self._sent[source] = torch.from_numpy(flat).to(self._device)
            return self._sent[source]

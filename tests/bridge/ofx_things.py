"""What the OpenFX host of the tests hands to a plugin: things with properties, and pictures in memory of the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

DEPTHS: dict[str, np.dtype[Any]] = {
    "OfxBitDepthByte": np.dtype(np.uint8),
    "OfxBitDepthShort": np.dtype(np.uint16),
    "OfxBitDepthHalf": np.dtype(np.float16),
    "OfxBitDepthFloat": np.dtype(np.float32),
}
_GUARD = 0xA5

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]


@dataclass(slots=True, eq=False)
class Thing:
    """What a handle stands for: a set of properties, and what it belongs to."""

    handle: int
    """As the plugin gets it."""
    values: dict[str, list[Any]] = field(default_factory=dict)
    """Properties by their names."""
    value: Any = None
    """Of a parameter."""
    parts: dict[str, Thing] = field(default_factory=dict)
    """Parameters or clips by their names."""
    frames: Callable[[float], Array | None] | None = None
    """Of a clip: its pictures (H, W, 4) by their times, top row first, where the host gives them."""
    layout: Layout | None = None
    """Of these pictures."""
    abort: Callable[[], bool] = lambda: False
    """Of an instance: asked whether its render is to end."""
    kept: list[Any] = field(default_factory=list)
    """Memory that the plugin may read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a picture lies in memory."""

    depth: str = "OfxBitDepthByte"
    """One of DEPTHS."""
    downward: bool = False
    """The top row is first: the stride is negative."""
    alpha: str = "OfxImageAlphaUnPremultiplied"
    """Or OfxImageAlphaPremultiplied: colour is already multiplied by it; or OfxImageOpaque: it is 1."""
    pixel_aspect: float = 1.0
    """Width of a pixel over its height."""
    gap_bytes: int = 32
    """Between rows."""


class Image:
    """A picture in memory of the host, with bytes between rows that nobody may touch."""

    def __init__(self, pixels: Array, layout: Layout, thing: Thing) -> None:
        """pixels: (H, W, 4), top row first."""
        height, width, _ = pixels.shape
        packed = width * 4 * pixels.itemsize
        stride = packed + layout.gap_bytes
        self._bytes = np.full((height, stride), _GUARD, np.uint8)
        rows = pixels if layout.downward else pixels[::-1]
        self._bytes[:, :packed] = np.ascontiguousarray(rows).view(np.uint8).reshape(height, packed)
        self._packed, self._layout, self._shape = packed, layout, pixels.shape
        start = self._bytes.ctypes.data + (stride * (height - 1) if layout.downward else 0)
        thing.values.update(
            {
                "OfxImagePropData": [start],
                "OfxImagePropRowBytes": [-stride if layout.downward else stride],
                "OfxImagePropBounds": [0, 0, width, height],
                "OfxImagePropRegionOfDefinition": [0, 0, width, height],
                "OfxImagePropPixelAspectRatio": [layout.pixel_aspect],
                "OfxImageEffectPropComponents": ["OfxImageComponentRGBA"],
                "OfxImageEffectPropPixelDepth": [layout.depth],
                "OfxImageEffectPropPreMultiplication": [layout.alpha],
            }
        )
        self.thing = thing

    def pixels(self) -> Array:
        """(H, W, 4), top row first."""
        assert (self._bytes[:, self._packed :] == _GUARD).all(), "written between the rows"
        packed = np.ascontiguousarray(self._bytes[:, : self._packed])
        rows: Array = packed.view(DEPTHS[self._layout.depth]).reshape(self._shape)
        return rows if self._layout.downward else rows[::-1]

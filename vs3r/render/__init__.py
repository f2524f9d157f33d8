"""Rendering: full-size frames as the smoothed camera sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from vs3r.config import RenderConfig
from vs3r.render.renderer import WarpRenderer
from vs3r.render.warp import SourceFrame
from vs3r.types import PictureFormat, Plane, RenderedFrame, VirtualCamera

__all__ = ["Renderer", "SourceFrame", "WarpRenderer", "make_renderer"]


class Renderer(Protocol):
    """Draws a frame from a virtual camera; see WarpRenderer."""

    def render(
        self,
        index: int,
        camera: VirtualCamera,
        sources: Mapping[int, SourceFrame],
        out: Sequence[Plane] | None = None,
        /,
    ) -> RenderedFrame:
        """Its planes are either drawn, into `out` where that is given, or those of the source where nothing moves."""
        ...


def make_renderer(config: RenderConfig, fmt: PictureFormat) -> Renderer:
    """The renderer that the config names.

    Raises:
        BackendError: the device that the config names cannot be used here.
    """
    if config.renderer == "splat":
        from vs3r.render.splat import SplatRenderer

        return SplatRenderer(fmt, config)
    return WarpRenderer(fmt, config)

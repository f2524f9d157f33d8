"""Rendering: full-size frames as the smoothed camera sees them."""

from vs3r.render.renderer import WarpRenderer
from vs3r.render.warp import SourceFrame

__all__ = ["SourceFrame", "WarpRenderer"]

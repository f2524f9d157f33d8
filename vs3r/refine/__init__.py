"""Refinement: repair of what no frame saw."""

from __future__ import annotations

from collections.abc import Callable

from vs3r.config import RefineConfig
from vs3r.refine.fill import fill_unseen
from vs3r.types import Frame, RenderedFrame

__all__ = ["Refiner", "make_refiner"]

Refiner = Callable[[RenderedFrame], Frame]


def make_refiner(config: RefineConfig) -> Refiner:
    """The function that the config names. It depends on its argument alone."""
    if config.backend == "none":
        return _leave
    return fill_unseen


def _leave(rendered: RenderedFrame) -> Frame:
    return rendered.frame

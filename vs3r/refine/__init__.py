"""Refinement: repair of what no frame saw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vs3r.config import RefineConfig, WanConfig
from vs3r.errors import BackendError
from vs3r.refine.fill import fill_unseen
from vs3r.types import Frame, RenderedFrame

__all__ = ["ClipRefiner", "Refiner", "make_clip_refiner", "make_refiner"]

Refiner = Callable[[RenderedFrame], Frame]


class ClipRefiner(Protocol):
    """Repairs many frames together. Its result depends on the frames, not on when they arrived."""

    def push(self, rendered: RenderedFrame, *, segment: int) -> list[Frame]:
        """Take the next picture, which may be changed, and the number of its scene; return those that are finished, in
        order."""
        ...

    def flush(self) -> list[Frame]:
        """End of the stream: every picture not yet returned."""
        ...

    def reset(self) -> None:
        """Forget everything."""
        ...


def make_refiner(config: RefineConfig) -> Refiner:
    """The function that the config names. It depends on its argument alone, and may change the picture where it lies.

    Raises:
        BackendError: the backend needs many frames at a time; see make_clip_refiner.
    """
    if config.backend == "wan":
        raise BackendError(
            "refine wan needs many frames together and does not run on a server; leave out --server, "
            "or use --refine fill"
        )
    if config.backend == "none":
        return _leave
    return fill_unseen


def make_clip_refiner(config: WanConfig, check: Callable[[], None]) -> ClipRefiner:
    """Wan2.2, loaded.

    Args:
        config: settings.
        check: called between the steps of a window, which take seconds; what it raises ends the work.
    Raises:
        InputError: weights are missing, or are of another model.
        BackendError: it cannot run on this machine.
    """
    from vs3r.refine.wan.model import load_model
    from vs3r.refine.wan.refiner import WanRefiner

    model = load_model(config)
    return WanRefiner(model.config, model.experts, model.codec, check=check, layout=model.layout)


def _leave(rendered: RenderedFrame) -> Frame:
    return rendered.frame

"""Reconstruction: from frames to camera path, depth and moving objects."""

from __future__ import annotations

from typing import Any, Protocol

from vs3r.config import Config
from vs3r.networks import Prepare, eager
from vs3r.reconstruct.flow_ba import BLOCK, OVERLAP, FlowBundleAdjustment
from vs3r.reconstruct.shots import BLINK_FRAMES
from vs3r.reconstruct.turning import TurningCamera
from vs3r.types import Frame, FrameGeometry, PictureFormat

__all__ = ["Reconstructor", "delay_frames", "make_reconstructor"]


class Reconstructor(Protocol):
    """Turns frames into geometry, some frames later, in two halves.

    `observe` may run in another thread, ahead of the others.
    """

    def observe(self, frame: Frame, /) -> Any:
        """What `push` has to know of the next frame. Called for every frame in order."""
        ...

    def push(self, observed: Any, /) -> list[FrameGeometry]:
        """Take what `observe` said of the next frame; return the geometry that is now final, in frame order."""
        ...

    def flush(self) -> list[FrameGeometry]:
        """End of the stream: the geometry of all frames pushed and not yet returned."""
        ...

    def reset(self) -> None:
        """Forget all that was pushed. The frame pushed next is frame 0, also where it has been observed already."""
        ...


def make_reconstructor(config: Config, fmt: PictureFormat, prepare: Prepare = eager) -> Reconstructor:
    """The reconstructor that the config names, for pictures of the given format; `prepare` says how to run networks.

    Raises:
        InputError: the weights that it needs were not fetched, or are not what they should be.
        BackendError: it needs a GPU, and there is none.
    """
    if config.reconstruct.backend == "flow-ba":
        return FlowBundleAdjustment(config, fmt, prepare)
    if config.reconstruct.backend == "turning":
        return TurningCamera(config, fmt, prepare)
    from vs3r.reconstruct.vggt.reconstructor import Vggt4d

    return Vggt4d(config, fmt, prepare)


def delay_frames(config: Config) -> int:
    """How many frames at most are pushed before the geometry of the first of them is returned."""
    if config.reconstruct.backend == "turning":
        return 0
    adjustment = BLINK_FRAMES + 2 * BLOCK + OVERLAP
    if config.reconstruct.backend == "flow-ba":
        return adjustment
    # A window, and the stride until the next one is full.
    return adjustment + 2 * config.vggt.vggt_window_frames - config.vggt.vggt_overlap_frames

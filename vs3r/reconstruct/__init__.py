"""Reconstruction: from frames to camera path, depth and moving objects."""

from __future__ import annotations

from typing import Protocol

from vs3r.config import Config
from vs3r.reconstruct.flow_ba import FlowBundleAdjustment
from vs3r.types import Frame, FrameGeometry, PictureFormat

__all__ = ["Reconstructor", "make_reconstructor"]


class Reconstructor(Protocol):
    """A stage that turns frames into geometry, some frames later."""

    def push(self, frame: Frame) -> list[FrameGeometry]:
        """Take the next frame; return the geometry that is now final, in frame order."""
        ...

    def flush(self) -> list[FrameGeometry]:
        """End of the stream: the geometry of all frames not yet returned."""
        ...

    def reset(self) -> None:
        """Forget everything; the next frame is frame 0."""
        ...


def make_reconstructor(config: Config, fmt: PictureFormat) -> Reconstructor:
    """The reconstructor that the config names, for pictures of the given format."""
    return FlowBundleAdjustment(config, fmt)

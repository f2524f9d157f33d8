"""Optical flow at analysis size."""

from __future__ import annotations

from typing import Protocol, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from vs3r.config import FlowConfig
from vs3r.flow.dis import DisFlow
from vs3r.networks import Prepare, eager
from vs3r.types import FloatArray, Frame, PictureFormat

__all__ = ["DisFlow", "FlowEstimator", "Guesses", "analysis_picture", "analysis_size", "make_flow"]


Guesses: TypeAlias = tuple[FloatArray | None, FloatArray | None]


class FlowEstimator(Protocol):
    """Dense optical flow between two analysis pictures, both ways."""

    def __call__(
        self, a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8], guesses: Guesses = (None, None)
    ) -> tuple[FloatArray, FloatArray]:
        """Flow from a to b, and from b to a.

        Args:
            a, b: (H, W) grey pictures.
            guesses: (H, W, 2) each, flow to start from; None for none.
        Returns:
            (H, W, 2) each: the pixel (x, y) of the first is seen at (x, y) + flow[y, x] in the other; x first, in
            pixels.
        """
        ...


def make_flow(config: FlowConfig, prepare: Prepare = eager) -> FlowEstimator:
    """The flow that the config names.

    Args:
        config: `backend` decides.
        prepare: how to run a network.
    Raises:
        InputError: the weights that it needs were not fetched, or are not what they should be.
    """
    if config.backend == "dis":
        return DisFlow()
    from vs3r.flow.learned import RaftFlow, load_network

    return RaftFlow(load_network(config), prepare)


def analysis_size(fmt: PictureFormat, pixels: int) -> tuple[int, int]:
    """Width and height of the analysis picture: square pixels, about `pixels` of them, and no larger than the source
    but where that is smaller than 16 pixels."""
    width = fmt.width * float(fmt.sample_aspect)
    scale = min(1.0, (pixels / (width * fmt.height)) ** 0.5)
    return max(16, round(width * scale)), max(16, round(fmt.height * scale))


def analysis_picture(frame: Frame, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The luma (green, for RGB) of a frame as a (H, W) 8-bit picture of `size` = (W, H)."""
    luma = frame.planes[0]
    small = cv2.resize(luma, size, interpolation=cv2.INTER_AREA)
    return np.asarray(np.right_shift(small, frame.format.bit_depth - 8), dtype=np.uint8)

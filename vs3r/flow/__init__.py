"""Optical flow at analysis size."""

from __future__ import annotations

from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

from vs3r.config import FlowConfig
from vs3r.flow.dis import DisFlow
from vs3r.networks import Prepare, eager
from vs3r.types import FloatArray, Frame, PictureFormat

__all__ = ["DisFlow", "FlowEstimator", "analysis_picture", "analysis_size", "make_flow"]


class FlowEstimator(Protocol):
    """Dense optical flow between two analysis pictures."""

    def __call__(
        self, src: npt.NDArray[np.uint8], dst: npt.NDArray[np.uint8], guess: FloatArray | None = None
    ) -> FloatArray:
        """Flow from src to dst.

        Args:
            src, dst: (H, W) grey pictures.
            guess: (H, W, 2) flow to start from.
        Returns:
            (H, W, 2): the pixel (x, y) of src is seen at (x, y) + flow[y, x] in dst; x first, in pixels.
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
    """Width and height of the analysis picture: square pixels, about `pixels` of them, never larger than the source."""
    width = fmt.width * float(fmt.sample_aspect)
    scale = min(1.0, (pixels / (width * fmt.height)) ** 0.5)
    return max(16, round(width * scale)), max(16, round(fmt.height * scale))


def analysis_picture(frame: Frame, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The luma (green, for RGB) of a frame as a (H, W) 8-bit picture of `size` = (W, H)."""
    luma = frame.planes[0]
    small = cv2.resize(luma, size, interpolation=cv2.INTER_AREA)
    return np.asarray(np.right_shift(small, frame.format.bit_depth - 8), dtype=np.uint8)

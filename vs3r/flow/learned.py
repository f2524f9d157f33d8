"""RAFT as a flow estimator at analysis size: padding, warm start, weights."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vs3r.config import FlowConfig
from vs3r.errors import BackendError, ShapeError
from vs3r.flow import Guesses
from vs3r.flow.raft import MIN_SIDE, STRIDE, Raft, load_raft
from vs3r.networks import DTYPES, Network, Prepare, default_device, eager, queue_of_its_own, replayed
from vs3r.types import FloatArray
from vs3r.weights import load_checkpoint

log = logging.getLogger(__name__)

WEIGHTS = "raft-large"


class RaftFlow:
    """RAFT optical flow of grey pictures, which it sees as three equal colours. A FlowEstimator.

    Its confidence is, as that of any flow here, how far flow and flow back agree: FlowWindow weighs by that.
    """

    def __init__(self, network: Raft, prepare: Prepare = eager) -> None:
        """
        Args:
            network: in eval mode, on the device that is to compute.
            prepare: how to run it.
        """
        self._network = network
        self._prepare = prepare
        first = next(network.parameters())
        self._device, self._dtype = first.device, first.dtype
        self._ready: dict[tuple[int, int], Network] = {}
        self._queue = queue_of_its_own(self._device, ahead=True)

    def __call__(
        self, a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8], guesses: Guesses = (None, None)
    ) -> tuple[FloatArray, FloatArray]:
        """See FlowEstimator.

        Raises:
            ShapeError: pictures and guesses are not of one size.
            BackendError: the GPU's memory does not suffice, or the network's numbers overflow.
        """
        given = [guess for guess in guesses if guess is not None]
        if a.shape != b.shape or a.ndim != 2 or any(guess.shape != (*a.shape, 2) for guess in given):
            got = ", ".join(map(str, (a.shape, b.shape, *(guess.shape for guess in given))))
            raise ShapeError(f"expected two (H, W) pictures and (H, W, 2) guesses, got {got}")
        height, width = a.shape
        try:
            with self._queue():
                pictures = self._colours(np.stack([a, b]))
                nothing = np.zeros((height, width, 2), np.float32)
                starts = self._coarse(np.stack([nothing if guess is None else guess for guess in guesses]))
                inputs = (pictures, pictures.flip(0), starts)
                size = (height, width)
                if size not in self._ready:
                    # Outside inference mode, where compilers do not work.
                    self._ready[size] = replayed(self._prepare("raft", self._network, inputs), inputs)
                with torch.inference_mode():
                    flow: Tensor = self._ready[size](*inputs)
                    there, back = flow[:, :, :height, :width].permute(0, 2, 3, 1).contiguous().cpu().numpy()
        except torch.cuda.OutOfMemoryError:
            raise BackendError(
                f"not enough GPU memory for RAFT at {width}x{height}; use fewer --analysis-pixels, or --flow dis"
            ) from None
        # Later it would pass for flow that nothing confirms.
        if not (np.isfinite(there).all() and np.isfinite(back).all()):
            raise BackendError(
                f"RAFT gave numbers that are not finite in {str(self._dtype).removeprefix('torch.')}; use "
                f"--raft-precision fp32; if that does not help: vs3r weights verify {WEIGHTS}"
            )
        return there, back

    def _colours(self, pictures: npt.NDArray[np.uint8]) -> Tensor:
        """(2, H, W) to (2, 3, H', W') in [-1, 1], padded to the size that the network takes."""
        grey = torch.from_numpy(pictures).to(self._device)[:, None].float() / 127.5 - 1
        return _padded(grey).expand(-1, 3, -1, -1).contiguous()

    def _coarse(self, flows: FloatArray) -> Tensor:
        """(2, H, W, 2) to (2, 2, H'/8, W'/8) flow in pixels of that size."""
        full = torch.from_numpy(flows).to(self._device).permute(0, 3, 1, 2)
        return F.avg_pool2d(_padded(full), STRIDE) / STRIDE


def padded_size(width: int, height: int) -> tuple[int, int]:
    """Width and height that the network is given for a picture."""
    wide, high = (max(MIN_SIDE, -(-side // STRIDE) * STRIDE) for side in (width, height))
    return wide, high


def _padded(picture: Tensor) -> Tensor:
    """The last column and row repeated. At the right and below, so that flow needs no shift."""
    height, width = picture.shape[2:]
    wide, high = padded_size(width, height)
    return F.pad(picture, (0, wide - width, 0, high - height), mode="replicate")


def example_inputs(width: int, height: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of the shapes that the network is given for two pictures of a size, there and back, all zero."""
    wide, high = padded_size(width, height)
    pictures = torch.zeros(2, 3, high, wide, device=device)
    return pictures, pictures.clone(), torch.zeros(2, 2, high // STRIDE, wide // STRIDE, device=device)


def load_network(config: FlowConfig, device: torch.device | None = None) -> Raft:
    """RAFT-Large with the user's weights, in eval mode.

    Raises:
        InputError: the weights were not fetched, or are not RAFT's.
    """
    network = Raft(iterations=config.raft_iterations)
    load_raft(network, load_checkpoint(WEIGHTS))
    device = default_device() if device is None else device
    log.info("RAFT runs on %s in %s", device, config.raft_precision)
    return network.eval().to(device, DTYPES[config.raft_precision])

"""Dense inverse search flow (Kroeger et al. 2016), OpenCV's implementation."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from vs3r.types import FloatArray

# Standard deviation of the Gaussian that takes from the pictures what is finer than the flow's patches can follow:
# noise, compression and aliasing. Rotations of a rendered walk come out 0.0033 degrees off instead of 0.0057.
SMOOTHED_PX = 1.0


class DisFlow:
    """DIS optical flow, down to half the analysis size, with variational refinement. A FlowEstimator."""

    def __init__(self) -> None:
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._dis.setFinestScale(1)
        # Half the time of the preset's 4, 16 and 5; camera rotations come out as precise.
        self._dis.setPatchStride(5)
        self._dis.setGradientDescentIterations(8)
        self._dis.setVariationalRefinementIterations(2)

    def __call__(
        self,
        a: npt.NDArray[np.uint8],
        b: npt.NDArray[np.uint8],
        guesses: tuple[FloatArray | None, FloatArray | None] = (None, None),
    ) -> tuple[FloatArray, FloatArray]:
        """See FlowEstimator."""
        a, b = (np.asarray(cv2.GaussianBlur(picture, (0, 0), SMOOTHED_PX), np.uint8) for picture in (a, b))
        return self._flow(a, b, guesses[0]), self._flow(b, a, guesses[1])

    def _flow(self, src: npt.NDArray[np.uint8], dst: npt.NDArray[np.uint8], guess: FloatArray | None) -> FloatArray:
        # OpenCV writes into the guess.
        start = np.zeros((*src.shape, 2), np.float32) if guess is None else guess.copy()
        flow = self._dis.calc(src, dst, start)
        return np.asarray(flow, dtype=np.float32)

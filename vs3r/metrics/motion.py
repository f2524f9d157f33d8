"""Global motion between neighbouring pictures and the jitter left in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from vs3r.metrics.picture import Picture, border_mask
from vs3r.types import DoubleArray

_WORK_LONG_SIDE = 1280
_REPORT_LONG_SIDE = 1280
# Corners come from the middle of the picture: a filled or black rim must not decide how steady the picture is.
_RIM_SHARE = 0.1
_MAX_CORNERS = 700
_MIN_TRACKS = 12
_MIN_TRACKED_SHARE = 0.2
_MIN_INLIER_SHARE = 0.25
_FORWARD_BACKWARD_PX = 0.5
_RANSAC_PX = 2.0
_ROBUST_PX = 2.0
_REFINE_STEPS = 20
_IRREGULAR_SHARE = 0.5
_LK_CRITERIA = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 0.001)
_LK_WINDOW = (21, 21)
_LK_LEVELS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Jitter:
    """RMS of the second difference of a motion path."""

    px: float
    """Translation of the picture's centre, in pixels of a picture whose long side is 1280 (720p for 16:9), per frame
    squared."""
    deg: float
    """Rotation in degrees per frame squared."""


class GlobalMotion:
    """Measures the global motion from one picture to the next, one picture at a time.

    Corners in the inner 80 % of the picture are followed by Lucas-Kanade with a forward-backward check; a similarity is
    found by RANSAC and refined by iteratively reweighted least squares (Geman-McClure), which weighs layers of
    different depth smoothly instead of hopping between them.
    """

    def __init__(self) -> None:
        self._previous: Picture | None = None
        self._corners: DoubleArray | None = None

    def push(self, grey: Picture) -> DoubleArray | None:
        """Motion from the previous picture to this one.

        Args:
            grey: (H, W), the same size in every call.
        Returns:
            (3,) shift of the picture's centre in x and y (pixels at a long side of 1280) and rotation in degrees; NaN
            where it cannot be measured (scene cut, no texture). None for the first picture.
        """
        scale = min(1.0, _WORK_LONG_SIDE / max(grey.shape))
        small = grey
        if scale < 1:
            small = np.asarray(cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        previous, corners = self._previous, self._corners
        self._previous, self._corners = small, find_corners(small)
        if previous is None or corners is None:
            return None
        motion = _track(previous, small, corners)
        report = _REPORT_LONG_SIDE / max(small.shape)
        return np.full(3, np.nan) if motion is None else motion * np.array([report, report, 1.0])


def find_corners(grey: Picture) -> DoubleArray:
    """(N, 2) corners in the inner 80 % of the picture, away from black borders; N may be 0."""
    height, width = grey.shape
    rim_x, rim_y = round(width * _RIM_SHARE), round(height * _RIM_SHARE)
    allowed = np.zeros(grey.shape, dtype=np.uint8)
    allowed[rim_y : height - rim_y, rim_x : width - rim_x] = 255
    border = border_mask(grey)
    if border.any():
        # A Lucas-Kanade window that reaches into the border would follow the border.
        border = np.asarray(cv2.dilate(border, np.ones(_LK_WINDOW, dtype=np.uint8)), dtype=np.uint8)
        allowed[border > 0] = 0
    spacing = max(3.0, max(grey.shape) / 50)
    # OpenCV's type stubs leave out that there may be none.
    corners: Any = cv2.goodFeaturesToTrack(grey, _MAX_CORNERS, 0.003, spacing, mask=allowed, blockSize=5)
    if corners is None:
        return np.zeros((0, 2))
    return np.asarray(corners, dtype=np.float64).reshape(-1, 2)


def _track(previous: Picture, current: Picture, corners: DoubleArray) -> DoubleArray | None:
    if len(corners) < _MIN_TRACKS:
        return None
    start = corners.astype(np.float32).reshape(-1, 1, 2)
    levels = max(0, min(_LK_LEVELS, int(np.log2(min(current.shape) / (2 * _LK_WINDOW[0])))))
    options = {"winSize": _LK_WINDOW, "maxLevel": levels, "criteria": _LK_CRITERIA}
    end, found, _ = cv2.calcOpticalFlowPyrLK(previous, current, start, None, **options)  # type: ignore[call-overload]
    back, found_back, _ = cv2.calcOpticalFlowPyrLK(current, previous, end, None, **options)  # type: ignore[call-overload]
    near = np.linalg.norm((back - start).reshape(-1, 2), axis=1) < _FORWARD_BACKWARD_PX
    kept = near & (found.ravel() > 0) & (found_back.ravel() > 0)
    if kept.sum() < max(_MIN_TRACKS, _MIN_TRACKED_SHARE * len(corners)):
        return None
    centre = np.array([current.shape[1] - 1, current.shape[0] - 1]) / 2
    p = start.reshape(-1, 2)[kept].astype(np.float64) - centre
    q = end.reshape(-1, 2)[kept].astype(np.float64) - centre
    return fit_similarity(p, q)


def fit_similarity(p: DoubleArray, q: DoubleArray) -> DoubleArray | None:
    """Robust similarity q = rotate_scale(p) + shift.

    Args:
        p: (N, 2) points around the origin, in pixels.
        q: (N, 2) where they went.
    Returns:
        (3,) shift x, shift y in pixels, rotation in degrees; None where fewer than 12 points or a quarter agree.
    """
    guess, inliers = cv2.estimateAffinePartial2D(
        p, q, method=cv2.RANSAC, ransacReprojThreshold=_RANSAC_PX, maxIters=2000, confidence=0.999, refineIters=0
    )
    if guess is None or inliers.sum() < max(_MIN_TRACKS, _MIN_INLIER_SHARE * len(p)):
        return None
    # Complex numbers: q = turn * p + shift, `turn` holds rotation and scale.
    zp, zq = p[:, 0] + 1j * p[:, 1], q[:, 0] + 1j * q[:, 1]
    turn, shift = complex(guess[0, 0], guess[1, 0]), complex(guess[0, 2], guess[1, 2])
    for _ in range(_REFINE_STEPS):
        residual2 = np.abs(turn * zp + shift - zq) ** 2
        weight = (1 + residual2 / _ROBUST_PX**2) ** -2
        weight /= weight.sum()
        mean_p, mean_q = (weight * zp).sum(), (weight * zq).sum()
        spread = (weight * np.abs(zp - mean_p) ** 2).sum()
        if spread < 1.0:
            return None
        turn = complex((weight * np.conj(zp - mean_p) * (zq - mean_q)).sum() / spread)
        shift = complex(mean_q - turn * mean_p)
    return np.array([shift.real, shift.imag, np.degrees(np.angle(turn))])


def jitter(motion: DoubleArray) -> Jitter | None:
    """RMS of the second difference of the path whose steps are given: the change from one step to the next.

    Args:
        motion: (T - 1, 3) as from GlobalMotion.push; rows of NaN (cuts) are left out together with their neighbours'
            differences to them.
    Returns:
        None where no two neighbouring steps were measured.
    """
    return _rms(_second_difference(motion))


def jitter_ratio(output: DoubleArray, source: DoubleArray) -> Jitter | None:
    """Jitter of the output over that of the source, on the frames where both could be measured.

    Args:
        output: (T - 1, 3) motion of the output.
        source: (T - 1, 3) motion of the source; a longer one is cut to the shorter.
    Returns:
        Ratios; None where nothing could be compared or the source does not move at all.
    """
    count = min(len(output), len(source))
    left, before = _second_difference(output[:count]), _second_difference(source[:count])
    both = np.isfinite(left).all(axis=1) & np.isfinite(before).all(axis=1)
    after_rms, before_rms = _rms(left[both]), _rms(before[both])
    if after_rms is None or before_rms is None or before_rms.px == 0 or before_rms.deg == 0:
        return None
    return Jitter(px=after_rms.px / before_rms.px, deg=after_rms.deg / before_rms.deg)


def as_motion(steps: Sequence[DoubleArray], pts_s: Sequence[float] | None = None) -> DoubleArray:
    """(T - 1, 3) from a list of (3,) steps, also when it is empty.

    With the times of the T pictures, steps over an interval that is more than half off the median become NaN: a longer
    wait is more motion, not shake.
    """
    motion = np.array(steps, dtype=np.float64).reshape(-1, 3)
    if pts_s is not None and len(motion):
        waits = np.diff(np.asarray(pts_s, dtype=np.float64))
        usual = np.median(waits)
        motion[np.abs(waits - usual) > _IRREGULAR_SHARE * usual] = np.nan
    return motion


def _second_difference(motion: DoubleArray) -> DoubleArray:
    return np.diff(motion, axis=0)


def _rms(difference: DoubleArray) -> Jitter | None:
    known = difference[np.isfinite(difference).all(axis=1)]
    if len(known) == 0:
        return None
    px = np.sqrt((known[:, :2] ** 2).sum(axis=1).mean())
    return Jitter(px=float(px), deg=float(np.sqrt((known[:, 2] ** 2).mean())))

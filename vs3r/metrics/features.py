"""The paper's protocol: SIFT matches, homographies, epipolar error, warping error, stability score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from vs3r.metrics.picture import Picture, to_grey
from vs3r.types import DoubleArray, FloatArray

HOMOGRAPHY_RATIO = 0.7
EPIPOLAR_RATIO = 0.75
# The published protocol takes all; pictures of its data sets (640x360 to 1280x720) seldom have more. Detailed
# pictures of 1080p have 20000, and the time of matching grows with the square.
PAPER_FEATURES = 8000
# Enough to align two pictures.
QUICK_FEATURES = 2000
_HOMOGRAPHY_PX = 5.0
_EPIPOLAR_PX, _EPIPOLAR_CONFIDENCE = 1.0, 0.99
_MIN_HOMOGRAPHY_MATCHES = 11
_MIN_EPIPOLAR_MATCHES = 8
_FLOW_MAX_WIDTH = 640
_LOW_BINS = 5
_MATCH_ROWS = 2048


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Features:
    """SIFT features of one picture."""

    points: FloatArray
    """(N, 2) positions in pixels."""
    descriptors: FloatArray
    """(N, 128) whole numbers from 0 to 255."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matches:
    """Nearest neighbours from one picture's features to another's, under the looser ratio test (0.75)."""

    a: FloatArray
    """(M, 2) points in the first picture, pixels."""
    b: FloatArray
    """(M, 2) points in the second picture, pixels."""
    ratio: FloatArray
    """(M,) distance to the nearest over distance to the second nearest descriptor, < 0.75."""


class FeatureFinder:
    """SIFT with OpenCV's default settings, the strongest features only where there are very many."""

    def __init__(self, limit: int = PAPER_FEATURES) -> None:
        self._sift = cv2.SIFT.create(nfeatures=limit)

    def find(self, grey: Picture) -> Features:
        """Features of a (H, W) grey picture; there may be none."""
        # OpenCV's type stubs leave out that there may be none.
        descriptors: Any
        keypoints, descriptors = self._sift.detectAndCompute(grey, None)
        if descriptors is None:
            return Features(points=np.zeros((0, 2), np.float32), descriptors=np.zeros((0, 128), np.float32))
        points = np.array([k.pt for k in keypoints], dtype=np.float32).reshape(-1, 2)
        return Features(points=points, descriptors=np.asarray(descriptors, dtype=np.float32))


def match(a: Features, b: Features) -> Matches:
    """Match every feature of `a` to its nearest in `b`; exact, the same matches as brute force.

    SIFT descriptors are whole numbers, so squared distances by a matrix product are exact in float32 (below 2**24).
    """
    if len(a.points) == 0 or len(b.points) < 2:
        empty = np.zeros((0, 2), np.float32)
        return Matches(a=empty, b=empty, ratio=np.zeros(0, np.float32))
    norm_b = (b.descriptors**2).sum(axis=1)
    nearest = np.empty(len(a.points), np.intp)
    best2 = np.empty((2, len(a.points)), np.float32)
    for start in range(0, len(a.points), _MATCH_ROWS):
        rows = slice(start, start + _MATCH_ROWS)
        part = a.descriptors[rows]
        distance2 = (part**2).sum(axis=1)[:, None] + norm_b - 2 * (part @ b.descriptors.T)
        index = distance2.argmin(axis=1)
        each = np.arange(len(part))
        nearest[rows], best2[0, rows] = index, distance2[each, index]
        distance2[each, index] = np.inf
        best2[1, rows] = distance2.min(axis=1)
    ratio = np.sqrt(best2[0] / np.maximum(best2[1], 1e-12))
    good = ratio < EPIPOLAR_RATIO
    return Matches(a=a.points[good], b=b.points[nearest[good]], ratio=ratio[good])


def homography(matches: Matches) -> DoubleArray | None:
    """(3, 3) b_from_a by RANSAC at 5 px over matches under ratio 0.7; None with ten matches or fewer."""
    good = matches.ratio < HOMOGRAPHY_RATIO
    if good.sum() < _MIN_HOMOGRAPHY_MATCHES:
        return None
    found, _ = cv2.findHomography(matches.a[good], matches.b[good], cv2.RANSAC, _HOMOGRAPHY_PX)
    return None if found is None else np.asarray(found, dtype=np.float64)


def magnification(b_from_a: DoubleArray) -> float:
    """Scale of a homography, from its first row as in the published protocol."""
    return float(np.hypot(b_from_a[0, 0], b_from_a[0, 1]))


def epipolar_error_px2(matches: Matches) -> float | None:
    """Mean Sampson distance in px^2 of all matches under a RANSAC fundamental matrix; None where there is none."""
    if len(matches.a) < _MIN_EPIPOLAR_MATCHES:
        return None
    found, _ = cv2.findFundamentalMat(matches.a, matches.b, cv2.FM_RANSAC, _EPIPOLAR_PX, _EPIPOLAR_CONFIDENCE)
    if found is None or found.shape != (3, 3):
        return None
    b_line_from_a = np.asarray(found, dtype=np.float64)
    ones = np.ones((len(matches.a), 1))
    a, b = np.hstack([matches.a, ones]), np.hstack([matches.b, ones])
    line_b, line_a = a @ b_line_from_a.T, b @ b_line_from_a
    gradient2 = (line_b[:, :2] ** 2).sum(axis=1) + (line_a[:, :2] ** 2).sum(axis=1)
    return float(((b * line_b).sum(axis=1) ** 2 / np.maximum(gradient2, 1e-8)).mean())


def warp_error(previous: Picture, current: Picture) -> float:
    """Mean squared difference (grey values squared) of the flow-warped previous picture and this one.

    As published: Farneback flow from the previous picture to this one at no more than 640 px width, and the previous
    picture sampled at pixel + flow. (A flow from this picture back would warp it right; the published numbers use the
    other one, so this does too. It therefore also grows with the motion itself.)
    """
    height, width = current.shape[:2]
    if width > _FLOW_MAX_WIDTH:
        size = (_FLOW_MAX_WIDTH, max(1, int(height * _FLOW_MAX_WIDTH / width)))
        previous = np.asarray(cv2.resize(previous, size), dtype=np.uint8)
        current = np.asarray(cv2.resize(current, size), dtype=np.uint8)
    empty = np.zeros((*current.shape[:2], 2), dtype=np.float32)
    flow = cv2.calcOpticalFlowFarneback(to_grey(previous), to_grey(current), empty, 0.5, 3, 15, 3, 5, 1.2, 0)
    rows, columns = np.indices(current.shape[:2], dtype=np.float32)
    warped = cv2.remap(previous, columns + flow[..., 0], rows + flow[..., 1], cv2.INTER_LINEAR)
    return float(((warped.astype(np.float32) - current.astype(np.float32)) ** 2).mean(dtype=np.float64))


def stability_score(steps: list[DoubleArray]) -> float | None:
    """Share of low frequencies in the accumulated path, mean of translation and rotation, in [0, 1].

    Args:
        steps: (3, 3) homographies between consecutive pictures, in order.
    Returns:
        None for fewer than two steps.
    """
    if len(steps) < 2:
        return None
    path = [np.eye(3)]
    for step in steps:
        path.append(path[-1] @ step)
    poses = np.array(path)
    translation = np.hypot(poses[:, 0, 2], poses[:, 1, 2])
    rotation = np.degrees(np.arctan2(poses[:, 1, 0], poses[:, 0, 0]))
    return (_low_share(translation) + _low_share(rotation)) / 2


def _low_share(signal: npt.NDArray[np.float64]) -> float:
    """Power of the first 5 bins over that of the first half of the spectrum, without the constant."""
    power = np.abs(np.fft.fft(signal))[1:] ** 2
    power = power[: len(power) // 2]
    total = power.sum()
    return float(power[:_LOW_BINS].sum() / total) if total > 0 else 1.0

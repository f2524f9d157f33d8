"""How one picture lies in another, by features that both show: where flow is lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from vs3r.types import DoubleArray, FloatArray

MOST_FEATURES = 800
# Blurred pictures have little contrast.
LEAST_CONTRAST = 0.01
# Of 920 pairs of pictures of different scenes none had more than 6 features in one similarity of scale 1/2 to 2.
ALIGNED_FEATURES = 8
ALIGNED_SCALE = 2.0
ALIGNED_PX = 4.0
ALIGNED_RATIO = 0.8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Features:
    """SIFT features of a picture (Lowe 2004)."""

    points: DoubleArray
    """(N, 2) in pixels, the first one's centre at (0.5, 0.5)."""
    descriptors: FloatArray
    """(N, 128)."""

    def within(self, mask: npt.NDArray[np.bool_]) -> Features:
        """Those that lie where mask (H, W) of the picture says."""
        col, row = np.minimum(self.points.astype(np.intp), np.array(mask.shape[::-1]) - 1).T
        inside = mask[row, col]
        return Features(points=self.points[inside], descriptors=self.descriptors[inside])


def find_features(picture: npt.NDArray[np.uint8]) -> Features:
    """The strongest of a grey picture (H, W)."""
    sift = cv2.SIFT.create(nfeatures=MOST_FEATURES, contrastThreshold=LEAST_CONTRAST)
    found, descriptors = sift.detectAndCompute(picture, None)
    # OpenCV puts the first pixel's centre at 0.
    points = np.array([point.pt for point in found], np.float64).reshape(-1, 2) + 0.5
    described = np.zeros((0, 128)) if descriptors is None else descriptors
    return Features(points=points, descriptors=np.asarray(described, np.float32))


def align(a: Features, b: Features) -> DoubleArray | None:
    """(3, 3) similarity b_from_a in pixels on which features of two pictures agree; None where too few do."""
    if min(len(a.points), len(b.points)) < ALIGNED_FEATURES:
        return None
    pairs: Sequence[Sequence[cv2.DMatch]] = cv2.BFMatcher().knnMatch(a.descriptors, b.descriptors, k=2)
    matches = [first for first, second in pairs if first.distance < ALIGNED_RATIO * second.distance]
    if len(matches) < ALIGNED_FEATURES:
        return None
    at_a, at_b = a.points[[m.queryIdx for m in matches]], b.points[[m.trainIdx for m in matches]]
    found, inlier = cv2.estimateAffinePartial2D(at_a, at_b, method=cv2.RANSAC, ransacReprojThreshold=ALIGNED_PX)
    if found is None or int(inlier.sum()) < ALIGNED_FEATURES:
        return None
    scale = math.hypot(found[0, 0], found[1, 0])
    if not 1 / ALIGNED_SCALE < scale < ALIGNED_SCALE:
        return None
    return np.vstack([found, [0.0, 0.0, 1.0]])

"""Single pictures: grey values, black borders, sharpness of what two pictures both show."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from vs3r.errors import ShapeError
from vs3r.types import DoubleArray

Picture = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.uint8]

# Black of a warped border after lossy coding: 0 to 3 in the clips that were looked at, up to 8 beside a bright edge.
_BLACK_MAX = 8
# Smaller regions are dark objects at the edge of the scene, not borders: a border of one row or column on a
# 16:9 picture of up to 2000 px is at least this share.
_BORDER_MIN_SHARE = 5e-4
# Below this difference in scale both pictures are compared in their own pixels: resampling would blur one more than
# the difference in scale does.
_SAME_SCALE = 0.02
_MIN_COMMON_SHARE = 0.05
_AREA_BELOW = 0.5


def check_picture(picture: Picture) -> None:
    """Raise ShapeError unless the picture is a (H, W) or (H, W, 3) uint8 array of at least one pixel."""
    good_shape = picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] == 3)
    if picture.dtype != np.uint8 or not good_shape or picture.size == 0:
        raise ShapeError(
            "expected a picture as a uint8 array of shape (H, W) or (H, W, 3); "
            f"got {picture.dtype} of shape {tuple(picture.shape)}"
        )


def to_grey(picture: Picture) -> Picture:
    """The (H, W) grey picture of a BGR or grey one."""
    if picture.ndim == 2:
        return picture
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), dtype=np.uint8)


def border_mask(grey: Picture) -> Mask:
    """Estimate which pixels are black border: (H, W) uint8, 1 inside pure-black regions that touch the edge.

    A scene that is really black at its edge looks the same; compare with the source's own estimate.
    """
    edge = min(grey[0].min(), grey[-1].min(), grey[:, 0].min(), grey[:, -1].min())
    if edge > _BLACK_MAX:
        return np.zeros(grey.shape, dtype=np.uint8)
    dark = (grey <= _BLACK_MAX).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(dark, connectivity=4)
    height, width = grey.shape
    left, top, box_w, box_h, area = (stats[:, column] for column in range(5))
    touches = (left == 0) | (top == 0) | (left + box_w == width) | (top + box_h == height)
    is_border = touches & (area >= max(_BORDER_MIN_SHARE * grey.size, 2))
    is_border[0] = False  # label 0 is everything that is not dark
    return np.asarray(is_border.astype(np.uint8)[labels], dtype=np.uint8)


def sharpness_pair(source: Picture, output: Picture, output_from_source: DoubleArray) -> tuple[float, float] | None:
    """Variance of the Laplacian of two grey pictures over the region that both show, at the same scale.

    Each picture is measured in its own pixels; where the scales differ by more than 2 %, the more magnified one is
    first reduced to the other's scale.

    Args:
        source: (H, W) grey.
        output: (H, W) grey, same size.
        output_from_source: (3, 3) homography between their pixels.
    Returns:
        Variance in the source and in the output, or None where they share under 5 % of the picture.
    """
    size = (source.shape[1], source.shape[0])
    visible = 1 - border_mask(output)
    visible_source = 1 - border_mask(source)
    flags = cv2.INTER_NEAREST
    in_output = cv2.warpPerspective(visible_source, output_from_source, size, flags=flags)
    in_source = cv2.warpPerspective(visible, output_from_source, size, flags=flags | cv2.WARP_INVERSE_MAP)
    seen_in_output: Mask = np.minimum(visible, np.asarray(in_output, dtype=np.uint8))
    seen_in_source: Mask = np.minimum(visible_source, np.asarray(in_source, dtype=np.uint8))

    scale = float(np.sqrt(abs(np.linalg.det(output_from_source[:2, :2]))))
    if scale > 1 + _SAME_SCALE:
        output, seen_in_output = _reduce(output, seen_in_output, 1 / scale)
    elif 0 < scale < 1 - _SAME_SCALE:
        source, seen_in_source = _reduce(source, seen_in_source, scale)
    before = _laplacian_variance(source, seen_in_source)
    after = _laplacian_variance(output, seen_in_output)
    return None if before is None or after is None else (before, after)


def _reduce(grey: Picture, mask: Mask, factor: float) -> tuple[Picture, Mask]:
    size = (max(1, round(grey.shape[1] * factor)), max(1, round(grey.shape[0] * factor)))
    # A magnified picture holds no detail finer than its magnification, so a mild reduction needs no low-pass, which
    # would take detail away from it.
    method = cv2.INTER_LANCZOS4 if factor > _AREA_BELOW else cv2.INTER_AREA
    small = cv2.resize(grey, size, interpolation=method)
    small_mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    return np.asarray(small, dtype=np.uint8), np.asarray(small_mask, dtype=np.uint8)


def _laplacian_variance(grey: Picture, mask: Mask) -> float | None:
    # The rim is left out: there the homography is only roughly right and the border's edge would count as detail.
    rim = max(2, round(0.02 * max(grey.shape)))
    kernel = np.ones((2 * rim + 1, 2 * rim + 1), dtype=np.uint8)
    inner = cv2.erode(mask, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0).astype(bool)
    if inner.mean() < _MIN_COMMON_SHARE:
        return None
    return float(cv2.Laplacian(grey, cv2.CV_32F)[inner].var(dtype=np.float64))

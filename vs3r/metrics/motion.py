"""Global motion between neighbouring pictures and the jitter left in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from vs3r.metrics.picture import Picture, border_mask
from vs3r.types import DoubleArray

# Larger pictures are reduced to this; and that of the pixels in which motion is told.
_WORK_LONG_SIDE = 1280
_REPORT_LONG_SIDE = 1280
# Corners come from the middle of the picture: a filled or black rim must not decide how steady the picture is.
_RIM_SHARE = 0.1
_MAX_CORNERS = 700
# Fewer corners tracked, or that agree, tell of no motion; nor does a smaller share of those looked for, or tracked.
_MIN_TRACKS = 12
_MIN_TRACKED_SHARE = 0.2
_MIN_INLIER_SHARE = 0.25
# A corner is tracked if it comes back this near, and agrees if it lies this near to where the similarity sees it.
_FORWARD_BACKWARD_PX = 0.5
_INLIER_PX = 2.0
# Pairs of corners that are tried, and how far apart two must be.
_HYPOTHESES = 500
_MIN_APART_PX = 10.0
# Width of the Geman-McClure loss, and how often corners are weighed again.
_ROBUST_PX = 2.0
_REFINE_STEPS = 20
# Of the usual interval between pictures: one that is further off it is not measured.
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moved:
    """How a picture moved, in pixels at a long side of 1280 and degrees; NaN where it cannot be measured (a cut)."""

    step: DoubleArray
    """(3,) shift of the picture's centre in x and y and rotation, from the previous picture to this one."""
    change: DoubleArray
    """(3,) this step less the one before it, both of the same points. NaN for the second picture."""


class GlobalMotion:
    """Measures the global motion from one picture to the next, one picture at a time.

    Corners in the inner 80 % of the picture are followed by Lucas-Kanade with a forward-backward check; a similarity is
    found by RANSAC and refined by iteratively reweighted least squares (Geman-McClure). For the change from one step
    to the next the corners of the picture between are followed both ways and weighted by both residuals together: two
    steps that are measured by themselves may follow different layers or people, whose difference is no shake.
    """

    def __init__(self) -> None:
        self._before: Picture | None = None
        self._previous: Picture | None = None
        self._corners: DoubleArray | None = None

    def push(self, grey: Picture) -> Moved | None:
        """Motion up to this picture.

        Args:
            grey: (H, W), the same size in every call.
        Returns:
            None for the first picture.
        """
        scale = min(1.0, _WORK_LONG_SIDE / max(grey.shape))
        small = grey
        if scale < 1:
            # No side may vanish.
            fy, fx = (max(scale, 1 / side) for side in grey.shape)
            small = np.asarray(cv2.resize(grey, None, fx=fx, fy=fy, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        before, previous, corners = self._before, self._previous, self._corners
        self._before, self._previous, self._corners = previous, small, find_corners(small)
        if previous is None or corners is None:
            return None
        centre = np.array([small.shape[1] - 1, small.shape[0] - 1]) / 2
        here = corners - centre
        there, kept = _track(previous, small, corners)
        step = fit_similarity(here[kept], there[kept] - centre) if _enough(kept) else None
        change = None
        if before is not None:
            past, kept_past = _track(previous, before, corners)
            kept &= kept_past
            if _enough(kept):
                change = fit_change(here[kept], past[kept] - centre, there[kept] - centre)
        unit = np.array([_REPORT_LONG_SIDE / max(small.shape)] * 2 + [1.0])
        unknown = np.full(3, np.nan)
        return Moved(step=unknown if step is None else step * unit, change=unknown if change is None else change * unit)


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


def _track(source: Picture, target: Picture, corners: DoubleArray) -> tuple[DoubleArray, npt.NDArray[np.bool_]]:
    """Where corners (N, 2) of the source are in the target, (N, 2), and which of them were found, (N,)."""
    if len(corners) < _MIN_TRACKS:
        return corners, np.zeros(len(corners), np.bool_)
    start = corners.astype(np.float32).reshape(-1, 1, 2)
    levels = max(0, min(_LK_LEVELS, int(np.log2(min(target.shape) / (2 * _LK_WINDOW[0])))))
    options = {"winSize": _LK_WINDOW, "maxLevel": levels, "criteria": _LK_CRITERIA}
    end, found, _ = cv2.calcOpticalFlowPyrLK(source, target, start, None, **options)  # type: ignore[call-overload]
    back, found_back, _ = cv2.calcOpticalFlowPyrLK(target, source, end, None, **options)  # type: ignore[call-overload]
    near = np.linalg.norm((back - start).reshape(-1, 2), axis=1) < _FORWARD_BACKWARD_PX
    return end.reshape(-1, 2).astype(np.float64), near & (found.ravel() > 0) & (found_back.ravel() > 0)


def _enough(kept: npt.NDArray[np.bool_]) -> bool:
    return int(kept.sum()) >= max(_MIN_TRACKS, _MIN_TRACKED_SHARE * len(kept))


def fit_similarity(p: DoubleArray, q: DoubleArray) -> DoubleArray | None:
    """Robust similarity q = rotate_scale(p) + shift.

    Args:
        p: (N, 2) points around the origin, in pixels.
        q: (N, 2) where they went.
    Returns:
        (3,) shift x, shift y in pixels, rotation in degrees; None where fewer than 12 points or a quarter agree.
    """
    found = _similarities(p, [q])
    return None if found is None else found[0]


def fit_change(p: DoubleArray, past: DoubleArray, future: DoubleArray) -> DoubleArray | None:
    """The second difference of a path of similarities, as those points see it that agree on both of its steps.

    Args:
        p: (N, 2) points of a picture around the origin, in pixels.
        past, future: (N, 2) where they were in the picture before and are in the one after it.
    Returns:
        (3,) shift in pixels and rotation in degrees of future - 2 p + past; None as in fit_similarity.
    """
    found = _similarities(p, [past, future])
    return None if found is None else found[0] + found[1]


def _similarities(p: DoubleArray, moved: list[DoubleArray]) -> list[DoubleArray] | None:
    """One robust similarity from p to each of `moved`, with common weights."""
    # Complex numbers: q = turn * p + shift, `turn` holds rotation and scale.
    zp, zqs = p[:, 0] + 1j * p[:, 1], [q[:, 0] + 1j * q[:, 1] for q in moved]
    # Every hypothesis is two points; which they are is the same on every run.
    i, j = np.random.default_rng(0).integers(0, len(zp), (2, _HYPOTHESES))
    apart = np.abs(zp[i] - zp[j]) > _MIN_APART_PX
    if not apart.any():
        return None
    i, j = i[apart], j[apart]
    residual2 = np.zeros((len(i), len(zp)))
    for zq in zqs:
        turns = (zq[i] - zq[j]) / (zp[i] - zp[j])
        residual2 += np.abs(turns[:, None] * (zp - zp[i, None]) + zq[i, None] - zq) ** 2
    best = residual2[np.argmax((1 / (1 + residual2 / _ROBUST_PX**2)).sum(axis=1))]
    inliers = int((best < len(zqs) * _INLIER_PX**2).sum())
    if inliers < max(_MIN_TRACKS, _MIN_INLIER_SHARE * len(p)):
        return None
    fits: list[tuple[complex, complex]] = []
    for _ in range(_REFINE_STEPS):
        weight = (1 + best / _ROBUST_PX**2) ** -2
        weight /= weight.sum()
        mean_p = (weight * zp).sum()
        spread = (weight * np.abs(zp - mean_p) ** 2).sum()
        if spread < 1.0:
            return None
        fits = []
        for zq in zqs:
            mean_q = (weight * zq).sum()
            turn = complex((weight * np.conj(zp - mean_p) * (zq - mean_q)).sum() / spread)
            fits.append((turn, complex(mean_q - turn * mean_p)))
        best = np.sum(
            [np.abs(turn * zp + shift - zq) ** 2 for (turn, shift), zq in zip(fits, zqs, strict=True)], axis=0
        )
    return [np.array([shift.real, shift.imag, np.degrees(np.angle(turn))]) for turn, shift in fits]


def jitter(change: DoubleArray) -> Jitter | None:
    """RMS of the second difference of a path.

    Args:
        change: (T - 2, 3) as from GlobalMotion.push; rows of NaN (cuts) are left out.
    Returns:
        None where nothing was measured.
    """
    known = change[np.isfinite(change).all(axis=1)]
    if len(known) == 0:
        return None
    px = np.sqrt((known[:, :2] ** 2).sum(axis=1).mean())
    return Jitter(px=float(px), deg=float(np.sqrt((known[:, 2] ** 2).mean())))


def jitter_ratio(output: DoubleArray, source: DoubleArray) -> Jitter | None:
    """Jitter of the output over that of the source, on the frames where both could be measured.

    Args:
        output: (T - 2, 3) changes of the output.
        source: (T - 2, 3) changes of the source; a longer one is cut to the shorter.
    Returns:
        Ratios; None where nothing could be compared or the source does not shake at all.
    """
    count = min(len(output), len(source))
    left, before = output[:count], source[:count]
    both = np.isfinite(left).all(axis=1) & np.isfinite(before).all(axis=1)
    after_rms, before_rms = jitter(left[both]), jitter(before[both])
    if after_rms is None or before_rms is None or before_rms.px == 0 or before_rms.deg == 0:
        return None
    return Jitter(px=after_rms.px / before_rms.px, deg=after_rms.deg / before_rms.deg)


def path_of(moves: Sequence[Moved], pts_s: Sequence[float] | None = None) -> tuple[DoubleArray, DoubleArray]:
    """Steps (T - 1, 3) and their changes (T - 2, 3) of a clip, also of an empty one.

    With the times of the T pictures, changes are those of a velocity: steps over other intervals are scaled to the
    median one first. Steps over an interval that is more than half off it become NaN, and so do the changes from and to
    them: a longer wait is more motion, not shake.
    """
    steps = np.array([move.step for move in moves], dtype=np.float64).reshape(-1, 3)
    changes = np.array([move.change for move in moves[1:]], dtype=np.float64).reshape(-1, 3)
    if pts_s is not None and len(steps):
        waits = np.diff(np.asarray(pts_s, dtype=np.float64))
        usual = np.median(waits)
        irregular = np.abs(waits - usual) > _IRREGULAR_SHARE * usual
        steps[irregular] = np.nan
        more = (usual / np.maximum(waits, 1e-9) - 1)[:, None] * steps
        changes += more[1:] - more[:-1]
    return steps, changes

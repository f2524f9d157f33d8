"""Evaluate a clip, or a stabilized clip against its source, from a stream of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from vs3r.errors import ShapeError
from vs3r.metrics import features
from vs3r.metrics.motion import GlobalMotion, Jitter, Moved, jitter, jitter_ratio, path_of
from vs3r.metrics.picture import Picture, border_mask, check_picture, sharpness_pair, to_grey
from vs3r.types import DoubleArray

# Every so many-th pair is compared by LPIPS, but where the output is darker than this on average.
_PERCEPTUAL_STEP = 5
_PERCEPTUAL_MIN_MEAN = 5.0
# Every so many-th pair is compared at all in a quick evaluation.
_QUICK_STEP = 10

Perceptual = Callable[[Picture, Picture], float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClipMetrics:
    """What can be said of one clip by itself. None: could not be measured."""

    frames: int
    """Number of pictures."""
    jitter: Jitter | None
    """RMS second difference of the global motion: pixels at a long side of 1280, and degrees. 0 is a smooth path."""
    tracked_share: float | None
    """Share of neighbouring pictures between which the global motion could be measured, in [0, 1]."""
    stability: float | None
    """The paper's Stability, in [0, 1]; 1 is steady."""
    epipolar_error_px2: float | None
    """The paper's ESE: mean Sampson distance in px^2; lower is better."""
    warp_error: float | None
    """The paper's WE: mean squared difference of grey values (0 to 255) after warping; lower is better."""
    valid_share: float
    """Estimated mean share of the picture that is not black border, in [0, 1]."""
    valid_share_min: float
    """The same of the worst frame."""
    motion: DoubleArray
    """(frames - 1, 3) global motion from each picture to the next: x and y of the centre in pixels at a long side of
    1280, rotation in degrees; NaN where it could not be measured."""
    change: DoubleArray
    """(frames - 2, 3) how the motion changes from one step to the next, as the same points see both; NaN likewise."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """A stabilized clip against its source. None: could not be measured."""

    frames: int
    """Number of pairs of pictures compared."""
    source: ClipMetrics
    """The clip before."""
    output: ClipMetrics
    """The clip after, resized to the source's size where it differs."""
    cropping: float | None
    """The paper's Cropping: mean over frames of 1 / scale of the homography to the output, capped at 1."""
    valid_share: float
    """Mean share of the output's pixels that show something seen by the camera, in [0, 1]."""
    valid_share_min: float
    """The same of the worst frame."""
    valid_is_estimated: bool
    """valid_share comes from black borders in the pictures, not from the renderer."""
    jitter_ratio: Jitter | None
    """Jitter of the output over that of the source, on the frames where both could be measured."""
    sharpness_ratio: float | None
    """Variance of the Laplacian in the output over that in the source, where both show the scene; 1 keeps it."""
    lpips: float | None
    """The paper's LPIPS (lower is better); None without the network's weights."""

    def summary(self) -> dict[str, float | int | bool | None]:
        """All numbers as one flat row, for tables and JSON."""
        row: dict[str, float | int | bool | None] = {
            "frames": self.frames,
            "cropping": self.cropping,
            "valid_share": self.valid_share,
            "valid_share_min": self.valid_share_min,
            "valid_is_estimated": self.valid_is_estimated,
            "jitter_ratio_px": self.jitter_ratio.px if self.jitter_ratio else None,
            "jitter_ratio_deg": self.jitter_ratio.deg if self.jitter_ratio else None,
            "sharpness_ratio": self.sharpness_ratio,
            "lpips": self.lpips,
        }
        for name, clip in (("source", self.source), ("output", self.output)):
            row |= {
                f"{name}_jitter_px": clip.jitter.px if clip.jitter else None,
                f"{name}_jitter_deg": clip.jitter.deg if clip.jitter else None,
                f"{name}_tracked_share": clip.tracked_share,
                f"{name}_stability": clip.stability,
                f"{name}_epipolar_error_px2": clip.epipolar_error_px2,
                f"{name}_warp_error": clip.warp_error,
            }
        return row


@dataclass(slots=True)
class _ClipState:
    """Accumulates the numbers of one clip, one picture at a time."""

    finder: features.FeatureFinder
    quick: bool
    motion: GlobalMotion = field(default_factory=GlobalMotion)
    previous: Picture | None = None
    found: features.Features | None = None
    moves: list[Moved] = field(default_factory=list)
    homographies: list[DoubleArray] = field(default_factory=list)
    epipolar: list[float] = field(default_factory=list)
    warp: list[float] = field(default_factory=list)
    valid: list[float] = field(default_factory=list)

    def push(self, picture: Picture) -> None:
        """Take the next picture."""
        if self.previous is not None and self.previous.shape != picture.shape:
            raise ShapeError(
                f"expected every picture of a clip to have the shape {self.previous.shape}; got {picture.shape}"
            )
        grey = to_grey(picture)
        moved = self.motion.push(grey)
        if moved is not None:
            self.moves.append(moved)
        self.valid.append(1 - float(border_mask(grey).mean()))
        if not self.quick:
            self._push_paper(picture, self.finder.find(grey))
        self.previous = picture

    def latest_features(self) -> features.Features:
        """Features of the latest picture."""
        assert self.previous is not None
        return self.finder.find(to_grey(self.previous)) if self.found is None else self.found

    def _push_paper(self, picture: Picture, found: features.Features) -> None:
        if self.previous is not None and self.found is not None:
            matches = features.match(self.found, found)
            between = features.homography(matches)
            if between is not None:
                self.homographies.append(between)
            error = features.epipolar_error_px2(matches)
            if error is not None:
                self.epipolar.append(error)
            self.warp.append(features.warp_error(self.previous, picture))
        self.found = found

    def result(self, pts_s: Sequence[float] | None) -> ClipMetrics:
        motion, change = path_of(self.moves, pts_s)
        return ClipMetrics(
            frames=len(self.valid),
            jitter=jitter(change),
            tracked_share=float(np.isfinite(motion).all(axis=1).mean()) if len(motion) else None,
            stability=features.stability_score(self.homographies),
            epipolar_error_px2=_mean(self.epipolar),
            warp_error=_mean(self.warp),
            valid_share=float(np.mean(self.valid)),
            valid_share_min=min(self.valid),
            motion=motion,
            change=change,
        )


@dataclass(slots=True)
class _PairState:
    """Accumulates what compares the two clips."""

    perceptual: Perceptual | None
    crops: list[float] = field(default_factory=list)
    sharpness: list[tuple[float, float]] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)

    def push(
        self, index: int, source: tuple[Picture, features.Features], output: tuple[Picture, features.Features]
    ) -> None:
        """Compare the two pictures of frame `index`; nothing is noted where they cannot be aligned."""
        between = features.homography(features.match(source[1], output[1]))
        if between is None:
            return
        scale = features.magnification(between)
        if scale > 0:
            self.crops.append(1 / scale)
        pair = sharpness_pair(to_grey(source[0]), to_grey(output[0]), between)
        if pair is not None:
            self.sharpness.append(pair)
        if self.perceptual is not None and index % _PERCEPTUAL_STEP == 0 and output[0].mean() > _PERCEPTUAL_MIN_MEAN:
            self.distances.append(_aligned_distance(self.perceptual, source[0], output[0], between))


def measure_clip(
    pictures: Iterable[Picture], *, pts_s: Sequence[float] | None = None, quick: bool = False
) -> ClipMetrics:
    """Measure one clip by itself.

    Args:
        pictures: in time order; (H, W, 3) BGR or (H, W) grey uint8, all of one shape.
        pts_s: when each picture is shown, read when all have been taken; intervals are alike without it.
        quick: leave out Stability, ESE and WE, which take nine tenths of the time.
    Raises:
        ShapeError: no picture at all, or one of the wrong shape or dtype.
    """
    state = _ClipState(_finder(quick), quick)
    for picture in pictures:
        check_picture(picture)
        state.push(picture)
    if not state.valid:
        raise ShapeError("expected at least one picture; got an empty clip")
    return state.result(pts_s)


def evaluate(
    pairs: Iterable[tuple[Picture, Picture]],
    *,
    pts_s: Sequence[float] | None = None,
    source: ClipMetrics | None = None,
    valid_shares: Sequence[float] | None = None,
    perceptual: Perceptual | None = None,
    quick: bool = False,
) -> Evaluation:
    """Evaluate a stabilized clip against its source.

    Args:
        pairs: (source picture, output picture) of the same moment, in time order; uint8, (H, W, 3) BGR or (H, W) grey.
            An output of another size is resized to the source's.
        pts_s: when each pair is shown, as in measure_clip.
        source: what measure_clip said of the source earlier; saves measuring it again.
        valid_shares: per frame, the share of the output that the renderer knows to be seen by the camera, in [0, 1];
            without it the share is estimated from black borders.
        perceptual: LPIPS of two aligned pictures, called on every 5th pair; without it lpips is None.
        quick: leave out Stability, ESE and WE, and take Cropping and the sharpness from every 10th pair only.
    Raises:
        ShapeError: no pair at all, or a picture of the wrong shape or dtype.
    """
    finder = _finder(quick)
    before, after = _ClipState(finder, quick), _ClipState(finder, quick)
    compared = _PairState(perceptual)
    for index, (input_picture, output_picture) in enumerate(pairs):
        check_picture(input_picture)
        check_picture(output_picture)
        output_picture = _resize_like(output_picture, input_picture)
        after.push(output_picture)
        if source is None:
            before.push(input_picture)
        if not quick or index % _QUICK_STEP == 0:
            input_features = before.latest_features() if source is None else finder.find(to_grey(input_picture))
            compared.push(index, (input_picture, input_features), (output_picture, after.latest_features()))
    if not after.valid:
        raise ShapeError("expected at least one pair of pictures; got an empty clip")
    shares = after.valid if valid_shares is None else list(valid_shares)
    input_metrics, output_metrics = source or before.result(pts_s), after.result(pts_s)
    mean_crop = _mean(compared.crops)
    return Evaluation(
        frames=output_metrics.frames,
        source=input_metrics,
        output=output_metrics,
        cropping=None if mean_crop is None else min(mean_crop, 1.0),
        valid_share=float(np.mean(shares)),
        valid_share_min=float(min(shares)),
        valid_is_estimated=valid_shares is None,
        jitter_ratio=jitter_ratio(output_metrics.change, input_metrics.change),
        sharpness_ratio=_ratio_of_means(compared.sharpness),
        lpips=_mean(compared.distances),
    )


def sharpness_ratio(pairs: Iterable[tuple[Picture, Picture]]) -> float | None:
    """Only the sharpness ratio of the pairs given, see Evaluation.sharpness_ratio; pairs need not be neighbours.

    Args:
        pairs: (source picture, output picture) as for evaluate.
    Raises:
        ShapeError: a picture of the wrong shape or dtype.
    """
    finder, compared = _finder(quick=True), _PairState(None)
    for index, (source, output) in enumerate(pairs):
        check_picture(source)
        check_picture(output)
        output = _resize_like(output, source)
        compared.push(index, (source, finder.find(to_grey(source))), (output, finder.find(to_grey(output))))
    return _ratio_of_means(compared.sharpness)


def _finder(quick: bool) -> features.FeatureFinder:
    return features.FeatureFinder(features.QUICK_FEATURES if quick else features.PAPER_FEATURES)


def _resize_like(picture: Picture, like: Picture) -> Picture:
    if picture.ndim != like.ndim:
        picture = to_grey(picture) if like.ndim == 2 else np.repeat(picture[..., None], 3, axis=2)
    if picture.shape == like.shape:
        return picture
    return np.asarray(cv2.resize(picture, (like.shape[1], like.shape[0])), dtype=np.uint8)


def _aligned_distance(
    perceptual: Perceptual, source: Picture, output: Picture, output_from_source: DoubleArray
) -> float:
    """LPIPS in the source's view; outside of what the output covers both are black."""
    size = (source.shape[1], source.shape[0])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    aligned = cv2.warpPerspective(output, output_from_source, size, flags=flags)
    covered = cv2.warpPerspective(np.full(source.shape[:2], 255, np.uint8), output_from_source, size, flags=flags)
    seen = covered > 0
    black = np.zeros_like(source)
    mask = seen if source.ndim == 2 else seen[..., None]
    return perceptual(np.where(mask, source, black), np.where(mask, aligned, black).astype(np.uint8))


def _ratio_of_means(pairs: list[tuple[float, float]]) -> float | None:
    """Ratio of the means, so that sharp frames decide and frames without any detail do not divide by zero."""
    total = np.array(pairs, dtype=np.float64).reshape(-1, 2).sum(axis=0)
    return float(total[1] / total[0]) if total[0] > 0 else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None

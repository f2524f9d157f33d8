"""The paper's protocol against known homographies, brute force and hand-made signals."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest

from tests.metrics.scenes import HEIGHT, WIDTH, similarity, texture, view
from vs3r.metrics import features
from vs3r.metrics.picture import to_grey


def find(dx: float, dy: float, deg: float = 0.0, scale: float = 1.0) -> features.Features:
    return features.FeatureFinder().find(to_grey(view(texture(), similarity(dx, dy, deg, scale))))


def test_matches_equal_brute_force() -> None:
    a, b = find(0, 0), find(8, -5, 2.0)
    found = features.match(a, b)
    wanted = []
    for best, second in cv2.BFMatcher().knnMatch(a.descriptors, b.descriptors, k=2):
        if best.distance < features.EPIPOLAR_RATIO * second.distance:
            wanted.append((*a.points[best.queryIdx], *b.points[best.trainIdx]))
    assert len(wanted) > 200
    np.testing.assert_array_equal(np.hstack([found.a, found.b]), np.array(wanted, dtype=np.float32))


def test_strongest_features_are_kept() -> None:
    grey = to_grey(view(texture(), similarity(0, 0)))
    every, few = features.FeatureFinder().find(grey), features.FeatureFinder(limit=100).find(grey)
    assert len(few.points) == 100 < len(every.points) < features.PAPER_FEATURES
    assert {tuple(point) for point in few.points.tolist()} <= {tuple(point) for point in every.points.tolist()}


@pytest.mark.parametrize("scale", [0.8, 1.0, 1.25])
def test_homography_is_the_true_one(scale: float) -> None:
    found = features.homography(features.match(find(0, 0), find(10, -6, 1.5, scale)))
    assert found is not None
    corners = np.array([[[50, 50]], [[WIDTH - 50, 50]], [[50, HEIGHT - 50]], [[WIDTH - 50, HEIGHT - 50]]], dtype=float)
    truth = cv2.perspectiveTransform(corners, similarity(10, -6, 1.5, scale))
    # Worst seen: 0.15 px.
    assert np.abs(cv2.perspectiveTransform(corners, found) - truth).max() < 0.5
    assert features.magnification(found) == pytest.approx(scale, abs=0.003)


def test_too_few_matches() -> None:
    flat = features.FeatureFinder().find(np.full((HEIGHT, WIDTH), 80, np.uint8))
    matches = features.match(flat, find(0, 0))
    assert features.homography(matches) is None
    assert features.epipolar_error_px2(matches) is None
    assert len(features.match(find(0, 0), flat).a) == 0


def test_epipolar_error() -> None:
    """Points of a rigid scene seen from two places have none; noise of sigma px adds about sigma^2 / 2 and more."""
    rng = np.random.default_rng(2)
    world = rng.uniform([-3, -2, 4], [3, 2, 10], size=(300, 3))
    moved = world + [0.4, 0.05, 0.2]
    a, b = (500 * points[:, :2] / points[:, 2:] + [WIDTH / 2, HEIGHT / 2] for points in (world, moved))
    errors = []
    for sigma in (0.0, 0.2, 0.5):
        noisy = (b + rng.normal(size=b.shape) * sigma).astype(np.float32)
        matches = features.Matches(a=a.astype(np.float32), b=noisy, ratio=np.zeros(len(a), np.float32))
        error = features.epipolar_error_px2(matches)
        assert error is not None
        errors.append(error)
    assert errors[0] < 1e-4
    assert errors[0] < errors[1] < errors[2]
    assert 0.5**2 / 4 < errors[2] < 0.5**2 * 2


def test_sampson_distance_of_outliers_counts() -> None:
    rng = np.random.default_rng(3)
    world = rng.uniform([-3, -2, 4], [3, 2, 10], size=(300, 3))
    a, b = (500 * points[:, :2] / points[:, 2:] + 320 for points in (world, world + [0.4, 0.0, 0.0]))
    b[:30, 1] += 20  # the epipolar lines are rows: the Sampson distance of these is 20^2 / 2
    matches = features.Matches(a=a.astype(np.float32), b=b.astype(np.float32), ratio=np.zeros(300, np.float32))
    assert features.epipolar_error_px2(matches) == pytest.approx(0.1 * 200, rel=0.02)


def test_warp_error() -> None:
    still = view(texture(), similarity(0, 0))
    assert features.warp_error(still, still) == pytest.approx(0, abs=0.05)
    brighter = np.clip(still.astype(np.int16) + 10, 0, 255).astype(np.uint8)
    flicker = features.warp_error(still, brighter)
    assert 60 < flicker < 140  # 10 grey levels squared, less what clipping and the flow hide
    assert features.warp_error(to_grey(still), to_grey(brighter)) > 50
    wide = np.asarray(cv2.resize(still, (1280, 720)), dtype=np.uint8)
    assert features.warp_error(wide, wide) == pytest.approx(0, abs=0.05)


def test_stability_of_known_paths() -> None:
    """A sway of 2 periods has its power in the first 5 bins, one of 20 periods does not."""
    phase = 2 * np.pi * np.arange(64) / 64

    def score(periods_x: int, periods_turn: int) -> float:
        path = []
        for x, deg in zip(50 * (1 - np.cos(periods_x * phase)), 5 * np.sin(periods_turn * phase), strict=True):
            cos, sin = np.cos(np.radians(deg)), np.sin(np.radians(deg))
            path.append(np.array([[cos, -sin, x], [sin, cos, 0], [0, 0, 1]]))
        steps = [np.linalg.inv(a) @ b for a, b in itertools.pairwise(path)]
        found = features.stability_score(steps)
        assert found is not None
        return found

    assert score(2, 2) == pytest.approx(1)
    assert score(20, 20) == pytest.approx(0, abs=1e-6)
    assert score(20, 2) == score(2, 20) == pytest.approx(0.5)
    assert score(5, 6) == pytest.approx(0.5)
    assert features.stability_score([np.eye(3)]) is None
    assert features.stability_score([np.eye(3)] * 20) == 1.0

"""Results held against what is known of a rendered shot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from tests.scenes import SKY_DEPTH, Footage, Shot
from vs3r.types import FrameGeometry

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

_TRAVEL_FRAMES = 5
_MIN_TRAVEL = 0.01  # of the median depth, over _TRAVEL_FRAMES: less has no measurable direction
_HIGHPASS_S = 0.19
"""Keeps what is faster than 1 Hz, half of it at 1 Hz: where the shots' shake begins (tests.scenes)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Of a reconstruction. None where the shot does not define the number."""

    rotation_deg: float
    """RMS angle between true and found rotation from frame to frame."""
    focal: float
    """Median relative error of the focal length."""
    translation_deg: float | None
    """Median angle between true and found direction of travel over some frames."""
    depth: float | None
    """Median relative error of inverse depth, after one scale for the shot, where nothing moves."""
    iou: float | None
    """Intersection over union of what moves."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FastMotion:
    """What of a video's motion against the true stable view is faster than 1 Hz."""

    points: F64
    """(T, N, 2) displacement in pixels of points all over the picture."""
    roll: F64
    """(T,) rotation about the optical axis in degrees."""

    def __sub__(self, other: FastMotion) -> FastMotion:
        """What one video has and the other has not."""
        return FastMotion(points=self.points - other.points, roll=self.roll - other.roll)

    @property
    def px(self) -> float:
        """RMS displacement."""
        return float(np.sqrt(np.mean(np.sum(np.square(self.points), -1))))

    @property
    def roll_deg(self) -> float:
        """RMS rotation."""
        return float(np.sqrt(np.mean(np.square(self.roll))))


def reconstruction_errors(found: Sequence[FrameGeometry], taken: Shot, truth: Footage) -> Errors:
    """Hold a reconstruction against the camera that rendered the shot."""
    if len(found) != len(taken):
        raise ValueError(f"{taken.name}: expected {len(taken)} frames, the reconstruction gave {len(found)}")
    true_poses = np.asarray(np.linalg.inv(taken.world_from_cam), np.float64)
    poses = np.stack([geometry.cam_from_world for geometry in found])
    steps = ((_relative(poses, i, i + 1), _relative(true_poses, i, i + 1)) for i in range(len(found) - 1))
    angles = [_angle_deg(np.asarray(step[:3, :3] @ true[:3, :3].T, np.float64)) for step, true in steps]
    focals = np.array([geometry.K[0, 0] for geometry in found])
    return Errors(
        rotation_deg=float(np.sqrt(np.mean(np.square(angles)))),
        focal=float(np.median(np.abs(focals / taken.K[:, 0, 0] - 1))),
        translation_deg=_travel_error_deg(poses, true_poses, float(np.median(truth.depth))),
        depth=_depth_error(found, taken, truth),
        iou=_iou(found, truth),
    )


def _relative(cam_from_world: F64, i: int, j: int) -> F64:
    return np.asarray(cam_from_world[j] @ np.linalg.inv(cam_from_world[i]))


def _angle_deg(rotation: F64) -> float:
    # From the skew part: arccos loses all digits near 0.
    skew = [rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]
    return float(np.rad2deg(np.arctan2(np.linalg.norm(skew), np.trace(rotation) - 1)))


def _travel_error_deg(poses: F64, true_poses: F64, depth: float) -> float | None:
    errors = []
    for i in range(len(poses) - _TRAVEL_FRAMES):
        # Both in the axes of the first camera of the pair.
        found, true = (
            -part[:3, :3].T @ part[:3, 3] for part in (_relative(p, i, i + _TRAVEL_FRAMES) for p in (poses, true_poses))
        )
        if np.linalg.norm(true) < _MIN_TRAVEL * depth:
            continue
        length = np.linalg.norm(found)
        cosine = found @ true / (length * np.linalg.norm(true)) if length > 0 else 0.0
        errors.append(np.rad2deg(np.arccos(np.clip(cosine, -1, 1))))
    return float(np.median(errors)) if len(errors) > len(poses) // 4 else None


def _depth_error(found: Sequence[FrameGeometry], taken: Shot, truth: Footage) -> float | None:
    """None where the camera does not travel: depth is then not observable."""
    travel = np.linalg.norm(np.ptp(taken.world_from_cam[:, :3, 3], axis=0))
    if travel < 2 * _MIN_TRAVEL * float(np.median(truth.depth)):
        return None
    logs = []
    for number, geometry in enumerate(found):
        rows, cols = geometry.inv_depth.shape
        y = ((np.arange(rows) + 0.5) / rows * taken.height).astype(int)
        x = ((np.arange(cols) + 0.5) / cols * taken.width).astype(int)
        true, moving = truth.depth[number][np.ix_(y, x)], truth.moving[number][np.ix_(y, x)]
        logs.append(np.log(geometry.inv_depth * true)[~moving & (true < SKY_DEPTH)])
    log = np.concatenate(logs)
    return float(np.median(np.abs(np.expm1(log - np.median(log)))))


def _iou(found: Sequence[FrameGeometry], truth: Footage) -> float | None:
    if truth.moving.mean() < 0.005:
        return None
    common = union = 0
    for geometry, moving in zip(found, truth.moving, strict=True):
        size = (moving.shape[1], moving.shape[0])
        dynamic = cv2.resize(geometry.dynamic, size, interpolation=cv2.INTER_LINEAR) > 0.5
        common += int((dynamic & moving).sum())
        union += int((dynamic | moving).sum())
    return common / union


def fast_motion(stable: Footage, pictures: Iterable[U8], *, fps: float) -> FastMotion:
    """Of a video's grey pictures against the true stable view of every frame."""
    height, width = stable.rgb.shape[1:3]
    grid = np.stack(np.meshgrid([0.2, 0.5, 0.8], [0.2, 0.5, 0.8]), axis=-1).reshape(1, -1, 2) * [width, height]
    moved, rolls = [], []
    guess = np.eye(3)
    for rgb, moving, picture in zip(stable.rgb, stable.moving, pictures, strict=True):
        guess = _homography(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), moving, picture, guess)
        at = cv2.perspectiveTransform(grid, guess)[0]
        moved.append(at - grid[0])
        across = at[5] - at[3]  # the middle row's ends
        rolls.append(np.rad2deg(np.arctan2(across[1], across[0])))
    motion = np.stack(moved).reshape(len(moved), -1)
    fast, fast_roll = (_highpass(series, _HIGHPASS_S * fps) for series in (motion, np.array(rolls)[:, None]))
    return FastMotion(points=fast.reshape(len(moved), -1, 2), roll=fast_roll[:, 0])


def _homography(stable: U8, moving: npt.NDArray[np.bool_], picture: U8, guess: F64) -> F64:
    """From the stable view's pixels to the picture's, by tracked corners of what does not move."""
    mask = np.where(cv2.dilate(moving.astype(np.uint8), np.ones((15, 15), np.uint8)) > 0, 0, 255).astype(np.uint8)
    corners = np.asarray(cv2.goodFeaturesToTrack(stable, 800, 0.005, 6, mask=mask), np.float32)
    start = np.asarray(cv2.perspectiveTransform(corners, guess), np.float32)
    there, seen = _track(stable, picture, corners, start)
    back, seen_back = _track(picture, stable, there, corners)
    good = seen & seen_back & (np.linalg.norm(back - corners, axis=2)[:, 0] < 0.5)
    if good.sum() < 8:
        return guess
    cv2.setRNGSeed(0)
    found, _ = cv2.findHomography(corners[good], there[good], cv2.RANSAC, 1.5, maxIters=5000, confidence=0.9999)
    return np.asarray(guess if found is None else found, np.float64)


def _track(source: U8, target: U8, points: F32, start: F32) -> tuple[F32, npt.NDArray[np.bool_]]:
    """Lucas-Kanade: where (N, 1, 2) points are in the target, and whether they were found."""
    there, seen, _ = cv2.calcOpticalFlowPyrLK(
        source, target, points, start.copy(), winSize=(21, 21), maxLevel=4, flags=cv2.OPTFLOW_USE_INITIAL_FLOW
    )
    return np.asarray(there, np.float32), np.asarray(seen)[:, 0] > 0


def _highpass(series: F64, sigma_frames: float) -> F64:
    """(T, N) minus its Gaussian-weighted local line, which follows a steady drift up to the ends."""
    t = np.arange(len(series), dtype=np.float64)
    slow = np.empty_like(series)
    for now in range(len(series)):
        weight = np.exp(-0.5 * ((t - now) / sigma_frames) ** 2)
        line = np.stack([np.ones_like(t), t - now], axis=1)
        slow[now] = np.linalg.solve(line.T @ (weight[:, None] * line), line.T @ (weight[:, None] * series))[0]
    return np.asarray(series - slow)

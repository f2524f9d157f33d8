"""The virtual camera path: Gaussian smoothing, offline and causal with a lookahead (VS3R eq. 2 and 3).

A plain Gaussian lags behind a pan where it is cut off at the newest frame, and flattens a pan's beginning and end. Each
camera here is the value at frame t of a parabola fitted to its neighbours with Gaussian weights, its curvature shrunk,
because curvature is what shake has most of (docs/decisions/smoothing.md).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from vs3r.config import SmoothConfig
from vs3r.geometry import matrix_from_quat_wxyz, quat_wxyz_from_matrix
from vs3r.types import CameraTrack, DoubleArray, FrameGeometry, PictureFormat, VirtualCamera

__all__ = ["PathSmoother", "SmoothedFrame", "sigma_s", "smooth_path", "smooth_track"]

SIGMA_AT_FULL_S = 2.8
# Weight of the squared curvature, in units of what a neighbourhood of one Gaussian's weight says of it.
CURVATURE_WEIGHT = 0.5
# Where a neighbourhood is cut off, shake looks like slope: the variance that it gives a slope, in units of what
# independent deviations would give.
SLOPE_NOISE = 0.3
REACH_SIGMAS = 3.0
# A lens does not shake: a zoom is meant, and only the noise of its estimate is smoothed, over this share of the width.
ZOOM_SIGMAS = 0.1
# What smoothing over the whole width would change a focal length by is taken for noise well below this share of it.
ZOOM = 0.01
# The limit on the virtual camera changes over this many frames to each side, so that its onset is not a jolt.
LIMIT_REACH_FRAMES = 12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SmoothedFrame:
    """A frame and the camera that it is to be seen from."""

    geometry: FrameGeometry
    """The frame as reconstructed."""
    camera: VirtualCamera
    """The smoothed camera."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Path:
    """Cameras in time order as the quantities that are smoothed: 8 numbers each."""

    pts_s: DoubleArray
    """(T,)"""
    centre: DoubleArray
    """(T, 3) camera centres in the world."""
    quat_wxyz: DoubleArray
    """(T, 4) world_from_cam rotations, signs aligned along the path."""
    log_focal: DoubleArray
    """(T,)"""

    @staticmethod
    def of(geometries: list[FrameGeometry]) -> _Path:
        cam_from_world = np.stack([g.cam_from_world for g in geometries])
        R = cam_from_world[:, :3, :3].transpose(0, 2, 1)
        quat = quat_wxyz_from_matrix(torch.from_numpy(np.ascontiguousarray(R))).numpy()
        flip = np.cumprod(np.where((quat[1:] * quat[:-1]).sum(1) < 0, -1.0, 1.0))
        quat[1:] *= flip[:, None]
        return _Path(
            pts_s=np.array([g.pts_s for g in geometries]),
            centre=-(R @ cam_from_world[:, :3, 3:])[..., 0],
            quat_wxyz=quat,
            log_focal=np.log([g.K[0, 0] for g in geometries]),
        )

    def smoothed(self, at: npt.NDArray[np.int64], sigma: DoubleArray, last: int) -> _Path:
        """The smoothed path at the frames `at`, each with its own width sigma, seen from frames 0 to `last` only."""
        pose = np.concatenate([self.centre, self.quat_wxyz], 1)[: last + 1]
        times, now = self.pts_s[: last + 1], self.pts_s[at]
        fitted = _local_parabola(times, pose, now, sigma)
        calm, zooming = (
            _local_parabola(times, self.log_focal[: last + 1, None], now, share * sigma) for share in (1.0, ZOOM_SIGMAS)
        )
        change = zooming - calm
        focal = calm + change**3 / (change**2 + ZOOM**2)
        quat = fitted[:, 3:]
        return _Path(
            pts_s=now,
            centre=fitted[:, :3],
            quat_wxyz=quat / np.linalg.norm(quat, axis=1, keepdims=True),
            log_focal=focal[:, 0],
        )

    def at(self, index: npt.NDArray[np.int64]) -> _Path:
        return _Path(
            pts_s=self.pts_s[index],
            centre=self.centre[index],
            quat_wxyz=self.quat_wxyz[index],
            log_focal=self.log_focal[index],
        )

    def cam_from_world(self) -> DoubleArray:
        """(T, 4, 4)"""
        out = np.zeros((len(self.pts_s), 4, 4))
        R = matrix_from_quat_wxyz(torch.from_numpy(self.quat_wxyz)).numpy().transpose(0, 2, 1)
        out[:, :3, :3] = R
        out[:, :3, 3] = -(R @ self.centre[..., None])[..., 0]
        out[:, 3, 3] = 1
        return out


def sigma_s(smoothness: float) -> float:
    """Width of the Gaussian in seconds for a smoothness in [0, 1]: 0.7 s at 0.5, 2.8 s at 1."""
    return SIGMA_AT_FULL_S * smoothness**2


def _local_parabola(times: DoubleArray, values: DoubleArray, at: DoubleArray, sigma: DoubleArray) -> DoubleArray:
    """Gaussian-weighted local regression of values (T, C) at times (T,), evaluated at `at` (Q,): (Q, C).

    A slope that is not clearly above what the deviations from the fit would give by chance is shrunk. sigma is (Q,) in
    seconds; where it is 0 the values are kept.
    """
    d = (times[None] - at[:, None]) / np.maximum(sigma, 1e-6)[:, None]
    w = np.exp(-0.5 * d * d) * (np.abs(d) <= REACH_SIGMAS)
    w /= w.sum(1, keepdims=True)
    # Orthogonal for a symmetric neighbourhood, so that shrinking the curvature does not move the rest.
    basis = np.stack([np.ones_like(d), d, d * d - 1], -1)
    weighted = np.swapaxes(basis * w[..., None], 1, 2)
    # With one frame in reach there is no slope and the value is that frame's.
    normal = weighted @ basis + np.diag([0.0, 1e-13, CURVATURE_WEIGHT])
    fit = np.linalg.solve(normal, weighted @ values)
    scatter = (w[..., None] * (values - basis @ fit) ** 2).sum(1)
    noise = SLOPE_NOISE * np.linalg.inv(normal)[:, 1, 1, None] * scatter
    slope = fit[:, 1] ** 5 / np.maximum(fit[:, 1] ** 4 + noise**2, 1e-300)
    # The value and the curvature again, with that slope.
    left = (weighted @ values)[:, ::2] - normal[:, ::2, 1, None] * slope[:, None]
    here = np.linalg.solve(normal[:, ::2, ::2], left)
    return np.asarray(here[:, 0] - here[:, 1])


def smooth_path(cam_from_world: DoubleArray, *, pts_s: DoubleArray, sigma: float) -> DoubleArray:
    """Low-pass a camera path, translation and rotation (VS3R eq. 2 and 3).

    Args:
        cam_from_world: (T, 4, 4) rigid transforms in time order.
        pts_s: (T,) presentation times in seconds, increasing.
        sigma: width of the Gaussian in seconds, >= 0.
    Returns:
        (T, 4, 4) smoothed cam_from_world.
    """
    unit = np.eye(3)
    none = np.zeros((1, 1), np.float32)
    geometries = [
        FrameGeometry(index=i, pts_s=float(t), segment=0, K=unit, cam_from_world=T, inv_depth=none, dynamic=none)
        for i, (t, T) in enumerate(zip(pts_s, cam_from_world, strict=True))
    ]
    path = _Path.of(geometries)
    return path.smoothed(np.arange(len(pts_s)), np.full(len(pts_s), sigma), len(pts_s) - 1).cam_from_world()


def own_share(real: list[FrameGeometry], virtual: _Path, size: tuple[int, int]) -> DoubleArray:
    """(T,) share of each virtual picture that its own frame covers, taking the scene as one distance."""
    width, height = size
    u, v = np.meshgrid((np.arange(24) + 0.5) / 24 * width, (np.arange(24) + 0.5) / 24 * height)
    pixels = np.stack([u.ravel(), v.ravel(), np.ones(u.size)])
    K = np.stack([g.K for g in real])
    virtual_K = K.copy()
    scale = np.exp(virtual.log_focal) / K[:, 0, 0]
    virtual_K[:, 0, 0] *= scale
    virtual_K[:, 1, 1] *= scale
    real_from_virtual = np.stack([g.cam_from_world for g in real]) @ np.linalg.inv(virtual.cam_from_world())
    inv_depth = np.array([float(np.median(g.inv_depth)) for g in real])
    ray = np.linalg.inv(virtual_K) @ pixels
    seen = K @ (real_from_virtual[:, :3, :3] @ ray + inv_depth[:, None, None] * real_from_virtual[:, :3, 3:])
    x, y = seen[:, 0] / seen[:, 2], seen[:, 1] / seen[:, 2]
    inside = (seen[:, 2] > 0) & (x >= 0) & (x <= width) & (y >= 0) & (y <= height)
    return np.asarray(inside.mean(1), dtype=np.float64)


def _limited_sigma(
    real: list[FrameGeometry], path: _Path, at: npt.NDArray[np.int64], config: SmoothConfig, size: tuple[int, int]
) -> DoubleArray:
    """(Q,) the largest width at the frames `at` with which each covers enough of its picture by itself."""
    some, last = [real[i] for i in at], len(real) - 1
    sigma = np.full(len(at), sigma_s(config.smoothness))

    def enough(sigma: DoubleArray) -> npt.NDArray[np.bool_]:
        return own_share(some, path.smoothed(at, sigma, last), size) >= config.min_own_share

    good = enough(sigma)
    if good.all():
        return sigma
    low, high = np.zeros(len(at)), sigma.copy()
    for _ in range(7):
        middle = (low + high) / 2
        good_there = enough(middle)
        low, high = np.where(good_there, middle, low), np.where(good_there, high, middle)
    return np.where(good, sigma, low)


def _virtual(
    real: list[FrameGeometry], t: int, last: int, config: SmoothConfig, size: tuple[int, int]
) -> VirtualCamera:
    """The camera of frame number t of one segment's frames, of which those up to number `last` are known.

    A turn that is too quick for the width of the Gaussian would leave the frame behind: there it is made narrower,
    gradually, so that the path stays smooth.
    """
    real = real[: last + 1]
    path = _Path.of(real)
    near = np.arange(max(0, t - LIMIT_REACH_FRAMES), min(last, t + LIMIT_REACH_FRAMES) + 1)
    allowed = _limited_sigma(real, path, near, config, size)
    # The least of the neighbourhood, then averaged over it: never above what frame t itself allows.
    half = LIMIT_REACH_FRAMES // 2
    least = [allowed[(near >= i - half) & (near <= i + half)].min() for i in near]
    weight = np.clip(1 - np.abs(near - t) / (half + 1), 0, None)
    sigma = (weight * least).sum(keepdims=True) / weight.sum()
    final = path.smoothed(np.array([t]), sigma, last)
    K = real[t].K.copy()
    scale = float(np.exp(final.log_focal[0])) / K[0, 0]
    K[0, 0] *= scale
    K[1, 1] *= scale
    return VirtualCamera(K=K, cam_from_world=final.cam_from_world()[0])


def smooth_track(track: CameraTrack, config: SmoothConfig) -> list[VirtualCamera]:
    """The virtual cameras of a whole clip, every frame of which is known: one per frame of the track."""
    cameras: list[VirtualCamera] = []
    size = (track.width, track.height)
    starts = np.flatnonzero(np.diff(track.segment, prepend=track.segment[:1] - 1))
    for a, b in zip(starts, [*starts[1:], len(track)], strict=True):
        frames = [track.frame(i) for i in range(a, b)]
        for t in range(len(frames)):
            first, last = _reach(frames, t, config)
            cameras.append(_virtual(frames[first : last + 1], t - first, last - first, config, size))
    return cameras


def _reach(frames: list[FrameGeometry], t: int, config: SmoothConfig) -> tuple[int, int]:
    """First and last frame that can matter to frame t."""
    reach_s = REACH_SIGMAS * sigma_s(config.smoothness)
    first, last = t, t
    while first > 0 and frames[first].pts_s >= frames[t].pts_s - reach_s:
        first -= 1
    while last < len(frames) - 1 and frames[last].pts_s <= frames[t].pts_s + reach_s:
        last += 1
    return max(0, first - LIMIT_REACH_FRAMES), min(len(frames) - 1, last + LIMIT_REACH_FRAMES)


class PathSmoother:
    """Smooths a path as it comes, with config.lookahead_frames of delay.

    The camera of frame t depends on the frames of its segment from a fixed time before t to t + lookahead only.
    """

    def __init__(self, config: SmoothConfig, fmt: PictureFormat) -> None:
        self._config = config
        self._size = (fmt.width, fmt.height)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._frames: deque[FrameGeometry] = deque()
        self._next = 0

    def push(self, geometry: FrameGeometry) -> list[SmoothedFrame]:
        """Take the next frame's geometry; return the frames whose cameras are now final, in order."""
        done: list[SmoothedFrame] = []
        if self._frames and geometry.segment != self._frames[-1].segment:
            done = self.flush()
        self._frames.append(geometry)
        while len(self._frames) - 1 - self._next >= self._config.lookahead_frames:
            done.append(self._take())
        return done

    def flush(self) -> list[SmoothedFrame]:
        """End of a segment: the frames not yet returned."""
        done = []
        while self._next < len(self._frames):
            done.append(self._take())
        self.reset()
        return done

    def _take(self) -> SmoothedFrame:
        frames, t = list(self._frames), self._next
        last = min(len(frames) - 1, t + self._config.lookahead_frames)
        first, _ = _reach(frames, t, self._config)
        camera = _virtual(frames[first : last + 1], t - first, last - first, self._config, self._size)
        self._next += 1
        while first > 0:
            self._frames.popleft()
            self._next -= 1
            first -= 1
        return SmoothedFrame(geometry=frames[t], camera=camera)

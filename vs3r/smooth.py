"""The virtual camera path: the least acceleration that stays near the real path (in the place of VS3R eq. 2 and 3).

A Gaussian, as in the paper, lags behind a pan where it is cut off at the newest frame, and where every frame has a
neighbourhood of its own each newly seen frame shakes the path. Here the path ahead is planned as a whole, going on from
the cameras already output, and one camera of it is output: preview control (docs/decisions/smoothing.md).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from vs3r.config import SmoothConfig
from vs3r.errors import InputError
from vs3r.geometry import matrix_from_quat_wxyz, quat_wxyz_from_matrix
from vs3r.lens import bent, straightened
from vs3r.types import CameraTrack, DoubleArray, FrameGeometry, PictureFormat, VirtualCamera

__all__ = ["PathSmoother", "SmoothedFrame", "reach_s", "smooth_path", "smooth_track", "unsmoothed"]

# See reach_s.
REACH_AT_FULL_S = 2.1
# A lens does not shake: a zoom is meant, and only the noise of its estimate is smoothed. Where smoothing over the whole
# reach would change focal lengths by more than this share of them, RMS over about half a reach to each side, the reach
# is so many times shorter.
ZOOM = 0.01
ZOOM_REACH = 0.5
# A plan that ends sooner than this many reaches ahead goes on along the line that fits the newest frames.
HORIZON_REACHES = 2.2
LINE_REACHES = 1.55
# Shake looks like slope: the variance that it gives the line's, in units of what independent deviations would give.
SLOPE_NOISE = 0.3
# A plan this many reaches ahead no longer changes with what comes after it.
SETTLED_REACHES = 12
# Where frames come so close that more than these would lie within the horizon, those beyond the newest stand further
# apart; the line is fitted to fewer, and a track is planned less far ahead. A plan's time grows with them.
HORIZON_FRAMES = 300
LINE_FRAMES = 600
SETTLED_FRAMES = 1536
# A plan is solved in blocks of so many frames.
BLOCK = 32
# Frames are taken to be at least this part of a reach apart: no number holds the acceleration between closer ones.
CLOSEST_REACHES = 1e-3
# Of a track whose frames are all known so many become final with each plan.
TRACK_CHUNK_FRAMES = 64
# The more a frame uses of a limit, the more nearness counts for it: 1 + (used / COSTLY)^4 times.
COSTLY = 0.5
# Where the virtual camera passes a limit, nearness counts so many times more, and more the further it does; where there
# is room again it counts less, by this power of what is used of the limit. So the path comes to lie on its limits.
LIMIT_FACTOR = 1.5
LIMIT_RELAX = 0.5
LIMIT_ROUNDS = 16
# A plan in which nearness would change by less than this, as a logarithm, is good enough.
LIMIT_SETTLED = 0.2
MAX_NEARNESS = 1e9
# What a picture covers of another is counted on so many cells each way.
SHARE_CELLS = 12
# How far near things may be moved against far ones, in units of the picture's longer side: a wrong depth bends them as
# they move.
MAX_PARALLAX = 0.015


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SmoothedFrame:
    """A frame and the camera that it is to be seen from."""

    geometry: FrameGeometry
    """The frame as reconstructed."""
    camera: VirtualCamera
    """The smoothed camera."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Path:
    """Cameras in time order as the quantities that are smoothed."""

    pts_s: DoubleArray
    """(T,)"""
    centre: DoubleArray
    """(T, 3) camera centres in the world."""
    quat_wxyz: DoubleArray
    """(T, 4) world_from_cam rotations, signs aligned along the path."""
    log_focal: DoubleArray
    """(T,)"""

    @staticmethod
    def of(geometries: Sequence[FrameGeometry]) -> _Path:
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

    @staticmethod
    def from_values(pts_s: DoubleArray, values: DoubleArray) -> _Path:
        """The inverse of `values`; quaternions are normalised."""
        quat = values[:, 3:7]
        return _Path(
            pts_s=pts_s,
            centre=values[:, :3],
            quat_wxyz=quat / np.linalg.norm(quat, axis=1, keepdims=True),
            log_focal=values[:, 7],
        )

    def values(self) -> DoubleArray:
        """(T, 8)"""
        return np.concatenate([self.centre, self.quat_wxyz, self.log_focal[:, None]], 1)

    def cam_from_world(self) -> DoubleArray:
        """(T, 4, 4)"""
        out = np.zeros((len(self.pts_s), 4, 4))
        R = matrix_from_quat_wxyz(torch.from_numpy(self.quat_wxyz)).numpy().transpose(0, 2, 1)
        out[:, :3, :3] = R
        out[:, :3, 3] = -(R @ self.centre[..., None])[..., 0]
        out[:, 3, 3] = 1
        return out


def reach_s(smoothness: float) -> float:
    """Time in seconds over which a path is smoothed, for a smoothness in [0, 1]: 0.525 s at 0.5, 2.1 s at 1."""
    return REACH_AT_FULL_S * smoothness**2


class _LeastAcceleration:
    """Paths that begin with `known` given values and go on near the values wanted, with little acceleration.

    Minimises the integral of nearness * |z - values|^2 + reach^4 * |z''|^2 (Whittaker 1923). A line costs nothing.
    """

    def __init__(self, times: DoubleArray, *, reach: float, known: int) -> None:
        """times: (T,) seconds, increasing. reach: seconds, > 0; a swing with a period of 2 pi reach is halved."""
        self._known = known
        gaps = np.diff(times)
        if (gaps < CLOSEST_REACHES * reach).any():
            times = np.concatenate([times[:1], times[0] + np.maximum(gaps, CLOSEST_REACHES * reach).cumsum()])
        self._width = (np.gradient(times) if len(times) > 1 else np.ones(1))[known:]
        self._count = len(times) - known
        # The diagonals of the stiffness, a symmetric matrix, from the middle outward; filled up to whole blocks.
        blocks = -(-self._count // BLOCK)
        bands = np.zeros((3, known + blocks * BLOCK))
        bands[0, len(times) :] = 1.0
        if len(times) > 2:
            before, after = np.diff(times)[:-1], np.diff(times)[1:]
            bending = np.stack([1 / before, -1 / before - 1 / after, 1 / after])
            bending *= np.sqrt(2 / (before + after)) * reach**2
            for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (0, 2)):
                bands[j - i, i : i + len(before)] += bending[i] * bending[j]
        starts = range(known, known + blocks * BLOCK, BLOCK)
        self._given = _dense(bands, known, known + 2, 0, known)
        self._blocks = [_dense(bands, a, a + BLOCK, a, a + BLOCK) for a in starts]
        self._ties = [_dense(bands, a - 2, a, a, a + 2) for a in starts[1:]]

    def path(self, values: DoubleArray, nearness: DoubleArray) -> DoubleArray:
        """The rest of the path.

        Args:
            values: (T, C), of which the first `known` are given and the others are wanted.
            nearness: (T - known,) weights of the wanted.
        Returns:
            (T - known, C).
        """
        size, width = len(self._blocks) * BLOCK, values.shape[1]
        wanted, right = np.zeros(size), np.zeros((size, width + 2))
        wanted[: self._count] = nearness * self._width
        right[: self._count, :width] = wanted[: self._count, None] * values[self._known :]
        right[:2, :width] -= self._given @ values[: self._known]
        # Elimination by blocks, each tied to the first two values of the next, which the last two columns stand for.
        solved = right.reshape(-1, BLOCK, width + 2)
        for number, block in enumerate(self._blocks):
            matrix, now = block + np.diag(wanted[number * BLOCK : (number + 1) * BLOCK]), solved[number]
            if number > 0:
                tied = self._ties[number - 1].T @ solved[number - 1, -2:]
                matrix[:2, :2] -= tied[:, width:]
                now[:2, :width] -= tied[:, :width]
            if number < len(self._ties):
                now[-2:, width:] = self._ties[number]
            solved[number] = np.linalg.solve(matrix, now)
        for now, following in zip(solved[-2::-1], solved[:0:-1], strict=True):
            now[:, :width] -= now[:, width:] @ following[:2, :width]
        return solved.reshape(size, width + 2)[: self._count, :width]


def _dense(bands: DoubleArray, top: int, bottom: int, left: int, right: int) -> DoubleArray:
    """A part of the symmetric matrix whose diagonals, from the middle outward, are the rows of `bands`."""
    row, column = np.arange(top, bottom)[:, None], np.arange(left, right)
    distance, first = np.abs(row - column), np.minimum(row, column)
    return np.where(distance < len(bands), bands[np.minimum(distance, len(bands) - 1), first], 0.0)


def _line(times: DoubleArray, values: DoubleArray, at: DoubleArray, sigma: float) -> DoubleArray:
    """The line fitted to values (T, C) with Gaussian weights about the last, at the times `at` (Q,): (Q, C).

    A slope that is not clearly above what the deviations from the line would give by chance is shrunk.
    """
    d = (times - times[-1]) / sigma
    w = np.exp(-0.5 * d * d)
    w /= w.sum()
    middle, mean = w @ d, w @ values
    spread = max(float(w @ (d - middle) ** 2), 1e-12)
    slope = (w * (d - middle)) @ values / spread
    deviation = w @ (values - mean - (d - middle)[:, None] * slope) ** 2
    noise = SLOPE_NOISE * deviation / spread
    slope = slope**5 / np.maximum(slope**4 + noise**2, 1e-300)
    return np.asarray(mean + ((at - times[-1]) / sigma - middle)[:, None] * slope)


def smooth_path(cam_from_world: DoubleArray, *, pts_s: DoubleArray, reach: float) -> DoubleArray:
    """Low-pass a camera path, translation and rotation, every pose of which is known.

    Args:
        cam_from_world: (T, 4, 4) rigid transforms in time order.
        pts_s: (T,) presentation times in seconds, increasing.
        reach: see reach_s, >= 0.
    Returns:
        (T, 4, 4) smoothed cam_from_world.
    Raises:
        InputError: a time is not later than the one before it.
    """
    for before, after in pairwise(pts_s):
        _check_later(before, after)
    unit, none = np.eye(3), np.zeros((1, 1), np.float32)
    geometries = [
        FrameGeometry(index=i, pts_s=float(t), segment=0, K=unit, cam_from_world=T, inv_depth=none, dynamic=none)
        for i, (t, T) in enumerate(zip(pts_s, cam_from_world, strict=True))
    ]
    planner = _Planner(reach, min_own_share=0.0, size=(1, 1))
    return np.stack([camera.cam_from_world for camera in planner.plan(geometries, count=len(geometries))])


class _Limits:
    """How far virtual cameras may stand off the real ones."""

    def __init__(self, real: list[FrameGeometry], size: tuple[int, int], min_own_share: float) -> None:
        self._size = size
        self._may_lose = max(1 - min_own_share, 1e-3) if min_own_share > 0 else np.inf
        self._K = np.stack([g.K for g in real])
        self._distortion = np.array([g.distortion for g in real])[:, None]
        cam_from_world = np.stack([g.cam_from_world for g in real])
        self._R, self._t = cam_from_world[:, :3, :3], cam_from_world[:, :3, 3:]
        self._centre = -self._R.transpose(0, 2, 1) @ self._t
        middles = (np.arange(SHARE_CELLS) + 0.5) / SHARE_CELLS
        u, v = np.meshgrid(middles * size[0], middles * size[1])
        # (T, 3, N) through the real cameras; a lens f times as long sees the same points at x / f and y / f.
        self._rays = np.linalg.inv(self._K) @ np.stack([u.ravel(), v.ravel(), np.ones(u.size)])
        # All of a segment's frames are seen on one grid.
        inv_depth = np.stack([g.inv_depth for g in real]).reshape(len(real), -1).astype(np.float64)
        self._far, self._middle, self._near = np.percentile(inv_depth, (5, 50, 95), axis=1)

    def used(self, virtual: _Path) -> DoubleArray:
        """(T, 2) what is used of the limits, 1 where a camera stands on one: of places, and of turns."""
        virtual_from_world = virtual.cam_from_world()
        R, t = virtual_from_world[:, :3, :3], virtual_from_world[:, :3, 3:]
        lost = (1 - self._own_share(virtual, R, t)) / self._may_lose
        return np.column_stack([np.maximum(lost, self._parallax(R, t) / MAX_PARALLAX), lost])

    def _own_share(self, virtual: _Path, R: DoubleArray, t: DoubleArray) -> DoubleArray:
        """(T,) share of each picture of virtual cameras (T, 3, 3) and (T, 3, 1) that its own frame covers, taking the
        scene as one distance."""
        width, height = self._size
        longer = np.exp(virtual.log_focal) / self._K[:, 0, 0]
        scale = straightened(self._distortion, (self._rays[:, :2] ** 2).sum(1) / longer[:, None] ** 2)
        ray = self._rays.copy()
        ray[:, :2] *= (scale / longer[:, None])[:, None]
        real_R = self._R @ R.transpose(0, 2, 1)
        seen = real_R @ ray + self._middle[:, None, None] * (self._t - real_R @ t)
        seen /= np.maximum(seen[:, 2:], 1e-9)
        seen[:, :2] *= bent(self._distortion, (seen[:, :2] ** 2).sum(1))[:, None]
        x, y, _ = np.moveaxis(self._K @ seen, 1, 0)
        # How far within the borders, in cells of the grid: a cell on a border counts in part.
        x, y = x / width * SHARE_CELLS, y / height * SHARE_CELLS
        within = np.minimum(np.minimum(x, SHARE_CELLS - x), np.minimum(y, SHARE_CELLS - y))
        return np.asarray(np.clip(within + 0.5, 0, 1).mean(1), dtype=np.float64)

    def _parallax(self, R: DoubleArray, t: DoubleArray) -> DoubleArray:
        """(T,) how far near things are moved against far ones, in units of the picture's longer side."""
        x, y, z = (R @ self._centre + t)[..., 0].T
        focal = self._K[:, 0, 0] / max(self._size)
        # A step ahead moves what lies a quarter of the picture off its middle by a quarter of the share of its depth.
        return np.asarray((focal * np.hypot(x, y) + 0.25 * np.abs(z)) * (self._near - self._far))


class _Planner:
    """Plans the virtual cameras of a segment's frames, in order."""

    def __init__(self, reach: float, *, min_own_share: float, size: tuple[int, int]) -> None:
        self._reach, self._min_own_share, self._size = reach, min_own_share, size
        # The last two cameras planned, as times, values, and log focal lengths as they would be if all zoom were noise.
        self._times = np.zeros(0)
        self._values = np.zeros((0, 8))
        self._calm_focal = np.zeros((0, 1))
        self._nearness = np.ones((0, 2))

    def plan(
        self, ahead: Sequence[FrameGeometry], *, count: int, recent: Sequence[FrameGeometry] = ()
    ) -> list[VirtualCamera]:
        """The virtual cameras of the next `count` frames.

        Args:
            ahead: the frames that follow those already planned, as far as they are known; at least `count`.
            count: for how many of them the cameras become final.
            recent: given where more frames will follow `ahead`: the newest of all known, which say where they lead.
        """
        if self._reach == 0:
            return [unsmoothed(g) for g in ahead[:count]]
        frames = [*ahead, *self._beyond(recent)]
        real = _Path.of(frames)
        wanted, times, known = real.values(), np.append(self._times, real.pts_s), len(self._times)
        if known and wanted[0, 3:7] @ self._values[-1, 3:7] < 0:
            wanted[:, 3:7] *= -1
        calmest = _LeastAcceleration(times, reach=self._reach, known=known)
        values = np.concatenate([self._values, wanted])
        calm_focal = calmest.path(np.concatenate([self._calm_focal, wanted[:, 7:]]), np.ones(len(frames)))
        zooms = self._zooms(real.pts_s, calm_focal[:, 0] - wanted[:, 7])
        focal = calmest.path(values[:, 7:], np.minimum(1 + zooms**4, MAX_NEARNESS))
        limits = _Limits(frames, self._size, self._min_own_share)
        # Of places, and of turns.
        nearness = np.concatenate([self._nearness, np.ones((len(frames), 2))])[: len(frames)]
        for _ in range(LIMIT_ROUNDS):
            places, turns = (
                calmest.path(part, weight)
                for part, weight in zip((values[:, :3], values[:, 3:7]), nearness.T, strict=True)
            )
            path = np.column_stack([places, turns, focal])
            planned = _Path.from_values(real.pts_s, path)
            used = limits.used(planned)
            more = np.where(used > 1, LIMIT_FACTOR * np.minimum(used, 10) ** 2, used**LIMIT_RELAX)
            # Half way to what its use of the limit asks for, or it would swing about it.
            least = np.sqrt(nearness * (1 + (used / COSTLY) ** 4))
            before, nearness = nearness, np.clip(nearness * more, least, MAX_NEARNESS)
            if (used <= 1).all() and (np.abs(np.log(nearness / before)) < LIMIT_SETTLED).all():
                break
        self._times = np.append(self._times, real.pts_s[:count])[-2:]
        self._values = np.concatenate([self._values, path[:count]])[-2:]
        self._calm_focal = np.concatenate([self._calm_focal, calm_focal[:count]])[-2:]
        self._nearness = nearness[count:]
        return [
            replace(unsmoothed(g), K=_scaled(g.K, float(np.exp(planned.log_focal[i])) / g.K[0, 0]), cam_from_world=T)
            for i, (g, T) in enumerate(zip(ahead[:count], planned.cam_from_world(), strict=False))
        ]

    def _zooms(self, times: DoubleArray, deviation: DoubleArray) -> DoubleArray:
        """(T,) how much the lens zooms around each of the times (T,), 1 where it deviates as much as noise may."""
        weight = np.exp(-0.5 * ((times[:, None] - times) / (ZOOM_REACH * self._reach)) ** 2)
        return np.asarray(np.sqrt(weight @ deviation**2 / weight.sum(1)) / ZOOM)

    def _beyond(self, recent: Sequence[FrameGeometry]) -> list[FrameGeometry]:
        """Frames still to come, up to the plan's horizon, where the line that fits the recent ones leads."""
        if len(recent) < 2:
            return []
        path, last = _Path.of(recent), recent[-1]
        interval = float(np.median(np.diff(path.pts_s)))
        begin = self._times[-1] if len(self._times) else path.pts_s[0]
        horizon = begin + HORIZON_REACHES * self._reach - last.pts_s
        interval = max(interval, horizon / HORIZON_FRAMES)
        count = int(horizon / interval)
        times: DoubleArray = last.pts_s + interval * np.arange(1, count + 1, dtype=np.float64)
        led = _Path.from_values(times, _line(path.pts_s, path.values(), times, LINE_REACHES * self._reach))
        return [
            replace(last, pts_s=float(t), K=_scaled(last.K, float(np.exp(f)) / last.K[0, 0]), cam_from_world=T)
            for t, f, T in zip(times, led.log_focal, led.cam_from_world(), strict=True)
        ]


def unsmoothed(geometry: FrameGeometry) -> VirtualCamera:
    """The camera as it was."""
    g = geometry
    return VirtualCamera(K=g.K.copy(), cam_from_world=g.cam_from_world.copy(), distortion=g.distortion)


def _check_later(before_s: float, pts_s: float) -> None:
    if not pts_s > before_s:
        raise InputError(f"expected a frame later than {before_s:g} s, got one at {pts_s:g} s; times must increase")


def _scaled(K: DoubleArray, scale: float) -> DoubleArray:
    """Intrinsics of a lens whose focal length is `scale` times as long."""
    out = K.copy()
    out[0, 0] *= scale
    out[1, 1] *= scale
    return out


def smooth_track(track: CameraTrack, config: SmoothConfig) -> list[VirtualCamera]:
    """The virtual cameras of a whole clip, every frame of which is known: one per frame of the track."""
    cameras: list[VirtualCamera] = []
    size, reach = (track.width, track.height), reach_s(config.smoothness)
    starts = np.flatnonzero(np.diff(track.segment, prepend=track.segment[:1] - 1))
    for a, b in zip(starts, [*starts[1:], len(track)], strict=True):
        frames = [track.frame(i) for i in range(a, b)]
        planner = _Planner(reach, min_own_share=config.min_own_share, size=size)
        while frames:
            chunk = frames[:TRACK_CHUNK_FRAMES]
            settled_s = chunk[-1].pts_s + SETTLED_REACHES * reach
            ahead = [g for g in frames[:SETTLED_FRAMES] if g.pts_s <= settled_s]
            cameras += planner.plan(ahead, count=len(chunk))
            del frames[: len(chunk)]
    return cameras


class PathSmoother:
    """Smooths a path as it comes, with config.lookahead_frames of delay.

    The camera of frame t depends on the frames of its segment up to t + lookahead only; what lies long before t hardly
    matters: its influence falls by half with every reach, see reach_s.
    """

    def __init__(self, config: SmoothConfig, fmt: PictureFormat) -> None:
        self._config = config
        self._size = (fmt.width, fmt.height)
        self._reach = reach_s(config.smoothness)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._planner = _Planner(self._reach, min_own_share=self._config.min_own_share, size=self._size)
        self._recent: deque[FrameGeometry] = deque()
        self._ahead: deque[FrameGeometry] = deque()

    def push(self, geometry: FrameGeometry) -> list[SmoothedFrame]:
        """Take the next frame's geometry; return the frames whose cameras are now final, in order.

        Raises:
            InputError: it is not later than the frame before it in its segment.
        """
        done: list[SmoothedFrame] = []
        if self._recent and geometry.segment != self._recent[-1].segment:
            done = self.flush()
        elif self._recent:
            _check_later(self._recent[-1].pts_s, geometry.pts_s)
        self._ahead.append(geometry)
        self._recent.append(geometry)
        oldest_s = geometry.pts_s - 3 * LINE_REACHES * self._reach
        while self._recent[0].pts_s < oldest_s or len(self._recent) > LINE_FRAMES:
            self._recent.popleft()
        if len(self._ahead) > self._config.lookahead_frames:
            (camera,) = self._planner.plan(list(self._ahead), count=1, recent=list(self._recent))
            done.append(SmoothedFrame(geometry=self._ahead.popleft(), camera=camera))
        return done

    def flush(self) -> list[SmoothedFrame]:
        """End of a segment: the frames not yet returned."""
        ahead = list(self._ahead)
        cameras = self._planner.plan(ahead, count=len(ahead)) if ahead else []
        self.reset()
        return [SmoothedFrame(geometry=g, camera=c) for g, c in zip(ahead, cameras, strict=True)]

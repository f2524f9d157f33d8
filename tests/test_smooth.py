"""The virtual camera path against direct sums, and against paths whose smooth version is known."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from vs3r.config import SmoothConfig
from vs3r.errors import InputError
from vs3r.smooth import (
    BLOCK,
    PathSmoother,
    SmoothedFrame,
    _line,
    _Planner,
    reach_s,
    smooth_path,
    smooth_track,
)
from vs3r.types import CameraTrack, DoubleArray, FrameGeometry, PictureFormat, VirtualCamera

FMT = PictureFormat(
    pix_fmt="yuv420p", width=640, height=360, bit_depth=8, chroma_shift=(1, 1), num_planes=3, is_rgb=False
)
EXACT = 1e-9
RATE = 30
FREE = SmoothConfig(min_own_share=0.0)
"""The virtual camera may go anywhere."""


def turn(yaw_deg: float, pitch_deg: float = 0.0, roll_deg: float = 0.0) -> DoubleArray:
    """(3, 3) world_from_cam."""
    y, x, z = np.deg2rad([yaw_deg, pitch_deg, roll_deg])
    about_y = np.array([[math.cos(y), 0, math.sin(y)], [0, 1, 0], [-math.sin(y), 0, math.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, math.cos(x), -math.sin(x)], [0, math.sin(x), math.cos(x)]])
    about_z = np.array([[math.cos(z), -math.sin(z), 0], [math.sin(z), math.cos(z), 0], [0, 0, 1]])
    return np.asarray(about_y @ about_x @ about_z)


def camera(rotation: DoubleArray, centre: DoubleArray) -> DoubleArray:
    """cam_from_world of a camera at a place."""
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = rotation.T, -rotation.T @ centre
    return out


def centres(cam_from_world: DoubleArray) -> DoubleArray:
    return np.asarray(-np.einsum("tji,tj->ti", cam_from_world[:, :3, :3], cam_from_world[:, :3, 3]))


def angle_deg(a: DoubleArray, b: DoubleArray) -> float:
    """Angle between two cameras' rotations."""
    R = a[:3, :3] @ b[:3, :3].T
    skew = [R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]]
    return float(np.rad2deg(np.arctan2(np.linalg.norm(skew), np.trace(R) - 1)))


def shaky(count: int, seed: int = 0, deg: float = 2.0, length: float = 0.1) -> DoubleArray:
    """(T, 4, 4) a shaking camera."""
    rng = np.random.default_rng(seed)
    angles, places = deg * rng.standard_normal((count, 3)), length * rng.standard_normal((count, 3))
    return np.stack([camera(turn(*a), c) for a, c in zip(angles, places, strict=True)])


def pan(times: DoubleArray) -> DoubleArray:
    """(T, 4, 4) a camera that turns by 4 degrees and moves by 0.5 every second."""
    return np.stack([camera(turn(4.0 * t), np.array([0.4, -0.1, 0.3]) * t) for t in times])


def uniform(count: int) -> DoubleArray:
    return np.arange(count) / RATE


def geometries(
    cam_from_world: DoubleArray, pts_s: DoubleArray, *, focal: DoubleArray | None = None, segment: int = 0
) -> list[FrameGeometry]:
    focal = np.full(len(pts_s), 500.0) if focal is None else focal
    return [
        FrameGeometry(
            index=i,
            pts_s=float(pts_s[i]),
            segment=segment,
            K=np.array([[focal[i], 0, 320], [0, focal[i], 180], [0, 0, 1.0]]),
            cam_from_world=cam_from_world[i],
            inv_depth=np.full((4, 6), 0.5, np.float32),
            dynamic=np.zeros((8, 12), np.float32),
        )
        for i in range(len(pts_s))
    ]


def stream(config: SmoothConfig, frames: list[FrameGeometry]) -> list[SmoothedFrame]:
    smoother = PathSmoother(config, FMT)
    return [done for frame in frames for done in smoother.push(frame)] + smoother.flush()


def as_track(frames: list[FrameGeometry], time_base: Fraction) -> CameraTrack:
    return CameraTrack(
        width=FMT.width,
        height=FMT.height,
        sample_aspect=Fraction(1),
        time_base=time_base,
        pts=np.array([round(f.pts_s / time_base) for f in frames], np.int64),
        segment=np.array([f.segment for f in frames], np.int32),
        K=np.stack([f.K for f in frames]),
        cam_from_world=np.stack([f.cam_from_world for f in frames]),
        distortion=np.array([f.distortion for f in frames]),
        inv_depth=np.stack([f.inv_depth for f in frames]).astype(np.float16),
        dynamic=np.zeros((len(frames), 8, 12), np.uint8),
        readout_s=np.zeros(len(frames)),
        row_motion=np.zeros((len(frames), 6, 6)),
    )


def assert_same_cameras(a: list[VirtualCamera], b: list[VirtualCamera], tolerance: float = EXACT) -> None:
    for ours, theirs in zip(a, b, strict=True):
        np.testing.assert_allclose(ours.cam_from_world, theirs.cam_from_world, rtol=0, atol=tolerance)
        np.testing.assert_allclose(ours.K, theirs.K, rtol=0, atol=640 * tolerance)


def least_acceleration(values: DoubleArray, times: DoubleArray, reach: float) -> DoubleArray:
    """The path z that minimises the sum of h |z - values|^2 + h reach^4 |z''|^2, as one stacked problem."""
    T = len(times)
    h = np.gradient(times)
    rows = [np.diag(np.sqrt(h))]
    for i in range(1, T - 1):
        # The second derivative of the parabola through three points.
        t = times[i - 1 : i + 2]
        row = np.zeros((1, T))
        row[0, i - 1 : i + 2] = 2 * np.linalg.inv(np.vander(t - t[1], increasing=True))[2] / 2
        rows.append(2 * row * reach**2 * np.sqrt((t[2] - t[0]) / 2))
    wanted = np.concatenate([np.sqrt(h)[:, None] * values, np.zeros((T - 2, values.shape[1]))])
    return np.asarray(np.linalg.lstsq(np.concatenate(rows), wanted, rcond=None)[0])


def quats(path: DoubleArray) -> DoubleArray:
    """(T, 4) of cameras turned by less than 90 degrees."""
    R = path[:, :3, :3].transpose(0, 2, 1)
    w = 1 + np.trace(R, axis1=1, axis2=2)
    q = np.stack([w, R[:, 2, 1] - R[:, 1, 2], R[:, 0, 2] - R[:, 2, 0], R[:, 1, 0] - R[:, 0, 1]], 1)
    return np.asarray(q / np.linalg.norm(q, axis=1, keepdims=True))


def test_shake_is_no_slope() -> None:
    """A camera that only shakes will be nearer to where it is than a fitted line says; a steady walk is believed."""
    times, sigma, ahead = uniform(61), 0.5, np.array([61 / RATE + 0.5])
    weight = np.exp(-0.5 * ((times - times[-1]) / sigma) ** 2)
    basis = np.stack([np.ones(61), times], 1)
    rng = np.random.default_rng(8)
    shake = 0.1 * rng.standard_normal((61, 100))
    fit = np.linalg.solve(basis.T @ (weight[:, None] * basis), basis.T @ (weight[:, None] * shake))
    believed = fit[0] + ahead * fit[1]
    assert np.std(_line(times, shake, ahead, sigma)) < 0.7 * np.std(believed)
    walking = _line(times, shake + 2.0 * times[:, None], ahead, sigma) - 2.0 * ahead
    assert np.std(walking - believed) < 0.1 * np.std(believed)


@pytest.mark.parametrize("T", [3, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 2, 61, 3 * BLOCK + 1])
@pytest.mark.parametrize("even", [True, False])
def test_the_path_against_direct_least_squares(even: bool, T: int) -> None:
    """Ends included: centres, and quaternions, normalised again; also where the frame rate varies."""
    reach = 0.11
    times = uniform(T) if even else np.cumsum(np.random.default_rng(2).uniform(0.02, 0.05, T))
    path = shaky(T)
    found = smooth_path(path, pts_s=times, reach=reach)
    np.testing.assert_allclose(centres(found), least_acceleration(centres(path), times, reach), rtol=0, atol=1e-9)
    quat = least_acceleration(quats(path), times, reach)
    quat /= np.linalg.norm(quat, axis=1, keepdims=True)
    np.testing.assert_allclose(quats(found), quat, rtol=0, atol=1e-9)


def test_a_stream_goes_on_from_what_was_output() -> None:
    """With the future known, the cameras output one by one are those of the whole path."""
    T, times = 90, uniform(90)
    path = shaky(T)
    out = stream(replace(FREE, smoothness=0.3, lookahead_frames=75), geometries(path, times))
    found = np.stack([o.camera.cam_from_world for o in out])
    np.testing.assert_allclose(found, smooth_path(path, pts_s=times, reach=reach_s(0.3)), rtol=0, atol=1e-5)


def test_a_slow_pan_is_flattened_less_than_by_a_gaussian() -> None:
    """A pan to and fro in 6 s: a Gaussian of 0.5 s takes 13 % of it away."""
    times = uniform(240)
    path = np.stack([camera(turn(10 * math.sin(2 * math.pi * t / 6)), np.zeros(3)) for t in times])
    found = smooth_path(path, pts_s=times, reach=reach_s(0.5))
    assert angle_deg(found[135], path[135]) < 0.1 * 10  # a crest


def test_shake_is_removed() -> None:
    T = 120
    found = smooth_path(shaky(T), pts_s=uniform(T), reach=0.5)
    steps = [angle_deg(a, b) for a, b in zip(found[1:], found[:-1], strict=True)]
    before = [angle_deg(a, b) for a, b in zip(shaky(T)[1:], shaky(T)[:-1], strict=True)]
    assert np.mean(steps) < 0.05 * np.mean(before)


def test_a_steady_move_comes_out_as_it_is() -> None:
    """The ends included; a plain Gaussian would lag there by sigma * 0.8: 0.2 in place, 1.6 degrees."""
    times = uniform(90)
    found = smooth_path(pan(times), pts_s=times, reach=0.5)
    np.testing.assert_allclose(centres(found), centres(pan(times)), rtol=0, atol=EXACT)
    assert max(angle_deg(a, b) for a, b in zip(found, pan(times), strict=True)) < 0.01


@pytest.mark.parametrize("lookahead", [0, 1, 5, 30])
def test_no_lag_at_any_lookahead(lookahead: int) -> None:
    """Rotation is a chord of the turn where the neighbourhood is one-sided: 0.02 degrees at 4 degrees a second."""
    times = uniform(90)
    out = stream(replace(FREE, lookahead_frames=lookahead), geometries(pan(times), times))
    found = np.stack([o.camera.cam_from_world for o in out])
    np.testing.assert_allclose(centres(found), centres(pan(times)), rtol=0, atol=EXACT)
    assert max(angle_deg(a, b) for a, b in zip(found, pan(times), strict=True)) < 0.02


def test_variable_frame_rate() -> None:
    """Weights go by time: a steady move stays, and frames seen twice as densely do not count twice as far."""
    rng = np.random.default_rng(5)
    times = np.cumsum(rng.uniform(0.01, 0.08, 80))
    found = smooth_path(pan(times), pts_s=times, reach=0.4)
    np.testing.assert_allclose(centres(found), centres(pan(times)), rtol=0, atol=EXACT)
    out = stream(replace(FREE, lookahead_frames=8), geometries(pan(times), times))
    found = np.stack([o.camera.cam_from_world for o in out])
    np.testing.assert_allclose(centres(found), centres(pan(times)), rtol=0, atol=EXACT)


def test_the_unit_of_time_is_the_second() -> None:
    """The same path at half the rate and half the sigma has the same weights."""
    path = shaky(50)
    fast = smooth_path(path, pts_s=uniform(50), reach=0.2)
    slow = smooth_path(path, pts_s=2 * uniform(50), reach=0.4)
    np.testing.assert_allclose(fast, slow, rtol=0, atol=EXACT)
    assert np.abs(fast - smooth_path(path, pts_s=uniform(50), reach=0.4)).max() > 1e-3


def test_a_full_turn_has_no_seam() -> None:
    """The quaternion of a camera that turns round and round changes its sign; the path must not."""
    times = uniform(120)
    path = np.stack([camera(turn(200.0 * t, 10.0), np.zeros(3)) for t in times])
    found = smooth_path(path, pts_s=times, reach=0.11)
    assert max(angle_deg(a, b) for a, b in zip(found[40:-40], path[40:-40], strict=True)) < 1e-3
    steps = [angle_deg(a, b) for a, b in zip(found[1:], found[:-1], strict=True)]
    assert max(steps) < 1.2 * 200.0 / RATE


def test_rotations_and_places_of_the_result_are_rigid() -> None:
    found = smooth_path(shaky(40, deg=30), pts_s=uniform(40), reach=0.3)
    R = found[:, :3, :3]
    np.testing.assert_allclose(R @ R.transpose(0, 2, 1), np.broadcast_to(np.eye(3), R.shape), atol=EXACT)
    np.testing.assert_allclose(np.linalg.det(R), 1, atol=EXACT)


def test_no_smoothness_keeps_the_path() -> None:
    path, times = shaky(40), uniform(40)
    np.testing.assert_allclose(smooth_path(path, pts_s=times, reach=0.0), path, rtol=0, atol=EXACT)
    frames = geometries(path, times, focal=np.linspace(400, 600, 40))
    for lookahead in (0, 7):
        out = stream(SmoothConfig(smoothness=0, lookahead_frames=lookahead), frames)
        for frame, done in zip(frames, out, strict=True):
            np.testing.assert_allclose(done.camera.cam_from_world, frame.cam_from_world, rtol=0, atol=EXACT)
            np.testing.assert_allclose(done.camera.K, frame.K, rtol=1e-12)


def test_reach() -> None:
    """A swing whose period is 2 pi reaches is halved."""
    assert (reach_s(0), reach_s(0.5), reach_s(1)) == (0, 0.525, 2.1)
    times, reach = uniform(600), 0.3
    path = np.stack([camera(np.eye(3), np.array([math.sin(t / reach), 0, 0])) for t in times])
    found = centres(smooth_path(path, pts_s=times, reach=reach))[200:400]
    np.testing.assert_allclose(found, 0.5 * centres(path)[200:400], atol=2e-3)


def test_zoom_is_smoothed_as_a_ratio() -> None:
    """A steady zoom, so many per cent a second, stays; focal lengths that shake come to rest."""
    times = uniform(60)
    steady = 500 * np.exp(0.2 * times)
    out = stream(FREE, geometries(pan(times), times, focal=steady))
    np.testing.assert_allclose([o.camera.K[0, 0] for o in out], steady, rtol=1e-9)
    np.testing.assert_allclose([o.camera.K[1, 1] for o in out], steady, rtol=1e-9)
    assert all(tuple(o.camera.K[:2, 2]) == (320, 180) for o in out)
    jitter = steady * np.exp(0.02 * np.random.default_rng(3).standard_normal(60))
    out = stream(FREE, geometries(pan(times), times, focal=jitter))
    left = np.log([o.camera.K[0, 0] for o in out][10:-10]) - np.log(steady)[10:-10]
    assert np.std(np.diff(left)) < 0.2 * np.std(np.diff(np.log(jitter)))


def test_a_zoom_is_meant() -> None:
    """A lens that goes to twice its focal length within a second is followed, and without leaps."""
    times = uniform(120)
    focal = 500 * 2 ** (0.5 - 0.5 * np.cos(np.pi * np.clip(times - 1.5, 0, 1)))
    out = stream(FREE, geometries(pan(times), times, focal=focal))
    off = np.log([o.camera.K[0, 0] for o in out]) - np.log(focal)
    # At most 0.0046 and 0.0011 seen.
    assert np.abs(off).max() < 0.006
    assert np.abs(np.diff(off, 2)).max() < 0.002


@pytest.mark.parametrize("smoothness", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.9])
def test_enough_lookahead_equals_the_whole_clip(smoothness: float, share: float) -> None:
    """The stream against the track, with and without the limit."""
    times = uniform(50)
    frames = geometries(shaky(50, deg=3), times)
    config = SmoothConfig(smoothness=smoothness, lookahead_frames=60, min_own_share=share)
    offline = smooth_track(as_track(frames, Fraction(1, RATE)), config)
    out = stream(config, frames)
    assert [o.geometry.index for o in out] == list(range(50))
    assert_same_cameras([o.camera for o in out], offline)
    if share == 0:
        whole = smooth_path(np.stack([f.cam_from_world for f in frames]), pts_s=times, reach=reach_s(smoothness))
        np.testing.assert_allclose(np.stack([c.cam_from_world for c in offline]), whole, rtol=0, atol=EXACT)


@pytest.mark.parametrize("lookahead", [0, 1, 6])
def test_frames_come_out_as_soon_as_they_can(lookahead: int) -> None:
    frames = geometries(shaky(20), uniform(20))
    smoother = PathSmoother(SmoothConfig(lookahead_frames=lookahead), FMT)
    for t, frame in enumerate(frames):
        done = smoother.push(frame)
        assert [d.geometry.index for d in done] == ([t - lookahead] if t >= lookahead else [])
    assert [d.geometry.index for d in smoother.flush()] == list(range(20 - lookahead, 20))
    assert smoother.flush() == []


def test_the_future_beyond_the_lookahead_does_not_matter() -> None:
    path, times = shaky(60), uniform(60)
    other = path.copy()
    other[31:] = shaky(60, seed=9)[31:]
    config = replace(FREE, lookahead_frames=10)
    a, b = (stream(config, geometries(p, times)) for p in (path, other))
    assert_same_cameras([o.camera for o in a[:21]], [o.camera for o in b[:21]], 0)
    assert np.abs(a[21].camera.cam_from_world - b[21].camera.cam_from_world).max() > 1e-6


def test_memory_does_not_grow_and_what_is_long_past_hardly_matters() -> None:
    """A long clip: its end is as if the stream had begun in its middle, 15 reaches ago."""
    T = 300
    path, times = shaky(T), uniform(T)
    config = SmoothConfig(smoothness=0.3, lookahead_frames=5)
    smoother = PathSmoother(config, FMT)
    out, held = [], 0
    for frame in geometries(path, times):
        out += smoother.push(frame)
        held = max(held, len(smoother._recent) + len(smoother._ahead))
    # Three widths of the line, 0.279 s each at 30 frames a second, and the lookahead.
    assert held <= 26 + 5 + 1
    late = stream(config, geometries(path, times)[150:])
    assert_same_cameras([o.camera for o in out[225:]], [o.camera for o in late[75 : 75 + len(out) - 225]], 1e-5)


def test_a_long_track_is_planned_in_chunks_without_seams() -> None:
    times = uniform(200)
    path = shaky(200)
    config = replace(FREE, smoothness=0.3)
    found = np.stack(
        [c.cam_from_world for c in smooth_track(as_track(geometries(path, times), Fraction(1, RATE)), config)]
    )
    whole = smooth_path(path, pts_s=times, reach=reach_s(0.3))
    np.testing.assert_allclose(found, whole, rtol=0, atol=2e-5)  # of a path that moves by 0.01
    seams = np.abs(np.diff(found, 2, axis=0))[[62, 63, 126, 127]].max()
    assert seams < 1.2 * np.abs(np.diff(whole, 2, axis=0)).max()


def test_a_new_segment_knows_nothing_of_the_last() -> None:
    times = uniform(40)
    first = geometries(shaky(40)[:25], times[:25])
    second = geometries(shaky(40, seed=7)[25:], times[25:], segment=1)
    config = replace(FREE, lookahead_frames=12)
    both = stream(config, first + second)
    assert [o.geometry.segment for o in both] == [0] * 25 + [1] * 15
    apart = stream(config, first) + stream(config, second)
    assert_same_cameras([o.camera for o in both], [o.camera for o in apart], 0)
    # All of a segment is returned when the next one begins.
    smoother = PathSmoother(config, FMT)
    for frame in first:
        smoother.push(frame)
    assert len(smoother.push(second[0])) == 12
    whole = [replace(f, index=i) for i, f in enumerate(first + second)]
    offline = smooth_track(as_track(whole, Fraction(1, RATE)), replace(config, lookahead_frames=60))
    assert_same_cameras(offline, [o.camera for o in stream(replace(config, lookahead_frames=60), whole)])


def test_reset_forgets() -> None:
    frames = geometries(shaky(30), uniform(30))
    smoother = PathSmoother(SmoothConfig(lookahead_frames=4), FMT)
    for frame in geometries(shaky(30, seed=8), uniform(30)):
        smoother.push(frame)
    smoother.reset()
    again = [done for frame in frames for done in smoother.push(frame)] + smoother.flush()
    fresh = stream(SmoothConfig(lookahead_frames=4), frames)
    assert_same_cameras([o.camera for o in again], [o.camera for o in fresh], 0)


@pytest.mark.parametrize("lookahead", [0, 3])
@pytest.mark.parametrize("wrong_s", [0.1, 0.05, math.nan])
def test_times_that_do_not_increase_are_named(lookahead: int, wrong_s: float) -> None:
    first, second = geometries(shaky(2), np.array([0.1, wrong_s]))
    smoother = PathSmoother(SmoothConfig(lookahead_frames=lookahead), FMT)
    smoother.push(first)
    with pytest.raises(InputError, match=f"got one at {wrong_s:g} s; times must increase"):
        smoother.push(second)
    with pytest.raises(InputError, match="expected a frame later than"):
        smooth_path(shaky(2), pts_s=np.array([0.1, wrong_s]), reach=0.5)
    # After a cut time may begin anew.
    smoother.push(replace(second, pts_s=0.0, segment=1))


def test_frames_that_come_very_close_cost_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times in a wrong unit: of each second 90000 frames, as far as the smoother can tell."""
    frames = geometries(shaky(150), np.arange(150) / 90_000)
    planned, held = [], 0
    plan = _Planner.plan

    def counted(self: _Planner, ahead: list[FrameGeometry], **options: Any) -> list[VirtualCamera]:
        planned.append(len(ahead) + len(self._beyond(options.get("recent", ()))))
        return plan(self, ahead, **options)

    monkeypatch.setattr("vs3r.smooth._Planner.plan", counted)
    monkeypatch.setattr("vs3r.smooth.HORIZON_FRAMES", 30)
    monkeypatch.setattr("vs3r.smooth.LINE_FRAMES", 20)
    smoother = PathSmoother(SmoothConfig(lookahead_frames=2), FMT)
    for frame in frames[:25]:
        smoother.push(frame)
        held = max(held, len(smoother._recent))
    assert held == 20
    assert max(planned) in (32, 33)
    monkeypatch.setattr("vs3r.smooth.SETTLED_FRAMES", 80)
    planned.clear()
    cameras = smooth_track(as_track(frames, Fraction(1, 90_000)), FREE)
    assert planned == [80, 80, 22]
    assert np.isfinite([c.cam_from_world for c in cameras]).all()


def test_causal_cameras_of_a_new_segment_know_nothing_of_the_last() -> None:
    """Without lookahead no frame waits when a segment begins."""
    times = uniform(30)
    first = geometries(shaky(30)[:15], times[:15])
    second = geometries(shaky(30, seed=7)[15:], times[15:], segment=1)
    config = replace(FREE, lookahead_frames=0)
    apart = stream(config, first) + stream(config, second)
    assert_same_cameras([o.camera for o in stream(config, first + second)], [o.camera for o in apart], 0)

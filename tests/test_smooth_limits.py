"""How far the virtual camera may go from the real one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.test_smooth import (
    FREE,
    angle_deg,
    camera,
    centres,
    geometries,
    shaky,
    stream,
    turn,
    uniform,
)
from vs3r.cameras import make_output_camera
from vs3r.config import SmoothConfig
from vs3r.smooth import _Limits, _Path
from vs3r.types import FrameGeometry, VirtualCamera


def covered(frame: FrameGeometry, seen_from: VirtualCamera) -> float:
    """Share of the virtual picture that lies inside the real one, the scene at one distance of 2."""
    u, v = np.meshgrid((np.arange(64) + 0.5) * 10, (np.arange(36) + 0.5) * 10)
    pixels = np.stack([u.ravel(), v.ravel(), np.ones(u.size)])
    points = 2.0 * np.linalg.inv(seen_from.K) @ pixels
    real_from_virtual = frame.cam_from_world @ np.linalg.inv(seen_from.cam_from_world)
    x, y, z = frame.K @ (real_from_virtual[:3, :3] @ points + real_from_virtual[:3, 3:])
    return float(((z > 0) & (x > 0) & (x < 640 * z) & (y > 0) & (y < 360 * z)).mean())


@pytest.mark.parametrize("minimum", [0.7, 0.9, 1.0])
@pytest.mark.parametrize("lookahead", [3, 30])
def test_the_virtual_camera_stays_near_the_real_one(minimum: float, lookahead: int) -> None:
    """A jerk of 45 degrees that no smooth camera follows."""
    times = uniform(90)
    yaw = np.where(times > 1.5, 45.0, 0.0)
    path = np.stack([camera(turn(y), np.zeros(3)) for y in yaw]) @ shaky(90, deg=0.3, length=0.0)
    frames = geometries(path, times)
    free, bound = (stream(SmoothConfig(lookahead_frames=lookahead, min_own_share=m), frames) for m in (0.0, minimum))
    shares = [[covered(o.geometry, o.camera) for o in out] for out in (free, bound)]
    assert min(shares[0]) < minimum - 0.05, "the free camera must go too far"
    assert min(shares[1]) > minimum - 0.03
    # Hardly where it is not needed: to cover all of a picture, everywhere.
    for t in (0, 5, 10) if minimum < 1 else ():
        assert angle_deg(free[t].camera.cam_from_world, bound[t].camera.cam_from_world) < 0.1


@pytest.mark.parametrize("smoothness", [0.5, 0.6, 0.7])
def test_whipped_pans_use_the_room_there_is(smoothness: float) -> None:
    """Pans to and fro that no smooth camera follows: it lies on the limit and is not drawn on to the real path."""
    times = uniform(240)
    yaw = 40 * np.sin(2 * np.pi * times / 2.4) + 28 * np.sin(2 * np.pi * times / 4.1 + 1)
    path = np.stack([camera(turn(y), np.zeros(3)) for y in yaw]) @ shaky(240, deg=0.3, length=0.0)
    out = stream(SmoothConfig(smoothness=smoothness, lookahead_frames=40), geometries(path, times))
    found = np.rad2deg([math.atan2(o.camera.cam_from_world[0, 2], o.camera.cam_from_world[2, 2]) for o in out])
    assert np.std(np.diff(found, 2)) < 0.7 * np.std(np.diff(yaw, 2))
    assert 0.67 < min(covered(o.geometry, o.camera) for o in out) < 0.73


def test_after_a_whip_the_camera_comes_to_rest() -> None:
    """A pan by 150 degrees in 0.6 s: within its limits alone, the camera swings 15 degrees past where it ends."""
    times = uniform(180)
    yaw = np.interp(times, [2.0, 2.6], [0.0, 150.0])
    out = stream(SmoothConfig(), geometries(np.stack([camera(turn(y), np.zeros(3)) for y in yaw]), times))
    found = np.rad2deg([math.atan2(-o.camera.cam_from_world[0, 2], o.camera.cam_from_world[2, 2]) for o in out])
    past = np.unwrap(found, period=360)[79:] - yaw[79:]
    assert past[0] < -9, "the whip itself is on the limit"
    assert past.max() < 11


def test_near_things_do_not_move_far_against_far_ones() -> None:
    """Swaying by 0.4 before things at distances from 1 to 5: 250 px of parallax, of which a little is left."""
    times = uniform(120)
    path = np.stack([camera(np.eye(3), np.array([0.4 * math.sin(2 * math.pi * t / 2), 0, 0])) for t in times])
    depth = np.linspace(1.0, 0.2, 24, dtype=np.float32).reshape(4, 6)
    near, flat = ([replace(g, inv_depth=d) for g in geometries(path, times)] for d in (depth, np.full_like(depth, 0.5)))
    moved = []
    for frames in (near, flat):
        out = stream(FREE, frames)
        moved.append(
            max(
                abs(float((centres(o.camera.cam_from_world[None]) - centres(f.cam_from_world[None]))[0, 0]))
                for o, f in zip(out, frames, strict=True)
            )
        )
    spread = float(np.diff(np.percentile(depth, (5, 95)))[0])
    assert 500 * moved[0] * spread < 0.015 * 640 * 1.01
    assert moved[1] > 4 * moved[0], "at one distance there is no parallax and no limit"


def test_the_limit_does_not_begin_with_a_jolt() -> None:
    """Coming from a free stretch, the camera is drawn back over several frames."""
    times = uniform(120)
    yaw = np.where(times > 2, 20.0, 0.0)
    frames = geometries(np.stack([camera(turn(y), np.zeros(3)) for y in yaw]), times)
    out = stream(SmoothConfig(smoothness=0.7, lookahead_frames=60, min_own_share=0.8), frames)
    T = np.stack([o.camera.cam_from_world for o in out])
    steps = np.array([angle_deg(a, b) for a, b in zip(T[1:], T[:-1], strict=True)])
    # The jerk itself, from frame 60 to 61, cannot be hidden. Around it the camera moves by a degree or two a frame.
    steps[60] = 0
    assert steps.max() < 3


def test_own_share_of_known_cameras() -> None:
    """Turned by half the field of view, half is left; moved by a quarter picture at its distance, three quarters."""
    K = np.array([[500.0, 0, 320], [0, 500, 180], [0, 0, 1]])
    half_deg = math.degrees(math.atan(320 / 500))
    aside = [np.eye(4), camera(turn(half_deg), np.zeros(3)), camera(turn(0), np.array([640 / 4 * 2 / 500, 0, 0]))]
    real = [replace(geometries(np.eye(4)[None], uniform(1))[0], K=K) for _ in aside]
    virtual = _Path.of([replace(r, cam_from_world=T) for r, T in zip(real, aside, strict=True)])
    used = _Limits(real, (640, 360), min_own_share=0.6).used(virtual)[:, 1]
    np.testing.assert_allclose(1 - 0.4 * used, [1, 0.5, 0.75], atol=0.02)


def test_own_share_through_a_lens() -> None:
    """As many of the virtual picture's rays as land within the real one."""
    K = np.array([[300.0, 0, 320], [0, 300, 180], [0, 0, 1]])
    real = [replace(geometries(np.eye(4)[None], uniform(1))[0], K=K, distortion=-0.3)]
    turned = camera(turn(35.0), np.zeros(3))
    virtual = _Path.of([replace(real[0], cam_from_world=turned)])
    lens = make_output_camera("pinhole", K, -0.3)
    pixels = np.stack(np.meshgrid(np.arange(640) + 0.5, np.arange(360) + 0.5), -1)
    at, seen = lens.project(lens.unproject(pixels)[0] @ turned[:3, :3])
    share = (seen & (np.abs(at - K[:2, 2]) < (320, 180)).all(-1)).mean()
    assert 0.3 < share < 0.8
    found = 1 - 0.4 * _Limits(real, (640, 360), min_own_share=0.6).used(virtual)[0, 1]
    assert found == pytest.approx(share, abs=0.02)
    straight = 1 - 0.4 * _Limits([replace(real[0], distortion=0.0)], (640, 360), min_own_share=0.6).used(virtual)[0, 1]
    assert abs(straight - share) > 0.05

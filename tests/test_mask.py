"""What moves: a wall and a rectangle that slides over it, with exact flow."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from vs3r.mask import dynamic_probability
from vs3r.types import DoubleArray, FloatArray

ROWS, COLS = 44, 80
CELL_PX = (6.0, 6.0)
FOCAL_PX = 380.0
GAPS = [1, 2, 4, -1, -2, -4]
OBJECT = (slice(12, 30), slice(25, 41))
# Worst seen: IoU 0.986; highest probability where nothing moves 0.008, where no flow is trusted 0.055.
IOU = 0.95
STILL = 0.1


def intrinsics(cell_px: tuple[float, float] = CELL_PX) -> DoubleArray:
    """In cells."""
    return np.array([[FOCAL_PX / cell_px[0], 0, COLS / 2], [0, FOCAL_PX / cell_px[1], ROWS / 2], [0, 0, 1]])


def camera(gap: int) -> DoubleArray:
    """dst_from_src of a hand-held walk: turns and moves in proportion to the time between the frames."""
    yaw, pitch = 0.006 * gap, -0.004 * gap
    about_y = np.array([[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]])
    about_x = np.array([[1, 0, 0], [0, math.cos(pitch), -math.sin(pitch)], [0, math.sin(pitch), math.cos(pitch)]])
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = about_y @ about_x, np.array([0.02, -0.01, -0.03]) * gap
    return out


def wall() -> FloatArray:
    """(ROWS, COLS) inverse depth of a slanted wall: 1 / z is linear in the picture."""
    x, y = np.meshgrid(np.linspace(-1, 1, COLS), np.linspace(-1, 1, ROWS))
    return np.asarray(0.5 + 0.2 * x - 0.1 * y, dtype=np.float32)


def exact_flow(gap: int, moved: DoubleArray, cell_px: tuple[float, float] = CELL_PX) -> FloatArray:
    """(ROWS, COLS, 2) analysis pixels: points at the cell centres, displaced in the world, seen after `gap` frames."""
    K, T = intrinsics(cell_px), camera(gap)
    u, v = np.meshgrid(np.arange(COLS) + 0.5, np.arange(ROWS) + 0.5)
    rays = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u)], -1)
    points = (rays / wall()[..., None] + moved * gap) @ T[:3, :3].T + T[:3, 3]
    there = points @ K.T
    flow = there[..., :2] / there[..., 2:] - np.stack([u, v], -1)
    return np.asarray(flow * cell_px, dtype=np.float32)


def probability(
    speed: tuple[float, float, float],
    *,
    trust: float = 1.0,
    noise_px: float = 0.0,
    gaps: list[int] = GAPS,
    cell_px: tuple[float, float] = CELL_PX,
) -> FloatArray:
    """The mask when the rectangle moves at a speed in metres per frame, the wall being about 2 m away."""
    moved = np.zeros((ROWS, COLS, 3))
    moved[OBJECT] = speed
    rng = np.random.default_rng(1)
    flows = [exact_flow(gap, moved, cell_px) for gap in gaps]
    flows = [flow + noise_px * rng.standard_normal(flow.shape).astype(np.float32) for flow in flows]
    return dynamic_probability(
        wall(),
        flows,
        [np.full((ROWS, COLS), trust, np.float32) for _ in gaps],
        [abs(gap) for gap in gaps],
        np.stack([intrinsics(cell_px)] * len(gaps)),
        np.stack([intrinsics(cell_px)] * len(gaps)),
        np.stack([camera(gap) for gap in gaps]),
        cell_px,
    )


def overlap(found: FloatArray) -> float:
    truth: npt.NDArray[np.bool_] = np.zeros((ROWS, COLS), np.bool_)
    truth[OBJECT] = True
    return float((truth & (found > 0.5)).sum() / (truth | (found > 0.5)).sum())


@pytest.mark.parametrize("speed", [(0.015, 0.0, 0.0), (0.0, -0.02, 0.0), (0.01, 0.01, 0.0), (0.3, 0.0, 0.1)])
@pytest.mark.parametrize("noise_px", [0.0, 0.1])
def test_a_moving_rectangle_is_found(speed: tuple[float, float, float], noise_px: float) -> None:
    """From 2.5 pixels a frame on."""
    found = probability(speed, noise_px=noise_px)
    assert found.shape == (ROWS, COLS) and found.dtype == np.float32
    assert found.min() >= 0 and found.max() <= 1
    assert overlap(found) > IOU


def test_camera_motion_alone_is_not_motion() -> None:
    assert np.abs(exact_flow(4, np.zeros(3))).max() > 10, "the test's camera must move"
    assert probability((0.0, 0.0, 0.0), noise_px=0.15).max() < STILL


def test_a_wrong_camera_is_seen() -> None:
    """The same flow judged with a camera that stands still: everything moves."""
    flow = exact_flow(1, np.zeros(3))
    K = intrinsics()[None]
    trust = np.ones((ROWS, COLS), np.float32)
    assert dynamic_probability(wall(), [flow], [trust], [1], K, K, np.eye(4)[None], CELL_PX).mean() > 0.8
    assert dynamic_probability(wall(), [flow], [trust], [1], K, K, camera(1)[None], CELL_PX).max() < STILL


def test_flow_that_is_not_trusted_says_nothing() -> None:
    assert probability((0.3, 0.0, 0.1), trust=0.0).max() < STILL
    assert probability((0.3, 0.0, 0.1), trust=1.0).max() > 0.9


def test_an_untrusted_frame_is_outvoted_by_trusted_ones() -> None:
    """One frame's flow is garbage and known to be; four others agree that nothing moves."""
    gaps = [1, 2, 4, -1, -2]
    flows = [exact_flow(gap, np.zeros(3)) for gap in gaps]
    flows[2] = flows[2] + 30
    K = np.stack([intrinsics()] * len(gaps))
    T = np.stack([camera(gap) for gap in gaps])

    def mask(garbage_trust: float) -> FloatArray:
        trust = [np.full((ROWS, COLS), t, np.float32) for t in (1, 1, garbage_trust, 1, 1)]
        return dynamic_probability(wall(), flows, trust, [abs(g) for g in gaps], K, K, T, CELL_PX)

    assert mask(0.0).max() < STILL
    assert mask(1.0).min() > 0.1


def test_cells_need_not_be_square() -> None:
    cells = (6.0, 7.5)
    assert overlap(probability((0.02, 0.01, 0.0), cell_px=cells)) > IOU
    assert probability((0.0, 0.0, 0.0), cell_px=cells).max() < STILL


def test_points_behind_the_other_camera_say_nothing() -> None:
    """The other camera stands behind the wall: no vote, and no NaN."""
    T = np.eye(4)
    T[2, 3] = -50.0
    K = intrinsics()[None]
    found = dynamic_probability(
        wall(), [np.full((ROWS, COLS, 2), 99, np.float32)], [np.ones((ROWS, COLS), np.float32)], [1], K, K, T[None],
        CELL_PX,
    )  # fmt: skip
    assert np.isfinite(found).all() and found.max() < STILL

"""What moves: a textured wall and a rectangle that slides over it, with exact flow."""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from vs3r.mask import OtherFrame, dynamic_probability
from vs3r.types import DoubleArray, FloatArray

ROWS, COLS = 44, 80
CELL_PX = (6.0, 6.0)
FOCAL_PX = 380.0
GAPS = [1, 2, 4, -1, -2, -4]
OBJECT = (slice(12, 30), slice(25, 41))
# Worst seen: IoU 0.986, with a halo 0.966; highest probability where nothing moves 0.008, where no flow is trusted
# 0.055.
IOU = 0.95
STILL = 0.1
BLANK = 0.35  # worst seen: 0.20; 0.63 where being as good as a still world is enough


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


def texture(seed: int, cell_px: tuple[float, float]) -> npt.NDArray[np.uint8]:
    size = round(ROWS * cell_px[1]), round(COLS * cell_px[0])
    noise = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.0)
    return np.asarray(np.clip(128 + 40 * smooth / smooth.std(), 0, 255), dtype=np.uint8)


def picture(gap: int, speed: npt.ArrayLike, cell_px: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """The wall and the rectangle as seen after `gap` frames: two planes."""
    K, T = intrinsics(cell_px), camera(gap)
    rho = wall().astype(np.float64)
    right, down = rho[0, 1] - rho[0, 0], rho[1, 0] - rho[0, 0]
    normal = K.T @ [right, down, rho[0, 0] - 0.5 * (right + down)]
    # OpenCV puts the first pixel's centre at 0.
    px_from_cell = np.array([[cell_px[0], 0, -0.5], [0, cell_px[1], -0.5], [0, 0, 1]])

    def seen(layer: npt.NDArray[np.uint8], moved: DoubleArray) -> npt.NDArray[np.uint8]:
        H = K @ (T[:3, :3] + np.outer(T[:3, :3] @ moved + T[:3, 3], normal)) @ np.linalg.inv(K)
        H = px_from_cell @ H @ np.linalg.inv(px_from_cell)
        return np.asarray(cv2.warpPerspective(layer, H, layer.shape[::-1], flags=cv2.INTER_CUBIC), dtype=np.uint8)

    cover = np.zeros((ROWS, COLS), np.uint8)
    cover[OBJECT] = 1
    moved = np.asarray(speed, np.float64) * gap
    patch = texture(2, cell_px)
    full = np.asarray(cv2.resize(cover, patch.shape[::-1], interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
    cover = seen(full, moved)
    return np.where(cover > 0, seen(patch, moved), seen(texture(1, cell_px), np.zeros(3)))


def others(
    flows: list[FloatArray],
    trusts: list[float],
    *,
    gaps: list[int] = GAPS,
    speed: npt.ArrayLike = (0, 0, 0),
    cell_px: tuple[float, float] = CELL_PX,
) -> list[OtherFrame]:
    size = np.array([COLS, ROWS]) * cell_px
    at = np.stack(np.meshgrid(np.arange(COLS) + 0.5, np.arange(ROWS) + 0.5), -1) * cell_px
    out = []
    for flow, trust, gap in zip(flows, trusts, gaps, strict=True):
        inside = ((at + flow > 2) & (at + flow < size - 2)).all(-1)
        out.append(
            OtherFrame(
                gap=abs(gap),
                picture=picture(gap, speed, cell_px),
                flow=flow,
                rectified=flow,
                weight=np.asarray(trust * inside, dtype=np.float32),
                K=intrinsics(cell_px),
                dst_from_src=camera(gap),
            )
        )
    return out


def mask(
    found: list[OtherFrame], speed: npt.ArrayLike = (0, 0, 0), cell_px: tuple[float, float] = CELL_PX
) -> FloatArray:
    return dynamic_probability(wall(), picture(0, speed, cell_px), found, K=intrinsics(cell_px), cell_px=cell_px)


def probability(
    speed: tuple[float, float, float],
    *,
    trust: float = 1.0,
    noise_px: float = 0.0,
    halo: int = 0,
    cell_px: tuple[float, float] = CELL_PX,
) -> FloatArray:
    """The mask when the rectangle moves at a speed in metres per frame, the wall being about 2 m away, and its flow
    reaches so many cells beyond it."""
    moved = np.zeros((ROWS, COLS, 3))
    y, x = OBJECT
    moved[y.start - halo : y.stop + halo, x.start - halo : x.stop + halo] = speed
    rng = np.random.default_rng(1)
    flows = [exact_flow(gap, moved, cell_px) for gap in GAPS]
    flows = [flow + noise_px * rng.standard_normal(flow.shape).astype(np.float32) for flow in flows]
    return mask(others(flows, [trust] * len(GAPS), speed=speed, cell_px=cell_px), speed, cell_px)


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


@pytest.mark.parametrize("speed", [(0.015, 0.0, 0.0), (0.0, -0.02, 0.0), (0.3, 0.0, 0.1)])
def test_flow_that_reaches_over_the_outline_is_not_motion(speed: tuple[float, float, float]) -> None:
    """Without a look at the pictures the overlap is 0.65."""
    assert overlap(probability(speed, halo=2, noise_px=0.1)) > IOU


def test_a_wrong_camera_is_seen() -> None:
    """The same flow judged with a camera that stands still: everything moves."""
    right = others([exact_flow(1, np.zeros(3))], [1.0], gaps=[1])
    assert mask([replace(right[0], dst_from_src=np.eye(4))]).mean() > 0.8
    assert mask(right).max() < STILL


def test_flow_that_fits_the_noise_of_a_blank_wall_is_not_motion() -> None:
    """The pictures show nothing, and flow drifts."""
    rng = np.random.default_rng(3)

    def blank() -> npt.NDArray[np.uint8]:
        size = round(ROWS * CELL_PX[1]), round(COLS * CELL_PX[0])
        return np.asarray(np.rint(180 + rng.normal(size=size)), dtype=np.uint8)

    found = others([exact_flow(gap, np.zeros(3)) + np.float32(3) for gap in GAPS], [1.0] * len(GAPS))
    found = [replace(other, picture=blank()) for other in found]
    moves = dynamic_probability(wall(), blank(), found, K=intrinsics(), cell_px=CELL_PX)
    assert np.quantile(moves, 0.97) < BLANK


def test_flow_that_is_not_trusted_says_nothing() -> None:
    assert probability((0.3, 0.0, 0.1), trust=0.0).max() < STILL
    assert probability((0.3, 0.0, 0.1), trust=1.0).max() > 0.9


def test_an_untrusted_frame_is_outvoted_by_trusted_ones() -> None:
    """One frame's flow is garbage and known to be; four others agree that nothing moves."""
    gaps = [1, 2, 4, -1, -2]
    flows = [exact_flow(gap, np.zeros(3)) for gap in gaps]
    flows[2] = flows[2] + 30

    def found(garbage_trust: float) -> FloatArray:
        return mask(others(flows, [1, 1, garbage_trust, 1, 1], gaps=gaps))

    assert found(0.0).max() < STILL
    # Unless it is known to be, the pictures tell; not where the still world leaves them.
    assert np.quantile(found(1.0), 0.97) < STILL


def test_cells_need_not_be_square() -> None:
    cells = (6.0, 7.5)
    assert overlap(probability((0.02, 0.01, 0.0), cell_px=cells)) > IOU
    assert probability((0.0, 0.0, 0.0), cell_px=cells).max() < STILL


def test_points_behind_the_other_camera_say_nothing() -> None:
    """The other camera stands behind the wall: no vote, and no NaN."""
    T = np.eye(4)
    T[2, 3] = -50.0
    (other,) = others([np.full((ROWS, COLS, 2), 99, np.float32)], [1.0], gaps=[1])
    found = mask([replace(other, dst_from_src=T, weight=np.ones((ROWS, COLS), np.float32))])
    assert np.isfinite(found).all() and found.max() < STILL

"""The renderer's own truth: what everything else is measured against must be right."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from tests import scenes
from tests.scenes import SHOTS, SKY_DEPTH, Quad, Scene, Shot, Texture, View, footage, shot, shots

F64 = npt.NDArray[np.float64]

# Worst seen: warp error 0.39 of that with the truth one pixel off, best 0.005 px from the truth; depth 1e-6 relative;
# shift 0.01 px.
WARP_RATIO = 0.5
WARP_PX = 0.02
DEPTH_RELATIVE = 3e-6
CENTROID_PX = 0.0625  # half a sample at 8 samples a pixel
SHIFT_PX = 0.03


def flat_texture(value: int) -> Texture:
    return Texture(np.full((8, 8, 3), value, np.uint8))


def intrinsics(focal: float, width: int, height: int) -> F64:
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])


def slanted_pose() -> F64:
    pose = np.eye(4)
    pose[:3, :3] = shots.rotation(np.array([12.0]), np.array([-7.0]), np.array([9.0]))[0]
    pose[:3, 3] = 0.2, -0.1, 0.4
    return pose


def clean_view(taken: Shot, index: int) -> View:
    """The shaky view without the sensor's noise."""
    return replace(taken, grain=0.0).render(index)


def reprojected(taken: Shot, depth: npt.NDArray[np.float32], i: int, j: int) -> tuple[F64, F64, F64]:
    """x, y (pixels) and depth in frame j of every pixel centre of frame i."""
    rows, cols = np.mgrid[: taken.height, : taken.width] + 0.5
    rays = np.stack([cols, rows, np.ones_like(cols)], axis=-1) @ np.linalg.inv(taken.K[i]).T
    j_from_i = np.linalg.inv(taken.world_from_cam[j]) @ taken.world_from_cam[i]
    points = (rays * depth[..., None]) @ j_from_i[:3, :3].T + j_from_i[:3, 3]
    image = points @ taken.K[j].T
    return image[..., 0] / image[..., 2], image[..., 1] / image[..., 2], points[..., 2]


@pytest.mark.parametrize("name", ["rotation", "walking", "running", "zoom", "crowd"])
def test_depth_and_pose_carry_one_frame_into_another(name: str) -> None:
    taken, i, j = shot(name), 30, 34
    a, b = clean_view(taken, i), clean_view(taken, j)
    x, y, z = reprojected(taken, a.depth, i, j)

    def sample(picture: npt.NDArray[np.float32], dx: float) -> npt.NDArray[np.float32]:
        map_x, map_y = (x - 0.5 + dx).astype(np.float32), (y - 0.5).astype(np.float32)
        return np.asarray(cv2.remap(picture, map_x, map_y, cv2.INTER_LINEAR, borderValue=-1), np.float32)

    # Seen in both, and away from the edge of anything: the depth there agrees with what the pose says it should be.
    nearest, farthest = (np.asarray(f(b.depth, np.ones((3, 3))), np.float32) for f in (cv2.erode, cv2.dilate))
    low, high = sample(nearest, 0.0), sample(farthest, 0.0)
    edge = cv2.dilate(a.depth, np.ones((3, 3))) > 1.05 * cv2.erode(a.depth, np.ones((3, 3)))
    seen = (low > 0.97 * z) & (high < 1.03 * z) & (low > 0) & ~a.moving & ~edge
    seen &= sample(b.moving.astype(np.float32), 0.0) == 0
    assert seen.mean() > 0.4

    def error(dx: float) -> float:
        off = [np.abs(sample(b.rgb[..., c].astype(np.float32), dx) - a.rgb[..., c])[seen].mean() for c in range(3)]
        return float(np.mean(off))

    assert error(0.0) < WARP_RATIO * min(error(-1.0), error(1.0))
    # The best alignment lies at no shift: a parabola through three shifts has its minimum there.
    left, middle, right = (error(dx) ** 2 for dx in (-0.4, 0.0, 0.4))
    assert abs(0.2 * (left - right) / (left - 2 * middle + right)) < WARP_PX


def test_a_rectangle_covers_the_pixels_inside_its_projected_corners() -> None:
    corners = np.array([[-0.7, -0.5, 3.0], [0.8, -0.5, 3.0], [0.8, 0.4, 3.0], [-0.7, 0.4, 3.0]])
    quad = Quad(
        corner=(-0.7, -0.5, 3.0), edge_u=(1.5, 0, 0), edge_v=(0, 0.9, 0), textures=(flat_texture(9),), object_id=5
    )
    scene, K, cam_from_world = Scene(quads=[quad], sky=flat_texture(0)), intrinsics(150, 200, 120), slanted_pose()
    view = scene.render(cam_from_world, K, 200, 120, 0.0)

    in_camera = corners @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]
    image = in_camera @ K.T
    polygon = image[:, :2] / image[:, 2:]
    rows, cols = np.mgrid[:120, :200] + 0.5
    sides = polygon - np.roll(polygon, 1, axis=0)
    inside = np.all(
        [dx * (rows - py) - dy * (cols - px) >= 0 for (dx, dy), (px, py) in zip(sides, polygon, strict=True)], axis=0
    )
    np.testing.assert_array_equal(view.object_id == 5, inside)
    assert not view.moving.any()
    assert (view.depth[~inside] == SKY_DEPTH).all()
    # Depth of a plane: n . (depth * ray) is constant.
    normal = cam_from_world[:3, :3] @ [0.0, 0.0, 1.0]
    rays = np.stack([cols, rows, np.ones_like(cols)], axis=-1) @ np.linalg.inv(K).T
    expected = (normal @ in_camera[0]) / (rays @ normal)
    np.testing.assert_allclose(view.depth[inside], expected[inside], rtol=DEPTH_RELATIVE)


def test_edges_are_antialiased_where_they_should_be() -> None:
    """The brightness of a white square over black has the true area and the true centre, to a fraction of a pixel."""
    K = intrinsics(100, 64, 48)
    for offset in (0.0, 0.0137, 0.0259):
        corner, white = (-0.4 + offset, -0.3, 2.0), (flat_texture(255),)
        quad = Quad(corner=corner, edge_u=(0.8, 0, 0), edge_v=(0, 0.6, 0), textures=white)
        scene = Scene(quads=[quad], sky=flat_texture(0), samples=8)
        light = scene.render(np.eye(4), K, 64, 48, 0.0).rgb[..., 0] / 255.0
        x, y = (light.sum(axis) @ (np.arange(light.shape[1 - axis]) + 0.5) / light.sum() for axis in (0, 1))
        np.testing.assert_allclose(light.sum(), 40.0 * 30.0, rtol=0.005)
        np.testing.assert_allclose((x, y), (32.0 + 50 * offset, 24.0), atol=CENTROID_PX)


def noise_wall(distance: float) -> Scene:
    picture = np.random.default_rng(3).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    corner, noise = (-9, -9, distance), (Texture(picture),)
    quad = Quad(corner=corner, edge_u=(18, 0, 0), edge_v=(0, 18, 0), textures=noise, repeat=(12, 12))
    return Scene(quads=[quad], sky=flat_texture(0))


def test_detail_finer_than_a_pixel_is_averaged_instead_of_aliased() -> None:
    near = noise_wall(0.5).render(np.eye(4), intrinsics(100, 96, 64), 96, 64, 0.0).rgb
    far = noise_wall(9.0).render(np.eye(4), intrinsics(100, 96, 64), 96, 64, 0.0).rgb
    # Uniform noise has a deviation of 74; a pixel of the far wall averages about 15 x 15 of its texels.
    assert near.std() > 35
    assert far.std() < 12
    assert abs(float(far.mean()) - 127.5) < 3


@pytest.mark.parametrize("pixels", [0.25, 0.5, 1.3])
def test_a_moved_camera_moves_the_picture_by_as_much(pixels: float) -> None:
    wave = 128 + 100 * np.sin(2 * np.pi * (np.arange(256) + 0.5) / 256)
    stripes = Texture(np.tile(np.rint(wave).astype(np.uint8)[None, :, None], (256, 1, 3)))
    quad = Quad(corner=(-9, -9, 2), edge_u=(18, 0, 0), edge_v=(0, 18, 0), textures=(stripes,), repeat=(12, 12))
    scene, K, period_px = Scene(quads=[quad], sky=flat_texture(0)), intrinsics(100, 128, 96), 18 / 12 / 2 * 100

    def crest_px(cam_from_world: F64) -> float:
        row = scene.render(cam_from_world, K, 128, 96, 0.0).rgb[..., 0].mean(axis=0)
        angle = 2 * np.pi * (np.arange(128) + 0.5) / period_px
        sine, cosine, _ = np.linalg.lstsq(np.stack([np.sin(angle), np.cos(angle), np.ones(128)], axis=1), row)[0]
        return float(-np.arctan2(cosine, sine) * period_px / (2 * np.pi))

    moved = np.eye(4)
    moved[0, 3] = pixels * 2.0 / 100
    # The wave starts at the wall's left edge, 9 m to the left of the middle.
    assert abs((crest_px(np.eye(4)) - (64 - 450) + period_px / 2) % period_px - period_px / 2) < SHIFT_PX
    assert abs(crest_px(moved) - crest_px(np.eye(4)) - pixels) < SHIFT_PX


def test_people_move_and_nothing_else_does() -> None:
    taken = shot("tripod")
    walker = next(quad for quad in taken.scene.quads if quad.motion is not None)
    assert walker.motion is not None
    for index in (30, 70):
        view = taken.render(index)
        np.testing.assert_array_equal(view.moving, view.object_id == walker.object_id)
        chest = walker.motion(taken.time_s(index)) @ np.array([0.0, -1.2, 0.0, 1.0])
        x, y, z = taken.K[index] @ (np.linalg.inv(taken.world_from_cam[index]) @ chest)[:3]
        assert view.moving[int(y / z), int(x / z)]
        np.testing.assert_allclose(view.depth[int(y / z), int(x / z)], z, rtol=1e-5)


def test_the_crowd_covers_15_to_35_percent() -> None:
    taken = shot("crowd")
    shares = [clean_view(taken, index).moving.mean() for index in range(5, 90, 20)]
    assert 0.15 < np.mean(shares) < 0.35


def test_the_same_frame_is_the_same_picture() -> None:
    taken = shot("rotation")
    first = taken.render(12)
    taken.render(3)
    again = SHOTS["rotation"](0.0).render(12)
    np.testing.assert_array_equal(first.rgb, again.rgb)
    np.testing.assert_array_equal(first.depth, again.depth)


def second_difference_deg(world_from_cam: F64) -> float:
    """RMS change of the frame-to-frame rotation."""
    steps = np.swapaxes(world_from_cam[:-1, :3, :3], 1, 2) @ world_from_cam[1:, :3, :3]
    change = np.swapaxes(steps[:-1], 1, 2) @ steps[1:]
    angle = np.arccos(np.clip((np.trace(change, axis1=1, axis2=2) - 1) / 2, -1, 1))
    return float(np.rad2deg(np.sqrt(np.mean(angle**2))))


@pytest.mark.parametrize("name", sorted(SHOTS))
def test_the_stable_path_is_smooth_and_the_shaky_one_is_not(name: str) -> None:
    taken = shot(name)
    rotations = taken.world_from_cam[:, :3, :3]
    products = rotations @ np.swapaxes(rotations, 1, 2)
    np.testing.assert_allclose(products, np.broadcast_to(np.eye(3), products.shape), atol=1e-12)
    stable, shaky = (second_difference_deg(path) for path in (taken.stable_world_from_cam, taken.world_from_cam))
    assert stable < 0.35
    if name in ("still", "tripod"):
        np.testing.assert_array_equal(taken.world_from_cam, taken.stable_world_from_cam)
    else:
        assert shaky > 0.3
        assert shaky > 1.5 * stable
    if name == "rotation":
        assert (taken.world_from_cam[:, :3, 3] == taken.world_from_cam[0, :3, 3]).all()


def test_shake_has_unit_size_and_lies_between_1_and_8_hz() -> None:
    time_s = np.arange(3000) / 30.0
    motion = shots.shake(time_s, 4)
    power = np.abs(np.fft.rfft(motion * np.hanning(3000))) ** 2
    hz = np.fft.rfftfreq(3000, 1 / 30.0)
    assert abs(motion.std() - 1) < 0.1
    assert power[(hz > 0.8) & (hz < 8.6)].sum() > 0.99 * power.sum()


def test_footage_is_rendered_once_and_read_back_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quad = Quad(corner=(-1, -1, 2), edge_u=(2, 0, 0), edge_v=(0, 2, 0), textures=(flat_texture(90),))
    poses = np.tile(np.eye(4), (3, 1, 1))
    tiny = Shot(
        name="tiny",
        scene=Scene(quads=[quad], sky=flat_texture(0)),
        world_from_cam=poses,
        stable_world_from_cam=poses,
        rows_world_from_cam=poses[:, None],
        readout_frames=0.0,
        K=np.tile(intrinsics(20, 32, 16), (3, 1, 1)),
        fps=Fraction(30),
        width=32,
        height=16,
    )
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setitem(SHOTS, "tiny", lambda _late_s: tiny)
    first = footage("tiny")
    monkeypatch.setattr(Shot, "render", None)  # a second rendering would fail
    second = footage("tiny")
    for part in ("rgb", "depth", "object_id", "moving"):
        np.testing.assert_array_equal(getattr(first, part), getattr(second, part))
    assert first.rgb.shape == (3, 16, 32, 3)
    assert len(list(tmp_path.rglob("*.npz"))) == 1


def test_a_texture_must_have_sides_that_halve() -> None:
    with pytest.raises(ValueError, match="powers of two, got 12x8"):
        scenes.Texture(np.zeros((8, 12, 3), np.uint8))

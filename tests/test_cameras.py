"""Output cameras against round trips, closed forms and OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from vs3r.cameras import Division, DoubleSphere, KannalaBrandt, OutputCamera, Pinhole, Unified, make_output_camera
from vs3r.config import RenderConfig
from vs3r.errors import InputError
from vs3r.lens import bent, straightened

F64 = npt.NDArray[np.float64]

K = np.array([[600.0, 0.7, 481.0], [0.0, 590.0, 263.0], [0.0, 0.0, 1.0]])
NAMES = ("pinhole", "wide", "ultra-wide", "tele", "fisheye", "ucm", "double-sphere")
MODELS = {
    "pinhole": Pinhole(K=K),
    "equidistant": KannalaBrandt(K=K),
    "kannala-brandt": KannalaBrandt(K=K, coefficients=(0.04, -0.01, 0.003, -0.0005)),
    "ucm": Unified(K=K),
    "ucm-strong": Unified(K=K, alpha=0.7),
    "division": Division(K=K, distortion=-0.3),
    "double-sphere": DoubleSphere(K=K),
    "double-sphere-strong": DoubleSphere(K=K, xi=0.3, alpha=0.55),
}


def pixels() -> F64:
    x, y = np.meshgrid(np.linspace(0, 960, 33), np.linspace(0, 540, 19))
    return np.stack([x, y], -1)


def directions(limit_deg: float) -> F64:
    theta, phi = np.meshgrid(np.deg2rad(np.linspace(0, limit_deg, 24)), np.linspace(0, 2 * np.pi, 17))
    return np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], -1)


@pytest.mark.parametrize("name", MODELS)
def test_projecting_the_rays_gives_the_pixels_back(name: str) -> None:
    camera = MODELS[name]
    rays, seen = camera.unproject(pixels())
    assert seen.all()
    np.testing.assert_allclose(np.linalg.norm(rays, axis=-1), 1, atol=1e-12)
    back, imaged = camera.project(rays * 3.7)
    assert imaged.all()
    np.testing.assert_allclose(back, pixels(), atol=1e-7)


@pytest.mark.parametrize(
    ("name", "limit_deg"),
    [
        ("equidistant", 170.0),
        ("ucm", 105.0),
        ("ucm-strong", 110.0),
        ("division", 110.0),
        ("double-sphere-strong", 105.0),
    ],
)
def test_wide_models_see_behind_themselves(name: str, limit_deg: float) -> None:
    camera = MODELS[name]
    points = directions(limit_deg)
    at, imaged = camera.project(points)
    assert imaged.all()
    rays, seen = camera.unproject(at)
    assert seen.all()
    np.testing.assert_allclose(rays, points, atol=1e-6)


def test_fisheye_is_opencvs() -> None:
    camera = KannalaBrandt(
        K=np.array([[600.0, 0, 481], [0, 590, 263], [0, 0, 1]]), coefficients=(0.04, -0.01, 0.003, -5e-4)
    )
    points = directions(80.0).reshape(-1, 3) * 2.5
    theirs, _ = cv2.fisheye.projectPoints(
        points[:, None], np.zeros(3), np.zeros(3), camera.K, np.array(camera.coefficients)
    )
    np.testing.assert_allclose(camera.project(points)[0], theirs[:, 0], atol=1e-6)


def test_a_quarter_of_division_is_the_stereographic_projection() -> None:
    points = directions(85.0)
    theta = np.arccos(points[..., 2])
    at, _ = Division(K=np.eye(3), distortion=-0.25).project(points)
    np.testing.assert_allclose(np.linalg.norm(at, axis=-1), 2 * np.tan(theta / 2), atol=1e-12)


def test_division_is_fitzgibbons() -> None:
    """What is seen at d lies at d / (1 + k d^2) in a pinhole camera, and back."""
    seen = pixels()
    d = np.stack([(seen[..., 0] - K[0, 2]) / 600, (seen[..., 1] - K[1, 2]) / 590], -1)
    plain = np.array([[600.0, 0, K[0, 2]], [0, 590, K[1, 2]], [0, 0, 1]])
    m = d / (1 - 0.3 * np.sum(d * d, -1, keepdims=True))
    rays, _ = Division(K=plain, distortion=-0.3).unproject(seen)
    np.testing.assert_allclose(rays[..., :2] / rays[..., 2:], m, atol=1e-12)
    r2 = np.sum(d * d, -1)
    np.testing.assert_allclose(straightened(-0.3, r2) * bent(-0.3, np.sum(m * m, -1)), 1, atol=1e-12)
    np.testing.assert_array_equal(straightened(0.0, r2), 1)
    np.testing.assert_array_equal(bent(0.0, r2), 1)


def test_lenses_of_sources_stay_where_the_picture_is_not_bent() -> None:
    assert isinstance(make_output_camera("wide", K, -0.3), Division)
    assert isinstance(make_output_camera("wide", K, 0.0), Pinhole)
    assert isinstance(make_output_camera("fisheye", K, -0.3), KannalaBrandt)


def test_unified_is_mei_and_rives_sphere_model() -> None:
    """Project onto the unit sphere, then from a point xi behind its centre; the focal length there is f (1 + xi)."""
    alpha = 0.62
    xi = alpha / (1 - alpha)
    points = directions(85.0)
    ours = Unified(K=np.eye(3), alpha=alpha).project(points * 4)[0]
    theirs = points[..., :2] * (1 + xi) / (points[..., 2:] + xi)
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_double_sphere_without_the_second_sphere_is_unified() -> None:
    points = directions(80.0)
    double, unified = DoubleSphere(K=K, xi=0.0, alpha=0.6), Unified(K=K, alpha=0.6)
    np.testing.assert_allclose(double.project(points)[0], unified.project(points)[0], atol=1e-9)
    np.testing.assert_allclose(double.unproject(pixels())[0], unified.unproject(pixels())[0], atol=1e-9)


@pytest.mark.parametrize("name", ["pinhole", "fisheye", "ucm", "double-sphere"])
def test_the_centre_keeps_its_scale(name: str) -> None:
    camera = make_output_camera(name, K)
    at, _ = camera.project(np.array([[0.0, 0, 1], [1e-4, 0, 1], [0, 1e-4, 1]]))
    np.testing.assert_allclose(at[0], K[:2, 2], atol=1e-9)
    np.testing.assert_allclose(at[1] - at[0], [600e-4, 0], atol=1e-6)
    np.testing.assert_allclose(at[2] - at[0], [0.7e-4, 590e-4], atol=1e-6)


@pytest.mark.parametrize(("name", "scale"), [("wide", 0.75), ("ultra-wide", 0.5), ("tele", 1.5)])
def test_lenses_scale_the_focal_length_about_the_centre(name: str, scale: float) -> None:
    at, _ = make_output_camera(name, K).project(np.array([[0.2, -0.1, 1.0]]))
    plain, _ = Pinhole(K=K).project(np.array([[0.2, -0.1, 1.0]]))
    np.testing.assert_allclose(at - K[:2, 2], scale * (plain - K[:2, 2]), atol=1e-9)


def test_beyond_the_field_of_view_is_flagged() -> None:
    behind = np.array([[0.1, 0.0, -1.0], [0.0, 0.0, 0.0]])
    for camera in MODELS.values():
        _, imaged = camera.project(behind)
        assert not imaged[1]
    assert not Pinhole(K=K).project(behind)[1].any()
    assert not Unified(K=K, alpha=0.7).project(behind)[1].any()
    assert not DoubleSphere(K=K).project(behind)[1].any()
    far = np.array([[1e5, 1e5]])
    limited: list[OutputCamera] = [KannalaBrandt(K=K), Unified(K=K, alpha=0.7), DoubleSphere(K=K)]
    for camera in limited:
        rays, seen = camera.unproject(far)
        assert not seen.any()
        np.testing.assert_array_equal(rays, [[0.0, 0.0, 1.0]])


def test_a_radius_that_turns_back_ends_the_field_of_view() -> None:
    camera = KannalaBrandt(K=K, coefficients=(-0.3, 0.0, 0.0, 0.0))
    turn = 1 / np.sqrt(0.9)
    theta = np.array([turn - 0.02, turn + 0.02])
    _, imaged = camera.project(np.stack([np.sin(theta), 0 * theta, np.cos(theta)], -1))
    assert imaged.tolist() == [True, False]


def test_names_are_those_of_the_config() -> None:
    choices = next(f for f in RenderConfig.__dataclass_fields__.values() if f.name == "camera").metadata["choices"]
    assert set(choices) == set(NAMES)
    for name in choices:
        make_output_camera(name, K)
    with pytest.raises(InputError, match=r"expected one of pinhole.*got 'anamorphic'"):
        make_output_camera("anamorphic", K)

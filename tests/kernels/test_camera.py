"""The cameras of the operators are those of the renderer."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.kernels.common import DEVICE, LENSES, VIEW_K, poses
from vs3r.cameras import Division, DoubleSphere, KannalaBrandt, OutputCamera, Pinhole, Unified
from vs3r.errors import InputError, ShapeError
from vs3r.kernels.camera import SourceCameras, View
from vs3r.kernels.camera.reference import project

PIXELS = 1e-10
"""Worst seen: 2e-13 px and 1e-10 of positions far out."""


def pair(model: str, parameters: tuple[float, ...]) -> tuple[OutputCamera, View]:
    K = VIEW_K.numpy()
    peers: dict[str, Callable[[], OutputCamera]] = {
        "pinhole": lambda: Pinhole(K=K),
        "kannala-brandt": lambda: KannalaBrandt(K=K, coefficients=parameters),  # type: ignore[arg-type]
        "unified": lambda: Unified(K=K, alpha=parameters[0]),
        "division": lambda: Division(K=K, distortion=parameters[0]),
        "double-sphere": lambda: DoubleSphere(K=K, xi=parameters[0], alpha=parameters[1]),
    }
    view = View(K=VIEW_K, cam_from_world=torch.eye(4), width=9, height=9, model=model, parameters=parameters)
    return peers[model](), view


@pytest.mark.parametrize(("model", "parameters"), LENSES)
def test_points_land_where_the_renderer_puts_them(model: str, parameters: tuple[float, ...]) -> None:
    peer, view = pair(model, parameters)
    points = np.random.default_rng(0).normal(size=(2000, 3))
    points[:3] = (0, 0, 2), (0, 0, -2), (1e-13, 0, 1)
    pixels, seen = peer.project(points)
    u, v, depth, ours = project(torch.from_numpy(points), view)
    assert np.array_equal(ours.numpy(), seen) and 0.1 < seen.mean() <= 1
    # Next to the edge of the field of view pixels run to infinity.
    np.testing.assert_allclose(np.stack([u, v], -1)[seen], pixels[seen], rtol=1e-8, atol=PIXELS)
    true = points[:, 2] if model == "pinhole" else np.linalg.norm(points, axis=1)
    np.testing.assert_allclose(depth.numpy()[seen], true[seen], rtol=1e-12)


@pytest.mark.parametrize("far", [1e-300, 1e-30, 1e30, 1e300])
def test_far_and_near_do_not_overflow(far: float) -> None:
    for model, parameters in LENSES:
        _, view = pair(model, parameters)
        point = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)
        u, v, depth, seen = project(torch.stack([point, far * point]), view)
        assert seen.all()
        torch.testing.assert_close(torch.stack([u[1], v[1]]), torch.stack([u[0], v[0]]))
        torch.testing.assert_close(depth[1], depth[0] * far)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, -math.inf])
def test_what_is_no_point_is_not_seen(value: float) -> None:
    for model, parameters in LENSES:
        u, v, depth, seen = project(torch.full((1, 3), value).double(), pair(model, parameters)[1])
        assert not seen.any() and torch.stack([u, v, depth]).isfinite().all()


def test_relative_poses_are_those_of_the_reference() -> None:
    """Far from the world's origin, where single precision would lose them."""
    from vs3r.kernels.camera.triton_impl import relative

    cameras = poses(6, turn=0.3, move=0.2).view(2, 3, 4, 4).to(DEVICE)
    cameras[..., :3, 3] += 1e5 * cameras[..., :3, 0]
    one = cameras[0, 0].clone()
    one[0, 3] += 0.5
    sources = SourceCameras(K=VIEW_K.expand(2, 3, 3), cam_from_world=cameras)
    true = View(K=VIEW_K, cam_from_world=one, width=9, height=9).from_sources(sources)
    torch.testing.assert_close(relative(one, cameras).double(), true[..., :3, :], rtol=1e-6, atol=1e-6)
    back = torch.linalg.inv(true)[..., :3, :]
    torch.testing.assert_close(relative(cameras, one).double(), back, rtol=1e-6, atol=1e-6)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(relative(cameras, one).double(), back + 1e-5, rtol=1e-6, atol=1e-6)


def test_a_camera_that_makes_no_sense_is_refused() -> None:
    cpu = torch.device("cpu")
    given = {"K": VIEW_K, "cam_from_world": torch.eye(4), "width": 4, "height": 4}
    for wrong, error, told in (
        ({"model": "fisheye"}, InputError, "view.model: expected one of pinhole, kannala-brandt.*got 'fisheye'"),
        ({"model": "unified"}, InputError, "view.parameters: expected 1 for unified; got 0"),
        ({"width": 0}, InputError, "view: expected at least 1 x 1 pixels; got 0 x 4"),
        ({"K": torch.eye(4)}, ShapeError, r"view.K: expected \(3, 3\); got \(4, 4\)"),
    ):
        with pytest.raises(error, match=told):
            View(**{**given, **wrong}).check(cpu)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"cameras.K: expected \(2, 3, 3\); got \(3, 3\)"):
        SourceCameras(K=VIEW_K, cam_from_world=torch.eye(4)).check(2, cpu)
    rolling = SourceCameras(K=VIEW_K.expand(2, 3, 3), cam_from_world=torch.eye(4).expand(2, 5, 4, 4))
    rolling.check(2, cpu, rows=5)
    for rows, wanted in ((4, r"\(2, 4, 4, 4\)"), (None, r"\(2, 4, 4\)")):
        with pytest.raises(ShapeError, match=rf"cameras.cam_from_world: expected {wanted}; got \(2, 5, 4, 4\)"):
            rolling.check(2, cpu, rows=rows)

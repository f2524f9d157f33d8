"""Rigid motions against the matrix exponential in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vs3r.geometry import (
    matrix_from_quat_wxyz,
    quat_wxyz_from_matrix,
    rigid,
    rigid_inverse,
    se3_retract,
    skew,
    so3_exp,
    so3_log,
)

# Worst seen: 3e-15 for matrices, 3e-15 for rotation vectors, 2e-7 in float32.
MATRIX = 1e-13
VECTOR = 1e-12
SINGLE = 2e-6

ANGLES = (0.0, 1e-12, 1e-8, 0.99e-4, 1.01e-4, 1e-3, 0.1, 1.0, math.pi / 2, 2.5, math.pi - 1e-3, math.pi - 1e-9)
"""In radians: both sides of the switch to the series, and up to half a turn."""


def axes(count: int = 40) -> Tensor:
    """(N, 3) unit vectors: the coordinate axes both ways, and random ones."""
    random = torch.randn(count, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    straight = torch.eye(3, dtype=torch.float64)
    return torch.nn.functional.normalize(torch.cat([straight, -straight, random]), dim=-1)


def expected_rotation(omega: Tensor) -> Tensor:
    """The exponential of the cross-product matrix, written out component by component."""
    W = torch.zeros(*omega.shape[:-1], 3, 3, dtype=torch.float64)
    W[..., 2, 1], W[..., 1, 2] = omega[..., 0], -omega[..., 0]
    W[..., 0, 2], W[..., 2, 0] = omega[..., 1], -omega[..., 1]
    W[..., 1, 0], W[..., 0, 1] = omega[..., 2], -omega[..., 2]
    out: Tensor = torch.linalg.matrix_exp(W)
    return out


def worst(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


def test_skew_is_the_cross_product() -> None:
    a, b = axes(), axes().flip(0) * 3
    assert worst((skew(a) @ b[..., None]).squeeze(-1), torch.linalg.cross(a, b)) < MATRIX


@pytest.mark.parametrize("angle", ANGLES)
def test_rotation_is_the_matrix_exponential(angle: float) -> None:
    omega = axes() * angle
    assert worst(so3_exp(omega), expected_rotation(omega)) < MATRIX
    assert worst(so3_exp(omega.float()).double(), expected_rotation(omega)) < SINGLE


@pytest.mark.parametrize("angle", ANGLES)
def test_logarithm_undoes_the_exponential(angle: float) -> None:
    omega = axes() * angle
    # At most a thousandth of the angle, so that a logarithm of 0 for every tiny rotation would be noticed.
    assert worst(so3_log(expected_rotation(omega)), omega) < min(VECTOR, 1e-3 * angle + 1e-16)


def test_half_a_turn_has_one_of_two_logarithms() -> None:
    omega = axes() * math.pi
    found = so3_log(expected_rotation(omega))
    assert float((found.norm(dim=-1) - math.pi).abs().max()) < VECTOR
    assert float(torch.minimum((found - omega).norm(dim=-1), (found + omega).norm(dim=-1)).max()) < VECTOR


def test_more_than_half_a_turn_comes_back_the_short_way() -> None:
    found = so3_log(expected_rotation(axes() * 4.0))
    assert worst(found, axes() * (4.0 - 2 * math.pi)) < VECTOR


@pytest.mark.parametrize("shape", [(), (1,), (4, 5), (2, 0)])
def test_any_batch(shape: tuple[int, ...]) -> None:
    omega = torch.randn(*shape, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    R = so3_exp(omega)
    assert R.shape == (*shape, 3, 3)
    assert quat_wxyz_from_matrix(R).shape == (*shape, 4)
    torch.testing.assert_close(so3_log(R), omega, rtol=0, atol=VECTOR)
    T = rigid(R, omega)
    assert T.shape == (*shape, 4, 4)
    torch.testing.assert_close(rigid_inverse(T) @ T, torch.eye(4).double().expand(T.shape), rtol=0, atol=MATRIX)


def some_transforms() -> Tensor:
    """(N, 4, 4) as exponentials of random twists, far from the identity."""
    xi = torch.randn(30, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    twist = torch.zeros(30, 4, 4, dtype=torch.float64)
    twist[:, :3, :3], twist[:, :3, 3] = skew(xi[:, 3:]), 2 * xi[:, :3]
    out: Tensor = torch.linalg.matrix_exp(twist)
    return out


def test_inverse() -> None:
    T = some_transforms()
    assert worst(rigid_inverse(T), torch.linalg.inv(T)) < MATRIX
    assert worst(rigid(T[:, :3, :3], T[:, :3, 3]), T) == 0


def test_increment_is_on_the_left() -> None:
    """Turn about the camera's own axes, then move along them."""
    T = some_transforms()
    xi = torch.randn(30, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    increment = torch.eye(4, dtype=torch.float64).repeat(30, 1, 1)
    increment[:, :3, :3], increment[:, :3, 3] = expected_rotation(xi[:, 3:]), xi[:, :3]
    before = T.clone()
    assert worst(se3_retract(xi, T), increment @ T) < MATRIX
    assert torch.equal(T, before)


def test_small_increment_is_the_exponential_of_the_twist() -> None:
    """To first order, which is what linearisations rely on: the error falls with the square of the step."""
    T = some_transforms()
    unit = torch.randn(30, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    errors = []
    for step in (1e-2, 1e-3):
        xi = unit * step
        twist = torch.zeros(30, 4, 4, dtype=torch.float64)
        twist[:, :3, :3], twist[:, :3, 3] = skew(xi[:, 3:]), xi[:, :3]
        errors.append(worst(se3_retract(xi, T), torch.linalg.matrix_exp(twist) @ T))
    assert errors[0] < 1e-2 and errors[1] < 0.02 * errors[0]


@pytest.mark.parametrize("angle", ANGLES)
def test_quaternions(angle: float) -> None:
    """w first: cos of half the angle, then the axis times its sine; either sign."""
    half = torch.full((len(axes()), 1), angle / 2, dtype=torch.float64)
    true = torch.cat([half.cos(), axes() * half.sin()], -1)
    R = expected_rotation(axes() * angle)
    found = quat_wxyz_from_matrix(R)
    aligned = found * (found * true).sum(-1, keepdim=True).sign()
    assert worst(aligned, true) < MATRIX
    assert worst(matrix_from_quat_wxyz(true), R) < MATRIX
    assert worst(matrix_from_quat_wxyz(-3.7 * true), R) < MATRIX

"""The rigid-flow residual against a loop over pixels in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vs3r.errors import ShapeError
from vs3r.geometry import rigid, so3_exp
from vs3r.kernels.rigid_flow import rigid_flow_residual

# Worst seen, over the shapes below and pixels up to 100: double 6e-14 px, single 3e-5 px.
DOUBLE_PX = 1e-12
SINGLE_PX = 2e-4


def expected(
    inv_depth: Tensor, flow: Tensor, K_src: Tensor, K_dst: Tensor, dst_from_src: Tensor
) -> tuple[Tensor, Tensor]:
    """Unproject, move, project, one pixel after the other; inverse depth 0 is a direction."""
    B, H, W = inv_depth.shape
    residual, ahead = torch.zeros(B, H, W, dtype=torch.float64), torch.zeros(B, H, W, dtype=torch.bool)
    for b, row, col in np.ndindex(B, H, W):
        K, L, T = (m[b].double().numpy() for m in (K_src, K_dst, dst_from_src))
        rho = float(inv_depth[b, row, col])
        ray = np.array([(col + 0.5 - K[0, 2]) / K[0, 0], (row + 0.5 - K[1, 2]) / K[1, 1], 1.0])
        moved = T[:3, :3] @ ray if rho == 0 else (T[:3, :3] @ (ray / rho) + T[:3, 3]) * rho
        if moved[2] <= 0:
            continue
        ahead[b, row, col] = True
        u, v = L[0, 0] * moved[0] / moved[2] + L[0, 2], L[1, 1] * moved[1] / moved[2] + L[1, 2]
        du, dv = flow[b, row, col].double().tolist()
        residual[b, row, col] = math.hypot(u - (col + 0.5) - du, v - (row + 0.5) - dv)
    return residual, ahead


def intrinsics(focal: tuple[float, float], centre: tuple[float, float]) -> Tensor:
    return torch.tensor([[focal[0], 0, centre[0]], [0, focal[1], centre[1]], [0, 0, 1]], dtype=torch.float64)


def problem(shape: tuple[int, int, int], seed: int = 0) -> dict[str, Tensor]:
    """Random depths, flow and cameras; every array of a batch differs, pixels are not square."""
    B, H, W = shape
    random = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=random, dtype=torch.float64)

    lenses = [intrinsics((1.1 * W + 2 + k, 0.9 * W + 3), (W / 2 + 0.3 * k, H / 2 - 0.2)) for k in range(2 * B)]
    return {
        "inv_depth": normal(B, H, W).abs() + 0.05,
        "observed_flow": 4 * normal(B, H, W, 2),
        "K_src": torch.stack(lenses[:B]) if B else torch.zeros(0, 3, 3).double(),
        "K_dst": torch.stack(lenses[B:]) if B else torch.zeros(0, 3, 3).double(),
        "dst_from_src": rigid(so3_exp(0.1 * normal(B, 3)), 0.1 * normal(B, 3)),
    }


def check(given: dict[str, Tensor], *, tolerance: float = DOUBLE_PX) -> tuple[Tensor, Tensor]:
    before = {name: value.clone() for name, value in given.items()}
    residual, ahead = rigid_flow_residual(**given)
    true, true_ahead = expected(*given.values())
    assert residual.dtype == given["inv_depth"].dtype and ahead.dtype == torch.bool
    assert torch.equal(ahead, true_ahead)
    torch.testing.assert_close(residual.double(), true, rtol=0, atol=tolerance)
    assert all(torch.equal(value, before[name]) for name, value in given.items())
    return residual, ahead


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 7), (1, 9, 1), (3, 5, 11), (1, 32, 33), (2, 64, 100)])
def test_random_cameras(shape: tuple[int, int, int]) -> None:
    given = problem(shape)
    check(given)
    check({name: value.float() for name, value in given.items()}, tolerance=SINGLE_PX)


def test_views_that_are_not_contiguous() -> None:
    given = problem((2, 12, 10))
    whole = rigid_flow_residual(**given)
    given["inv_depth"] = given["inv_depth"].transpose(1, 2).contiguous().transpose(1, 2)
    given["observed_flow"] = given["observed_flow"].permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    for ours, theirs in zip(rigid_flow_residual(**given), whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=DOUBLE_PX)


def test_exact_flow_leaves_nothing() -> None:
    """The camera moves one unit to the right past a wall two units away: all moves focal / 2 to the left."""
    K = intrinsics((40, 40), (8, 6))[None]
    move = torch.eye(4, dtype=torch.float64)[None].clone()
    move[0, 0, 3] = -1.0
    wall = torch.full((1, 12, 16), 0.5, dtype=torch.float64)
    flow = torch.tensor([-20.0, 0.0], dtype=torch.float64).expand(1, 12, 16, 2)
    residual, ahead = rigid_flow_residual(wall, flow, K_src=K, K_dst=K, dst_from_src=move)
    assert ahead.all() and float(residual.max()) < DOUBLE_PX
    residual, _ = rigid_flow_residual(wall, flow + torch.tensor([3.0, 4.0]), K_src=K, K_dst=K, dst_from_src=move)
    torch.testing.assert_close(residual, torch.full_like(residual, 5.0), rtol=0, atol=DOUBLE_PX)


def test_points_at_infinity_see_rotation_only() -> None:
    given = problem((2, 6, 9))
    given["inv_depth"] = torch.zeros_like(given["inv_depth"])
    residual, ahead = check(given)
    assert ahead.all()
    given["dst_from_src"][:, :3, 3] *= 50
    assert torch.equal(rigid_flow_residual(**given)[0], residual)


def test_points_behind_the_camera_are_told_and_count_nothing() -> None:
    """The camera walks past half of the points."""
    given = problem((1, 8, 10))
    given["inv_depth"] = torch.where(torch.arange(10).double() < 5, 0.1, 2.0).double().expand(1, 8, 10).clone()
    given["dst_from_src"] = torch.eye(4, dtype=torch.float64)[None].clone()
    given["dst_from_src"][0, 2, 3] = -2.0
    residual, ahead = check(given)
    assert ahead[..., :5].all() and not ahead[..., 5:].any()
    assert not residual[..., 5:].any()


def test_a_point_in_the_camera_is_not_ahead_and_not_nan() -> None:
    given = problem((1, 3, 3))
    given["inv_depth"] = torch.full((1, 3, 3), 0.5, dtype=torch.float64)
    given["dst_from_src"] = torch.eye(4, dtype=torch.float64)[None].clone()
    given["dst_from_src"][0, 2, 3] = -2.0
    residual, ahead = rigid_flow_residual(**given)
    assert not ahead.any() and not residual.any()


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (2, 4, 0)])
def test_empty(shape: tuple[int, int, int]) -> None:
    residual, ahead = rigid_flow_residual(**problem(shape))
    assert residual.shape == ahead.shape == shape


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("inv_depth", (4, 5)),
        ("inv_depth", (2, 4, 5, 1)),
        ("observed_flow", (2, 2, 4, 5)),
        ("observed_flow", (2, 5, 4, 2)),
        ("K_src", (3, 3)),
        ("K_dst", (1, 3, 3)),
        ("dst_from_src", (2, 3, 4)),
    ],
)
def test_a_wrong_shape_is_named(name: str, wrong: tuple[int, ...]) -> None:
    given = problem((2, 4, 5))
    given[name] = torch.zeros(wrong, dtype=torch.float64)
    with pytest.raises(ShapeError) as caught:
        rigid_flow_residual(**given)
    message = str(caught.value)
    assert message.startswith(f"{name}: expected (") and str(wrong) in message

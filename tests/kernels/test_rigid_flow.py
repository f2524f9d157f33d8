"""The rigid-flow residual against a loop over pixels in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kernels.common import DEVICE, ignores_numpy_warnings
from vs3r.errors import BackendError, InputError, ShapeError
from vs3r.geometry import rigid, so3_exp
from vs3r.kernels.dispatch import Backend
from vs3r.kernels.rigid_flow import BEHIND, INVALID, OUTSIDE, SEEN, RigidFlow, rigid_flow_residual
from vs3r.kernels.rigid_flow.reference import NEAREST

pytestmark = ignores_numpy_warnings

# Worst seen over the shapes below, positions up to 600 px: double 4e-13 px, single 1.4e-4 px (reference and Triton).
DOUBLE_PX = 1e-12
SINGLE_PX = 2e-4
TAU_PX = 4.0

BACKENDS: list[tuple[Backend, torch.dtype]] = [
    ("reference", torch.float64),
    ("reference", torch.float32),
    ("reference", torch.bfloat16),
    ("triton", torch.float32),
    ("triton", torch.float16),
    ("triton", torch.bfloat16),
]
every_backend = pytest.mark.parametrize(("backend", "dtype"), BACKENDS)


def expected(
    inv_depth: Tensor, flow: Tensor, K_src: Tensor, K_dst: Tensor, dst_from_src: Tensor, *, distortion: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Residual, status and rigid flow: unproject, move, project, one pixel after the other."""
    B, H, W = inv_depth.shape
    residual, status = torch.zeros(B, H, W).double(), torch.zeros(B, H, W, dtype=torch.uint8)
    rigid_flow = torch.zeros(B, H, W, 2).double()
    for b, row, col in np.ndindex(B, H, W):
        K, L, T = (m[b].double().numpy() for m in (K_src, K_dst, dst_from_src))
        rho = float(inv_depth[b, row, col])
        du, dv = flow[b, row, col].double().tolist()
        if not (0 <= rho < math.inf and math.isfinite(du) and math.isfinite(dv)):
            status[b, row, col] = INVALID
            continue
        y = (row + 0.5 - K[1, 2]) / K[1, 1]
        ray = np.array([(col + 0.5 - K[0, 2] - K[0, 1] * y) / K[0, 0], y, 1.0])
        ray[:2] /= 1 + distortion * (ray[0] ** 2 + ray[1] ** 2)
        # Inverse depth 0 is a direction.
        moved = T[:3, :3] @ ray if rho == 0 else (T[:3, :3] @ (ray / rho) + T[:3, 3]) * rho
        if moved[2] <= NEAREST:
            status[b, row, col] = BEHIND
            continue
        moved /= moved[2]
        straight = math.hypot(moved[0], moved[1])
        if distortion and straight:
            # The d of k m d^2 - d + m = 0, as 2 tanh(x) / (1 - tanh(x)^2) = sinh(2 x).
            root = math.sqrt(-distortion)
            moved[:2] *= math.tanh(math.asinh(2 * root * straight) / 2) / (root * straight)
        u, v, _ = L @ moved
        status[b, row, col] = SEEN if 0 <= u < W and 0 <= v < H else OUTSIDE
        rigid_flow[b, row, col] = torch.tensor([u - (col + 0.5), v - (row + 0.5)])
        residual[b, row, col] = math.hypot(u - (col + 0.5) - du, v - (row + 0.5) - dv)
    return residual, status, rigid_flow


def intrinsics(focal: tuple[float, float], centre: tuple[float, float], skew: float = 0.0) -> Tensor:
    return torch.tensor([[focal[0], skew, centre[0]], [0, focal[1], centre[1]], [0, 0, 1]], dtype=torch.float64)


def problem(shape: tuple[int, int, int], seed: int = 0, move: float = 0.1) -> dict[str, Tensor]:
    """Random depths, flow and cameras; every array of a batch differs, pixels are neither square nor upright."""
    B, H, W = shape
    random = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=random, dtype=torch.float64)

    lenses = [intrinsics((1.1 * W + 2 + k, 0.9 * W + 3), (W / 2 + 0.3 * k, H / 2 - 0.2), 0.5 * k) for k in range(2 * B)]
    return {
        "inv_depth": normal(B, H, W).abs() + 0.05,
        "observed_flow": 4 * normal(B, H, W, 2),
        "K_src": torch.stack(lenses[:B]) if B else torch.zeros(0, 3, 3).double(),
        "K_dst": torch.stack(lenses[B:]) if B else torch.zeros(0, 3, 3).double(),
        "dst_from_src": rigid(so3_exp(0.1 * normal(B, 3)), move * normal(B, 3)),
    }


def run(given: dict[str, Any], backend: Backend = "reference", **more: Any) -> RigidFlow:
    """The operator on the device at hand, its results on the CPU."""
    given = {"tau": TAU_PX, **given, **more}
    device = "cpu" if backend == "reference" else DEVICE
    on: dict[str, Any] = {
        name: value.to(device) if isinstance(value, Tensor) else value for name, value in given.items()
    }
    found = rigid_flow_residual(backend=backend, **on)
    flow = None if found.flow is None else found.flow.cpu()
    return RigidFlow(residual=found.residual.cpu(), mask=found.mask.cpu(), status=found.status.cpu(), flow=flow)


def check(given: dict[str, Tensor], backend: Backend, dtype: torch.dtype, distortion: float = 0.0) -> RigidFlow:
    """All outputs against the loop, which is given the inputs as rounded to dtype."""
    given = {**given, **{name: given[name].to(dtype) for name in ("inv_depth", "observed_flow")}}
    before = {name: value.clone() for name, value in given.items()}
    found = run(given, backend, with_flow=True, distortion=distortion)
    true, status, rigid_flow = expected(*given.values(), distortion=distortion)
    double = dtype == torch.float64
    tolerance = DOUBLE_PX if double else SINGLE_PX
    assert found.residual.dtype == (torch.float64 if double else torch.float32)
    assert found.mask.dtype == torch.bool and found.flow is not None
    assert torch.equal(found.status, status) and torch.equal(found.ahead, status < BEHIND)
    # Points next to the camera's plane land far away: there what counts is relative.
    torch.testing.assert_close(found.residual.double(), true, rtol=tolerance / 10, atol=tolerance)
    torch.testing.assert_close(found.flow.double(), rigid_flow, rtol=tolerance / 10, atol=tolerance)
    certain = (true - TAU_PX).abs() > tolerance
    assert torch.equal(found.mask[certain], ((true > TAU_PX) & (status == SEEN))[certain])
    assert all(torch.equal(value, before[name]) or value.isnan().any() for name, value in given.items())
    return found


@every_backend
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 7), (1, 9, 1), (3, 5, 11), (1, 31, 37), (2, 37, 53), (2, 2, 601)])
def test_random_cameras(shape: tuple[int, int, int], backend: Backend, dtype: torch.dtype) -> None:
    found = check(problem(shape), backend, dtype)
    assert shape != (2, 37, 53) or (found.mask.any() and not found.mask.all())


@every_backend
@pytest.mark.parametrize("distortion", [-0.3, -0.05])
def test_lenses_that_bend(backend: Backend, dtype: torch.dtype, distortion: float) -> None:
    given = problem((2, 13, 29))
    check(given, backend, dtype, distortion)
    straight = run({name: value.float() for name, value in given.items()}).residual
    bends = run({name: value.float() for name, value in given.items()}, distortion=distortion).residual
    assert (straight - bends).abs().max() > 100 * SINGLE_PX


@pytest.mark.parametrize("distortion", [0.1, -1.5, math.nan])
def test_a_lens_that_is_none_is_refused(distortion: float) -> None:
    with pytest.raises(InputError, match="distortion: expected -1 to 0"):
        run(problem((1, 4, 5)), distortion=distortion)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_views_that_are_not_contiguous(backend: Backend) -> None:
    given = {name: value.float() for name, value in problem((2, 12, 10)).items()}
    whole = run(given, backend)
    given["inv_depth"] = given["inv_depth"].transpose(1, 2).contiguous().transpose(1, 2)
    given["observed_flow"] = given["observed_flow"].permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    given["K_src"] = given["K_src"].mT.contiguous().mT
    assert torch.equal(run(given, backend).residual, whole.residual)


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize(
    "view", [lambda flow: flow[::2], lambda flow: flow[:1].expand(3, -1, -1, -1)], ids=["every other", "one for all"]
)
def test_flow_whose_pictures_do_not_lie_side_by_side(view: Callable[[Tensor], Tensor], backend: Backend) -> None:
    flow = view(problem((5, 12, 10), seed=1)["observed_flow"].float())
    check({**problem((3, 12, 10)), "observed_flow": flow}, backend, torch.float32)


def test_exact_flow_leaves_nothing() -> None:
    """The camera moves one unit to the right past a wall two units away: all moves focal / 2 to the left."""
    K = intrinsics((40, 40), (8, 6))[None]
    move = torch.eye(4, dtype=torch.float64)[None].clone()
    move[0, 0, 3] = -1.0
    given = {
        "inv_depth": torch.full((1, 12, 16), 0.5, dtype=torch.float64),
        "observed_flow": torch.tensor([-20.0, 0.0], dtype=torch.float64).expand(1, 12, 16, 2),
        "K_src": K,
        "K_dst": K,
        "dst_from_src": move,
    }
    found = run(given)
    assert found.ahead.all() and float(found.residual.max()) < DOUBLE_PX
    given["observed_flow"] = given["observed_flow"] + torch.tensor([3.0, 4.0])
    torch.testing.assert_close(run(given).residual, torch.full((1, 12, 16), 5.0).double(), rtol=0, atol=DOUBLE_PX)


@every_backend
def test_points_at_infinity_see_rotation_only(backend: Backend, dtype: torch.dtype) -> None:
    given = problem((2, 6, 9))
    given["inv_depth"] = torch.zeros_like(given["inv_depth"])
    found = check(given, backend, dtype)
    assert found.ahead.all()
    given["dst_from_src"][:, :3, 3] *= 50
    assert torch.equal(check(given, backend, dtype).residual, found.residual)


@every_backend
def test_points_behind_the_camera_are_told_and_count_nothing(backend: Backend, dtype: torch.dtype) -> None:
    """The camera walks past half of the points; then past all."""
    given = problem((1, 8, 10))
    given["inv_depth"] = torch.where(torch.arange(10).double() < 5, 0.1, 2.0).double().expand(1, 8, 10).clone()
    given["dst_from_src"] = torch.eye(4, dtype=torch.float64)[None].clone()
    given["dst_from_src"][0, 2, 3] = -2.0
    found = check(given, backend, dtype)
    assert found.ahead[..., :5].all() and (found.status[..., 5:] == BEHIND).all()
    assert not found.residual[..., 5:].any() and not found.mask[..., 5:].any()
    given["dst_from_src"][0, 2, 3] = -100.0
    assert (check(given, backend, dtype).status == BEHIND).all()


@every_backend
def test_a_point_in_the_camera_is_behind_and_not_nan(backend: Backend, dtype: torch.dtype) -> None:
    given = problem((1, 3, 3))
    given["inv_depth"] = torch.full((1, 3, 3), 0.5, dtype=torch.float64)
    given["dst_from_src"] = torch.eye(4, dtype=torch.float64)[None].clone()
    given["dst_from_src"][0, 2, 3] = -2.0
    found = check(given, backend, dtype)
    assert not found.ahead.any() and not found.residual.any()


@every_backend
def test_numbers_that_are_none(backend: Backend, dtype: torch.dtype) -> None:
    given = problem((1, 5, 7))
    for column, value in enumerate((math.nan, math.inf, -math.inf, -1.0)):
        given["inv_depth"][0, 1, column] = value
    for column, value in enumerate((math.nan, math.inf, -math.inf)):
        given["observed_flow"][0, 3, column, column % 2] = value
    found = check(given, backend, dtype)
    assert (found.status == INVALID).sum() == 7


@pytest.mark.parametrize(("backend", "dtype"), [b for b in BACKENDS if b[1] in (torch.float32, torch.float64)])
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e20])
def test_huge_and_tiny_depths(scale: float, backend: Backend, dtype: torch.dtype) -> None:
    given = problem((1, 6, 8))
    given["inv_depth"] = given["inv_depth"] * scale
    given["dst_from_src"][:, :3, 3] = torch.tensor([0.1, -0.2, 0.3]) / scale
    check(given, backend, dtype)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_the_semantic_mask_is_joined_and_tau_is_per_pair(backend: Backend) -> None:
    given = {name: value.float() for name, value in problem((2, 13, 17), move=0.01).items()}
    semantic = torch.rand(2, 13, 17, generator=torch.Generator().manual_seed(1)) > 0.8
    tau = torch.tensor([1.0, 8.0])
    found = run(given, backend, tau=tau, semantic=semantic)
    moves = (found.status == SEEN) & (found.residual > tau[:, None, None])
    assert torch.equal(found.mask, moves | semantic)
    assert found.flow is None
    assert (semantic & ~moves).any() and (moves & ~semantic).any()


def test_many_pixels_take_several_blocks_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vs3r.kernels.rigid_flow.triton_impl.LARGE", 1)
    check(problem((2, 3, 1100)), "triton", torch.float32)


@pytest.mark.needs_cuda
def test_every_run_gives_the_same_bytes_on_a_gpu() -> None:
    given = {name: value.float() for name, value in problem((4, 270, 480)).items()}
    first, *others = (run(given, "triton") for _ in range(20))
    for name in ("residual", "mask", "status"):
        assert all(torch.equal(getattr(other, name), getattr(first, name)) for other in others)


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (2, 4, 0)])
def test_empty(shape: tuple[int, int, int], backend: Backend) -> None:
    found = run({name: value.float() for name, value in problem(shape).items()}, backend)
    assert found.residual.shape == found.status.shape == found.mask.shape == shape


@pytest.mark.parametrize("damage", ["inv_depth", "observed_flow", "K_src", "K_dst", "dst_from_src"])
def test_the_comparison_can_fail(damage: str) -> None:
    """An input that is off by what moves pixels ten tolerances: the loop, given the true one, must object."""
    given = {name: value.float() for name, value in problem((1, 9, 13)).items()}
    true = expected(*given.values())[0]
    given[damage] = given[damage] + 50 * SINGLE_PX
    assert (run(given, "triton").residual - true).abs().max() > 10 * SINGLE_PX


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
        ("tau", (3,)),
        ("semantic", (2, 4)),
    ],
)
def test_a_wrong_shape_is_named(name: str, wrong: tuple[int, ...]) -> None:
    given = {**problem((2, 4, 5)), name: torch.zeros(wrong, dtype=torch.float64)}
    with pytest.raises(ShapeError) as caught:
        run(given)
    message = str(caught.value)
    assert message.startswith(f"{name}: expected (") and str(wrong) in message


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("inv_depth", torch.Tensor.int, "expected dtype float32, float16, bfloat16, float64; got int32"),
        ("semantic", torch.Tensor.float, "expected dtype bool; got float32"),
        ("K_src", lambda t: torch.empty_like(t, device="meta"), "expected device cpu; got meta"),
    ],
)
def test_a_wrong_dtype_or_device_is_named(name: str, change: Callable[[Tensor], Tensor], told: str) -> None:
    given = {**problem((2, 4, 5)), "semantic": torch.zeros(2, 4, 5, dtype=torch.bool)}
    with pytest.raises(ShapeError, match=f"{name}: {told}"):
        rigid_flow_residual(**{**given, name: change(given[name])}, tau=1.0)  # type: ignore[arg-type]


def test_a_backend_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    given = problem((1, 4, 5))
    with pytest.raises(BackendError, match=r"backend triton: expected float32.*got float64"):
        run(given, "triton")
    with pytest.raises(BackendError, match="backend: expected auto, reference or triton; got 'cuda'"):
        run(given, "cuda")  # type: ignore[arg-type]
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match="expected tensors on an NVIDIA GPU; got device cpu"):
        rigid_flow_residual(**{k: v.float() for k, v in given.items()}, tau=1.0, backend="triton")  # type: ignore[arg-type]
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(BackendError, match="the package triton; it is not installed"):
        rigid_flow_residual(**{k: v.float() for k, v in given.items()}, tau=1.0, backend="triton")  # type: ignore[arg-type]

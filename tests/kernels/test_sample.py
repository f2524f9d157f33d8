"""Backward sampling: the reference against OpenCV, the Triton kernel against the reference in double precision."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from tests.kernels.common import DEVICE, LENSES, VIEW_K, converted, ignores_numpy_warnings, poses
from vs3r.errors import InputError, ShapeError
from vs3r.geometry import rigid, so3_exp
from vs3r.kernels.camera import SourceCameras, View
from vs3r.kernels.dispatch import Backend
from vs3r.kernels.sample import Sampled, SamplePictures, sample_backward
from vs3r.kernels.sample.reference import _bicubic

pytestmark = ignores_numpy_warnings

# Of the pictures' range, against the reference in double precision. Worst seen: float32 7e-6; float16 and integers one
# step, where a value lies on the edge between two.
TOLERANCE = {torch.float32: 5e-5, torch.float16: 2e-3, torch.uint16: 1.5 / 1023, torch.uint8: 1.5 / 255}
OTHER = 0.003
"""Share of pixels that may be of another source: points on the edge of a picture, or of the depth tolerance."""


@pytest.fixture(autouse=True)
def _large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's cost is per program."""
    if DEVICE == "cpu":
        monkeypatch.setattr("vs3r.kernels.sample.triton_impl.ROWS", 32)


def view_of(width: int = 41, height: int = 31, model: str = "pinhole", parameters: tuple[float, ...] = ()) -> View:
    turned = poses(1, turn=0.05, move=0.05, seed=7)[0]
    return View(K=VIEW_K, cam_from_world=turned, width=width, height=height, model=model, parameters=parameters)


def problem(
    shape: tuple[int, int, int, int] = (3, 23, 37, 2), dtype: torch.dtype = torch.float32, **more: Any
) -> tuple[torch.Tensor, SamplePictures]:
    """The view's inverse depth, and pictures of noise from beside one another."""
    random = torch.Generator().manual_seed(sum(shape))
    S, H, W, _ = shape
    peak = 1023 if dtype == torch.uint16 else 255 if dtype == torch.uint8 else 1
    given = {
        "pictures": (torch.rand(shape, generator=random) * peak).to(dtype),
        "cameras": SourceCameras(
            K=torch.tensor([[W, 0.3, W / 2], [0, 0.9 * W, H / 2], [0, 0, 1]]).double().expand(S, 3, 3),
            cam_from_world=poses(S, turn=0.15, move=0.2),
        ),
        "inv_depth": 0.5 + 0.1 * torch.rand(S, 5, 8, generator=random).double(),
        "dynamic": torch.rand(S, 5, 8, generator=random) > 0.6,
        "peak": 1023.0 if dtype == torch.uint16 else None,
    }
    inv_depth = 0.5 + 0.1 * torch.rand(6, 7, generator=random).double()
    return inv_depth, SamplePictures(**{**given, **more})


def compare(inv_depth: torch.Tensor, view: View, sources: SamplePictures, **more: Any) -> tuple[Sampled, Sampled]:
    """Triton's answer and the reference's in double precision, on the CPU."""
    rounded = converted(sources, torch.float32)
    single = inv_depth.float().to(DEVICE)
    found = sample_backward(single, converted(view, torch.float64), sources=rounded, backend="triton", **more)
    true = sample_backward(
        inv_depth.float().double(),
        view,
        sources=replace(sources, inv_depth=sources.inv_depth.float().double()),
        backend="reference",
        **more,
    )
    return Sampled(picture=found.picture.cpu(), source=found.source.cpu()), true


def agree(found: Sampled, true: Sampled, dtype: torch.dtype) -> None:
    assert found.picture.dtype == true.picture.dtype == dtype
    same = found.source == true.source
    assert (~same).double().mean() <= OTHER
    assert not found.picture.double()[found.source < 0].any()
    peak = {torch.uint8: 255, torch.uint16: 1023}.get(dtype, 1)
    error = (found.picture.double()[same] - true.picture.double()[same]).abs()
    assert not error.numel() or error.max() <= TOLERANCE[dtype] * peak
    if not dtype.is_floating_point:
        assert (found.picture.double()[same] != true.picture.double()[same]).double().mean() < 0.01


@pytest.mark.parametrize(("model", "parameters"), LENSES)
def test_every_lens(model: str, parameters: tuple[float, ...]) -> None:
    found, true = compare(problem()[0], view_of(model=model, parameters=parameters), problem()[1])
    assert set(true.source.flatten().tolist()) == {-1, 0, 1, 2}
    agree(found, true, torch.float32)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_dtype(dtype: torch.dtype) -> None:
    inv_depth, sources = problem(dtype=dtype)
    agree(*compare(inv_depth, view_of(), sources), dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_depths_of_few_bits(dtype: torch.dtype) -> None:
    inv_depth, sources = problem()
    inv_depth, sources = inv_depth.to(dtype), replace(sources, inv_depth=sources.inv_depth.to(dtype))
    found = sample_backward(
        inv_depth.to(DEVICE), converted(view_of(), torch.float64), sources=converted(sources, dtype), backend="triton"
    )
    found = Sampled(picture=found.picture.cpu(), source=found.source.cpu())
    agree(found, compare(inv_depth.double(), view_of(), sources)[1], torch.float32)


@pytest.mark.needs_cuda
def test_every_run_gives_the_same_bytes_on_a_gpu() -> None:
    inv_depth, sources = problem((3, 540, 960, 1), torch.uint8)
    given, view = converted(sources, torch.float32), converted(view_of(960, 540), torch.float64)
    view = replace(view, K=given.cameras.K[0])
    first, *others = (
        sample_backward(inv_depth.float().to(DEVICE), view, sources=given, backend="triton") for _ in range(20)
    )
    assert (first.source >= 0).any()
    assert all(torch.equal(o.picture, first.picture) and torch.equal(o.source, first.source) for o in others)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 7, 3), (1, 9, 1, 1), (5, 13, 11, 1)])
@pytest.mark.parametrize("size", [(1, 1), (17, 1), (7, 13)])
def test_awkward_sizes(shape: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    inv_depth, sources = problem(shape, dynamic=None)
    view = replace(view_of(*size), K=torch.tensor([[9.0, 0, size[0] / 2], [0, 9, size[1] / 2], [0, 0, 1]]).double())
    agree(*compare(inv_depth, view, sources, margin_px=-2.0), torch.float32)


def test_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vs3r.kernels.sample.triton_impl.ROWS", 4)
    inv_depth, sources = problem((2, 60, 150, 1))
    view = replace(view_of(140, 10), K=torch.tensor([[160.0, 0, 70], [0, 160, 5], [0, 0, 1]]).double())
    found, true = compare(inv_depth, view, sources, margin_px=-99.0, depth_tolerance=1.0)
    assert (true.source[5:, 128:] >= 0).all()
    agree(found, true, torch.float32)


def rolling(sources: SamplePictures) -> SamplePictures:
    """With a camera that moves and turns steadily while it reads: pictures are displaced by about a pixel."""
    S, H, _, _ = sources.pictures.shape
    s = torch.linspace(-0.5, 0.5, H, dtype=torch.float64)[None, :, None]
    drift = rigid(so3_exp(s * torch.tensor([0.04, -0.03, 0.03])), s * torch.tensor([-0.06, 0.05, 0.04])).double()
    rows = drift.expand(S, H, 4, 4) @ sources.cameras.cam_from_world[:, None]
    return replace(sources, cameras=replace(sources.cameras, cam_from_world=rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_rolling_shutters(dtype: torch.dtype) -> None:
    inv_depth, still = problem(dtype=dtype)
    sources = rolling(still)
    found, true = compare(inv_depth, view_of(), sources)
    assert set(true.source.flatten().tolist()) == {-1, 0, 1, 2}
    agree(found, true, dtype)
    as_if = sample_backward(inv_depth, view_of(), sources=still)
    assert (as_if.picture != true.picture).double().mean() > 0.2, "the rows' poses must matter"
    steady = still.cameras.cam_from_world[:, None].expand(3, 23, 4, 4)
    same = replace(still, cameras=replace(still.cameras, cam_from_world=steady))
    torch.testing.assert_close(sample_backward(inv_depth, view_of(), sources=same).picture, as_if.picture)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_rolling_shutter_by_bisection(backend: Backend) -> None:
    """The row that sees a point, found by halving. Worst seen: 1e-4 of the picture's range, what three steps leave."""
    sources, view = rolling(problem((1, 23, 37, 1), dynamic=None)[1]), view_of()
    flat = torch.full((6, 7), 0.5, dtype=torch.float64)
    given = converted(replace(sources, inv_depth=torch.full_like(sources.inv_depth, 0.5)), torch.float32)
    seen = sample_backward(
        flat.float().to(DEVICE), converted(view, torch.float64), sources=given, depth_tolerance=1.0, backend=backend
    )
    v, u = torch.meshgrid(torch.arange(31) + 0.5, torch.arange(41) + 0.5, indexing="ij")
    ray = torch.stack([u, v, torch.ones_like(u)], -1).double() @ torch.linalg.inv(VIEW_K).T
    point = torch.cat([2 * ray, torch.ones(31, 41, 1)], -1) @ torch.linalg.inv(view.cam_from_world).T
    low, high = torch.zeros(31, 41).double(), torch.full((31, 41), 23.0).double()
    for _ in range(40):
        row = (low + high) / 2
        at = (row - 0.5).clamp(0, 22)
        above = at.long()
        rows = sources.cameras.cam_from_world[0]
        pose = torch.lerp(rows[above], rows[(above + 1).clamp_max(22)], (at - above)[..., None, None])
        x, y, z = ((pose @ point[..., None]).squeeze(-1)[..., :3] @ sources.cameras.K[0].T).unbind(-1)
        low, high = torch.where(y / z > row, row, low), torch.where(y / z > row, high, row)
    shown = (seen.source == 0).cpu()
    inside = (x / z > 0) & (x / z < 37) & (y / z > 0) & (y / z < 23)
    assert shown.any() and (shown != inside).double().mean() < OTHER
    both = shown & inside
    true = _bicubic(sources.pictures[0], (x / z)[both], row[both])
    assert (seen.picture.cpu().double()[both] - true).abs().max() < 5e-4


def test_nobody_sees() -> None:
    inv_depth, sources = problem()
    behind = sources.cameras.cam_from_world.clone()
    behind[:, 2, 3] -= 1000
    away = replace(sources, cameras=replace(sources.cameras, cam_from_world=behind))
    for depth, given in ((inv_depth, away), (inv_depth * math.nan, sources), (-inv_depth, sources)):
        found, true = compare(depth, view_of(), given)
        assert (true.source == -1).all()
        agree(found, true, torch.float32)


def test_numbers_that_are_none_and_depths_that_are_extreme() -> None:
    inv_depth, sources = problem()
    inv_depth[1:3, 2], inv_depth[4, 4], inv_depth[0, 0] = math.nan, math.inf, -math.inf
    inv_depth[5, 5], inv_depth[5, 1] = 1e30, 1e-30
    sources.inv_depth[0, 1, 3], sources.inv_depth[1, 2, 2], sources.inv_depth[2, 3] = math.nan, math.inf, 1e-30
    found, true = compare(inv_depth, view_of(), sources)
    assert (true.source >= 0).any()
    agree(found, true, torch.float32)


def looking_back(width: int, height: int) -> tuple[View, SourceCameras]:
    """A view and a source at the same place, the view 3 pixels to the right of the source and 2 up."""
    K = torch.tensor([[50.0, 0, width / 2], [0, 50, height / 2], [0, 0, 1]], dtype=torch.float64)
    shifted = K.clone()
    shifted[0, 2] += 3.0
    shifted[1, 2] -= 2.0
    still = torch.eye(4, dtype=torch.float64)
    return View(K=shifted, cam_from_world=still, width=width, height=height), SourceCameras(
        K=K[None], cam_from_world=still[None]
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_whole_pixels_are_copied(dtype: torch.dtype) -> None:
    view, cameras = looking_back(20, 15)
    inv_depth, sources = problem((1, 15, 20, 1), dtype, cameras=cameras, dynamic=None)
    for sampled in compare(inv_depth, view, sources, depth_tolerance=1.0):
        copied = sampled.picture.int()[:13, 3:]
        assert torch.equal(copied, sources.pictures[0].int()[2:, :17])
        assert (sampled.source[:13, 3:] == 0).all() and (sampled.source[13:] == -1).all()


def test_between_pixels_it_is_opencvs_bicubic() -> None:
    """Shifts of 1/32 px, OpenCV's own step. Worst seen 2e-6."""
    view, cameras = looking_back(40, 30)
    inv_depth, sources = problem((1, 30, 40, 1), cameras=cameras, dynamic=None)
    K = view.K.clone()
    K[0, 2] += 5 / 32
    K[1, 2] -= 11 / 32
    x, y = np.meshgrid(np.arange(40) - 3 - 5 / 32, np.arange(30) + 2 + 11 / 32)
    maps = x.astype(np.float32), y.astype(np.float32)
    peer = cv2.remap(sources.pictures[0, ..., 0].numpy(), *maps, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    for sampled in compare(inv_depth, replace(view, K=K), sources, margin_px=-9.0, depth_tolerance=1.0):
        assert (sampled.source == 0).all()
        assert np.abs(sampled.picture[..., 0].numpy() - peer).max() < 2e-5


def test_an_overshoot_stops_at_the_peak() -> None:
    view, cameras = looking_back(20, 15)
    bars = torch.zeros(1, 15, 20, 1, dtype=torch.int32)
    bars[:, :, ::4] = bars[:, :, 1::4] = 1023
    inv_depth, sources = problem((1, 15, 20, 1), torch.uint16, cameras=cameras, dynamic=None)
    K = view.K.clone()
    K[0, 2] += 0.5
    sources = replace(sources, pictures=bars.to(torch.uint16))
    for sampled in compare(inv_depth, replace(view, K=K), sources, depth_tolerance=1.0):
        assert sampled.picture.int().max() == 1023
    for sampled in compare(inv_depth, replace(view, K=K), replace(sources, peak=None), depth_tolerance=1.0):
        assert sampled.picture.int().max() > 1023


def test_what_a_source_does_not_see_comes_from_the_next() -> None:
    """A near post hides the middle of a wall from the first source; part of the second moves."""
    view, _ = looking_back(40, 30)
    K = torch.tensor([[50.0, 0, 20], [0, 50, 15], [0, 0, 1]], dtype=torch.float64).expand(3, 3, 3)
    aside = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    aside[1, 0, 3] = 0.016
    post = torch.full((3, 30, 40), 0.5, dtype=torch.float64)
    post[0, :, 15:25] = 2.0
    moving = torch.zeros(3, 30, 40, dtype=torch.bool)
    moving[1, :, 18:22] = True
    moving[0] = True  # which says nothing: the first source is the frame itself
    pictures = torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None, None].expand(3, 30, 40, 1)
    cameras = SourceCameras(K=K, cam_from_world=aside)
    sources = SamplePictures(pictures=pictures, cameras=cameras, inv_depth=post, dynamic=moving)
    wall = torch.full((30, 40), 0.5, dtype=torch.float64)
    for sampled in compare(wall, replace(view, K=K[0]), sources):
        line = sampled.source[15].tolist()
        # The wall is 50 px * 0.016 * 0.5 = 0.4 px to the right in the second source: pixels stay in their cells.
        assert line == [0] * 15 + [1] * 3 + [2] * 4 + [1] * 3 + [0] * 15
        assert torch.equal(sampled.picture[..., 0].int(), 10 + 10 * sampled.source)


@pytest.mark.parametrize("damage", ["inv_depth", "pictures", "K", "cam_from_world"])
def test_the_comparison_can_fail(damage: str) -> None:
    inv_depth, sources = problem()
    _, true = compare(inv_depth, view_of(), sources)
    if damage == "inv_depth":
        inv_depth = inv_depth * 1.05
    elif damage == "pictures":
        sources = replace(sources, pictures=sources.pictures + 10 * TOLERANCE[torch.float32])
    else:
        changed = getattr(sources.cameras, damage) * 1.0
        changed[:, 0, 2 if damage == "K" else 3] += 0.01
        sources = replace(sources, cameras=replace(sources.cameras, **{damage: changed}))
    found, _ = compare(inv_depth, view_of(), sources)
    with pytest.raises(AssertionError):
        agree(found, true, torch.float32)


def test_what_makes_no_sense_is_refused() -> None:
    inv_depth, sources = problem()
    for name, value, told in (
        ("pictures", torch.zeros(3, 4, 5), r"sources.pictures: expected \(S, H, W, C\); got \(3, 4, 5\)"),
        ("pictures", sources.pictures.int(), "sources.pictures: expected dtype uint8, uint16.*got int32"),
        ("inv_depth", sources.inv_depth[1:], r"sources.inv_depth: expected \(3, h, w\); got \(2, 5, 8\)"),
        ("inv_depth", sources.inv_depth.to("meta"), "sources.inv_depth: expected device cpu; got meta"),
        (
            "cameras",
            replace(sources.cameras, cam_from_world=torch.eye(4).expand(3, 22, 4, 4)),
            r"cameras.cam_from_world: expected \(3, 23, 4, 4\); got \(3, 22, 4, 4\)",
        ),
        ("dynamic", torch.zeros(3, 5, 7, dtype=torch.bool), r"sources.dynamic: expected \(3, 5, 8\)"),
    ):
        with pytest.raises(ShapeError, match=told):
            sample_backward(inv_depth, view_of(), sources=replace(sources, **{name: value}))  # type: ignore[arg-type]
    vast = torch.zeros(1, dtype=torch.uint8).expand(3, 2**16, 2**15, 1)
    with pytest.raises(
        ShapeError, match=r"sources.pictures: expected at most 2147483647 samples in each; got 21474836"
    ):
        sample_backward(inv_depth, view_of(), sources=replace(sources, pictures=vast))
    with pytest.raises(InputError, match="depth_tolerance: expected at least 0; got -1"):
        sample_backward(inv_depth, view_of(), sources=sources, depth_tolerance=-1)
    with pytest.raises(InputError, match=r"sources.pictures: expected at least one element"):
        sample_backward(inv_depth, view_of(), sources=problem((3, 0, 5, 1))[1])

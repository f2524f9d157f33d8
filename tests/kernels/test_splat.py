"""Splatting: the reference against loops over points, the Triton kernels against the reference in double precision."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kernels.common import DEVICE, LENSES, VIEW_K, converted, ignores_numpy_warnings, poses
from vs3r.cameras import Division
from vs3r.errors import InputError, ShapeError
from vs3r.kernels.camera import SourceCameras, View
from vs3r.kernels.dispatch import Backend
from vs3r.kernels.splat import Alpha, DepthPoints, Nearest, Splat, WorldPoints, splat_points

pytestmark = ignores_numpy_warnings

# Against the reference in double precision, inputs rounded alike. Worst seen: attributes 1e-5 of the largest; depth
# 3e-7 of it; no pixel of another source.
ATTRIBUTES = 1e-4
DEPTH = 4e-6
OTHER = 0.005
"""Share of pixels that may differ in source or validity: points at the edge of their footprint, or of equal depth."""

BLENDINGS: list[Nearest | Alpha] = [Nearest(), Nearest(depth_tolerance=0.3), Alpha(radius=0.08, points_per_pixel=2)]


@pytest.fixture(autouse=True)
def _large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's cost is per program."""
    if DEVICE == "cpu":
        for name, length in (("impl.ROWS", 16), ("impl.COLUMNS", 32), ("place.WORLD_WIDTH", 31)):
            monkeypatch.setattr(f"vs3r.kernels.splat.triton_{name}", length)


def view_of(width: int = 37, height: int = 29, model: str = "pinhole", parameters: tuple[float, ...] = ()) -> View:
    return View(
        K=VIEW_K.to(DEVICE),
        cam_from_world=poses(1, turn=0.05, move=0.05, seed=7)[0].to(DEVICE),
        width=width,
        height=height,
        model=model,
        parameters=parameters,
    )


def depth_points(shape: tuple[int, int, int] = (3, 17, 23), *, channels: int = 2, **more: Any) -> DepthPoints:
    """Sources beside one another before a rough wall, a third of it moving."""
    random = torch.Generator().manual_seed(sum(shape))
    S, H, W = shape
    K = torch.tensor([[1.2 * W, 0.3, W / 2], [0, 1.1 * W, H / 2], [0, 0, 1]], dtype=torch.float64)
    given = {
        "inv_depth": 0.4 + 0.3 * torch.rand(S, H, W, generator=random, dtype=torch.float64),
        "cameras": SourceCameras(K=K.expand(S, 3, 3), cam_from_world=poses(S, turn=0.1, move=0.2)),
        "attributes": torch.randn(S, H, W, channels, generator=random, dtype=torch.float64),
        "valid": torch.rand(S, H, W, generator=random) > 0.1,
        "dynamic": torch.rand(S, H, W, generator=random) > 0.7,
        "current": min(1, S - 1),
    }
    return DepthPoints(**{**given, **more})


def world_points(count: int = 211, **more: Any) -> WorldPoints:
    random = torch.Generator().manual_seed(count)
    xyz = torch.randn(count, 3, generator=random, dtype=torch.float64)
    given = {
        "xyz": xyz + torch.tensor([0, 0, 2.0]),
        "attributes": torch.randn(count, 3, generator=random, dtype=torch.float64),
        "valid": torch.rand(count, generator=random) > 0.1,
        "dynamic": torch.rand(count, generator=random) > 0.5,
        "source": torch.randint(0, 4, (count,), generator=random, dtype=torch.int32),
        "current": 2,
    }
    return WorldPoints(**{**given, **more})


def compare(
    points: DepthPoints | WorldPoints, view: View, blending: Nearest | Alpha, dtype: torch.dtype = torch.float32
) -> tuple[Splat, Splat]:
    """Triton's answer and the reference's in double precision, to inputs of the same rounding."""
    rounded = converted(points, dtype)
    found = splat_points(rounded, view, blending=blending, backend="triton")
    return found, splat_points(_widened(rounded), view, blending=blending, backend="reference")


def _widened(points: Any) -> Any:
    """All floats in double precision."""
    parts = ("inv_depth", "xyz", "attributes")
    wide = {name: part.double() for name in parts if (part := getattr(points, name, None)) is not None}
    return replace(points, **wide)


def agree(found: Splat, true: Splat) -> None:
    same = (found.valid == true.valid) & (found.source == true.source)
    assert (~same).double().mean() <= OTHER
    assert torch.equal(found.source >= 0, found.valid)
    assert found.depth.dtype == torch.float32 and found.depth.isfinite().all()
    assert not found.depth[~found.valid].any()
    torch.testing.assert_close(found.depth.double()[same], true.depth[same], rtol=DEPTH, atol=0)
    assert (found.attributes is None) == (true.attributes is None)
    if found.attributes is not None and true.attributes is not None:
        assert found.attributes.isfinite().all()
        largest = float(true.attributes.abs().max()) if true.valid.any() else 1.0
        error = (found.attributes.double()[same] - true.attributes[same]).abs()
        assert not error.numel() or error.max() <= ATTRIBUTES * largest


@pytest.mark.parametrize(("model", "parameters"), LENSES)
@pytest.mark.parametrize("blending", BLENDINGS)
def test_every_lens(model: str, parameters: tuple[float, ...], blending: Nearest | Alpha) -> None:
    found, true = compare(depth_points(), view_of(model=model, parameters=parameters), blending)
    assert 0.3 < true.valid.double().mean() < 1 and set(true.source.flatten().tolist()) == {-1, 0, 1, 2}
    agree(found, true)


@pytest.mark.parametrize("blending", BLENDINGS)
def test_sources_seen_through_a_lens(blending: Nearest | Alpha) -> None:
    """As the points that the lens's rays reach, and the kernels as the reference."""
    points = depth_points()
    points = replace(points, cameras=replace(points.cameras, distortion=-0.3))
    found, true = compare(points, view_of(), blending)
    agree(found, true)
    S, H, W = points.inv_depth.shape
    pixels = np.stack(np.meshgrid(np.arange(W) + 0.5, np.arange(H) + 0.5), -1)
    xyz = []
    for K, pose, inv_depth in zip(points.cameras.K, points.cameras.cam_from_world, points.inv_depth, strict=True):
        rays, _ = Division(K=K.numpy(), distortion=-0.3).unproject(pixels)
        seen = torch.from_numpy(rays / rays[..., 2:]) / inv_depth[..., None]
        xyz.append((seen - pose[:3, 3]) @ pose[:3, :3])
    assert points.attributes is not None and points.valid is not None and points.dynamic is not None
    world = WorldPoints(
        xyz=torch.stack(xyz).reshape(-1, 3),
        attributes=points.attributes.flatten(0, 2),
        valid=points.valid.flatten(),
        dynamic=points.dynamic.flatten(),
        source=torch.arange(S, dtype=torch.int32).repeat_interleave(H * W),
        current=points.current,
    )
    by_rays = splat_points(converted(world, torch.float64), view_of(), blending=blending, backend="reference")
    assert torch.equal(by_rays.source, true.source)
    torch.testing.assert_close(by_rays.attributes, true.attributes, rtol=0, atol=1e-6)
    straight = splat_points(
        replace(converted(points, torch.float64), cameras=replace(points.cameras, distortion=0.0)),
        view_of(), blending=blending, backend="reference",
    )  # fmt: skip
    assert (straight.source != true.source).double().mean() > 0.1


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 7), (2, 5, 1), (7, 3, 11), (1, 31, 37)])
@pytest.mark.parametrize("size", [(1, 1), (13, 7), (1, 29)])
def test_awkward_sizes(shape: tuple[int, int, int], size: tuple[int, int]) -> None:
    for blending in BLENDINGS[1:]:
        agree(*compare(depth_points(shape), view_of(*size), blending))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("blending", BLENDINGS[1:])
def test_every_dtype(dtype: torch.dtype, blending: Nearest | Alpha) -> None:
    agree(*compare(depth_points(), view_of(), blending, dtype))
    agree(*compare(world_points(), view_of(), blending, dtype))
    colours = (depth_points().inv_depth[..., None] * 255).to(torch.uint8)
    found, true = compare(depth_points(attributes=colours), view_of(), blending, dtype)
    assert true.attributes is not None and true.attributes.max() > 100
    agree(found, true)


@pytest.mark.parametrize("blending", BLENDINGS[1:])
def test_points_by_coordinates(blending: Nearest | Alpha) -> None:
    for name in ("valid", "dynamic", "source", "attributes"):
        agree(*compare(replace(world_points(), **{name: None}), view_of(), blending))  # type: ignore[arg-type]
    agree(*compare(depth_points(attributes=None, valid=None, dynamic=None), view_of(), blending))


@pytest.mark.parametrize("blending", BLENDINGS[1:])
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_nothing_to_draw(blending: Nearest | Alpha, backend: Backend) -> None:
    given = depth_points()
    behind = given.cameras.cam_from_world.clone()
    behind[:, 2, 3] += 100  # the sources, and what they see, are far behind the view
    for nothing in (
        replace(given, valid=torch.zeros(3, 17, 23, dtype=torch.bool)),
        replace(given, cameras=replace(given.cameras, cam_from_world=behind)),
        replace(given, dynamic=torch.ones(3, 17, 23, dtype=torch.bool), current=9),
        depth_points((0, 17, 23), current=0),
        depth_points((2, 0, 5)),
        world_points(0),
    ):
        splat = splat_points(converted(nothing, torch.float32), view_of(), blending=blending, backend=backend)
        assert not splat.valid.any() and not splat.depth.any() and (splat.source == -1).all()
        assert splat.attributes is not None and splat.attributes.shape[:2] == (29, 37) and not splat.attributes.any()


@pytest.mark.parametrize("blending", BLENDINGS[1:])
def test_numbers_that_are_none(blending: Nearest | Alpha) -> None:
    points = depth_points()
    assert points.attributes is not None
    for column, value in enumerate((math.nan, math.inf, -math.inf, -1.0, 0.0)):
        points.inv_depth[:, 3:5, column::7] = value
        points.attributes[:, column, :, 0] = value
    agree(*compare(points, view_of(), blending))
    cloud = world_points()
    cloud.xyz[::5, 1], cloud.xyz[1::5, 2] = math.nan, math.inf
    agree(*compare(cloud, view_of(), blending))


@pytest.mark.parametrize("blending", BLENDINGS[1:])
@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
def test_huge_and_tiny_depths(blending: Nearest | Alpha, scale: float) -> None:
    points = depth_points()
    moved = points.cameras.cam_from_world.clone()
    moved[:, :3, 3] *= scale
    points = replace(points, inv_depth=points.inv_depth / scale, cameras=replace(points.cameras, cam_from_world=moved))
    view = view_of(model="unified", parameters=(0.6,))
    turned = view.cam_from_world.clone()
    turned[:3, 3] *= scale
    found, true = compare(points, replace(view, cam_from_world=turned), blending)
    assert true.valid.double().mean() > 0.3
    agree(found, true)


@pytest.mark.parametrize("blending", BLENDINGS)
def test_rolling_shutters(blending: Nearest | Alpha) -> None:
    """A pose per row, against the points where the rows' cameras saw them."""
    S, H, W = 3, 17, 23
    global_shutter = depth_points((S, H, W))
    drift = poses(S * H, turn=0.05, move=0.1, seed=3).view(S, H, 4, 4)
    rows = drift @ global_shutter.cameras.cam_from_world[:, None]
    K = global_shutter.cameras.K
    points = replace(global_shutter, cameras=SourceCameras(K=K, cam_from_world=rows))
    found, true = compare(points, view_of(), blending)
    agree(found, true)
    v, u = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    ray = torch.stack([u, v, torch.ones_like(u)], -1).double() @ torch.linalg.inv(K[0]).T
    there = ray / points.inv_depth[..., None]
    world_from_row = torch.linalg.inv(rows)[:, :, None]
    world = (world_from_row[..., :3, :3] @ there[..., None]).squeeze(-1) + world_from_row[..., :3, 3]
    assert points.attributes is not None and points.valid is not None and points.dynamic is not None
    explicit = WorldPoints(
        xyz=world.reshape(-1, 3),
        attributes=points.attributes.flatten(0, 2),
        valid=points.valid.flatten(),
        dynamic=points.dynamic.flatten(),
        source=torch.arange(S, dtype=torch.int32).repeat_interleave(H * W),
        current=points.current,
    )
    agree(splat_points(converted(explicit, torch.float32), view_of(), blending=blending, backend="reference"), true)
    still = splat_points(_widened(converted(global_shutter, torch.float32)), view_of(), blending=blending)
    assert (still.source != true.source).double().mean() > 0.1, "the rows' poses must matter"


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("blending", BLENDINGS[1:])
def test_of_equal_depths_the_first_wins(blending: Nearest | Alpha, backend: Backend) -> None:
    """Ten times the same wall of depth 2, seen from where it was taken."""
    inv_depth = torch.full((10, 29, 37), 0.5, dtype=torch.float64)
    still = torch.eye(4, dtype=torch.float64).expand(10, 4, 4)
    cameras = SourceCameras(K=VIEW_K.expand(10, 3, 3), cam_from_world=still)
    view = replace(view_of(), cam_from_world=still[0].to(DEVICE))
    points = converted(depth_points((10, 29, 37), inv_depth=inv_depth, cameras=cameras, current=4), torch.float32)
    assert points.valid is not None and points.dynamic is not None
    splat = splat_points(points, view, blending=blending, backend=backend)
    if isinstance(blending, Nearest):
        drawn = points.valid & (~points.dynamic | (torch.arange(10, device=DEVICE) == 4)[:, None, None])
        first = drawn.int().argmax(0).int()
        assert torch.equal(splat.source, torch.where(drawn.any(0), first, -1))
    torch.testing.assert_close(splat.depth[splat.valid], torch.full_like(splat.depth[splat.valid], 2.0))


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("blending", BLENDINGS[1:])
def test_every_run_gives_the_same_bytes(blending: Nearest | Alpha, backend: Backend) -> None:
    points = converted(depth_points(), torch.float32)
    first, again = (splat_points(points, view_of(), blending=blending, backend=backend) for _ in range(2))
    for name in ("attributes", "depth", "valid", "source"):
        assert torch.equal(getattr(first, name), getattr(again, name))


@pytest.mark.needs_cuda
@pytest.mark.parametrize("blending", BLENDINGS)
def test_many_points_give_the_same_bytes_on_a_gpu(blending: Nearest | Alpha) -> None:
    points = converted(depth_points((8, 270, 480), channels=3), torch.float32)
    view = replace(view_of(480, 270), K=points.cameras.K[0])
    first = splat_points(points, view, blending=blending, backend="triton")
    for _ in range(20):
        again = splat_points(points, view, blending=blending, backend="triton")
        assert all(torch.equal(getattr(first, n), getattr(again, n)) for n in ("attributes", "depth", "source"))


def landed(points: WorldPoints, view: View) -> list[tuple[float, float, float, int]]:
    """Pixel, depth and number of the points that are to be drawn, nearest first."""
    out = []
    T, K = view.cam_from_world.cpu().numpy(), view.K.cpu().numpy()
    for number in range(points.count):
        assert points.valid is not None and points.dynamic is not None and points.source is not None
        moves = bool(points.dynamic[number]) and int(points.source[number]) != points.current
        x = T[:3, :3] @ points.xyz[number].numpy() + T[:3, 3]
        if bool(points.valid[number]) and not moves and x[2] > 0:
            u, v, _ = K @ x / x[2]
            out.append((float(u), float(v), float(x[2]), number))
    return sorted(out, key=lambda item: (np.float32(item[2]), item[3]))


def test_the_nearest_surface_by_hand() -> None:
    points, view, tolerance = world_points(400), view_of(9, 7), 0.3
    splat = splat_points(points, replace(view, K=view.K.cpu(), cam_from_world=view.cam_from_world.cpu()),
                         blending=Nearest(depth_tolerance=tolerance))  # fmt: skip
    assert points.attributes is not None and points.source is not None and splat.attributes is not None
    for row, column in np.ndindex(7, 9):
        near = [
            (w, z, n)
            for u, v, z, n in landed(points, view)
            if (w := max(0.0, 1 - abs(u - column - 0.5)) * max(0.0, 1 - abs(v - row - 0.5))) >= 1 / 16
        ]
        assert bool(splat.valid[row, column]) == bool(near)
        if near:
            same = [item for item in near if item[1] <= near[0][1] * (1 + tolerance)]
            total = sum(w for w, _, _ in same)
            mean = sum(w * points.attributes[n] for w, _, n in same) / total
            torch.testing.assert_close(splat.attributes[row, column], mean, rtol=0, atol=1e-6)
            assert float(splat.depth[row, column]) == pytest.approx(sum(w * z for w, z, _ in same) / total, rel=1e-6)
            assert int(splat.source[row, column]) == int(points.source[near[0][2]])


def test_discs_by_hand() -> None:
    """PyTorch3D's rules: centres nearer than the radius, the k nearest in depth, opacity 1 - d^2 / r^2."""
    points, view, blending = world_points(400), view_of(9, 7), Alpha(radius=0.4, points_per_pixel=2)
    splat = splat_points(
        points, replace(view, K=view.K.cpu(), cam_from_world=view.cam_from_world.cpu()), blending=blending
    )
    assert points.attributes is not None and points.source is not None and splat.attributes is not None
    r2, deepest = (0.4 * 7 / 2) ** 2, 0
    for row, column in np.ndindex(7, 9):
        discs = [
            (d2, z, n)
            for u, v, z, n in landed(points, view)
            if (d2 := (u - column - 0.5) ** 2 + (v - row - 0.5) ** 2) < r2
        ]
        deepest = max(deepest, len(discs))
        through, value = 1.0, torch.zeros(3, dtype=torch.float64)
        for d2, _, number in discs[:2]:
            value += through * (1 - d2 / r2) * points.attributes[number]
            through *= d2 / r2
        torch.testing.assert_close(splat.attributes[row, column], value, rtol=0, atol=1e-12)
        assert bool(splat.valid[row, column]) == bool(discs)
        if discs:
            assert float(splat.depth[row, column]) == pytest.approx(discs[0][1], rel=1e-6)
            assert int(splat.source[row, column]) == int(points.source[discs[0][2]])
    assert deepest > 2


@pytest.mark.parametrize("blending", BLENDINGS[1:])
@pytest.mark.parametrize("damage", ["inv_depth", "attributes", "K", "cam_from_world"])
def test_the_comparison_can_fail(damage: str, blending: Nearest | Alpha) -> None:
    points, view = depth_points(), view_of()
    if damage in ("K", "cam_from_world"):
        changed = getattr(points.cameras, damage) * 1.0
        changed[:, 0, 2 if damage == "K" else 3] += 0.02
        wrong = replace(points, cameras=replace(points.cameras, **{damage: changed}))
    else:
        wrong = replace(points, **{damage: getattr(points, damage) + 50 * ATTRIBUTES})
    found = splat_points(converted(wrong, torch.float32), view, blending=blending, backend="triton")
    _, true = compare(points, view, blending)
    with pytest.raises(AssertionError):
        agree(found, true)


def wrong(name: str, value: Tensor) -> DepthPoints:
    return replace(depth_points(), **{name: value})  # type: ignore[arg-type]


def test_what_makes_no_sense_is_refused() -> None:
    flags = torch.zeros(3, 17, 23, dtype=torch.bool)
    view = replace(view_of(), K=VIEW_K, cam_from_world=torch.eye(4))
    for points, told in (
        (wrong("inv_depth", torch.zeros(17, 23)), r"points.inv_depth: expected \(S, H, W\); got \(17, 23\)"),
        (wrong("inv_depth", torch.zeros(3, 17, 23).long()), "points.inv_depth: expected dtype float32.*got int64"),
        (wrong("attributes", torch.zeros(3, 17, 23)), r"points.attributes: expected \(3, 17, 23, C\)"),
        (wrong("valid", flags[1:]), r"points.valid: expected \(3, 17, 23\); got \(2, 17, 23\)"),
        (wrong("dynamic", flags.int()), "points.dynamic: expected dtype bool; got int32"),
        (wrong("valid", flags.to("meta")), "points.valid: expected device cpu; got meta"),
        (replace(world_points(5), source=torch.zeros(5).long()), "points.source: expected dtype int32; got int64"),
        (replace(world_points(5), xyz=torch.zeros(5, 2)), r"points.xyz: expected \(N, 3\); got \(5, 2\)"),
    ):
        with pytest.raises(ShapeError, match=told):
            splat_points(points, view)
    for blending in (Nearest(depth_tolerance=0.0), Alpha(radius=-1.0), Alpha(points_per_pixel=0)):
        with pytest.raises(InputError, match="expected"):
            splat_points(depth_points(), view, blending=blending)

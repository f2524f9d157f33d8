"""Composing layers: the reference against OpenCV and known values, the Triton kernel against the reference in double
precision."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kernels.common import DEVICE, converted, ignores_numpy_warnings
from vs3r.errors import BackendError, InputError, ShapeError
from vs3r.kernels.compose import Layers, PlaneLayout, compose_layers
from vs3r.kernels.dispatch import Backend
from vs3r.render.nodes import CellRect, expand

pytestmark = ignores_numpy_warnings

PEAK = {torch.uint8: 255.0, torch.uint16: 1023.0, torch.float16: 1.0}
# Against the reference in double precision. Worst seen: float16 5e-4, integers one step, where a value lies on the edge
# between two; of those 0.2 %.
TOLERANCE = {torch.uint8: 1.0, torch.uint16: 1.0, torch.float16: 1e-3}
OFF = 0.02
"""Share of integers that may be off by a step. Positions up to 1920 have 1e-4 px in single precision: the reference in
that is off in 0.8 % of a picture of noise in 10 bits."""
EDGE = 0.003
"""Share of pixels that may be anything: on the hard edge where a layer begins to show. Worst seen: 0.0008."""
BACKENDS: tuple[Backend, ...] = ("reference", "triton")


@pytest.fixture(autouse=True)
def _wide_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's cost is per program."""
    if DEVICE == "cpu":
        monkeypatch.setattr("vs3r.kernels.compose.triton_impl.COLUMNS", 256)


def planes_of(rows: int, columns: int, *, step: int = 8, subsampled: bool = True) -> list[PlaneLayout]:
    """Luma and, at half its size, chroma."""
    luma = PlaneLayout(rows=rows, columns=columns, step_y=step, step_x=step, empty=16)
    if not subsampled:
        return [luma]
    half = {"step_y": step // 2, "step_x": step // 2, "scale_y": 2, "scale_x": 2}
    return [luma, PlaneLayout(rows=-(-rows // 2), columns=-(-columns // 2), empty=128, **half)]


def identity(planes: list[PlaneLayout], count: int) -> tuple[Tensor, Tensor]:
    """x and y (count, R, C) of maps that move nothing, double."""
    rows, columns = planes[0].cells
    x = (torch.arange(columns + 2).double() - 0.5) * planes[0].step_x
    y = (torch.arange(rows + 2).double() - 0.5) * planes[0].step_y
    shape = count, rows + 2, columns + 2
    return x.expand(shape).clone(), y[:, None].expand(shape).clone()


def problem(
    planes: list[PlaneLayout], count: int = 3, dtype: torch.dtype = torch.uint8, *, offsets: bool = True
) -> Layers:
    """Layers of noise, shifted, wobbling and half transparent; fields in double precision, of float32's values."""
    random = torch.Generator().manual_seed(count + planes[0].rows)
    x, y = identity(planes, count)
    shape = x.shape
    across = torch.tensor([4.3, -6.2, 9.1, -3.7, 0.4, 5.5, -8.8, 2.3, 12.6])
    down = torch.tensor([-3.1, 2.4, 5.2, -4.9, 7.3, 0.6, 1.1, -6.6, 3.7])
    wobble = torch.randn(2, *shape, generator=random).double()
    rows = torch.linspace(-0.5, 1.5, shape[1]).clamp(0, 1)[:, None].expand(shape[1:])
    size = sum(plane.size for plane in planes)
    sizes = 4 * size, *[size] * (count - 1)
    layers = Layers(
        pictures=tuple((torch.rand(n, generator=random) * PEAK[dtype]).to(dtype) for n in sizes),
        x=x + across[:count, None, None] + wobble[0],
        y=y + down[:count, None, None] + wobble[1],
        opacity=(torch.rand(shape, generator=random) * 1.6 - 0.3).clamp(0, 1).double(),
        margin_px=torch.tensor([-1.0, *[1.25] * (count - 1)]).double(),
        keep=rows.double(),
        offsets=0.05 * PEAK[dtype] * torch.randn(count - 1, len(planes), *shape[1:], generator=random).double()
        if offsets
        else None,
    )
    fields = {f.name: getattr(layers, f.name) for f in dataclasses.fields(layers)}
    rounded: dict[str, Any] = {name: v.float().double() for name, v in fields.items() if isinstance(v, Tensor)}
    return replace(layers, **rounded)


def singles(layers: Layers) -> Layers:
    """In single precision, on the device."""
    return replace(converted(layers, torch.float32), pictures=tuple(p.to(DEVICE) for p in layers.pictures))


def drawn(layers: Layers, planes: list[PlaneLayout], backend: Backend = "triton", **more: Any) -> Tensor:
    given = {"feather_px": 4.0, "peak": PEAK[layers.pictures[0].dtype], **more}
    return compose_layers(singles(layers), planes, backend=backend, **given).cpu()


def compare(layers: Layers, planes: list[PlaneLayout], **more: Any) -> tuple[Tensor, Tensor]:
    """Triton's answer and the reference's in double precision."""
    given = {"feather_px": 4.0, "peak": PEAK[layers.pictures[0].dtype], **more}
    return drawn(layers, planes, **more), compose_layers(layers, planes, backend="reference", **given)


def agree(found: Tensor, true: Tensor) -> None:
    dtype = true.dtype
    assert found.dtype == dtype and found.shape == true.shape
    error = (found.double() - true.double()).abs()
    assert (error > TOLERANCE[dtype]).double().mean() <= EDGE
    if not dtype.is_floating_point:
        assert (error > 0).double().mean() <= OFF


@pytest.mark.parametrize("dtype", PEAK)
@pytest.mark.parametrize("offsets", [True, False])
def test_every_dtype(dtype: torch.dtype, offsets: bool) -> None:
    planes = planes_of(22, 38)
    found, true = compare(problem(planes, dtype=dtype, offsets=offsets), planes)
    agree(found, true)
    assert (true.double() == planes[0].empty).any() or dtype == torch.float16
    assert len(set(true.tolist())) > 100


@pytest.mark.parametrize("count", [1, 2, 9])
def test_any_number_of_layers(count: int) -> None:
    planes = planes_of(9, 24)
    layers = problem(planes, count)
    found, true = compare(layers, planes)
    agree(found, true)
    if count > 1:
        fewer = replace(layers, opacity=layers.opacity * (torch.arange(count) < count - 1)[:, None, None])
        assert (drawn(fewer, planes, "reference") != true).any(), "the last layer must show"


@pytest.mark.parametrize("size", [(1, 1), (1, 23), (29, 1), (13, 17), (7, 41)])
def test_awkward_sizes(size: tuple[int, int]) -> None:
    planes = planes_of(*size)
    agree(*compare(problem(planes, 2), planes))


@pytest.mark.parametrize("steps", [(8, 8, 2, 1), (8, 4, 1, 2), (8, 2, 1, 4)])
def test_other_subsampling(steps: tuple[int, int, int, int]) -> None:
    step_y, step_x, scale_y, scale_x = steps
    luma = PlaneLayout(rows=18, columns=27, step_y=8, step_x=8)
    rows, columns = -(-18 // scale_y), -(-27 // scale_x)
    step_y = 8 // scale_y
    chroma = PlaneLayout(
        rows=rows, columns=columns, step_y=step_y, step_x=step_x, scale_y=scale_y, scale_x=scale_x, empty=128
    )
    planes = [luma, chroma, chroma, luma]
    agree(*compare(problem(planes, 2), planes))


def test_several_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vs3r.kernels.compose.triton_impl.COLUMNS", 32)
    planes = planes_of(24, 96)
    layers = problem(planes, 2)
    # Solid, so that what lies inside is sampled the fast way.
    solid = replace(layers, opacity=torch.ones_like(layers.opacity), keep=torch.ones_like(layers.keep))
    agree(*compare(solid, planes))


def still(planes: list[PlaneLayout], dx: float, dy: float, dtype: torch.dtype = torch.uint8) -> Layers:
    """One solid layer of noise, moved by whole or broken pixels."""
    layers = problem(planes, 1, dtype, offsets=False)
    x, y = identity(planes, 1)
    solid = torch.ones_like(x)
    return replace(layers, x=x + dx, y=y + dy, opacity=solid, keep=solid[0], margin_px=torch.zeros(1).double())


def first_plane(flat: Tensor, planes: list[PlaneLayout]) -> np.ndarray[Any, Any]:
    plane = planes[0]
    return flat[: plane.size].view(plane.rows, plane.columns).numpy()


def first_doubled(flat: Tensor, planes: list[PlaneLayout]) -> np.ndarray[Any, Any]:
    """(2 H, 2 W) of a doubled picture."""
    plane = planes[0]
    return flat[: 4 * plane.size].view(2 * plane.rows, 2 * plane.columns).numpy()


def pixels(flat: Tensor, planes: list[PlaneLayout]) -> Tensor:
    """(N,) of a doubled picture, without what lies between."""
    parts = torch.split(flat, [4 * plane.size for plane in planes])
    pairs = zip(parts, planes, strict=True)
    return torch.cat([part.view(p.rows, 2, p.columns, 2)[:, 0, :, 0].flatten() for part, p in pairs])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", PEAK)
@pytest.mark.parametrize("halves", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_whole_and_halfway_pixels_are_copied(backend: Backend, dtype: torch.dtype, halves: tuple[int, int]) -> None:
    planes = planes_of(24, 40, subsampled=False)
    down, across = halves
    layers = still(planes, 3 - across / 2, -2 + down / 2, dtype)
    shown, source = first_plane(drawn(layers, planes, backend), planes), first_doubled(layers.pictures[0], planes)
    np.testing.assert_array_equal(shown[2:, :37], source[down:, 6 - across :][:44:2, :74:2])
    assert (shown[:2] == 16).all() or dtype == torch.float16
    assert (shown[:, 37:] == min(16, PEAK[dtype])).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("behind", [False, True])
def test_between_pixels_it_is_opencvs_bicubic(backend: Backend, behind: bool) -> None:
    """Shifts of 1/32 px, OpenCV's own step, the border included. float16, so that no rounding hides anything. The first
    layer from its doubled picture; one behind it, which shows alone, from its plain picture."""
    planes = planes_of(24, 40, subsampled=False)
    layers = still(planes, -3 - 5 / 32, 2 + 11 / 32, torch.float16)
    layers = replace(layers, margin_px=layers.margin_px - 99)
    times, source = 2, first_doubled(layers.pictures[0], planes).astype(np.float32)
    if behind:
        plain = layers.pictures[0][: planes[0].size]
        layers = replace(
            layers, pictures=(layers.pictures[0], plain), x=layers.x.tile(2, 1, 1), y=layers.y.tile(2, 1, 1),
            opacity=layers.opacity * torch.tensor([0, 1]).view(2, 1, 1), margin_px=layers.margin_px.tile(2),
        )  # fmt: skip
        times, source = 1, first_plane(plain, planes).astype(np.float32)
    x, y = np.meshgrid(np.arange(40) - 3 - 5 / 32, np.arange(24) + 2 + 11 / 32)
    maps = (times * x).astype(np.float32), (times * y).astype(np.float32)
    peer = cv2.remap(source, *maps, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE).clip(0, 1)
    assert np.abs(first_plane(drawn(layers, planes, backend), planes) - peer).max() < 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_fields_are_interpolated_as_the_renderer_does(backend: Backend) -> None:
    """Offsets over a black layer show the field itself."""
    planes = planes_of(21, 35, subsampled=False)
    layers = problem(planes, 2, torch.float16)
    assert layers.offsets is not None
    x, y = identity(planes, 2)
    black = replace(
        layers,
        pictures=tuple(torch.zeros_like(p) for p in layers.pictures),
        opacity=torch.ones_like(x) * torch.tensor([0, 1]).view(2, 1, 1),
        x=x, y=y, margin_px=layers.margin_px - 9, offsets=layers.offsets.abs(),
    )  # fmt: skip
    assert black.offsets is not None
    rows, columns = planes[0].cells
    field = black.offsets[0, 0].float().numpy()
    peer = expand(field[CellRect(0, rows, 0, columns).nodes], 8, 8)[:21, :35]
    assert np.abs(first_plane(drawn(black, planes, backend), planes) - peer).max() < 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_by_hand(backend: Backend) -> None:
    """Flat layers: 0.2 at the front, its ramp two pixels wide at the left; 0.6 behind; nothing shows at the right."""
    planes = planes_of(8, 32, subsampled=False)
    layers = problem(planes, 2, torch.float16, offsets=False)
    x, y = identity(planes, 2)
    x[0] -= 12
    flat = replace(
        layers,
        pictures=tuple(torch.full_like(p, v) for p, v in zip(layers.pictures, (0.2, 0.6), strict=True)),
        x=x, y=y * 0 + 4,
        opacity=torch.ones_like(x) * torch.tensor([0.5, 1.0]).view(2, 1, 1),
        keep=torch.zeros_like(layers.keep),
        margin_px=torch.tensor([0.0, 0.0]).double(),
    )  # fmt: skip
    flat.opacity[1, :, 4:] = 0
    line = first_plane(drawn(flat, planes, backend, feather_px=2.0), planes)[4].astype(np.float64)
    # The first layer begins at 12; its depth at the centre of pixel 12 is half a pixel, a quarter of the ramp.
    quarter, three = (0.5 * (t * t * (3 - 2 * t)) for t in (0.25, 0.75))
    mixed = [0.2 * a + 0.6 * (1 - a) for a in (0, 0, quarter, three, 0.5)]
    np.testing.assert_allclose(line[10:15], mixed, atol=2e-4)
    # Behind pixel 28 the second layer is gone, and the first shows fully.
    np.testing.assert_allclose(line[28:], 0.2, atol=2e-4)
    kept = replace(flat, keep=torch.ones_like(flat.keep))
    line = first_plane(drawn(kept, planes, backend, feather_px=2.0), planes)[4].astype(np.float64)
    np.testing.assert_allclose(line[10:16], [0.6, 0.6, 0.2, 0.2, 0.2, 0.2], atol=2e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_overshoot_stops_at_the_peak(backend: Backend) -> None:
    planes = planes_of(16, 24, subsampled=False)
    layers = still(planes, 0.25, 0, torch.uint16)
    bars = (torch.arange(48) % 4 < 2).expand(32, 48).flatten() * 1023
    layers = replace(layers, pictures=(bars.to(torch.int32).to(torch.uint16),))
    assert drawn(layers, planes, backend).int().max() == 1023
    assert drawn(layers, planes, backend, peak=65535).int().max() > 1023


@pytest.mark.parametrize("backend", BACKENDS)
def test_where_nothing_shows_it_is_empty(backend: Backend) -> None:
    planes = planes_of(13, 22)
    layers = problem(planes)
    away = replace(layers, x=layers.x + 1e6)
    unseen = replace(layers, opacity=layers.opacity * 0)
    for given in (away, unseen):
        shown = drawn(given, planes, backend)
        assert (shown[: planes[0].size] == 16).all() and (shown[planes[0].size :] == 128).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_layer_that_cannot_be_seen_changes_nothing(backend: Backend) -> None:
    planes = planes_of(16, 24)
    layers = problem(planes, 2)
    alone = replace(layers, opacity=layers.opacity * torch.tensor([1.0, 0.0]).view(2, 1, 1))
    one = replace(
        layers, pictures=layers.pictures[:1], x=layers.x[:1], y=layers.y[:1], opacity=layers.opacity[:1],
        margin_px=layers.margin_px[:1], offsets=layers.offsets[:0] if layers.offsets is not None else None,
    )  # fmt: skip
    assert torch.equal(drawn(alone, planes, backend), drawn(one, planes, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_behind_a_solid_layer_nothing_is_looked_at(backend: Backend) -> None:
    planes = planes_of(16, 24)
    one = still(planes, 0.0, 0.0)
    nothing = torch.full_like(one.x, math.nan)
    shown = pixels(one.pictures[0], planes)
    two = replace(
        one, pictures=(*one.pictures, shown), x=torch.cat([one.x, nothing]), y=torch.cat([one.y, nothing]),
        opacity=torch.cat([one.opacity, nothing]), margin_px=torch.zeros(2).double(),
    )  # fmt: skip
    assert torch.equal(drawn(two, planes, backend), shown)


@pytest.mark.parametrize("backend", BACKENDS)
def test_positions_far_away_are_harmless(backend: Backend) -> None:
    planes = planes_of(9, 20)
    layers = problem(planes, 2)
    wild = replace(layers, x=layers.x * 1e9, y=layers.y * -1e9, margin_px=layers.margin_px - 1e20)
    shown = drawn(wild, planes, backend).double()
    assert shown.isfinite().all()


def test_every_run_gives_the_same_bytes() -> None:
    planes = planes_of(16, 24)
    layers = problem(planes)
    assert torch.equal(drawn(layers, planes), drawn(layers, planes))


@pytest.mark.needs_cuda
def test_every_run_gives_the_same_bytes_on_a_gpu() -> None:
    planes = planes_of(1080, 1920, step=16)
    layers = singles(problem(planes))
    first, *others = (compose_layers(layers, planes, feather_px=29.0, peak=255) for _ in range(20))
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("dtype", PEAK)
def test_a_large_picture_on_a_gpu(dtype: torch.dtype) -> None:
    planes = planes_of(1080, 1920, step=16)
    agree(*compare(problem(planes, 9, dtype), planes, feather_px=29.0))


@pytest.mark.parametrize("damage", ["x", "y", "opacity", "margin_px", "keep", "offsets", "own", "others"])
def test_the_comparison_can_fail(damage: str) -> None:
    planes = planes_of(9, 24)
    layers = problem(planes)
    changed: Any
    true = compose_layers(layers, planes, feather_px=4, peak=255, backend="reference")
    agree(drawn(layers, planes), true)
    name = damage
    if damage in ("own", "others"):
        own, *others = layers.pictures
        brighter = [(p.int() + 10).clamp(0, 255).to(torch.uint8) for p in layers.pictures]
        name, changed = "pictures", (brighter[0], *others) if damage == "own" else (own, *brighter[1:])
    elif damage in ("opacity", "keep"):
        changed = 1 - getattr(layers, damage)
    else:
        changed = getattr(layers, damage) + {"margin_px": 2.0, "offsets": 10.0}.get(damage, 0.05)
    found = drawn(replace(layers, **{name: changed}), planes)
    with pytest.raises(AssertionError):
        agree(found, true)


def test_what_makes_no_sense_is_refused() -> None:
    planes = planes_of(16, 32)
    layers = singles(problem(planes))
    own, picture, _ = layers.pictures
    for name, value, told in (
        ("pictures", (), r"layers.pictures: expected 1 to 9; got 0"),
        ("pictures", (picture,) * 10, r"layers.pictures: expected 1 to 9; got 10"),
        ("pictures", (picture,) * 3, r"layers.pictures\[0\]: expected \(2560\); got \(640,\)"),
        ("pictures", (own,) * 3, r"layers.pictures\[1\]: expected \(640\); got \(2560,\)"),
        ("pictures", (own, picture.int(), picture), r"layers.pictures\[1\]: expected dtype uint8; got int32"),
        ("pictures", (own.float(),) * 3, r"layers.pictures\[0\]: expected dtype uint8, uint16, float16; got float"),
        ("x", layers.x[:2], r"layers.x: expected \(3, 4, 6\); got \(2, 4, 6\)"),
        ("x", layers.x.half(), r"layers.x: expected dtype float32, float64; got float16"),
        ("y", layers.y.double(), r"layers.y: expected dtype float32; got float64"),
        ("opacity", layers.opacity.to("meta"), r"layers.opacity: expected device .*; got meta"),
        ("margin_px", layers.margin_px[:1], r"layers.margin_px: expected \(3\); got \(1,\)"),
        ("keep", layers.keep[1:], r"layers.keep: expected \(4, 6\); got \(3, 6\)"),
        ("offsets", layers.x, r"layers.offsets: expected \(2, 2, 4, 6\); got \(3, 4, 6\)"),
    ):
        with pytest.raises(ShapeError, match=told):
            compose_layers(replace(layers, **{name: value}), planes, feather_px=4, peak=255)  # type: ignore[arg-type]
    for change, told in (
        ({"rows": 0}, r"planes\[1\]: expected at least 1 x 1 pixels; got 0 x 16"),
        ({"step_x": 3}, r"planes\[1\]: expected even steps of at least 2; got 4 and 3"),
        ({"scale_y": 0}, r"planes\[1\]: expected scales of at least 1; got 0 and 2"),
        ({"rows": 20}, r"planes\[1\]: expected \(2, 4\) cells as planes\[0\]; got \(5, 4\)"),
    ):
        with pytest.raises(ShapeError, match=told):
            compose_layers(layers, [planes[0], replace(planes[1], **change)], feather_px=4, peak=255)
    vast = [replace(planes[0], rows=2**15, columns=2**14)]
    with pytest.raises(ShapeError, match=r"planes: expected at most 536870911 pixels in all; got 536870912"):
        compose_layers(layers, vast, feather_px=4, peak=255)
    with pytest.raises(ShapeError, match="planes: expected at least one; got none"):
        compose_layers(layers, [], feather_px=4, peak=255)
    for name, bad in itertools.product(("feather_px", "peak"), (0, -1, math.nan)):
        with pytest.raises(InputError, match=f"{name}: expected more than 0; got {bad}"):
            drawn(problem(planes), planes, "reference", **{name: bad})
    with pytest.raises(BackendError, match="expected float32, bfloat16 or float16; got float64"):
        compose_layers(problem(planes), planes, feather_px=4, peak=255, backend="triton")

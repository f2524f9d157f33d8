"""Something that moves with the camera, like a person who films herself, and that the border cuts off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from tests.render.plane_world import F64, depth_at, intrinsics, make_format, picture, pose, psnr, source
from vs3r.config import RenderConfig
from vs3r.render import SourceFrame, WarpRenderer, moving, renderer
from vs3r.render.layers import Layer
from vs3r.types import Plane, VirtualCamera

FMT = make_format("yuv444p", 480, 272)
OWN = pose(0.0, 0.0, 0.0)
BELOW = VirtualCamera(K=intrinsics(FMT), cam_from_world=pose(0.0, -4.0, 0.0))
"""Sees 30 rows more at the bottom."""
RISES = {8: -38.0, 10: 0.0, 12: -44.0, 16: -30.0}
"""How much lower than in frame 10 the thing stands in the picture, per frame."""


def painted(planes: tuple[Plane, ...], u: F64, v: F64, below: float) -> tuple[tuple[Plane, ...], F64]:
    """Planes with the thing in them, and where it is; u, v are the pixels' positions in frame 10's picture."""
    is_thing = (np.abs(u - 240) < 80) & (v > 140 + below)
    out = []
    for number, plane in enumerate(planes):
        blots = cv2.GaussianBlur(np.random.default_rng(number).normal(0, 1, (400, 480)), (0, 0), 6)
        x, y = (f.astype(np.float32) for f in (u - 0.5, v - below - 0.5))
        value = 128 + 40 / blots.std() * cv2.remap(blots, x, y, cv2.INTER_CUBIC)
        out.append(np.where(is_thing, value, plane).clip(0, 255).round().astype(np.uint8))
    return tuple(out), is_thing.astype(np.float64)


def pixels() -> tuple[F64, F64]:
    x, y = np.meshgrid(np.arange(FMT.width) + 0.5, np.arange(FMT.height) + 0.5)
    return x, y


def in_frame_10(cam_from_world: F64) -> tuple[F64, F64]:
    """Where a camera's pixels are seen in frame 10."""
    _, points = depth_at(intrinsics(FMT), cam_from_world, *pixels())
    seen = points @ OWN[:3, :3].T + OWN[:3, 3]
    K = intrinsics(FMT)
    u, v = (K[k, k] * seen[..., k] / seen[..., 2] + K[k, 2] for k in (0, 1))
    return u, v


def frame(index: int, cam_from_world: F64 = OWN, *, below: float) -> SourceFrame:
    """A picture of plane and thing, and which of them moves."""
    there = source(FMT, cam_from_world, index)
    planes, thing = painted(there.frame.planes, *in_frame_10(cam_from_world), below)
    dynamic = cv2.resize(thing, (60, 34), interpolation=cv2.INTER_AREA).astype(np.float32)
    return SourceFrame(frame=replace(there.frame, planes=planes), geometry=replace(there.geometry, dynamic=dynamic))


def test_it_goes_on_below_the_border(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = {index: frame(index, below=rise) for index, rise in RISES.items()}
    plane = picture(FMT, BELOW.K, BELOW.cam_from_world)
    expected, thing = painted(plane, *in_frame_10(BELOW.cam_from_world), 0.0)
    hole = np.zeros(thing.shape, np.bool_)
    hole[-28:-6] = True  # below, no neighbour shows it either
    inside = hole & (cv2.erode(thing, np.ones((17, 17))) > 0)

    def rendered() -> float:
        result = WarpRenderer(FMT, RenderConfig()).render(10, BELOW, frames)
        return min(psnr(a, b, inside) for a, b in zip(result.frame.planes, expected, strict=True))

    assert rendered() > 30
    monkeypatch.setattr(moving, "MAX_LAYERS", 0)
    assert rendered() < 17, "the test sees what moves"


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Layer]:
    """The layers of what moves, of all pictures that are rendered."""
    layers: list[Layer] = []

    def keeping(*given: Any, **more: Any) -> list[Layer]:
        layers.extend(now := moving.moving_layers(*given, **more))
        return now

    monkeypatch.setattr(renderer, "moving_layers", keeping)
    return layers


@pytest.mark.parametrize(
    ("change", "goes_on"),
    [("none", True), ("exposure", True), ("brightness", False), ("another thing", False), ("turned away", False)],
)
def test_only_the_same_thing_goes_on(change: str, goes_on: bool, found: list[Layer]) -> None:
    """Neighbours that look elsewhere tell nothing of what moves: a whipped pan."""
    frames = {}
    for index, rise in RISES.items():
        one = frame(index, below=rise)
        brighter = {"exposure": 15, "brightness": 90}.get(change, 0) if index != 10 else 0
        planes = tuple((plane * 0.6 + brighter).astype(np.uint8) for plane in one.frame.planes)
        if change == "another thing" and index != 10:
            planes = tuple(plane[:, ::-1].copy() for plane in planes)
        away = change == "turned away" and index != 10
        geometry = replace(one.geometry, cam_from_world=pose(80.0)) if away else one.geometry
        frames[index] = SourceFrame(frame=replace(one.frame, planes=planes), geometry=geometry)
    WarpRenderer(FMT, RenderConfig()).render(10, BELOW, frames)
    assert bool(found) is goes_on


def test_what_stands_still_is_placed(found: list[Layer]) -> None:
    """Neighbours that look lower, and masks that are wrong about the thing."""
    frames = {index: frame(index, pose(0.0, rise / 8, 0.0), below=0.0) for index, rise in RISES.items()}
    result = WarpRenderer(FMT, RenderConfig()).render(10, BELOW, frames)
    assert result.own_share < 0.9 and result.valid_share > 0.99
    assert found == []


@pytest.mark.parametrize("size", [(16, 16), (64, 40), (24, 90)])
def test_pictures_too_small_for_flow(size: tuple[int, int], found: list[Layer]) -> None:
    fmt = make_format("yuv420p", *size)
    frames = {index: source(fmt, OWN, index) for index in RISES}
    for index, one in frames.items():
        frames[index] = replace(one, geometry=replace(one.geometry, dynamic=np.full((12, 16), 0.99, np.float32)))
    camera = VirtualCamera(K=intrinsics(fmt), cam_from_world=BELOW.cam_from_world)
    assert WarpRenderer(fmt, RenderConfig()).render(10, camera, frames).own_share < 1
    assert found == []

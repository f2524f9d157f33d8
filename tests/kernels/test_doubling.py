"""Doubling a picture: against the same by OpenCV, and against the wave that was sampled."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kernels.common import DEVICE
from vs3r.errors import ShapeError
from vs3r.kernels.compose import PlaneLayout, doubled
from vs3r.kernels.compose.layers import HALFWAY
from vs3r.render import layers as peer
from vs3r.types import Plane

PEAK = {torch.uint8: 255, torch.uint16: 65535, torch.float16: 1}
OFF = 1e-3
"""Share of integers that may be off by one, where a value lies on the edge between two; or as many as FEW. Worst seen:
2 of 8, as between black and white lies an exact half; none of a picture of 400 x 301."""
FEW = 2
HALF = 2e-3
"""With a peak of 1: float16 has steps of 5e-4 there, beyond it 1e-3, and is rounded twice. Worst seen 8.5e-4."""


def planes_of(rows: int, columns: int) -> list[PlaneLayout]:
    luma = PlaneLayout(rows=rows, columns=columns, step_y=8, step_x=8)
    chroma = replace(luma, rows=-(-rows // 2), columns=-(-columns // 2), step_y=4, step_x=4)
    return [luma, chroma, chroma]


def noise(planes: list[PlaneLayout], dtype: torch.dtype) -> Tensor:
    """(N,) half of it black or white, so that what lies between goes beyond both."""
    random = torch.Generator().manual_seed(planes[0].rows)
    values = torch.rand(sum(plane.size for plane in planes), generator=random) * 2 - 0.5
    scaled = values.clamp(0, 1) * PEAK[dtype]
    return scaled.to(dtype) if dtype.is_floating_point else scaled.to(torch.int32).to(dtype)


def parted(flat: Tensor, planes: list[PlaneLayout], times: int) -> list[np.ndarray[Any, Any]]:
    parts = torch.split(flat.cpu(), [times * times * plane.size for plane in planes])
    return [
        part.view(times * plane.rows, times * plane.columns).numpy() for part, plane in zip(parts, planes, strict=True)
    ]


def agree(found: Tensor, picture: Tensor, planes: list[PlaneLayout]) -> None:
    """With OpenCV's; that of float16 in double precision."""
    dtype = picture.dtype
    assert found.dtype == dtype and found.shape == (4 * len(picture),)
    for ours, plane in zip(parted(found, planes, 2), parted(picture, planes, 1), strict=True):
        np.testing.assert_array_equal(ours[::2, ::2], plane)
        theirs = peer.doubled(cast("Plane", plane.astype(np.float64) if dtype.is_floating_point else plane))
        error = np.abs(ours.astype(np.float64) - theirs)
        if dtype.is_floating_point:
            assert error.max() <= HALF
        else:
            assert error.max() <= 1 and (error > 0).sum() <= max(FEW, OFF * error.size)


@pytest.mark.parametrize("size", [(1, 1), (1, 23), (29, 1), (2, 3), (13, 17), (64, 48)])
@pytest.mark.parametrize("dtype", PEAK)
def test_it_is_what_opencv_makes(size: tuple[int, int], dtype: torch.dtype) -> None:
    planes = planes_of(*size)
    picture = noise(planes, dtype)
    agree(doubled(picture.to(DEVICE), planes), picture, planes)


@pytest.mark.parametrize("dtype", PEAK)
@pytest.mark.parametrize("damage", ["brighter", "shifted", "transposed"])
def test_the_comparison_can_fail(dtype: torch.dtype, damage: str) -> None:
    planes = planes_of(16, 16)
    picture = noise(planes, dtype)
    found = doubled(picture, planes)
    agree(found, picture, planes)
    view = found.view(torch.uint8 if dtype == torch.uint8 else torch.int16)
    luma = view[:1024].view(16, 2, 16, 2)
    if damage == "brighter":
        # Ten levels, or ten steps of float16, of what lies between.
        luma[:, 1] += 10
    elif damage == "shifted":
        luma[..., 1] = luma[..., 1].roll(1, 2)
    else:
        luma[:, 0, :, 1] = luma[:, 1, :, 0].clone()
    with pytest.raises(AssertionError):
        agree(found, picture, planes)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_what_goes_beyond_is_clipped(dtype: torch.dtype) -> None:
    """Two black columns, two white ones: between two of the same it overshoots."""
    planes = planes_of(16, 32)[:1]
    bars = (torch.arange(32) % 4 > 1).expand(16, 32).flatten().to(torch.int32) * PEAK[dtype]
    row = parted(doubled(bars.to(dtype).to(DEVICE), planes), planes, 2)[0][8].astype(int)
    np.testing.assert_array_equal(row[17:56:8], 0)
    np.testing.assert_array_equal(row[21:56:8], PEAK[dtype])


@pytest.mark.parametrize("axis", [0, 1])
def test_halfway_values_are_those_of_the_wave(axis: int) -> None:
    """Three pixels long, far from the border. Worst seen 0.0007; by a cubic kernel it would be 0.076."""
    planes = planes_of(64, 64)[:1]
    at = torch.arange(128) / 2
    wave = (0.5 + 0.4 * torch.sin(2 * math.pi / 3 * at)).expand(128, 128)
    wave = wave.T if axis == 0 else wave
    found = parted(doubled(wave[::2, ::2].flatten().half().to(DEVICE), planes), planes, 2)[0]
    assert np.abs(found - wave.numpy())[8:-8, 8:-8].max() < 5e-3


def test_halfway_weights_add_up_and_look_both_ways() -> None:
    assert math.isclose(sum(HALFWAY), 1)
    np.testing.assert_allclose(HALFWAY, HALFWAY[::-1])


def test_what_does_not_fit_is_refused() -> None:
    planes = planes_of(4, 6)
    with pytest.raises(ShapeError, match=r"picture: expected \(36\); got \(35,\)"):
        doubled(noise(planes, torch.uint8)[1:], planes)
    with pytest.raises(ShapeError, match="picture: expected dtype uint8, uint16, float16; got float32"):
        doubled(noise(planes, torch.uint8).float(), planes)

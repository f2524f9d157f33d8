"""Noise levels, lengths, masks and noise: pure functions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from vs3r.config import WanConfig
from vs3r.errors import InputError
from vs3r.refine.wan.schedule import BOUNDARY, low_noise_part, sigma_table
from vs3r.refine.wan.windows import bucket_length, fold_mask, latent_count, padded_length, window_noise, working_size


def test_the_shift_is_applied_once() -> None:
    sigmas = sigma_table(40)
    assert sigmas[0] == 1.0 and sigmas[-1] == 0.0 and len(sigmas) == 41
    np.testing.assert_allclose(sigmas[:3], [1.0, 0.994898, 0.989583], atol=1e-6)
    np.testing.assert_allclose(sigmas[20], 5 / 6)
    np.testing.assert_allclose(sigmas[39], 0.125 / 1.1)
    # A third and a bit; without the shift it would be 5, with it twice 30.
    assert sum(sigma >= BOUNDARY for sigma in sigmas) == 15
    assert low_noise_part(sigmas) == sigmas[15:]


def test_few_steps_are_those_of_the_few_step_loras() -> None:
    np.testing.assert_allclose(sigma_table(4), [1.0, 0.9375, 0.83333, 0.625, 0.0], atol=1e-5)


@pytest.mark.parametrize("frames", range(1, 201))
def test_every_length_becomes_one_that_the_vae_takes_wholly(frames: int) -> None:
    padded = padded_length(frames)
    assert padded % 4 == 1 and 0 <= padded - frames < 4
    assert latent_count(frames) == latent_count(padded) == 1 + (padded - 1) // 4


def test_buckets_are_few_and_large_enough() -> None:
    lengths = {bucket_length(padded_length(frames), 81) for frames in range(1, 82)}
    assert lengths == {1, 17, 33, 49, 65, 81}
    assert all(bucket_length(padded_length(frames), 41) >= frames for frames in range(1, 42))
    assert bucket_length(37, 41) == 41


@pytest.mark.parametrize(
    ("size", "expected"), [((1920, 1080), (843, 474)), ((640, 360), (640, 360)), ((480, 832), (480, 832))]
)
def test_working_size_keeps_the_aspect_ratio(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert working_size(*size, 832 * 480) == expected


def test_mask_against_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    known = np.ones((9, 16, 24), bool)
    known[tuple(rng.integers(0, side, 12) for side in known.shape)] = False
    folded = fold_mask(known)
    assert folded.shape == (1, 4, 3, 2, 3)
    assert 0 < folded.mean() < 1
    for channel, latent, row, column in itertools.product(range(4), range(3), range(2), range(3)):
        frame = max(0, 4 * latent - 3 + channel) if latent else 0
        cell = known[frame, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        assert folded[0, channel, latent, row, column] == float(cell.all()), (channel, latent, row, column)


def test_noise_belongs_to_the_latent_frame() -> None:
    shape = 16, 5, 4, 6
    first = window_noise(shape, seed=7, scene=0, first_latent=0)
    second = window_noise(shape, seed=7, scene=0, first_latent=3)
    torch.testing.assert_close(first[:, :, 3:], second[:, :, :2], rtol=0, atol=0)
    for other in ({"seed": 8, "scene": 0}, {"seed": 7, "scene": 1}):
        assert not torch.isclose(window_noise(shape, first_latent=0, **other), first).any()
    assert abs(float(first.mean())) < 0.1 and abs(float(first.std()) - 1) < 0.1
    flat = first[0].transpose(0, 1).reshape(5, -1)
    assert (torch.corrcoef(flat) - torch.eye(5)).abs().max() < 0.2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"wan_window_frames": 80}, "one more than a multiple of 4, such as 81; got 80"),
        ({"wan_stride_frames": 62}, r"a multiple of 4 below wan_window_frames \(81\); got 62"),
        ({"wan_window_frames": 17, "wan_stride_frames": 20}, r"below wan_window_frames \(17\); got 20"),
        ({"wan_experts": "low", "wan_steps": 1}, "at least 2 with wan_experts low"),
        ({"wan_compile": True, "wan_precision": "fp8-storage"}, "got wan_precision fp8-storage.*use fp8-weights"),
    ],
)
def test_settings_that_do_not_fit_are_refused(values: dict[str, int | str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        WanConfig(**values)  # type: ignore[arg-type]

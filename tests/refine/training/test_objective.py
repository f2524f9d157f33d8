"""Fine-tuning on small random experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.refine.wan.tiny import TEXT_DIM, make_expert, make_vae
from vs3r.refine.training.adapter import RANK, TARGETS, add_lora, save_lora
from vs3r.refine.training.objective import Part, draw_sigma, flow_loss
from vs3r.refine.training.pairs import Pair
from vs3r.refine.wan.ask import predict

SHAPE = (2, 4, 4)


def draw_pair(seed: int) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    clean, render = torch.randn(2, 1, 16, *SHAPE, generator=generator).unbind()
    mask = torch.zeros(1, 4, *SHAPE)
    mask[..., :2] = 1.0
    return Pair(clean=clean, render=render, mask=mask)


NOISE = torch.randn(1, 16, *SHAPE, generator=torch.Generator().manual_seed(77))
TEXT = torch.randn(1, 5, TEXT_DIM, generator=torch.Generator().manual_seed(78))


@torch.no_grad()
def velocity(expert: Any) -> Tensor:
    pair = draw_pair(9)
    return predict(expert, torch.cat([NOISE, pair.mask, pair.render], dim=1), TEXT, 0.7)


@pytest.mark.parametrize(("part", "low", "high"), [("transformer", 0.9, 1.0), ("transformer_2", 0.0, 0.9)])
def test_levels_are_those_of_the_expert_and_spread_as_the_shift_says(part: Part, low: float, high: float) -> None:
    generator = torch.Generator().manual_seed(0)
    levels = torch.tensor([draw_sigma(part, generator) for _ in range(4000)], dtype=torch.float64)
    assert low <= levels.min() and levels.max() <= high
    assert part == "transformer" or levels.max() < high
    # Back through the shift they are uniform: quartiles of an even spread.
    even = levels / (5.0 - 4.0 * levels)
    first, last = low / (5.0 - 4.0 * low), high / (5.0 - 4.0 * high)
    quartiles = torch.quantile((even - first) / (last - first), torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    torch.testing.assert_close(quartiles, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), atol=0.03, rtol=0)


class Answer(torch.nn.Module):
    """An expert that is right but for an error in one half, and keeps what it was asked."""

    def __init__(self, right: Tensor, *, known: float, unknown: float) -> None:
        super().__init__()
        self.patch_embedding = torch.nn.Linear(1, 1)
        error = torch.full_like(right, unknown)
        error[..., :2] = known
        self.answer = right + error

    def forward(self, *, hidden_states: Tensor, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        self.asked, self.time = hidden_states, timestep
        return (self.answer,)


@pytest.mark.parametrize("told", ["validity", "authors"])
def test_loss_is_of_noise_minus_picture_with_known_cells_weighted(told: str) -> None:
    pair = draw_pair(1)
    expert = Answer(NOISE - pair.clean, known=2.0, unknown=3.0)
    loss = flow_loss(expert, pair, TEXT, noise=NOISE, sigma=0.25, known_weight=0.5, told=told)
    assert float(loss) == pytest.approx((0.5 * 4.0 + 9.0) / 1.5, rel=1e-5)
    assert expert.time.tolist() == [250.0]
    noisy = 0.25 * NOISE + 0.75 * pair.clean
    shown = pair.mask if told == "validity" else torch.ones_like(pair.mask)
    torch.testing.assert_close(expert.asked, torch.cat([noisy, shown, pair.render], dim=1))


def test_one_batch_is_learnt_by_the_lora_alone() -> None:
    expert, pair = make_expert(0), draw_pair(2)
    before = velocity(expert)
    frozen = {name: value.clone() for name, value in expert.state_dict().items()}
    trained = add_lora(expert)
    torch.testing.assert_close(velocity(expert), before)
    expert.enable_gradient_checkpointing()
    expert.train()
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(60):
        loss = flow_loss(expert, pair, TEXT, noise=NOISE, sigma=0.5, known_weight=0.5)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0], losses[::10]
    now = {name.replace(".base_layer", ""): value for name, value in expert.state_dict().items()}
    assert all(torch.equal(now[name], value) for name, value in frozen.items())


def test_lora_is_on_every_target() -> None:
    expert = make_expert(0)
    add_lora(expert)
    adapted = {name: module for name, module in expert.named_modules() if hasattr(module, "lora_A")}
    # Two layers with two attentions of four projections, and two feed-forward layers.
    assert len(adapted) == 2 * (2 * 4 + 2)
    assert all(any(name.endswith(target) for target in TARGETS) for name in adapted)
    assert {module.lora_A["default"].out_features for module in adapted.values()} == {RANK}


def test_saved_loras_load_through_diffusers_into_both_experts(tmp_path: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    expected = []
    for seed, part in enumerate(("transformer", "transformer_2")):
        expert = make_expert(seed)
        plain = velocity(expert)
        generator = torch.Generator().manual_seed(seed)
        for parameter in add_lora(expert):
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        expected.append(velocity(expert))
        assert (expected[-1] - plain).abs().max() > 1e-2
        save_lora(expert, tmp_path / part)
    pipe = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=make_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=make_expert(0),
        transformer_2=make_expert(1),
        boundary_ratio=0.9,
    )
    pipe.load_lora_weights(tmp_path / "transformer", local_files_only=True)
    pipe.load_lora_weights(tmp_path / "transformer_2", local_files_only=True, load_into_transformer_2=True)
    torch.testing.assert_close(velocity(pipe.transformer), expected[0])
    torch.testing.assert_close(velocity(pipe.transformer_2), expected[1])

"""The loop that trains the LoRA of one expert.

Everything that is drawn is a function of the seed and of how many clips were seen before: pairs, noise and noise levels
do not depend on how often the run was interrupted, and with several GPUs a step sees the same clips as with one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vs3r.config import TrainConfig
from vs3r.errors import BackendError, InputError
from vs3r.refine.training.adapter import add_lora, save_lora
from vs3r.refine.training.objective import Part, draw_sigma, flow_loss
from vs3r.refine.training.pairs import Pair
from vs3r.refine.wan.windows import seeded

_MOMENTS = ("exp_avg", "exp_avg_sq")
_WEIGHTS = "lora"
_ORDER, _DRAWS, _CHECKS, _START = range(4)
"""Streams of random numbers."""
_CHECK_DRAWS = 8
"""Noise levels at which a clip is checked."""


@contextlib.contextmanager
def _memory_errors(part: Part, expert: Any) -> Iterator[None]:
    """Turns a full GPU into a BackendError that says what the weights take."""
    try:
        yield
    except torch.OutOfMemoryError:
        weights_gb = sum(value.numel() * value.element_size() for value in expert.parameters()) / 1e9
        raise BackendError(
            f"not enough memory on the GPU to train {part}: weights take {weights_gb:.0f} GB, "
            "a clip comes on top; make pairs with fewer --pixels or --frames, and leave --experts at one-by-one"
        ) from None


class Pairs(Protocol):
    """A list of pairs, or what reads them from files."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int, /) -> Pair: ...


def make_accelerator(device: torch.device) -> Any:
    """Accelerate's view of the processes that train together: one, or what `accelerate launch` started.

    What a step computes is ours to say: accelerate's own settings of precision and accumulation would come on top.
    """
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin

    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )


class ExpertTrainer:
    """One expert with its LoRA, the optimizer and how far they are."""

    def __init__(self, expert: Any, part: Part, text: Tensor, config: TrainConfig, accelerator: Any) -> None:
        """
        Args:
            expert: WanTransformer3DModel; it gets a LoRA.
            part: which of the two it is.
            text: (1, N, D) embedded prompt.
            config: settings.
            accelerator: see make_accelerator.
        Raises:
            BackendError: the GPU is full.
        """
        self.part = part
        self.steps = 0
        """Steps of the optimizer that were done."""
        self._config = config
        self._accelerator = accelerator
        self._device = accelerator.device
        self._text = text.to(self._device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeded(config.seed, _START, self._number).initial_seed())
            add_lora(expert)
        with _memory_errors(part, expert):
            expert.to(self._device)
        expert.enable_gradient_checkpointing()
        expert.train()
        self._names = {name: value for name, value in expert.named_parameters() if value.requires_grad}
        optimizer = torch.optim.AdamW(self._names.values(), lr=config.learning_rate, weight_decay=config.weight_decay)
        self.expert = expert
        self._wrapped, self._optimizer = accelerator.prepare(expert, optimizer)

    @property
    def _number(self) -> int:
        return 0 if self.part == "transformer" else 1

    def step(self, pairs: Pairs) -> float:
        """One step of the optimizer: config.accumulation clips on every GPU.

        Args:
            pairs: all that there are; they may be read when they are asked for.
        Returns:
            The mean loss before the step.
        Raises:
            BackendError: the loss or its gradient is no number any more, or the GPU is full.
        """
        with _memory_errors(self.part, self.expert):
            return self._step(pairs)

    def _step(self, pairs: Pairs) -> float:
        config, accelerator = self._config, self._accelerator
        for group in self._optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1.0, (self.steps + 1) / max(1, config.warmup_steps))
        total = torch.zeros((), device=self._device)
        for k in range(config.accumulation):
            clip = (self.steps * config.accumulation + k) * accelerator.num_processes + accelerator.process_index
            pair = pairs[self._order(clip, len(pairs))].to(self._device)
            last = k == config.accumulation - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self._wrapped):
                loss = self._loss(self._wrapped, pair, seeded(config.seed, _DRAWS, self._number, clip))
                accelerator.backward(loss / config.accumulation)
            total += loss.detach() / config.accumulation
        mean = float(accelerator.reduce(total, "mean"))
        self._check("loss", mean)
        norm = accelerator.clip_grad_norm_(self._names.values(), config.clip_norm)
        # A loss can be finite where its gradient is not.
        self._check("length of its gradient", float(norm))
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.steps += 1
        return mean

    def _check(self, name: str, value: float) -> None:
        if not value < float("inf"):
            raise BackendError(
                f"training of {self.part} went astray at step {self.steps + 1}: the {name} is {value}; go on from the "
                "last checkpoint with a smaller --learning-rate, in another folder"
            )

    @torch.no_grad()
    def check_loss(self, pairs: Sequence[Pair]) -> float:
        """Mean loss over clips that are not trained on; always at the same noise levels and with the same noise."""
        losses = [
            float(
                self._loss(self.expert, pair.to(self._device), seeded(self._config.seed, _CHECKS, self._number, i, k))
            )
            for i, pair in enumerate(pairs)
            for k in range(_CHECK_DRAWS)
        ]
        return sum(losses) / len(losses)

    def _loss(self, expert: Any, pair: Pair, generator: torch.Generator) -> Tensor:
        sigma = draw_sigma(self.part, generator)
        noise = torch.randn(pair.clean.shape, generator=generator).to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.precision == "bf16"):
            return flow_loss(
                expert, pair, self._text, noise=noise, sigma=sigma, known_weight=self._config.known_weight,
                told=self._config.condition,
            )  # fmt: skip

    def _order(self, clip: int, count: int) -> int:
        """Which pair is the clip-th: all of them in turn, in an order that changes from round to round."""
        turn, place = divmod(clip, count)
        order = torch.randperm(count, generator=seeded(self._config.seed, _ORDER, self._number, turn))
        return int(order[place])

    def state(self) -> dict[str, Tensor]:
        """Weights and moments, for a checkpoint."""
        found = {f"{_WEIGHTS}.{name}": value.detach().cpu() for name, value in self._names.items()}
        for name, value in self._names.items():
            moments = self._optimizer.state.get(value, {})
            found |= {f"{moment}.{name}": moments[moment].cpu() for moment in _MOMENTS if moment in moments}
        return {key: value.contiguous() for key, value in found.items()}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor], steps: int) -> None:
        """Go on where a checkpoint was written.

        Raises:
            InputError: it is of another model.
        """
        wanted = {f"{kind}.{name}" for kind in (_WEIGHTS, *_MOMENTS) for name in self._names}
        if wanted != set(state):
            raise InputError(
                f"expected a checkpoint of {self.part} with {len(wanted)} tensors, got one with {len(state)}; "
                "use the weights with which it was begun, or another folder"
            )
        for key, value in state.items():
            ours = self._names[key.split(".", 1)[1]]
            if value.shape != ours.shape:
                raise InputError(
                    f"expected a checkpoint of {self.part} whose {key} is {tuple(ours.shape)}, "
                    f"got {tuple(value.shape)}; use the weights with which it was begun, or another folder"
                )
        for name, value in self._names.items():
            value.copy_(state[f"{_WEIGHTS}.{name}"])
            self._optimizer.state[value] = {
                "step": torch.tensor(float(steps)),
                **{moment: state[f"{moment}.{name}"].to(value.device).clone() for moment in _MOMENTS},
            }
        self.steps = steps

    def save_lora(self, folder: Path) -> None:
        """Write the LoRA for diffusers and for WanConfig.wan_lora."""
        save_lora(self.expert, folder)

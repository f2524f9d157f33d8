"""What fine-tuning needs of the model: experts one after the other, the prompt, the autoencoder for previews."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vs3r.config import TrainConfig
from vs3r.errors import BackendError, InputError
from vs3r.refine.training.objective import Part
from vs3r.refine.training.pairs import Pair
from vs3r.refine.training.preview import preview, side_by_side
from vs3r.refine.training.trainer import ExpertTrainer, make_accelerator
from vs3r.refine.wan.checkpoint import Checkpoint, find_checkpoint, read_expert
from vs3r.refine.wan.model import find_device, load_codec, require_packages
from vs3r.refine.wan.prompt import load_prompt
from vs3r.refine.wan.windows import A14B


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainSetup:
    """Made by load_setup."""

    config: TrainConfig
    """Settings."""
    checkpoint: Checkpoint
    """The weights that are fine-tuned."""
    text: Tensor
    """(1, N, D) embedded prompt."""
    accelerator: Any
    """See make_accelerator."""

    @property
    def channels(self) -> int:
        """Of the latents."""
        return self.checkpoint.layout.channels

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return bool(self.accelerator.is_main_process)

    @property
    def processes(self) -> int:
        """How many train together."""
        return int(self.accelerator.num_processes)

    def any_process(self, here: bool) -> bool:
        """Whether something is so in this process or in another one; all have to ask."""
        if self.processes == 1:
            return here
        told = torch.tensor(float(here), device=self.accelerator.device)
        return float(self.accelerator.reduce(told, "sum")) > 0

    def wait(self) -> None:
        """Until all processes are here."""
        self.accelerator.wait_for_everyone()

    def trainer(self, part: Part) -> ExpertTrainer:
        """An expert, read from its file, with a fresh LoRA."""
        dtype = torch.float32 if self.config.precision == "fp32" else torch.bfloat16
        expert = read_expert(self.checkpoint, part, dtype)
        return ExpertTrainer(expert, part, self.text, self.config, self.accelerator)

    def release(self) -> None:
        """Give back the memory of experts that nobody holds any more."""
        self.accelerator.free_memory()
        gc.collect()

    def preview(self, trainer: ExpertTrainer, pair: Pair, check: Callable[[], None]) -> npt.NDArray[np.uint8]:
        """(T, H, W, 3) a pair's render, what the expert makes of it, and the clean clip, side by side.

        Raises:
            BackendError: the GPU is full.
        """
        try:
            return self._preview(trainer, pair, check)
        except torch.OutOfMemoryError:
            raise BackendError(
                f"not enough memory on the GPU for a validation clip of {trainer.part}, whose autoencoder comes on top "
                "of training; go on with --validate-every 0, or make pairs with fewer --pixels or --frames"
            ) from None

    def _preview(self, trainer: ExpertTrainer, pair: Pair, check: Callable[[], None]) -> npt.NDArray[np.uint8]:
        device = self.accelerator.device
        pair = pair.to(device)
        trainer.expert.eval()
        try:
            with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                made = preview(
                    trainer.expert, trainer.part, pair, self.text.to(device), steps=self.config.validation_steps,
                    told=self.config.condition, check=check,
                )  # fmt: skip
        finally:
            trainer.expert.train()
        # Read anew each time: it is small beside the expert, and seldom needed.
        codec = load_codec(self.checkpoint, device)
        return side_by_side(codec, pair, made).numpy()


def load_setup(config: TrainConfig) -> TrainSetup:
    """Look at the weights and read what is small.

    Raises:
        InputError: weights are missing, or are of a model that is not fine-tuned here.
        BackendError: there is no GPU, or a package is missing.
    """
    require_packages()
    checkpoint = find_checkpoint(config.weights, only_low=False)
    if checkpoint.layout != A14B:
        raise InputError(
            f"expected weights with two experts, such as wan2.2-i2v-a14b, got {config.weights}: "
            "TI2V-5B is not fine-tuned here"
        )
    device = find_device(config.device, work="train dvdm", advice="ask for the processor by name: --device cpu")
    text = load_prompt(checkpoint, config.prompt, form=config.condition)
    return TrainSetup(config=config, checkpoint=checkpoint, text=text, accelerator=make_accelerator(device))

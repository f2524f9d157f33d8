"""The LoRA of one expert: added before training, saved as diffusers loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

RANK = 32
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")


def add_lora(expert: Any) -> list[nn.Parameter]:
    """Freeze an expert and put a LoRA on it that changes nothing yet. Alpha is the rank, so its scale is 1.

    Args:
        expert: WanTransformer3DModel.
    Returns:
        What is to be trained, in float32: steps are too small for bfloat16.
    """
    from peft import LoraConfig

    expert.requires_grad_(False)
    expert.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS)))
    trained = [parameter for parameter in expert.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = parameter.data.float()
    return trained


def save_lora(expert: Any, folder: Path) -> None:
    """Write an expert's LoRA for diffusers' `load_lora_weights`; each expert needs a folder of its own.

    Args:
        expert: one that add_lora has changed.
        folder: made when it is not there.
    """
    from diffusers import WanPipeline
    from peft import get_peft_model_state_dict

    WanPipeline.save_lora_weights(folder, transformer_lora_layers=get_peft_model_state_dict(expert))

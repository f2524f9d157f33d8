"""LoRAs, merged into an expert before its weights are held in another format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from vs3r.errors import InputError

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_DIFFUSERS_PREFIX, _PEFT_PREFIX = "transformer.", "base_model.model."


def merge_lora(expert: Any, folder: Path) -> None:
    """Add a LoRA to an expert's weights, in their own precision.

    Args:
        expert: WanTransformer3DModel.
        folder: holds the LoRA of this expert as diffusers or as peft saves it.
    Raises:
        InputError: there is none, or it is of another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = next((folder / name for name in (DIFFUSERS_FILE, PEFT_FILE) if (folder / name).is_file()), None)
    if path is None:
        raise InputError(
            f"expected a LoRA of {folder.name} in {folder}, as {DIFFUSERS_FILE} or {PEFT_FILE}, found none; "
            "see docs/refine.md"
        )
    prefix = _DIFFUSERS_PREFIX if path.name == DIFFUSERS_FILE else _PEFT_PREFIX
    try:
        state = load_file(path)
        _check_keys(expert, state, prefix, path)
        if prefix == _DIFFUSERS_PREFIX:
            # By path: diffusers keeps alpha in the file's header.
            expert.load_lora_adapter(folder, prefix="transformer", weight_name=path.name, local_files_only=True)
        else:
            expert.load_lora_adapter(_from_peft(state, folder / PEFT_CONFIG), prefix="transformer")
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"expected a LoRA that fits the model in {path}, got: {reason}") from None
    expert.fuse_lora()
    expert.unload_lora()


def _check_keys(expert: Any, state: dict[str, Tensor], prefix: str, path: Path) -> None:
    foreign = [key for key in state if not key.startswith(prefix)]
    if foreign or not state:
        raise InputError(
            f"expected LoRA tensors named {prefix}* in {path}, got {foreign[0] if foreign else 'none'}; "
            "use one for Wan2.2 that diffusers or peft saved"
        )
    names = {name for name, _ in expert.named_modules()}
    for key in state:
        if key.removeprefix(prefix).split(".lora_")[0] not in names:
            raise InputError(f"expected a LoRA of Wan2.2 in {path}, the model has no {key}; use another LoRA")


def _from_peft(state: dict[str, Tensor], config: Path) -> dict[str, Tensor]:
    """In diffusers' names, the scale multiplied into B: without a header diffusers takes it as 1."""
    settings = json.loads(config.read_text())
    rank = float(settings["r"])
    scale = float(settings["lora_alpha"]) / (rank**0.5 if settings.get("use_rslora") else rank)
    return {
        _DIFFUSERS_PREFIX + key.removeprefix(_PEFT_PREFIX): value * scale if ".lora_B" in key else value
        for key, value in state.items()
    }

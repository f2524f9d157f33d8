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
            "see docs/refine.md; with that of transformer_2 alone: --wan-experts low"
        )
    prefix = _DIFFUSERS_PREFIX if path.name == DIFFUSERS_FILE else _PEFT_PREFIX
    try:
        state = load_file(path)
        _check_keys(expert, state, prefix, path)
        if prefix == _DIFFUSERS_PREFIX:
            # By path: diffusers keeps alpha in the file's header.
            expert.load_lora_adapter(folder, prefix="transformer", weight_name=path.name, local_files_only=True)
        else:
            renamed = {_DIFFUSERS_PREFIX + key.removeprefix(_PEFT_PREFIX): value for key, value in state.items()}
            expert.load_lora_adapter(renamed, prefix="transformer", metadata=_peft_settings(folder / PEFT_CONFIG))
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
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


def _peft_settings(path: Path) -> dict[str, Any]:
    """All that peft was told, as diffusers finds it in the header of its own files.

    Ranks and scales may differ from layer to layer, and some ways to begin a training change the weights that the LoRA
    is added to.
    """
    from peft import LoraConfig

    config = LoraConfig.from_peft_type(**json.loads(path.read_text()))
    return {_DIFFUSERS_PREFIX + name: value for name, value in config.to_dict().items()}

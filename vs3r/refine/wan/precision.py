"""Number formats of the experts' weights, and what of FP8 a machine can do."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from vs3r.errors import BackendError
from vs3r.refine.wan.windows import A14B, TI2V_5B

log = logging.getLogger(__name__)

LEAST_CAPABILITY = (8, 9)
"""CUDA compute capability from which a GPU multiplies in FP8."""
PARAMETERS = {A14B: 14.3e9, TI2V_5B: 5.0e9}
"""Of one network."""
BYTES = {"fp32": 4, "bf16": 2, "fp8": 1, "fp8-weights": 1, "fp8-storage": 1}
"""Of a weight, about: not all of them are held in 8 bits."""


def choose_precision(asked: str, device: torch.device) -> str:
    """The number format that is used; where `auto` was asked for, fp8 if it can run here, else bf16.

    Raises:
        BackendError: one that was asked for by name cannot run here.
    """
    if asked not in ("auto", "fp8", "fp8-weights"):
        return asked
    amiss = _packages_amiss() or (None if asked == "fp8-weights" else _device_amiss(device))
    if amiss is None:
        return "fp8" if asked == "auto" else asked
    if asked != "auto":
        raise BackendError(f"--wan-precision {asked} {amiss}; use --wan-precision bf16, or fp8-storage to save memory")
    log.warning("wan: the weights stay in bf16, as fp8 %s", amiss)
    return "bf16"


def _packages_amiss() -> str | None:
    try:
        import torchao.quantization  # noqa: F401
    except ImportError as error:
        return f"needs torchao ({error}): pip install 'vs3r[refine]'"
    return None


def _device_amiss(device: torch.device) -> str | None:
    least = ".".join(map(str, LEAST_CAPABILITY))
    if device.type != "cuda":
        return f"needs an NVIDIA GPU of compute capability {least} or more and runs on the processor"
    found = torch.cuda.get_device_capability(device)
    if found < LEAST_CAPABILITY:
        return f"needs a GPU of compute capability {least} or more and finds {found[0]}.{found[1]}"
    return None


def hold_as(expert: Any, precision: str) -> None:
    """Bring an expert's weights, read in bfloat16, into their number format; after LoRAs were merged.

    Only linear layers of the blocks change. Patch, time and text embedding, norms, modulation and the last projection
    stay as they are.

    Args:
        expert: WanTransformer3DModel in evaluation mode.
        precision: as choose_precision returns it.
    """
    if precision == "fp8-storage":
        # The last projection decides the output directly; the model's own list of what stays is added to it.
        expert.enable_layerwise_casting(
            storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16, skip_modules_pattern=("proj_out",)
        )
    elif precision in ("fp8", "fp8-weights"):
        from torchao.quantization import (
            Float8DynamicActivationFloat8WeightConfig,
            Float8WeightOnlyConfig,
            PerRow,
            quantize_,
        )

        # torchao would have every kernel of the process tuned from then on, which takes minutes.
        config: Any = Float8WeightOnlyConfig(set_inductor_config=False)
        if precision == "fp8":
            config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)
        quantize_(expert, config, filter_fn=is_block_linear)


def is_block_linear(module: nn.Module, name: str) -> bool:
    """Whether a layer of an expert, by its name, is one whose weights may be held in FP8."""
    return isinstance(module, nn.Linear) and name.startswith("blocks.")

"""How the method runs a learned network: it hands it over with example inputs, and calls what it gets back.

Who gives the way (`Prepare`) decides how: the engine compiles it or takes a built one (export/runtime.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

Network: TypeAlias = Callable[..., Any]
"""A network that is called with tensors of the shapes, dtypes and device of its example inputs."""

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Prepare(Protocol):
    """Makes a network ready to run."""

    def __call__(self, name: str, network: nn.Module, example: tuple[Tensor, ...], /) -> Network:
        """
        Args:
            name: what the network is called in messages and file names.
            network: in eval mode, on its device.
            example: inputs of the shapes, dtypes and device that it will be called with.
        Returns:
            What computes the same.
        Raises:
            BackendError: the way asked for cannot be gone here.
        """
        ...


def eager(_name: str, network: nn.Module, _example: tuple[Tensor, ...], /) -> Network:
    """As it is. A Prepare."""
    return network


def default_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")

"""AOTInductor: PyTorch's ahead-of-time compiler. A .pt2 runs on the kind of GPU or processor it was compiled for."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from vs3r.networks import Network

_FILE = "engine.pt2"


def obstacle(_device: torch.device) -> str | None:
    """See build.Format."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"expected a C++ compiler, {compiler} was not found; on Debian and Ubuntu: apt-get install g++"
    return None


def toolchain() -> str:
    """See build.Format."""
    return f"torch {torch.__version__}"


def build(network: nn.Module, example: tuple[Tensor, ...], folder: Path) -> str:
    """See build.Format."""
    from torch._inductor import aoti_compile_and_package

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, about PyTorch
        exported = torch.export.export(network, example, strict=False)
        aoti_compile_and_package(exported, package_path=str(folder / _FILE))
    return _FILE


def load(path: Path, device: torch.device) -> Network:
    """See build.Format."""
    from torch._inductor import aoti_load_package, config

    index = -1 if device.index is None else device.index
    # Else PyTorch compiles a program or two, only to find out whether to warn: 15 s or more, and a compiler is needed.
    with config.patch({"cpp.vec_isa_ok": True}):
        runner: Network = aoti_load_package(str(path), device_index=index if device.type == "cuda" else -1)
    return runner

"""What the operators share at their door: checking tensors, and choosing who computes."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vs3r.errors import BackendError, ShapeError

Backend = Literal["auto", "reference", "triton"]

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

_log = logging.getLogger(__name__)


def check_tensor(
    name: str,
    value: Tensor,
    shape: Sequence[int | str],
    *,
    dtypes: Sequence[torch.dtype] = FLOATS,
    device: torch.device | None = None,
) -> None:
    """Refuse a tensor that is not what an operator takes.

    Args:
        name: of the argument, for the message.
        value: what came.
        shape: a length per axis; a name where any length will do.
        dtypes: those allowed.
        device: where it must lie; None for anywhere.
    Raises:
        ShapeError: shape, dtype or device is another.
    """
    got = value.shape
    # First what is fast: a call of an operator may take as long as its kernel.
    fits = got == shape or (
        len(got) == len(shape)
        and all(isinstance(want, str) or want == length for want, length in zip(shape, got, strict=True))
    )
    if not fits:
        raise ShapeError(f"{name}: expected ({', '.join(map(str, shape))}); got {tuple(value.shape)}")
    if value.dtype not in dtypes:
        wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ShapeError(f"{name}: expected dtype {wanted}; got {str(value.dtype).removeprefix('torch.')}")
    if device is not None and value.device != device:
        raise ShapeError(f"{name}: expected device {device}; got {value.device}; move all arguments to one device")


def runs_triton(backend: Backend, *pictures: Tensor) -> bool:
    """Whether the Triton kernels compute, not the reference.

    Args:
        backend: "reference" and "triton" are obeyed; "auto" takes Triton for tensors on a GPU where it can run.
        pictures: the operator's large inputs, all on one device.
    Raises:
        BackendError: "triton" was asked for and cannot run; or there is no such backend.
    """
    if backend not in ("auto", "reference", "triton"):
        raise BackendError(f"backend: expected auto, reference or triton; got {backend!r}")
    if backend == "reference" or (backend == "auto" and pictures[0].device.type != "cuda"):
        return False
    obstacle = _obstacle(pictures)
    if obstacle is None:
        return True
    if backend == "triton":
        raise BackendError(f"backend triton: {obstacle}; or ask for backend auto or reference")
    _log_once(obstacle)
    return False


def _obstacle(pictures: Sequence[Tensor]) -> str | None:
    """Why Triton cannot take these tensors; None when it can."""
    if importlib.util.find_spec("triton") is None:
        return "expected the package triton; it is not installed: pip install 'vs3r[gpu]'"
    if any(picture.dtype == torch.float64 for picture in pictures):
        return "expected float32, bfloat16 or float16; got float64"
    device = pictures[0].device.type
    # Triton's interpreter runs kernels on a CPU, for tests.
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"expected tensors on an NVIDIA GPU; got device {device}"
    return None


@functools.cache
def _log_once(obstacle: str) -> None:
    _log.warning("GPU kernels are not used, the PyTorch reference is: %s", obstacle)

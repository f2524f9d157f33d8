"""What the tests of the operators share."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, TypeVar

import pytest
import torch
from torch import Tensor

from vs3r.geometry import rigid, so3_exp
from vs3r.kernels.camera import SourceCameras

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where Triton kernels run, compiled or interpreted."""

ignores_numpy_warnings = pytest.mark.filterwarnings("ignore::RuntimeWarning")
"""The interpreter computes with NumPy, which warns where a GPU quietly makes NaN and infinity."""

VIEW_K = torch.tensor([[30.0, 0.5, 18.0], [0.0, 29.0, 14.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
"""Of views about 37 x 29."""
LENSES: list[tuple[str, tuple[float, ...]]] = [
    ("pinhole", ()),
    ("kannala-brandt", (0.0, 0.0, 0.0, 0.0)),
    ("kannala-brandt", (0.05, -0.02, 0.004, -0.0007)),
    ("unified", (0.4,)),
    ("unified", (0.6,)),
    ("double-sphere", (-0.2, 0.6)),
    ("division", (-0.3,)),
]
"""Camera models with parameters."""


def poses(count: int, *, turn: float, move: float, seed: int = 0) -> Tensor:
    """(count, 4, 4) random rigid motions, double."""
    random = torch.Generator().manual_seed(seed)
    turns = turn * torch.randn(count, 3, generator=random, dtype=torch.float64)
    return rigid(so3_exp(turns), move * torch.randn(count, 3, generator=random, dtype=torch.float64))


def converted(value: T, dtype: torch.dtype, device: str = DEVICE) -> T:
    """A dataclass of tensors with those of double precision converted, and all on a device."""
    changed: dict[str, Tensor | SourceCameras] = {}
    for spec in dataclasses.fields(value):
        part = getattr(value, spec.name)
        if isinstance(part, Tensor):
            changed[spec.name] = part.to(device, dtype) if part.dtype == torch.float64 else part.to(device)
        elif isinstance(part, SourceCameras):
            changed[spec.name] = dataclasses.replace(
                part, K=part.K.to(device), cam_from_world=part.cam_from_world.to(device)
            )
    return dataclasses.replace(value, **changed)

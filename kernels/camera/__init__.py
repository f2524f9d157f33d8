"""The cameras that the operators see through: where points come from, and the view that they are drawn into."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vs3r.errors import InputError
from vs3r.kernels.dispatch import check_tensor

__all__ = ["SourceCameras", "View", "PINHOLE", "KANNALA_BRANDT", "UNIFIED", "DOUBLE_SPHERE", "DIVISION"]

PINHOLE, KANNALA_BRANDT, UNIFIED, DOUBLE_SPHERE, DIVISION = range(5)
"""Models by number, in the order of PARAMETERS."""
PARAMETERS = {"pinhole": 0, "kannala-brandt": 4, "unified": 1, "double-sphere": 2, "division": 1}
"""Name of each model to the number of its parameters."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceCameras:
    """The cameras of S source pictures."""

    K: Tensor
    """(S, 3, 3) intrinsics in pixels; the first pixel's centre is (0.5, 0.5)."""
    cam_from_world: Tensor
    """(S, 4, 4) rigid; of a rolling shutter (S, H, 4, 4), that of each row of the picture."""
    distortion: float = 0.0
    """Of their lens, in [-1, 0], see vs3r.lens; inverse depth is that of a pinhole camera."""

    @property
    def rolling(self) -> bool:
        """Whether each row has a pose of its own."""
        return self.cam_from_world.dim() == 4

    def check(self, count: int, device: torch.device, *, rows: int | None = None) -> None:
        """Raise ShapeError unless there are `count` cameras on that device; with `rows` they may be rolling.
        InputError unless there is such a lens."""
        check_distortion(self.distortion)
        check_tensor("cameras.K", self.K, (count, 3, 3), device=device)
        of_rows = (rows,) if rows is not None and self.rolling else ()
        check_tensor("cameras.cam_from_world", self.cam_from_world, (count, *of_rows, 4, 4), device=device)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """What is drawn: a central camera without rolling shutter. The models are those of vs3r.cameras."""

    K: Tensor
    """(3, 3) intrinsics in pixels; the first pixel's centre is (0.5, 0.5)."""
    cam_from_world: Tensor
    """(4, 4) rigid."""
    width: int
    """Pixels, >= 1."""
    height: int
    """Pixels, >= 1."""
    model: str = "pinhole"
    """"pinhole", "kannala-brandt" (a fisheye), "unified", "double-sphere" or "division"."""
    parameters: tuple[float, ...] = ()
    """Of the model: none; k1 to k4; alpha; xi and alpha; the distortion, in [-1, 0]."""

    def check(self, device: torch.device) -> None:
        """Raise ShapeError unless the camera is on that device, InputError unless model and size make sense."""
        check_tensor("view.K", self.K, (3, 3), device=device)
        check_tensor("view.cam_from_world", self.cam_from_world, (4, 4), device=device)
        if min(self.width, self.height) < 1:
            raise InputError(f"view: expected at least 1 x 1 pixels; got {self.width} x {self.height}")
        if self.model not in PARAMETERS:
            raise InputError(f"view.model: expected one of {', '.join(PARAMETERS)}; got {self.model!r}")
        if len(self.parameters) != PARAMETERS[self.model]:
            raise InputError(
                f"view.parameters: expected {PARAMETERS[self.model]} for {self.model}; got {len(self.parameters)}"
            )
        if self.model == "division":
            check_distortion(*self.parameters)

    @property
    def number(self) -> int:
        """Of the model."""
        return list(PARAMETERS).index(self.model)

    @property
    def limit(self) -> float:
        """Where the model's field of view ends: an angle for Kannala-Brandt, else the least cosine of it."""
        if self.model == "kannala-brandt":
            return _largest_angle(self.parameters)
        if self.model == "unified":
            (alpha,) = self.parameters
            return -_ratio(alpha)
        if self.model == "double-sphere":
            xi, alpha = self.parameters
            w = _ratio(alpha)
            return -(w + xi) / math.sqrt(2 * w * xi + xi * xi + 1)
        return 0.0

    def from_sources(self, cameras: SourceCameras) -> Tensor:
        """(S, 4, 4) or (S, H, 4, 4) float64: view_from_source."""
        R, t = cameras.cam_from_world[..., :3, :3].double(), cameras.cam_from_world[..., :3, 3:].double()
        world_from_source = torch.zeros_like(cameras.cam_from_world, dtype=torch.float64)
        world_from_source[..., :3, :3] = R.mT
        world_from_source[..., :3, 3:] = -R.mT @ t
        world_from_source[..., 3, 3] = 1
        return self.cam_from_world.double() @ world_from_source


def check_distortion(distortion: float) -> None:
    """Raise InputError unless there is such a lens, see vs3r.lens."""
    if not -1 <= distortion <= 0:
        raise InputError(f"distortion: expected -1 to 0; got {distortion}")


def _ratio(alpha: float) -> float:
    """Usenko et al. 2018, eq. 5 and 45: what of the field of view alpha leaves."""
    return alpha / (1 - alpha) if alpha <= 0.5 else (1 - alpha) / alpha


def _largest_angle(coefficients: tuple[float, ...]) -> float:
    """The angle up to which the radius grows, at most pi."""
    theta = torch.linspace(0, math.pi, 2049, dtype=torch.float64)
    slope = torch.ones_like(theta)
    for power, k in enumerate(coefficients, start=1):
        slope += (2 * power + 1) * k * theta ** (2 * power)
    falling = torch.nonzero(slope <= 0)
    return float(theta[max(int(falling[0]) - 1, 0)]) if len(falling) else math.pi

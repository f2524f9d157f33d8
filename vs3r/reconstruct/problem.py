"""What a bundle adjustment over flow is given, and what it looks for; bundle.py solves it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Edges:
    """E directed pairs of frames with the flow between them at P points."""

    src: Tensor
    """(E,) frame whose points are observed."""
    dst: Tensor
    """(E,) frame that they are observed in."""
    target: Tensor
    """(E, 2, P) where they are seen, in pixels from the picture's centre."""
    weight: Tensor
    """(E, P) trust in the observation, in [0, 1]."""
    source: Tensor
    """(E, 3, P) the points in the source frame, in pixels from the picture's centre, and 1."""
    slope: Tensor | None = None
    """(E, 4, P) how source and target move with the read-out, pixels a second; None where it is not unknown."""
    slope_at: float = 0.0
    """Read-out in seconds for which source and target are given."""

    def select(self, keep: Tensor) -> Edges:
        """The edges for which the mask keep (E,) is true."""
        return replace(
            self,
            src=self.src[keep],
            dst=self.dst[keep],
            target=self.target[keep],
            weight=self.weight[keep],
            source=self.source[keep],
            slope=None if self.slope is None else self.slope[keep],
        )

    def to(self, device: torch.device) -> Edges:
        """The same on a device."""
        return _moved(self, device)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """The unknowns of n frames."""

    cam_from_world: Tensor
    """(n, 4, 4)."""
    log_focal: Tensor
    """(n,) log of the focal length in analysis pixels."""
    inv_depth: Tensor
    """(n, P)."""
    readout: Tensor
    """() time from the picture's first line to its last in seconds; negative where the last is read first."""
    readout_info: Tensor
    """() what is known of it: PRIOR_PX2 over its variance, 1/s^2."""
    wobble: Tensor
    """(n, 6, 3) how the cameras turn within a frame beside that: the line at height s, see FrameGeometry.row_motion, is
    seen by a camera turned by wobble[0] s + wobble[1] s**2 + ... (rotation vector); found by wobble.py."""
    distortion: float = 0.0
    """Of the lens, see vs3r.lens."""

    def to(self, device: torch.device) -> State:
        """The same on a device."""
        return _moved(self, device)


_Tensors = TypeVar("_Tensors", Edges, State)


def _moved(tensors: _Tensors, device: torch.device) -> _Tensors:
    values = ((spec.name, getattr(tensors, spec.name)) for spec in fields(tensors))
    moved: dict[str, Any] = {name: value.to(device) for name, value in values if isinstance(value, Tensor)}
    return replace(tensors, **moved)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """What stays fixed during one adjustment."""

    grid: tuple[int, int]
    """Rows and columns of the grid; rows * columns = P."""
    edges: Edges
    """The observations."""
    first_free_pose: int
    """Frames before this one keep their pose."""
    first_free_structure: int
    """Frames before this one keep their inverse depths and focal length."""
    log_focal_prior: float
    """Expected log focal length."""
    rotation_only: bool
    """No frame moves: translations are ignored, inverse depths stay."""
    free_focal: bool = True
    """The focal length is unknown."""
    free_rotation: bool = True
    """Rotations may change."""
    zooms: bool = False
    """A camera that moves may zoom as freely as one that only turns."""
    free_depth: bool = True
    """Inverse depths may change."""
    inv_depth_std: float = 0.5
    """How far the inverse depths are believed to be from those at the beginning, which hold the scale of the last
    frames, in units of the typical one."""
    readout_prior: tuple[float, float] = (0.0, 0.0)
    """Expected read-out in seconds, and what is known of it: its inverse variance times PRIOR_PX2."""

    @property
    def moves_depth(self) -> bool:
        """Whether inverse depths change."""
        return self.free_depth and not self.rotation_only

"""What splatting takes and gives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vs3r.kernels.camera import SourceCameras, View

MIN_WEIGHT = 1 / 16
"""Of its 2 x 2 pixels a point reaches those with at least this bilinear weight: a hair's breadth hides nothing."""
FIXED = float(2**28)
"""Weights and weighted values, at most 1, are summed as integers in units of 1 / FIXED: four of them fit 32 bits."""
EMPTY = 2**63 - 1
"""The key of a pixel that no point reaches. Others: the bits of the depth, positive, above the point's number."""
LEAST_DEPTH = 1.1754943508222875e-38
"""The smallest normal float32."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DepthPoints:
    """The pixels of S source pictures with their inverse depth; the cloud of points is never in memory."""

    inv_depth: Tensor
    """(S, H, W) 1/z, > 0."""
    cameras: SourceCameras
    """S cameras, intrinsics in pixels of H x W; those of a rolling shutter with a pose per row."""
    attributes: Tensor | None = None
    """(S, H, W, C) float or uint8: colours or whatever is to be drawn."""
    valid: Tensor | None = None
    """(S, H, W) bool: draw the point at all. None for yes."""
    dynamic: Tensor | None = None
    """(S, H, W) bool: draw the point only if it is of source `current`. None for nothing dynamic."""
    current: int = 0
    """The source whose dynamic points are drawn."""

    @property
    def places(self) -> Tensor:
        """What tells where the points are."""
        return self.inv_depth

    @property
    def count(self) -> int:
        """How many points."""
        return self.inv_depth.numel()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WorldPoints:
    """N points given by their coordinates."""

    xyz: Tensor
    """(N, 3) in the world."""
    attributes: Tensor | None = None
    """(N, C) float or uint8."""
    valid: Tensor | None = None
    """(N,) bool, see DepthPoints."""
    dynamic: Tensor | None = None
    """(N,) bool, see DepthPoints."""
    source: Tensor | None = None
    """(N,) int32 >= 0, the source that the point is from. None for 0."""
    current: int = 0
    """See DepthPoints."""

    @property
    def places(self) -> Tensor:
        """What tells where the points are."""
        return self.xyz

    @property
    def count(self) -> int:
        """How many points."""
        return len(self.xyz)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """The nearest point wins. Those hardly farther than it are averaged with it, by bilinear weights."""

    depth_tolerance: float = 0.02
    """Points farther by at most this share of the nearest depth are of the same surface."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alpha:
    """The paper's: discs, the nearest few of a pixel laid over one another with opacity 1 - d^2 / r^2 (PyTorch3D)."""

    radius: float = 0.012
    """Of the discs, > 0, in PyTorch3D's unit: half the shorter side of the view is 1."""
    points_per_pixel: int = 12
    """How many, the nearest ones."""

    def radius_px(self, view: View) -> float:
        """In pixels of a view."""
        return self.radius * min(view.width, view.height) / 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Splat:
    """What was drawn."""

    attributes: Tensor | None
    """(H, W, C), 0 where nothing was drawn; with Alpha the background, 0, shines through. None without attributes."""
    depth: Tensor
    """(H, W) 0 where nothing was drawn. z for a pinhole view, else the distance from the camera. With Nearest the mean
    over the surface, with Alpha the nearest point's."""
    valid: Tensor
    """(H, W) bool: a point was drawn here."""
    source: Tensor
    """(H, W) int32: the source of the nearest point, -1 where nothing was drawn."""

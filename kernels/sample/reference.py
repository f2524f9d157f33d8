"""The definition of backward sampling in plain PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vs3r.kernels.camera import SourceCameras, View
from vs3r.kernels.camera.reference import unproject

SHARPNESS = -0.75
"""The free parameter of the cubic kernel."""
ROW_STEPS = 3
"""Of a rolling shutter a point's row is found by this many steps from the middle row. Each shrinks what is left by the
motion per row in rows, well below 0.1 in practice."""
PICTURES = (torch.uint8, torch.uint16, torch.float16, torch.float32)
"""What pictures may be made of."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SamplePictures:
    """S pictures that a view is sampled from, best first: usually the frame itself, then its neighbours."""

    pictures: Tensor
    """(S, H, W, C) uint8, uint16, float16 or float32."""
    cameras: SourceCameras
    """S cameras, intrinsics in pixels of H x W; those of a rolling shutter with a pose per row."""
    inv_depth: Tensor
    """(S, h, w) 1/z > 0 on cells that tile the picture, float."""
    dynamic: Tensor | None = None
    """(S, h, w) bool: cells that are shown of the first picture only, because what is there moves. None for nothing."""
    peak: float | None = None
    """The largest value that bicubic overshoot may reach, 1023 for 10 bits. None for the largest of the dtype."""

    @property
    def range(self) -> tuple[float, float]:
        """Least and largest value of the result."""
        dtype = self.pictures.dtype
        if dtype.is_floating_point:
            return torch.finfo(dtype).min, torch.finfo(dtype).max if self.peak is None else self.peak
        return 0.0, float(torch.iinfo(dtype).max) if self.peak is None else self.peak


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sampled:
    """A view as its sources show it."""

    picture: Tensor
    """(height, width, C) of the sources' dtype; 0 where no source sees."""
    source: Tensor
    """(height, width) int32: the source that is shown, -1 where there is none."""


def sample_backward_reference(
    inv_depth: Tensor, view: View, sources: SamplePictures, margin_px: float, depth_tolerance: float
) -> Sampled:
    """See vs3r.kernels.sample.sample_backward."""
    dtype = torch.float64 if inv_depth.dtype == torch.float64 else torch.float32
    count, H, W, C = sources.pictures.shape
    rows, columns = (torch.arange(n, dtype=dtype, device=inv_depth.device) + 0.5 for n in (view.height, view.width))
    v, u = (a.flatten() for a in torch.meshgrid(rows, columns, indexing="ij"))
    rho = _on_cells(inv_depth.to(dtype), u / view.width, v / view.height)
    rays, visible = unproject(u, v, view)
    missing = visible & (rho >= 0) & (rho < torch.inf)
    source_from_view = torch.linalg.inv(view.from_sources(sources.cameras)).to(dtype)
    source = torch.full_like(u, -1, dtype=torch.int32)
    out = torch.zeros(len(u), C, dtype=sources.pictures.dtype, device=u.device)
    for number in range(count):
        (at,) = torch.nonzero(missing, as_tuple=True)
        poses, K = source_from_view[number], sources.cameras.K[number].to(dtype)
        x, y, z = _land(rays[at], rho[at], poses, K, torch.full_like(rho[at], H / 2))
        for _ in range(ROW_STEPS if sources.cameras.rolling else 0):
            x, y, z = _land(rays[at], rho[at], poses, K, y)
        ahead = z > 0
        sees = ahead & (torch.minimum(torch.minimum(x, W - x), torch.minimum(y, H - y)) >= margin_px)
        surface = _on_cells(sources.inv_depth[number].to(dtype), x / W, y / H)
        sees &= surface <= rho[at] / torch.where(ahead, z, 1) * (1 + depth_tolerance)
        if sources.dynamic is not None and number > 0:
            sees &= ~_cell(sources.dynamic[number], x / W, y / H)
        at, x, y = at[sees], x[sees], y[sees]
        values = _bicubic(sources.pictures[number], x, y)
        if not out.dtype.is_floating_point:
            values = (values + 0.5).floor()
        _store(out, at, values.clamp(*sources.range))
        source[at] = number
        missing[at] = False
    shape = view.height, view.width
    return Sampled(picture=out.view(*shape, C), source=source.view(shape))


def _land(rays: Tensor, rho: Tensor, poses: Tensor, K: Tensor, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where points (N) lie in a source's picture, and their depth there times rho.

    Args:
        rays: (N, 3) of the view, times depth a point.
        rho: (N,) inverse depth in the view.
        poses: source_from_view, (4, 4), or of a rolling shutter (H, 4, 4).
        K: (3, 3) of the source.
        row: (N,) position down the picture whose camera sees the point, where the poses are of rows; linear between
            their centres.
    """
    if poses.dim() == 2:
        moved = rays @ poses[:3, :3].T + rho[:, None] * poses[:3, 3]
    else:
        at = (row - 0.5).nan_to_num(0.0).clamp(0, len(poses) - 1)
        above = at.long()
        pose = torch.lerp(poses[above], poses[(above + 1).clamp_max(len(poses) - 1)], (at - above)[:, None, None])
        moved = (pose[:, :3, :3] @ rays[..., None]).squeeze(-1) + rho[:, None] * pose[:, :3, 3]
    x, y, z = moved.unbind(-1)
    x, y = x / torch.where(z > 0, z, 1), y / torch.where(z > 0, z, 1)
    return K[0, 0] * x + K[0, 1] * y + K[0, 2], K[1, 1] * y + K[1, 2], z


def _store(out: Tensor, at: Tensor, values: Tensor) -> None:
    """out[at] = values, by way of int16 where PyTorch has no indexing for uint16."""
    if out.dtype == torch.uint16:
        out.view(torch.int16)[at] = values.to(torch.int32).to(torch.int16)
    else:
        out[at] = values.to(out.dtype)


def _cell(cells: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The values of the cells (h, w) at positions in [0, 1]."""
    h, w = cells.shape
    column, row = ((a * n).nan_to_num(0, 0, 0).clamp(0, n - 1).long() for a, n in ((x, w), (y, h)))
    return cells[row, column]


def _on_cells(cells: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Cells (h, w), interpolated linearly between their centres, at positions in [0, 1]."""
    h, w = cells.shape
    gx, gy = ((a * n - 0.5).nan_to_num(0, 0, 0).clamp(0, n - 1) for a, n in ((x, w), (y, h)))
    left, top = gx.long(), gy.long()
    right, bottom = (left + 1).clamp_max(w - 1), (top + 1).clamp_max(h - 1)
    above = torch.lerp(cells[top, left], cells[top, right], gx - left)
    below = torch.lerp(cells[bottom, left], cells[bottom, right], gx - left)
    return torch.lerp(above, below, gy - top)


def _bicubic(picture: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A picture (H, W, C) at positions (N,): (N, C) of the positions' dtype."""
    H, W, C = picture.shape
    # PyTorch has no indexing for uint16.
    flat = (picture.view(torch.int16) if picture.dtype == torch.uint16 else picture).reshape(H * W, C)
    left, top = (x - 0.5).floor(), (y - 0.5).floor()
    across, down = _weights(x - 0.5 - left), _weights(y - 0.5 - top)
    total = torch.zeros(len(x), C).to(x)
    for i in range(4):
        row = (top.long() + i - 1).clamp(0, H - 1) * W
        line = torch.zeros_like(total)
        for j in range(4):
            tap = flat[row + (left.long() + j - 1).clamp(0, W - 1)]
            tap = tap.to(torch.int32) & 0xFFFF if picture.dtype == torch.uint16 else tap
            line += across[j][:, None] * tap.to(x.dtype)
        total += down[i][:, None] * line
    return total


def _weights(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the four pixels around a position that lies a share t beyond the second (Keys 1981)."""
    a, s = SHARPNESS, 1 - t
    return (
        a * t * s * s,
        1 + t * t * ((a + 2) * t - (a + 3)),
        1 + s * s * ((a + 2) * s - (a + 3)),
        a * s * t * t,
    )

"""The definition of the rigid-flow residual in plain PyTorch, and its CPU path."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vs3r.lens import bent, straightened

SEEN, OUTSIDE, BEHIND, INVALID = 0, 1, 2, 3
"""See RigidFlow.status."""
NEAREST = 1e-3
"""A point must be ahead of the destination by this share of its depth in the source."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RigidFlow:
    """How far the flow of each pixel is from what a rigid world would show."""

    residual: Tensor
    """(B, H, W) pixels, finite; 0 where the status is BEHIND or INVALID."""
    mask: Tensor
    """(B, H, W) bool: seen, and the residual is more than tau; or in the semantic mask."""
    status: Tensor
    """(B, H, W) uint8: SEEN by the destination, OUTSIDE its picture, BEHIND its camera, or INVALID: depth negative,
    or depth, flow or the position not finite."""
    flow: Tensor | None
    """(B, H, W, 2) rigid flow in pixels, 0 where BEHIND or INVALID; None where it was not asked for."""

    @property
    def ahead(self) -> Tensor:
        """(B, H, W) bool: the point lies ahead of the destination camera, in its picture or not."""
        return self.status < BEHIND


def rigid_flow_residual_reference(
    inv_depth: Tensor,
    observed_flow: Tensor,
    K_src: Tensor,
    K_dst: Tensor,
    dst_from_src: Tensor,
    tau: Tensor,
    semantic: Tensor | None,
    with_flow: bool,
    distortion: float,
) -> RigidFlow:
    """See vs3r.kernels.rigid_flow.rigid_flow_residual."""
    B, H, W = inv_depth.shape
    dtype = torch.float64 if inv_depth.dtype == torch.float64 else torch.float32
    rho, flow_x, flow_y = (a.to(dtype).reshape(B, H * W) for a in (inv_depth, *observed_flow.unbind(-1)))
    known = (rho >= 0) & (rho < torch.inf) & flow_x.isfinite() & flow_y.isfinite()
    rho = torch.where(known, rho, 0)
    v, u = torch.meshgrid(torch.arange(H).to(rho) + 0.5, torch.arange(W).to(rho) + 0.5, indexing="ij")
    u, v = u.flatten(), v.flatten()
    # project(K_dst (R K_src^-1 p / rho + t)), multiplied by rho so that a point at infinity is nothing special.
    K_src, K_dst, dst_from_src = K_src.double(), K_dst.double(), dst_from_src.double()
    pixels = torch.stack([u, v, torch.ones_like(u)])
    # inv would wait for the GPU to hear whether it succeeded.
    from_pixels, to_pixels = torch.linalg.inv_ex(K_src).inverse, K_dst
    if distortion:
        pixels = from_pixels.to(dtype) @ pixels
        pixels[:, :2] *= straightened(distortion, pixels[:, :2].square().sum(1, keepdim=True))
        from_pixels = to_pixels = torch.eye(3).to(K_src)
    turn = (to_pixels @ dst_from_src[:, :3, :3] @ from_pixels).to(dtype)
    shift = (to_pixels @ dst_from_src[:, :3, 3:]).to(dtype)
    x, y, z = (turn @ pixels + rho[:, None] * shift).unbind(1)
    ahead = z > NEAREST
    x, y = x / torch.where(ahead, z, 1), y / torch.where(ahead, z, 1)
    if distortion:
        scale = bent(distortion, x * x + y * y)
        x, y, _ = (K_dst.to(dtype) @ torch.stack([x * scale, y * scale, torch.ones_like(x)], 1)).unbind(1)
    residual = torch.hypot(x - u - flow_x, y - v - flow_y)
    known &= residual.isfinite()
    inside = (x >= 0) & (x < W) & (y >= 0) & (y < H)
    status = torch.full_like(rho, SEEN, dtype=torch.uint8)
    status.masked_fill_(~inside, OUTSIDE).masked_fill_(~ahead, BEHIND).masked_fill_(~known, INVALID)
    mask = ((status == SEEN) & (residual > tau.to(dtype)[:, None])).view(B, H, W)
    told = status < BEHIND
    flow = torch.stack([x - u, y - v], -1).where(told[..., None], 0).view(B, H, W, 2) if with_flow else None
    return RigidFlow(
        residual=residual.where(told, 0).view(B, H, W),
        mask=mask if semantic is None else mask | semantic,
        status=status.view(B, H, W),
        flow=flow,
    )

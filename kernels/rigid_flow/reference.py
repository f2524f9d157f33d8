"""The definition of the rigid-flow residual in plain PyTorch, and its CPU path."""

from __future__ import annotations

import torch
from torch import Tensor


def rigid_flow_residual_reference(
    inv_depth: Tensor, observed_flow: Tensor, K_src: Tensor, K_dst: Tensor, dst_from_src: Tensor
) -> tuple[Tensor, Tensor]:
    """See vs3r.kernels.rigid_flow.rigid_flow_residual."""
    _, H, W = inv_depth.shape
    rows, columns = torch.arange(H).to(inv_depth) + 0.5, torch.arange(W).to(inv_depth) + 0.5
    v, u = torch.meshgrid(rows, columns, indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)], -1)
    # project(K_dst (R K_src^-1 p / rho + t)), multiplied by rho so that a point at infinity is nothing special.
    KRK = K_dst @ dst_from_src[:, :3, :3] @ torch.linalg.inv(K_src)
    Kt = (K_dst @ dst_from_src[:, :3, 3:]).squeeze(-1)
    Y = torch.einsum("bij,hwj->bhwi", KRK, pixels) + inv_depth[..., None] * Kt[:, None, None]
    z = Y[..., 2]
    ahead = z > 1e-3
    seen = Y[..., :2] / z.clamp_min(1e-3)[..., None]
    residual = (seen - pixels[..., :2] - observed_flow).norm(dim=-1)
    return torch.where(ahead, residual, torch.zeros_like(residual)), ahead

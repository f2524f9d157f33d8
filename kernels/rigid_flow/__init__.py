"""Rigid-flow residual: how far the observed flow is from what camera motion and depth explain (VS3R eq. 4 and 5)."""

from __future__ import annotations

from torch import Tensor

from vs3r.errors import ShapeError
from vs3r.kernels.rigid_flow.reference import rigid_flow_residual_reference

__all__ = ["rigid_flow_residual"]


def rigid_flow_residual(
    inv_depth: Tensor, observed_flow: Tensor, *, K_src: Tensor, K_dst: Tensor, dst_from_src: Tensor
) -> tuple[Tensor, Tensor]:
    """Distance between the observed flow and the rigid flow of every pixel (VS3R eq. 4 and 5). Not differentiable.

    Args:
        inv_depth: (B, H, W) inverse depth 1/z of the source frames, >= 0.
        observed_flow: (B, H, W, 2) flow from source to destination in pixels, x first.
        K_src, K_dst: (B, 3, 3) intrinsics in pixels of H x W; the first pixel's centre is (0.5, 0.5).
        dst_from_src: (B, 4, 4) rigid transforms.
    Returns:
        residual: (B, H, W) pixels; 0 where not ahead.
        ahead: (B, H, W) bool, false where the point lies behind the destination camera.
    Raises:
        ShapeError: a shape does not fit; the message names the argument.
    """
    B, H, W = inv_depth.shape if inv_depth.dim() == 3 else (0, 0, 0)
    if B == 0 and inv_depth.dim() != 3:
        raise ShapeError(f"inv_depth: expected (B, H, W); got {tuple(inv_depth.shape)}")
    for name, value, shape in (
        ("observed_flow", observed_flow, (B, H, W, 2)),
        ("K_src", K_src, (B, 3, 3)),
        ("K_dst", K_dst, (B, 3, 3)),
        ("dst_from_src", dst_from_src, (B, 4, 4)),
    ):
        if tuple(value.shape) != shape:
            raise ShapeError(f"{name}: expected {shape}; got {tuple(value.shape)}")
    return rigid_flow_residual_reference(inv_depth, observed_flow, K_src, K_dst, dst_from_src)

"""Rigid-flow residual: how far the observed flow is from what camera motion and depth explain (VS3R eq. 4 and 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from vs3r.kernels.camera import check_distortion
from vs3r.kernels.dispatch import Backend, check_tensor, runs_triton
from vs3r.kernels.rigid_flow.reference import BEHIND, INVALID, OUTSIDE, SEEN, RigidFlow, rigid_flow_residual_reference

__all__ = ["rigid_flow_residual", "RigidFlow", "SEEN", "OUTSIDE", "BEHIND", "INVALID"]


def rigid_flow_residual(
    inv_depth: Tensor,
    observed_flow: Tensor,
    *,
    K_src: Tensor,
    K_dst: Tensor,
    dst_from_src: Tensor,
    tau: Tensor | float,
    semantic: Tensor | None = None,
    with_flow: bool = False,
    distortion: float = 0.0,
    backend: Backend = "auto",
) -> RigidFlow:
    """Distance between the observed flow and the rigid flow of every pixel, and where it is more than tau (VS3R eq. 4
    and 5). Not differentiable.

    Inputs may be float32, float16 or bfloat16; arithmetic and results are float32. The reference takes float64 too.

    Args:
        inv_depth: (B, H, W) inverse depth 1/z of the source frames, >= 0.
        observed_flow: (B, H, W, 2) flow from source to destination in pixels, x first; any strides.
        K_src, K_dst: (B, 3, 3) intrinsics in pixels of H x W; the first pixel's centre is (0.5, 0.5).
        dst_from_src: (B, 4, 4) rigid transforms. Flow of a rolling shutter is rectified before.
        tau: pixels, one number or (B,).
        semantic: (B, H, W) bool, joined to the mask; None for nothing.
        with_flow: return the rigid flow as well.
        distortion: of the lens of all pictures, in [-1, 0], see vs3r.lens.
        backend: "auto", "reference" or "triton".
    Raises:
        ShapeError: a shape, dtype or device does not fit; the message names the argument.
        InputError: the distortion is out of range.
        BackendError: the backend asked for cannot run.
    """
    check_tensor("inv_depth", inv_depth, ("B", "H", "W"))
    (B, H, W), device = inv_depth.shape, inv_depth.device
    check_tensor("observed_flow", observed_flow, (B, H, W, 2), device=device)
    check_tensor("K_src", K_src, (B, 3, 3), device=device)
    check_tensor("K_dst", K_dst, (B, 3, 3), device=device)
    check_tensor("dst_from_src", dst_from_src, (B, 4, 4), device=device)
    if not isinstance(tau, Tensor):
        tau = torch.full((B,), tau, dtype=torch.float32, device=device)
    check_tensor("tau", tau, (B,), device=device)
    if semantic is not None:
        check_tensor("semantic", semantic, (B, H, W), dtypes=(torch.bool,), device=device)
    check_distortion(distortion)
    if runs_triton(backend, inv_depth, observed_flow):
        from vs3r.kernels.rigid_flow.triton_impl import rigid_flow_residual_triton

        return rigid_flow_residual_triton(
            inv_depth, observed_flow, K_src, K_dst, dst_from_src, tau, semantic, with_flow, distortion
        )
    return rigid_flow_residual_reference(
        inv_depth, observed_flow, K_src, K_dst, dst_from_src, tau, semantic, with_flow, distortion
    )

"""The rigid-flow residual in one pass over the pixels: each input is read once, each output written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vs3r.kernels.rigid_flow import reference
from vs3r.kernels.rigid_flow.reference import RigidFlow

BLOCK = 1024
SEEN = tl.constexpr(reference.SEEN)
OUTSIDE = tl.constexpr(reference.OUTSIDE)
BEHIND = tl.constexpr(reference.BEHIND)
INVALID = tl.constexpr(reference.INVALID)
NEAREST = tl.constexpr(reference.NEAREST)
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def rigid_flow_kernel(
    inv_depth, flow, K_src, K_dst, dst_from_src, tau, semantic,
    residual_out, mask_out, status_out, flow_out,
    height, width, flow_batch, flow_row, flow_column, flow_axis,
    HAS_SEMANTIC: tl.constexpr, WITH_FLOW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    within = pixel < height * width
    row, column = pixel // width, pixel % width
    at = pair * height * width + pixel
    rho = tl.load(inv_depth + at, within, other=0.0).to(tl.float32)
    flow_at = flow + pair * flow_batch + row.to(tl.int64) * flow_row + column * flow_column
    # Both components with one access where they lie side by side.
    both = tl.load(flow_at[:, None] + tl.arange(0, 2)[None, :] * flow_axis, within[:, None], other=0.0)
    flow_x, flow_y = tl.split(both.to(tl.float32))
    # A comparison with NaN is false.
    known = (rho >= 0) & (rho < INFINITY) & (tl.abs(flow_x) < INFINITY) & (tl.abs(flow_y) < INFINITY)
    rho = tl.where(known, rho, 0.0)

    K_src += pair * 9
    K_dst += pair * 9
    T = dst_from_src + pair * 16
    u, v = column + 0.5, row + 0.5
    y = (v - tl.load(K_src + 5)) / tl.load(K_src + 4)
    x = (u - tl.load(K_src + 2) - tl.load(K_src + 1) * y) / tl.load(K_src)
    X = tl.load(T) * x + tl.load(T + 1) * y + tl.load(T + 2) + tl.load(T + 3) * rho
    Y = tl.load(T + 4) * x + tl.load(T + 5) * y + tl.load(T + 6) + tl.load(T + 7) * rho
    Z = tl.load(T + 8) * x + tl.load(T + 9) * y + tl.load(T + 10) + tl.load(T + 11) * rho
    ahead = Z > NEAREST
    Z = tl.where(ahead, Z, 1.0)
    X /= Z
    Y /= Z
    there_x = tl.load(K_dst) * X + tl.load(K_dst + 1) * Y + tl.load(K_dst + 2)
    there_y = tl.load(K_dst + 4) * Y + tl.load(K_dst + 5)

    rigid_x, rigid_y = there_x - u, there_y - v
    off_x, off_y = tl.abs(rigid_x - flow_x), tl.abs(rigid_y - flow_y)
    # Squares of points near the camera's plane would overflow.
    larger = tl.maximum(tl.maximum(off_x, off_y), 1e-30)
    off_x /= larger
    off_y /= larger
    residual = larger * tl.sqrt(off_x * off_x + off_y * off_y)
    known &= residual < INFINITY
    inside = (there_x >= 0) & (there_x < width) & (there_y >= 0) & (there_y < height)
    told = ahead & known
    moves = told & inside & (residual > tl.load(tau + pair))
    if HAS_SEMANTIC:
        moves |= tl.load(semantic + at, within, other=0) != 0
    status = tl.where(known, tl.where(ahead, tl.where(inside, SEEN, OUTSIDE), BEHIND), INVALID)
    tl.store(residual_out + at, tl.where(told, residual, 0.0), within)
    tl.store(mask_out + at, moves.to(tl.uint8), within)
    tl.store(status_out + at, status.to(tl.uint8), within)
    if WITH_FLOW:
        rigid = tl.join(tl.where(told, rigid_x, 0.0), tl.where(told, rigid_y, 0.0))
        tl.store(flow_out + at[:, None] * 2 + tl.arange(0, 2)[None, :], rigid, within[:, None])


def rigid_flow_residual_triton(
    inv_depth: Tensor,
    observed_flow: Tensor,
    K_src: Tensor,
    K_dst: Tensor,
    dst_from_src: Tensor,
    tau: Tensor,
    semantic: Tensor | None,
    with_flow: bool,
) -> RigidFlow:
    """See vs3r.kernels.rigid_flow.rigid_flow_residual; arguments are checked there."""
    B, H, W = inv_depth.shape
    residual = torch.empty(B, H, W, device=inv_depth.device)
    mask, status = (torch.empty_like(residual, dtype=torch.uint8) for _ in range(2))
    flow = residual.new_empty(B, H, W, 2) if with_flow else None
    if residual.numel():
        rigid_flow_kernel[(triton.cdiv(H * W, BLOCK), B)](
            inv_depth.contiguous(),
            observed_flow,
            *(a.float().contiguous() for a in (K_src, K_dst, dst_from_src, tau)),
            None if semantic is None else semantic.contiguous().view(torch.uint8),
            residual,
            mask,
            status,
            flow,
            H,
            W,
            *observed_flow.stride(),
            HAS_SEMANTIC=semantic is not None,
            WITH_FLOW=with_flow,
            BLOCK=BLOCK,
        )
    return RigidFlow(residual=residual, mask=mask.view(torch.bool), status=status, flow=flow)

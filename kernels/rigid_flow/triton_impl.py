"""The rigid-flow residual in one pass over the pixels: each input is read once, each output written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vs3r import lens
from vs3r.kernels.rigid_flow import reference
from vs3r.kernels.rigid_flow.reference import RigidFlow

BLOCK = 256
"""Two pixels a thread: then all accesses of a thread agree on who holds what, and nothing is exchanged."""
FEW, MANY = 1, 4
"""Blocks a program computes, one after the other, of one picture of 1080p and of several: where there is little to do,
more programs share it; where there is much, cameras are read less often. On an H200 one pair of 1080p took 16.6 us with
1 block and 19.0 with 4, eight pairs 88 and 83."""
LARGE = 1 << 22
"""Pixels of which there are many."""
SEEN = tl.constexpr(reference.SEEN)
OUTSIDE = tl.constexpr(reference.OUTSIDE)
BEHIND = tl.constexpr(reference.BEHIND)
INVALID = tl.constexpr(reference.INVALID)
NEAREST = tl.constexpr(reference.NEAREST)
LEAST, MOST = tl.constexpr(lens.LEAST), tl.constexpr(lens.MOST)
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def rigid_flow_kernel(
    inv_depth, flow, K_src, K_dst, dst_from_src, tau, semantic,
    residual_out, mask_out, status_out, flow_out,
    height, width, flow_batch, flow_row, flow_column, flow_axis, distortion,
    BENDS: tl.constexpr, PACKED: tl.constexpr, HAS_SEMANTIC: tl.constexpr, WITH_FLOW: tl.constexpr,
    PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # A program stays in one row: what depends on the row alone, and the cameras, are read and computed once.
    row = tl.program_id(1)
    pair = tl.program_id(2).to(tl.int64)
    first = (pair * height + row) * width
    K_src += pair * 9
    K_dst += pair * 9
    T = dst_from_src + pair * 16
    per_fx = 1 / tl.load(K_src)
    y = (row + 0.5 - tl.load(K_src + 5)) / tl.load(K_src + 4)
    cx = tl.load(K_src + 2) + tl.load(K_src + 1) * y
    T00, T03, y_x, T02 = tl.load(T), tl.load(T + 3), tl.load(T + 1) * y, tl.load(T + 2)
    T10, T13, y_y, T12 = tl.load(T + 4), tl.load(T + 7), tl.load(T + 5) * y, tl.load(T + 6)
    T20, T23, y_z, T22 = tl.load(T + 8), tl.load(T + 11), tl.load(T + 9) * y, tl.load(T + 10)
    fx, skew, there_cx = tl.load(K_dst), tl.load(K_dst + 1), tl.load(K_dst + 2)
    fy, there_cy = tl.load(K_dst + 4), tl.load(K_dst + 5)
    most = tl.load(tau + pair)
    for part in tl.static_range(PARTS):
        begin = (tl.program_id(0) * PARTS + part) * BLOCK
        column = begin + tl.arange(0, BLOCK)
        within = column < width
        rho = tl.load(inv_depth + first + column, within, other=0.0).to(tl.float32)
        both_at = 2 * begin + tl.arange(0, 2 * BLOCK)
        if PACKED:
            # Both components lie side by side: wide accesses.
            both = tl.load(flow + 2 * first + both_at, both_at < 2 * width, other=0.0).to(tl.float32)
            flow_x, flow_y = tl.split(both.reshape(BLOCK, 2))
        else:
            flow_at = flow + pair * flow_batch + row.to(tl.int64) * flow_row + column * flow_column
            flow_x = tl.load(flow_at, within, other=0.0).to(tl.float32)
            flow_y = tl.load(flow_at + flow_axis, within, other=0.0).to(tl.float32)
        # A comparison with NaN is false. Flow that is not finite makes a residual that is not.
        known = (rho >= 0) & (rho < INFINITY)
        rho = tl.where(known, rho, 0.0)
        u = column + 0.5
        x = (u - cx) * per_fx
        one = 1.0
        if BENDS:
            # The point in the direction (x, y, one), and all else in that unit.
            one = tl.maximum(1 + distortion * (x * x + y * y), LEAST)
            rho *= one
        # What is in brackets depends on the row alone where nothing bends.
        Z = T20 * x + (y_z + T22 * one) + T23 * rho
        ahead = NEAREST * one < Z
        per_z = 1 / tl.where(ahead, Z, 1.0)
        X = (T00 * x + (y_x + T02 * one) + T03 * rho) * per_z
        Y = (T10 * x + (y_y + T12 * one) + T13 * rho) * per_z
        if BENDS:
            scale = 2 / (1 + tl.sqrt(1 - 4 * distortion * tl.minimum(X * X + Y * Y, MOST)))
            X *= scale
            Y *= scale
        there_x = fx * X + skew * Y + there_cx
        there_y = fy * Y + there_cy
        rigid_x, rigid_y = there_x - u, there_y - (row + 0.5)
        off_x, off_y = rigid_x - flow_x, rigid_y - flow_y
        # Squares of points near the camera's plane would overflow.
        huge = tl.maximum(tl.abs(off_x), tl.abs(off_y)) > 1e18
        off_x *= tl.where(huge, 1e-20, 1.0)
        off_y *= tl.where(huge, 1e-20, 1.0)
        residual = tl.sqrt(off_x * off_x + off_y * off_y) * tl.where(huge, 1e20, 1.0)
        known &= residual < INFINITY
        inside = (there_x >= 0) & (there_x < width) & (there_y >= 0) & (there_y < height)
        told = ahead & known
        moves = told & inside & (residual > most)
        if HAS_SEMANTIC:
            moves |= tl.load(semantic + first + column, within, other=0) != 0
        status = tl.where(known, tl.where(ahead, tl.where(inside, SEEN, OUTSIDE), BEHIND), INVALID)
        tl.store(residual_out + first + column, tl.where(told, residual, 0.0), within)
        tl.store(mask_out + first + column, moves.to(tl.uint8), within)
        tl.store(status_out + first + column, status.to(tl.uint8), within)
        if WITH_FLOW:
            rigid = tl.join(tl.where(told, rigid_x, 0.0), tl.where(told, rigid_y, 0.0)).reshape(2 * BLOCK)
            tl.store(flow_out + 2 * first + both_at, rigid, both_at < 2 * width)


def rigid_flow_residual_triton(
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
    """See vs3r.kernels.rigid_flow.rigid_flow_residual; arguments are checked there."""
    B, H, W = inv_depth.shape
    residual = torch.empty(B, H, W, device=inv_depth.device)
    mask, status = (torch.empty_like(residual, dtype=torch.uint8) for _ in range(2))
    flow = residual.new_empty(B, H, W, 2) if with_flow else None
    parts = MANY if residual.numel() >= LARGE else FEW
    if residual.numel():
        rigid_flow_kernel[(triton.cdiv(W, BLOCK * parts), H, B)](
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
            distortion,
            BENDS=distortion != 0,
            PACKED=observed_flow.is_contiguous(),
            HAS_SEMANTIC=semantic is not None,
            WITH_FLOW=with_flow,
            PARTS=parts,
            BLOCK=BLOCK,
        )
    return RigidFlow(residual=residual, mask=mask.view(torch.bool), status=status, flow=flow)

"""The camera models for kernels. vs3r.kernels.camera.reference defines them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vs3r.kernels import camera

PINHOLE = tl.constexpr(camera.PINHOLE)
KANNALA_BRANDT = tl.constexpr(camera.KANNALA_BRANDT)
UNIFIED = tl.constexpr(camera.UNIFIED)
DOUBLE_SPHERE = tl.constexpr(camera.DOUBLE_SPHERE)
DIVISION = tl.constexpr(camera.DIVISION)
INFINITY = tl.constexpr(float("inf"))
PI = tl.constexpr(3.141592653589793)


def lens(view: camera.View) -> tuple[float, float, float, float, float]:
    """The arguments p0 to p3 and limit of the functions below."""
    p0, p1, p2, p3 = (*view.parameters, 0.0, 0.0, 0.0, 0.0)[:4]
    return p0, p1, p2, p3, view.limit


@triton.jit
def relative_kernel(to, origin, out, count, to_step, origin_step, BLOCK: tl.constexpr):
    """to_from_origin, 3 x 4, of rigid cameras given by their cam_from_world, 4 x 4. In double: worlds may be large."""
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    within = number < count
    to += number * to_step
    origin += number * origin_step
    out += number * 12
    for row in tl.static_range(3):
        a = tl.load(to + 4 * row, within, other=0.0).to(tl.float64)
        b = tl.load(to + 4 * row + 1, within, other=0.0).to(tl.float64)
        c = tl.load(to + 4 * row + 2, within, other=0.0).to(tl.float64)
        shift = tl.load(to + 4 * row + 3, within, other=0.0).to(tl.float64)
        for column in tl.static_range(3):
            turn = a * tl.load(origin + 4 * column, within, other=0.0)
            turn += b * tl.load(origin + 4 * column + 1, within, other=0.0)
            turn += c * tl.load(origin + 4 * column + 2, within, other=0.0)
            shift -= turn * tl.load(origin + 4 * column + 3, within, other=0.0)
            tl.store(out + 4 * row + column, turn.to(tl.float32), within)
        tl.store(out + 4 * row + 3, shift.to(tl.float32), within)


def relative(to: Tensor, origin: Tensor) -> Tensor:
    """(..., 3, 4) float32: to_from_origin, of cam_from_world (..., 4, 4), one of them perhaps a single (4, 4).

    One launch where PyTorch would take a dozen, each as long as the kernel that the poses are for.
    """
    many = to if to.dim() > 2 else origin
    out = torch.empty(*many.shape[:-2], 3, 4, device=many.device)
    count = many.numel() // 16
    if count:
        steps = (16 if to.dim() > 2 else 0), (16 if origin.dim() > 2 else 0)
        relative_kernel[(triton.cdiv(count, 128),)](to.contiguous(), origin.contiguous(), out, count, *steps, BLOCK=128)
    return out


@triton.jit
def arctangent(across, z):
    """The angle in [0, pi] of (z, across), across >= 0, not both 0. Error below 1e-8, and the rounding."""
    longer = tl.maximum(across, tl.abs(z))
    t = tl.minimum(across, tl.abs(z)) / longer
    upper = t > 0.41421356  # tan(pi / 8): there the angle is pi / 4 and that of (t - 1) / (t + 1)
    t = tl.where(upper, (t - 1) / (t + 1), t)
    s = t * t
    # Least squares of the relative error over Chebyshev's points.
    series = ((0.08037958 * s - 0.13871331) * s + 0.19976819) * s - 0.33332900
    angle = t + t * s * series + tl.where(upper, PI / 4, 0.0)
    angle = tl.where(across > tl.abs(z), PI / 2 - angle, angle)
    return tl.where(z < 0, PI - angle, angle)


@triton.jit
def radius_of(theta, p0, p1, p2, p3):
    """Kannala-Brandt: the radius of an angle."""
    s = theta * theta
    return theta * (1 + s * (p0 + s * (p1 + s * (p2 + s * p3))))


@triton.jit
def project(x, y, z, K, p0, p1, p2, p3, limit, MODEL: tl.constexpr):
    """u, v, depth and whether it is seen, of points in the view's axes. K points to nine floats."""
    if MODEL == PINHOLE:
        # No square is taken that could overflow; what is not finite makes u or v so.
        seen = (z > 0) & (z < INFINITY)
        scale = 1 / tl.where(seen, z, 1.0)
        d = z
        far = 1.0
    else:
        far = tl.maximum(tl.maximum(tl.abs(x), tl.abs(y)), tl.abs(z))
        seen = (far > 0) & (far < INFINITY)
        near = tl.where(seen, far, 1.0)
        x = tl.where(seen, x / near, 0.0)
        y = tl.where(seen, y / near, 0.0)
        z = tl.where(seen, z / near, 1.0)
        across = tl.sqrt(x * x + y * y)
        d = tl.sqrt(x * x + y * y + z * z)
    if MODEL == KANNALA_BRANDT:
        theta = arctangent(across, z)
        seen &= theta <= limit
        near_axis = 1 / tl.where(z == 0, 1.0, z)
        scale = tl.where(across > 1e-12, radius_of(theta, p0, p1, p2, p3) / tl.maximum(across, 1e-12), near_axis)
    elif MODEL == UNIFIED:
        seen &= z > limit * d
        scale = 1 / tl.where(seen, p0 * d + (1 - p0) * z, 1.0)
    elif MODEL == DOUBLE_SPHERE:
        seen &= z > limit * d
        behind = p0 * d + z
        d2 = tl.sqrt(x * x + y * y + behind * behind)
        scale = (1 + p0) / tl.where(seen, p1 * d2 + (1 - p1) * behind, 1.0)
    elif MODEL == DIVISION:
        half = 0.5 * (z + tl.sqrt(z * z - 4 * p0 * across * across))
        seen &= half > 0
        scale = 1 / tl.where(seen, half, 1.0)
    mx = x * scale
    my = y * scale
    u = tl.load(K) * mx + tl.load(K + 1) * my + tl.load(K + 2)
    v = tl.load(K + 4) * my + tl.load(K + 5)
    seen &= (tl.abs(u) < INFINITY) & (tl.abs(v) < INFINITY)
    return tl.where(seen, u, 0.0), tl.where(seen, v, 0.0), tl.where(seen, d * far, 1.0), seen

"""The definition of the camera models in plain PyTorch. Formulas as in vs3r.cameras, which cites them."""

from __future__ import annotations

import torch
from torch import Tensor

from vs3r.kernels.camera import View


def project(points: Tensor, view: View) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where points (..., 3) in the view's axes land.

    Returns:
        u, v: (...) pixels.
        depth: (...) z for the pinhole; for the others, which may see behind, the distance from the camera.
        seen: (...) bool, false beyond the field of view; the rest is then finite and means nothing.
    """
    # The models do not care how far a point is. Divided by it, no square overflows.
    far = points.abs().amax(-1)
    seen = (far > 0) & (far < torch.inf)
    x, y, z = (points / torch.where(seen, far, 1)[..., None]).nan_to_num(0, 0, 0).unbind(-1)
    across = torch.hypot(x, y)
    d = torch.hypot(across, z)
    if view.model == "pinhole":
        within, scale, d = z > 0, 1 / torch.where(z > 0, z, 1), z
    elif view.model == "kannala-brandt":
        theta = torch.atan2(across, z)
        within = theta <= view.limit
        near_axis = 1 / torch.where(z == 0, 1, z)
        scale = torch.where(across > 1e-12, _radius(theta, view)[0] / across.clamp_min(1e-12), near_axis)
    elif view.model == "unified":
        (alpha,) = view.parameters
        within, scale = z > view.limit * d, 1 / (alpha * d + (1 - alpha) * z)
    else:
        xi, alpha = view.parameters
        behind = xi * d + z
        within = z > view.limit * d
        scale = (1 + xi) / (alpha * torch.hypot(across, behind) + (1 - alpha) * behind)
    mx, my = x * scale, y * scale
    K = view.K.to(points.dtype)
    u, v = K[0, 0] * mx + K[0, 1] * my + K[0, 2], K[1, 1] * my + K[1, 2]
    seen = seen & within & u.isfinite() & v.isfinite()
    return torch.where(seen, u, 0), torch.where(seen, v, 0), torch.where(seen, d * far, 1), seen


def unproject(u: Tensor, v: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """Rays (..., 3) through pixels, such that ray * depth is a point of that depth (see project), and where the model
    sees anything (...); elsewhere the ray is the axis."""
    K = view.K.to(u.dtype)
    my = (v - K[1, 2]) / K[1, 1]
    mx = (u - K[0, 2] - K[0, 1] * my) / K[0, 0]
    one = torch.ones_like(mx)
    if view.model == "pinhole":
        return torch.stack([mx, my, one], -1), torch.ones_like(mx, dtype=torch.bool)
    if view.model == "kannala-brandt":
        radius = torch.hypot(mx, my)
        ok = radius <= _radius(torch.tensor(view.limit).to(u), view)[0]
        theta = radius.clamp_max(view.limit)
        for _ in range(12):  # Newton, kept inside the range in which the radius grows
            value, slope = _radius(theta, view)
            theta = (theta - (value - radius) / slope.clamp_min(1e-6)).clamp(0, view.limit)
        scale = torch.where(radius > 1e-12, theta.sin() / radius.clamp_min(1e-12), one)
        rays = torch.stack([mx * scale, my * scale, theta.cos()], -1)
    elif view.model == "unified":
        (alpha,) = view.parameters
        xi = alpha / (1 - alpha)
        r2 = (mx * mx + my * my) * (1 - alpha) ** 2
        root = 1 + (1 - xi * xi) * r2
        ok = root >= 0
        factor = (xi + root.clamp_min(0).sqrt()) / (1 + r2)
        rays = torch.stack([factor * mx * (1 - alpha), factor * my * (1 - alpha), factor - xi], -1)
    else:
        xi, alpha = view.parameters
        rx, ry = mx / (1 + xi), my / (1 + xi)
        r2 = rx * rx + ry * ry
        root = 1 - (2 * alpha - 1) * r2
        mz = (1 - alpha * alpha * r2) / (alpha * root.clamp_min(0).sqrt() + 1 - alpha)
        inner = mz * mz + (1 - xi * xi) * r2
        ok = (root >= 0) & (inner >= 0)
        factor = (mz * xi + inner.clamp_min(0).sqrt()) / (mz * mz + r2)
        rays = torch.stack([factor * rx, factor * ry, factor * mz - xi], -1)
    axis = torch.tensor([0.0, 0.0, 1.0]).to(rays)
    return torch.where(ok[..., None], rays / rays.norm(dim=-1, keepdim=True), axis), ok


def _radius(theta: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """Kannala-Brandt: the radius and its derivative."""
    s = theta * theta
    radius, slope = torch.ones_like(s), torch.ones_like(s)
    for power, k in enumerate(view.parameters, start=1):
        radius = radius + k * s**power
        slope = slope + (2 * power + 1) * k * s**power
    return theta * radius, slope

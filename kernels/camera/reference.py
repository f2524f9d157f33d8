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
        scale = torch.where(across > 1e-12, _radius(theta, view) / across.clamp_min(1e-12), near_axis)
    elif view.model == "unified":
        (alpha,) = view.parameters
        within, scale = z > view.limit * d, 1 / (alpha * d + (1 - alpha) * z)
    elif view.model == "division":
        (distortion,) = view.parameters
        half = 0.5 * (z + torch.sqrt(z * z - 4 * distortion * across * across))
        within, scale = half > 0, 1 / torch.where(half > 0, half, 1)
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


def _radius(theta: Tensor, view: View) -> Tensor:
    """Kannala-Brandt."""
    s = theta * theta
    scale = torch.ones_like(s)
    for power, k in enumerate(view.parameters, start=1):
        scale = scale + k * s**power
    return theta * scale

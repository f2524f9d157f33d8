"""Rigid motions: exponential maps, quaternions, interpolation.

Transforms are (..., 4, 4) and named by what they do: b_from_a maps points of frame a into frame b.
"""

from __future__ import annotations

import torch
from torch import Tensor


def skew(v: Tensor) -> Tensor:
    """Cross-product matrices (..., 3, 3) of vectors (..., 3)."""
    x, y, z = v.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], dim=-1).reshape(*v.shape[:-1], 3, 3)


def so3_exp(omega: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) of rotation vectors (..., 3) in radians (Rodrigues' formula)."""
    theta2 = (omega * omega).sum(-1)[..., None, None]
    theta = theta2.clamp_min(1e-24).sqrt()
    small = theta2 < 1e-8
    a = torch.where(small, 1 - theta2 / 6, theta.sin() / theta)
    b = torch.where(small, 0.5 - theta2 / 24, (1 - theta.cos()) / theta2.clamp_min(1e-24))
    W = skew(omega)
    return torch.eye(3, dtype=omega.dtype, device=omega.device) + a * W + b * (W @ W)


def so3_log(R: Tensor) -> Tensor:
    """Rotation vectors (..., 3) in radians, of length at most pi, of rotation matrices (..., 3, 3)."""
    q = quat_wxyz_from_matrix(R)
    q = torch.where(q[..., :1] < 0, -q, q)
    v = q[..., 1:]
    s = v.norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(s, q[..., :1])
    return v * torch.where(s < 1e-9, torch.full_like(s, 2.0), angle / s.clamp_min(1e-12))


def se3_retract(xi: Tensor, T: Tensor) -> Tensor:
    """Apply the small left increment xi = (translation, rotation vector), (..., 6), to T: (..., 4, 4)."""
    R = so3_exp(xi[..., 3:])
    out = T.clone()
    out[..., :3, :3] = R @ T[..., :3, :3]
    out[..., :3, 3] = (R @ T[..., :3, 3:]).squeeze(-1) + xi[..., :3]
    return out


def rigid(R: Tensor, t: Tensor) -> Tensor:
    """(..., 4, 4) transforms from rotations (..., 3, 3) and translations (..., 3)."""
    T = torch.zeros(*R.shape[:-2], 4, 4, dtype=R.dtype, device=R.device)
    T[..., :3, :3] = R
    T[..., :3, 3] = t
    T[..., 3, 3] = 1
    return T


def rigid_inverse(T: Tensor) -> Tensor:
    """Inverse of rigid transforms (..., 4, 4)."""
    Rt = T[..., :3, :3].transpose(-1, -2)
    return rigid(Rt, -(Rt @ T[..., :3, 3:]).squeeze(-1))


def quat_wxyz_from_matrix(R: Tensor) -> Tensor:
    """Unit quaternions (..., 4), w first, of rotation matrices (..., 3, 3) (Shepperd's method)."""
    m00, m11, m22 = R[..., 0, 0], R[..., 1, 1], R[..., 2, 2]
    # Four times the outer product of the quaternion with itself: any row, normalised, is the quaternion up to sign;
    # the one with the largest diagonal is the best conditioned.
    wx, wy, wz = R[..., 2, 1] - R[..., 1, 2], R[..., 0, 2] - R[..., 2, 0], R[..., 1, 0] - R[..., 0, 1]
    xy, xz, yz = R[..., 1, 0] + R[..., 0, 1], R[..., 2, 0] + R[..., 0, 2], R[..., 2, 1] + R[..., 1, 2]
    rows = torch.stack(
        [
            torch.stack([1 + m00 + m11 + m22, wx, wy, wz], -1),
            torch.stack([wx, 1 + m00 - m11 - m22, xy, xz], -1),
            torch.stack([wy, xy, 1 - m00 + m11 - m22, yz], -1),
            torch.stack([wz, xz, yz, 1 - m00 - m11 + m22], -1),
        ],
        -2,
    )
    best = rows.diagonal(dim1=-2, dim2=-1).argmax(-1)
    q: Tensor = torch.gather(rows, -2, best[..., None, None].expand(*best.shape, 1, 4)).squeeze(-2)
    q /= q.norm(dim=-1, keepdim=True)
    return q


# The nine elements of a rotation matrix, in sums of products of two of its unit quaternion's w, x, y and z: with one
# product of matrices they come several times as fast as one by one.
_ELEMENTS = (
    "+ww+xx-yy-zz", "+xy+xy-wz-wz", "+xz+xz+wy+wy",
    "+xy+xy+wz+wz", "+ww-xx+yy-zz", "+yz+yz-wx-wx",
    "+xz+xz-wy-wy", "+yz+yz+wx+wx", "+ww-xx-yy+zz",
)  # fmt: skip


def _quadratic_form() -> Tensor:
    """(16, 9) from the products of all pairs to the elements."""
    form = torch.zeros(4, 4, 9, dtype=torch.float64)
    for k, element in enumerate(_ELEMENTS):
        for sign, i, j in zip(element[::3], element[1::3], element[2::3], strict=True):
            form["wxyz".index(i), "wxyz".index(j), k] += float(sign + "1")
    return form.reshape(16, 9)


_FORM = _quadratic_form()


def matrix_from_quat_wxyz(q: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) of quaternions (..., 4), w first; they need not be normalised."""
    unit = q / q.norm(dim=-1, keepdim=True)
    pairs = (unit[..., :, None] * unit[..., None, :]).flatten(-2)
    R: Tensor = (pairs @ _FORM.to(pairs)).reshape(*q.shape[:-1], 3, 3)
    return R

"""Output camera models: where a pixel of the output looks, and where a point lands.

All models share the centre of K and its scale there: a small object in the middle of the picture keeps its size
whichever of pinhole, fisheye, ucm and double-sphere is chosen; they differ in how they squeeze what lies off the axis.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vs3r.errors import InputError
from vs3r.types import DoubleArray

Bools = npt.NDArray[np.bool_]

FOCAL_SCALE = {"pinhole": 1.0, "wide": 0.75, "ultra-wide": 0.5, "tele": 1.5}
UCM_ALPHA = 0.5
"""Half way from pinhole (0) to orthographic (1): the stereographic projection, which keeps small circles round."""
DOUBLE_SPHERE_XI, DOUBLE_SPHERE_ALPHA = -0.2, 0.6
"""Typical of calibrated wide lenses (Usenko et al. 2018, table 2)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputCamera(ABC):
    """A central camera: K applied to a model's plane coordinates (mx, my)."""

    K: DoubleArray
    """(3, 3) pixels; the skew K[0, 1] is honoured."""

    def unproject(self, pixels: DoubleArray) -> tuple[DoubleArray, Bools]:
        """Rays (..., 3) of unit length through pixels (..., 2), and where the model sees anything at all (...)."""
        my = (pixels[..., 1] - self.K[1, 2]) / self.K[1, 1]
        mx = (pixels[..., 0] - self.K[0, 2] - self.K[0, 1] * my) / self.K[0, 0]
        with np.errstate(invalid="ignore", divide="ignore"):
            rays, ok = self._rays(mx, my)
            rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
        ok &= np.isfinite(rays).all(-1)
        rays[~ok] = (0.0, 0.0, 1.0)
        return rays, ok

    def project(self, points: DoubleArray) -> tuple[DoubleArray, Bools]:
        """Pixels (..., 2) of points (..., 3) in camera axes, and whether the model can image them (...)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            mx, my, ok = self._plane(points)
        ok &= np.isfinite(mx) & np.isfinite(my)
        mx, my = np.where(ok, mx, 0.0), np.where(ok, my, 0.0)
        u = self.K[0, 0] * mx + self.K[0, 1] * my + self.K[0, 2]
        return np.stack([u, self.K[1, 1] * my + self.K[1, 2]], -1), ok

    @abstractmethod
    def _rays(self, mx: DoubleArray, my: DoubleArray) -> tuple[DoubleArray, Bools]:
        """Rays of any positive length from plane coordinates, and where they exist."""

    @abstractmethod
    def _plane(self, points: DoubleArray) -> tuple[DoubleArray, DoubleArray, Bools]:
        """Plane coordinates mx, my of points, and which of them are in the field of view."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pinhole(OutputCamera):
    """mx = x / z."""

    def _rays(self, mx: DoubleArray, my: DoubleArray) -> tuple[DoubleArray, Bools]:
        return np.stack([mx, my, np.ones_like(mx)], -1), np.ones(mx.shape, np.bool_)

    def _plane(self, points: DoubleArray) -> tuple[DoubleArray, DoubleArray, Bools]:
        x, y, z = np.moveaxis(points, -1, 0)
        return x / z, y / z, z > 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Division(OutputCamera):
    """(x, y) / z = (mx, my) / (1 + k (mx^2 + my^2)): a source's lens, see vs3r.lens."""

    distortion: float
    """k < 0."""

    def _rays(self, mx: DoubleArray, my: DoubleArray) -> tuple[DoubleArray, Bools]:
        # Beyond 90 degrees z is negative.
        return np.stack([mx, my, 1 + self.distortion * (mx * mx + my * my)], -1), np.ones(mx.shape, np.bool_)

    def _plane(self, points: DoubleArray) -> tuple[DoubleArray, DoubleArray, Bools]:
        x, y, z = np.moveaxis(points, -1, 0)
        scale = z + np.sqrt(z * z - 4 * self.distortion * (x * x + y * y))
        return 2 * x / scale, 2 * y / scale, scale > 0


@dataclass(frozen=True, kw_only=True, eq=False)
class KannalaBrandt(OutputCamera):
    """Radius = theta + k1 theta^3 + k2 theta^5 + k3 theta^7 + k4 theta^9; all zero is the equidistant fisheye."""

    coefficients: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """k1 to k4, in the order of cv2.fisheye."""

    def _radius(self, theta: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
        """The radius and its derivative."""
        s = theta * theta
        radius, slope = np.ones_like(s), np.ones_like(s)
        for power, k in enumerate(self.coefficients, start=1):
            radius = radius + k * s**power
            slope = slope + (2 * power + 1) * k * s**power
        return theta * radius, slope

    def _theta_limit(self) -> float:
        """The largest angle up to which the radius still grows, at most pi."""
        theta = np.linspace(0, np.pi, 2049)
        falling = np.nonzero(self._radius(theta)[1] <= 0)[0]
        return float(theta[falling[0] - 1]) if falling.size else float(np.pi)

    def _rays(self, mx: DoubleArray, my: DoubleArray) -> tuple[DoubleArray, Bools]:
        radius = np.hypot(mx, my)
        limit = self._theta_limit()
        ok = radius <= self._radius(np.asarray(limit))[0]
        theta = np.minimum(radius, limit)
        for _ in range(12):  # Newton, kept inside the range in which the radius grows
            value, slope = self._radius(theta)
            theta = np.clip(theta - (value - radius) / np.maximum(slope, 1e-9), 0.0, limit)
        scale = np.where(radius > 1e-12, np.sin(theta) / np.maximum(radius, 1e-12), 1.0)
        return np.stack([mx * scale, my * scale, np.cos(theta)], -1), ok

    def _plane(self, points: DoubleArray) -> tuple[DoubleArray, DoubleArray, Bools]:
        x, y, z = np.moveaxis(points, -1, 0)
        across = np.hypot(x, y)
        theta = np.arctan2(across, z)
        near_axis = 1.0 / np.where(z == 0, 1.0, z)
        scale = np.where(across > 1e-12, self._radius(theta)[0] / np.maximum(across, 1e-12), near_axis)
        return x * scale, y * scale, (theta <= self._theta_limit()) & (across + np.abs(z) > 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Unified(OutputCamera):
    """UCM (Mei & Rives 2007, in the form of Usenko et al. 2018, eq. 8): mx = x / (alpha d + (1 - alpha) z)."""

    alpha: float = UCM_ALPHA
    """In [0, 1): 0 is the pinhole."""

    def _rays(self, mx: DoubleArray, my: DoubleArray) -> tuple[DoubleArray, Bools]:
        # Usenko et al. eq. 15 to 18, with the radius scaled back by 1 - alpha.
        a = 1.0 - self.alpha
        rx, ry, xi = mx * a, my * a, self.alpha / a
        r2 = rx * rx + ry * ry
        root = 1.0 + (1.0 - xi * xi) * r2
        ok = root >= 0
        factor = (xi + np.sqrt(np.maximum(root, 0.0))) / (1.0 + r2)
        return np.stack([factor * rx, factor * ry, factor - xi], -1), ok

    def _plane(self, points: DoubleArray) -> tuple[DoubleArray, DoubleArray, Bools]:
        x, y, z = np.moveaxis(points, -1, 0)
        d = np.linalg.norm(points, axis=-1)
        w = self.alpha / (1.0 - self.alpha) if self.alpha <= 0.5 else (1.0 - self.alpha) / self.alpha
        scale = self.alpha * d + (1.0 - self.alpha) * z
        return x / scale, y / scale, z > -w * d


@dataclass(frozen=True, kw_only=True, eq=False)
class DoubleSphere(OutputCamera):
    """Usenko et al. 2018, eq. 40 to 52, with the focal length scaled by 1 + xi so that the centre keeps its scale."""

    xi: float = DOUBLE_SPHERE_XI
    """Distance of the two spheres' centres, > -1."""
    alpha: float = DOUBLE_SPHERE_ALPHA
    """In [0, 1)."""

    def _rays(self, mx: DoubleArray, my: DoubleArray) -> tuple[DoubleArray, Bools]:
        xi, alpha = self.xi, self.alpha
        rx, ry = mx / (1.0 + xi), my / (1.0 + xi)
        r2 = rx * rx + ry * ry
        root = 1.0 - (2.0 * alpha - 1.0) * r2
        mz = (1.0 - alpha * alpha * r2) / (alpha * np.sqrt(np.maximum(root, 0.0)) + 1.0 - alpha)
        inner = mz * mz + (1.0 - xi * xi) * r2
        ok = (root >= 0) & (inner >= 0)
        factor = (mz * xi + np.sqrt(np.maximum(inner, 0.0))) / (mz * mz + r2)
        return np.stack([factor * rx, factor * ry, factor * mz - xi], -1), ok

    def _plane(self, points: DoubleArray) -> tuple[DoubleArray, DoubleArray, Bools]:
        xi, alpha = self.xi, self.alpha
        x, y, z = np.moveaxis(points, -1, 0)
        d1 = np.linalg.norm(points, axis=-1)
        z2 = xi * d1 + z
        d2 = np.sqrt(x * x + y * y + z2 * z2)
        scale = (1.0 + xi) / (alpha * d2 + (1.0 - alpha) * z2)
        w1 = alpha / (1.0 - alpha) if alpha <= 0.5 else (1.0 - alpha) / alpha
        w2 = (w1 + xi) / np.sqrt(2.0 * w1 * xi + xi * xi + 1.0)
        return x * scale, y * scale, z > -w2 * d1


def make_output_camera(name: str, K: DoubleArray, distortion: float = 0.0) -> OutputCamera:
    """The output camera that RenderConfig.camera names, on the intrinsics K (3, 3) and the lens of a VirtualCamera.

    Raises:
        InputError: there is no camera of that name.
    """
    if name in FOCAL_SCALE:
        scaled = K.astype(np.float64, copy=True)
        scaled[:2, :2] *= FOCAL_SCALE[name]
        return Division(K=scaled, distortion=distortion) if distortion else Pinhole(K=scaled)
    if name == "fisheye":
        return KannalaBrandt(K=K)
    if name == "ucm":
        return Unified(K=K)
    if name == "double-sphere":
        return DoubleSphere(K=K)
    known = ", ".join([*FOCAL_SCALE, "fisheye", "ucm", "double-sphere"])
    raise InputError(f"output camera: expected one of {known}; got {name!r}")

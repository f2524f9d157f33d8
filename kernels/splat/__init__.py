"""Splatting: points of several source frames drawn into a view, nearest in front (VS3R eq. 6 and 7)."""

from __future__ import annotations

import torch

from vs3r.errors import InputError, ShapeError
from vs3r.kernels.camera import View
from vs3r.kernels.dispatch import FLOATS, Backend, check_tensor, runs_triton
from vs3r.kernels.splat.points import Alpha, DepthPoints, Nearest, Splat, WorldPoints
from vs3r.kernels.splat.reference import splat_points_reference

__all__ = ["splat_points", "DepthPoints", "WorldPoints", "Nearest", "Alpha", "Splat"]

MAX_POINTS = 2**31 - 1
"""Their numbers fill the lower half of a key, and sums over them must fit 63 bits."""


def splat_points(
    points: DepthPoints | WorldPoints, view: View, *, blending: Nearest | Alpha | None = None, backend: Backend = "auto"
) -> Splat:
    """Draw points into a view with a z-buffer (VS3R eq. 6 and 7). Not differentiable.

    Every run gives the same bytes: what several points add to a pixel is summed in integers. Points are ordered by
    their depth in float32, those of equal depth by their number. Not drawn are points whose inverse depth is not
    positive and finite, or whose depth in the view is not a positive float32 (other than a denormal). Attributes that
    are not finite count as 0. Inputs may be float32, float16 or bfloat16; arithmetic and results are float32. The
    reference takes float64 too.

    Args:
        points: what to draw.
        view: where.
        blending: how points that share a pixel are joined; None for Nearest().
        backend: "auto", "reference" or "triton".
    Raises:
        ShapeError: a shape, dtype or device does not fit; the message names the argument.
        InputError: a view, tolerance or radius makes no sense.
        BackendError: the backend asked for cannot run.
    """
    if blending is None:
        blending = Nearest()
    _check_points(points)
    _check_blending(blending)
    view.check(points.places.device)
    large = [points.places] if points.attributes is None else [points.places, points.attributes]
    if runs_triton(backend, *large):
        from vs3r.kernels.splat.triton_impl import splat_points_triton

        return splat_points_triton(points, view, blending)
    return splat_points_reference(points, view, blending)


def _check_points(points: DepthPoints | WorldPoints) -> None:
    shape: tuple[int, ...]
    device = points.places.device
    if isinstance(points, DepthPoints):
        check_tensor("points.inv_depth", points.inv_depth, ("S", "H", "W"))
        shape = tuple(points.inv_depth.shape)
        points.cameras.check(shape[0], device, rows=shape[1])
    else:
        check_tensor("points.xyz", points.xyz, ("N", 3))
        shape = tuple(points.xyz.shape[:1])
        if points.source is not None:
            check_tensor("points.source", points.source, shape, dtypes=(torch.int32,), device=device)
    if points.attributes is not None:
        allowed = (*FLOATS, torch.uint8)
        check_tensor("points.attributes", points.attributes, (*shape, "C"), dtypes=allowed, device=device)
    for name in ("valid", "dynamic"):
        mask = getattr(points, name)
        if mask is not None:
            check_tensor(f"points.{name}", mask, shape, dtypes=(torch.bool,), device=device)
    if points.count > MAX_POINTS:
        raise ShapeError(f"points: expected at most {MAX_POINTS}; got {points.count}; draw fewer source frames")


def _check_blending(blending: Nearest | Alpha) -> None:
    if isinstance(blending, Nearest) and not 1e-6 <= blending.depth_tolerance <= 1:
        raise InputError(f"depth_tolerance: expected 1e-6 to 1; got {blending.depth_tolerance}")
    if isinstance(blending, Alpha) and not (blending.radius > 0 and blending.points_per_pixel >= 1):
        raise InputError(
            "blending: expected radius > 0 and points_per_pixel >= 1; "
            f"got {blending.radius} and {blending.points_per_pixel}"
        )

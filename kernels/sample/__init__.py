"""Backward sampling: a view from its depth and the best of several pictures, pixel by pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from vs3r.errors import InputError, ShapeError
from vs3r.kernels.camera import View
from vs3r.kernels.dispatch import Backend, check_tensor, runs_triton
from vs3r.kernels.sample.reference import PICTURES, Sampled, SamplePictures, sample_backward_reference

__all__ = ["sample_backward", "SamplePictures", "Sampled"]

MAX_SAMPLES = 2**31 - 1
"""The Triton kernel counts within a picture in 32 bits."""


def sample_backward(
    inv_depth: Tensor,
    view: View,
    *,
    sources: SamplePictures,
    margin_px: float = 0.0,
    depth_tolerance: float = 0.05,
    backend: Backend = "auto",
) -> Sampled:
    """Show what a view sees: each pixel from the first source that sees its point, bicubic. Not differentiable.

    A source sees a point that lands in its picture and is not farther than its surface there. In the picture of a
    rolling shutter a point lies where the camera of that row sees it, found in three steps from the middle row. The
    kernel is that of OpenCV (a = -0.75), the border is repeated outward, and integers are rounded to the nearest.

    Args:
        inv_depth: (h, w) float32, float16 or bfloat16 (the reference: float64 too), on cells that tile the view,
            interpolated linearly: 1 / depth as splat_points returns it, >= 0. Where it is NaN nothing is shown.
        view: what is shown. One plane of a picture with subsampled chroma is a view with K scaled.
        sources: pictures, best first.
        margin_px: a source is not used nearer to its border; negative to go beyond it.
        depth_tolerance: a point may be farther than the source's surface by this share.
        backend: "auto", "reference" or "triton".
    Raises:
        ShapeError: a shape, dtype or device does not fit; the message names the argument.
        InputError: a view or the tolerance makes no sense.
        BackendError: the backend asked for cannot run.
    """
    device = inv_depth.device
    check_tensor("inv_depth", inv_depth, ("h", "w"))
    view.check(device)
    check_tensor("sources.pictures", sources.pictures, ("S", "H", "W", "C"), dtypes=PICTURES, device=device)
    count = len(sources.pictures)
    sources.cameras.check(count, device, rows=sources.pictures.shape[1])
    check_tensor("sources.inv_depth", sources.inv_depth, (count, "h", "w"), device=device)
    if sources.dynamic is not None:
        shape = tuple(sources.inv_depth.shape)
        check_tensor("sources.dynamic", sources.dynamic, shape, dtypes=(torch.bool,), device=device)
    large = {"inv_depth": inv_depth, "sources.inv_depth": sources.inv_depth, "sources.pictures": sources.pictures}
    for name, value in large.items():
        if 0 in value.shape:
            raise InputError(f"{name}: expected at least one element; got {tuple(value.shape)}")
    if sources.pictures[0].numel() > MAX_SAMPLES:
        raise ShapeError(
            f"sources.pictures: expected at most {MAX_SAMPLES} samples in each; got {sources.pictures[0].numel()}"
        )
    if not depth_tolerance >= 0:
        raise InputError(f"depth_tolerance: expected at least 0; got {depth_tolerance}")
    if runs_triton(backend, inv_depth, sources.inv_depth):
        from vs3r.kernels.sample.triton_impl import sample_backward_triton

        return sample_backward_triton(inv_depth, view, sources, margin_px, depth_tolerance)
    return sample_backward_reference(inv_depth, view, sources, margin_px, depth_tolerance)

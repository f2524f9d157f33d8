"""Composing layers: every pixel of a picture from sources seen through backward maps, front to back."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vs3r.errors import InputError, ShapeError
from vs3r.kernels.compose.doubling import doubled
from vs3r.kernels.compose.layers import MAX_LAYERS, PICTURES, Layers, PlaneLayout
from vs3r.kernels.compose.reference import compose_layers_reference
from vs3r.kernels.dispatch import FLOATS, Backend, check_tensor, runs_triton

__all__ = ["compose_layers", "doubled", "Layers", "PlaneLayout"]

MAX_SAMPLES = 2**29 - 1
"""The Triton kernel counts within a picture in 32 bits; the first layer's has four times as many."""


def compose_layers(
    layers: Layers, planes: Sequence[PlaneLayout], *, feather_px: float, peak: float, backend: Backend = "auto"
) -> Tensor:
    """Draw a picture from layers, front to back, each sampled bicubically at its backward map. Not differentiable.

    The first layer, of which most is seen, is sampled from its doubled picture at twice the position and so stays
    sharper; what the others fill need not.

    A layer's opacity is that of its nodes times a smooth ramp that begins at the margin inside its source's border, is
    feather_px wide and never below 1/1000; the first layer's is at least `keep`. Weights are opacities times what the
    layers in front let through; the sum of weighted samples is divided by the sum of the weights, so that a layer that
    shows alone shows fully. The cubic kernel is that of OpenCV (a = -0.75), the border is repeated outward, a sample is
    clipped to [0, peak]. Integers are rounded to the nearest. Every run gives the same bytes.

    Args:
        layers: what is seen, at most 9; fields float32 (the reference: float64 too).
        planes: of the pictures and of the result; their cells are the same.
        feather_px: width of the ramps, luma pixels, > 0.
        peak: the largest value of a sample, > 0: 1023 for 10 bits.
        backend: "auto", "reference" or "triton".
    Returns:
        (N,) all planes one after the other, as the sources' own are; a plane's `empty` where no layer shows.
    Raises:
        ShapeError: a shape, dtype or device does not fit; the message names the argument.
        InputError: feather_px or peak makes no sense.
        BackendError: the backend asked for cannot run.
    """
    _check_planes(planes)
    _check_layers(layers, planes)
    for name, value in (("feather_px", feather_px), ("peak", peak)):
        if not value > 0:
            raise InputError(f"{name}: expected more than 0; got {value}")
    if runs_triton(backend, layers.x, layers.pictures[0]):
        from vs3r.kernels.compose.triton_impl import compose_layers_triton

        return compose_layers_triton(layers, tuple(planes), feather_px, peak)
    return compose_layers_reference(layers, planes, feather_px, peak)


def _check_planes(planes: Sequence[PlaneLayout]) -> None:
    if not planes:
        raise ShapeError("planes: expected at least one; got none")
    for number, plane in enumerate(planes):
        name = f"planes[{number}]"
        if min(plane.rows, plane.columns) < 1:
            raise ShapeError(f"{name}: expected at least 1 x 1 pixels; got {plane.rows} x {plane.columns}")
        if min(plane.step_y, plane.step_x) < 2 or plane.step_y % 2 or plane.step_x % 2:
            raise ShapeError(f"{name}: expected even steps of at least 2; got {plane.step_y} and {plane.step_x}")
        if min(plane.scale_y, plane.scale_x) < 1:
            raise ShapeError(f"{name}: expected scales of at least 1; got {plane.scale_y} and {plane.scale_x}")
        if plane.cells != planes[0].cells:
            raise ShapeError(f"{name}: expected {planes[0].cells} cells as planes[0]; got {plane.cells}")


def _check_layers(layers: Layers, planes: Sequence[PlaneLayout]) -> None:
    count = len(layers.pictures)
    if not 1 <= count <= MAX_LAYERS:
        raise ShapeError(f"layers.pictures: expected 1 to {MAX_LAYERS}; got {count}")
    device, dtype = layers.x.device, layers.x.dtype
    samples = sum(plane.size for plane in planes)
    if samples > MAX_SAMPLES:
        raise ShapeError(f"planes: expected at most {MAX_SAMPLES} pixels in all; got {samples}")
    for number, picture in enumerate(layers.pictures):
        allowed = PICTURES if number == 0 else (layers.pictures[0].dtype,)
        held = samples if number else 4 * samples
        check_tensor(f"layers.pictures[{number}]", picture, (held,), dtypes=allowed, device=device)
    rows, columns = planes[0].cells
    nodes = rows + 2, columns + 2
    check_tensor("layers.x", layers.x, (count, *nodes), dtypes=(FLOATS[0], FLOATS[-1]))
    fields = {
        "y": (layers.y, (count, *nodes)),
        "opacity": (layers.opacity, (count, *nodes)),
        "margin_px": (layers.margin_px, (count,)),
        "keep": (layers.keep, nodes),
        "offsets": (layers.offsets, (count - 1, len(planes), *nodes)),
    }
    for name, (field, shape) in fields.items():
        if field is not None:
            check_tensor(f"layers.{name}", field, shape, dtypes=(dtype,), device=device)

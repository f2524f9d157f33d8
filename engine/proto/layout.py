"""Pixel formats of the wire: bytes with strides to planes and back, without loss but for floating point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

from vs3r.engine.media.formats import picture_format, planar_name
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.proto.wire import Buffer, Bytes
from vs3r.errors import InputError, MediaError
from vs3r.types import PictureFormat, Plane

MAX_SIDE_PX = 1 << 16
_MAX_STRIDE = 1 << 24
_MAX_TERM = 1 << 31
_P010_SHIFT = 6
# Wire format -> type of a sample, planar format that is worked on. RGBA is one plane of 4 samples a pixel.
_RGBA: dict[pb.PixelFormat, tuple[type[np.generic], str]] = {
    pb.PIXEL_FORMAT_RGBA8: (np.uint8, "gbrap"),
    pb.PIXEL_FORMAT_RGBA16: (np.uint16, "gbrap16le"),
    pb.PIXEL_FORMAT_RGBA_F16: (np.float16, "gbrap16le"),
    pb.PIXEL_FORMAT_RGBA_F32: (np.float32, "gbrap16le"),
}
_YUV: dict[pb.PixelFormat, str] = {
    pb.PIXEL_FORMAT_NV12: "yuv420p",
    pb.PIXEL_FORMAT_P010: "yuv420p10le",
    pb.PIXEL_FORMAT_I420: "yuv420p",
}
PIXEL_FORMATS: tuple[pb.PixelFormat, ...] = (*_RGBA, *_YUV, pb.PIXEL_FORMAT_PLANAR)


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldViolation:
    """What is wrong with one field of a message."""

    field: str
    """Path of the field, e.g. "format.row_strides"."""
    description: str
    """What was expected, what came."""


class FieldError(InputError):
    """A message has fields that make no sense."""

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in violations))
        self.violations = tuple(violations)


def field_error(field: str, description: str) -> FieldError:
    """A FieldError of one field."""
    return FieldError([FieldViolation(field=field, description=description)])


@dataclass(frozen=True, slots=True, kw_only=True)
class _WirePlane:
    """A plane of the wire."""

    start: int
    """Its first byte in the frame."""
    shape: tuple[int, int]
    """Rows, and samples in a row."""
    stride: int
    """Bytes from row to row."""
    kind: np.dtype[np.generic]
    """Of a sample."""

    @property
    def gap(self) -> int:
        """Bytes between rows."""
        return self.stride - self.shape[1] * self.kind.itemsize

    def lies_in(self, data: Buffer | Bytes) -> npt.NDArray[np.generic]:
        """Its samples where they lie in the bytes of a frame."""
        strides = self.stride, self.kind.itemsize
        return np.ndarray(self.shape, self.kind, buffer=data, offset=self.start, strides=strides)

    def clear_gaps(self, data: Bytes) -> None:
        """Set the bytes between its rows to zero."""
        start = self.start + self.stride - self.gap
        np.ndarray((self.shape[0], self.gap), np.uint8, buffer=data, offset=start, strides=(self.stride, 1))[:] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the bytes of a frame lie, and the planar format that they are worked on in."""

    pixel_format: pb.PixelFormat
    """A value of pb.PixelFormat."""
    format: PictureFormat
    """What the planes are."""
    strides: tuple[int, ...] = ()
    """Bytes from row to row, one per plane of the wire; none for rows without gaps."""
    byte_size: int = field(init=False)
    """Bytes of a frame."""
    _wire: tuple[_WirePlane, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Once: they are needed for every frame.
        kind = np.dtype(_sample_type(self.pixel_format, self.format))
        shapes = _wire_shapes(self.pixel_format, self.format)
        strides = self.strides or tuple(width for _, width in shapes)
        wire, start = [], 0
        for (rows, width), stride in zip(shapes, strides, strict=True):
            wire.append(_WirePlane(start=start, shape=(rows, width // kind.itemsize), stride=stride, kind=kind))
            start += rows * stride
        for name, value in (("strides", strides), ("byte_size", start), ("_wire", tuple(wire))):
            object.__setattr__(self, name, value)

    def of_size(self, width: int, height: int) -> Layout:
        """The same for another picture size, without gaps between rows."""
        return Layout(pixel_format=self.pixel_format, format=replace(self.format, width=width, height=height))

    def tight(self) -> Layout:
        """The same without gaps between rows."""
        return Layout(pixel_format=self.pixel_format, format=self.format)

    def unpack(self, data: Buffer) -> tuple[Plane, ...]:
        """The planes of a frame. They may share memory with `data`.

        Raises:
            InputError: the size is not byte_size.
        """
        if len(data) != self.byte_size:
            raise InputError(f"expected {self.byte_size} bytes for {self._named}, got {len(data)}")
        wire = [_aligned(plane.lies_in(data)) for plane in self._wire]
        if self.pixel_format in _RGBA:
            r, g, b, a = _split(_as_integers(wire[0]).reshape(self.format.height, self.format.width, 4))
            return g, b, r, a
        if self.pixel_format in (pb.PIXEL_FORMAT_NV12, pb.PIXEL_FORMAT_P010):
            planes = [wire[0], *_split(wire[1].reshape(wire[1].shape[0], -1, 2))]
            if self.format.bit_depth > 8:
                planes = [cast("Plane", np.right_shift(plane, _P010_SHIFT)) for plane in planes]
            wire = planes
        # A plane that lies in the data would keep all of it, gaps included.
        apart = any(plane.gap for plane in self._wire)
        return tuple(cast("Plane", np.array(plane, order="C", copy=True if apart else None)) for plane in wire)

    def planes_in(self, data: npt.NDArray[np.uint8]) -> tuple[Plane, ...] | None:
        """The planes of a frame as they lie in `data`; None where they lie otherwise on the wire than in a Frame."""
        if self.pixel_format not in (pb.PIXEL_FORMAT_PLANAR, pb.PIXEL_FORMAT_I420):
            return None
        planes = [plane.lies_in(data) for plane in self._wire]
        if not all(plane.flags.aligned and plane.flags.c_contiguous for plane in planes):
            return None
        return tuple(cast("list[Plane]", planes))

    def pack(self, planes: Sequence[Plane]) -> list[memoryview]:
        """The bytes of a frame, in pieces that follow each other; padding at the ends of rows is zero."""
        planar = self.pixel_format in (pb.PIXEL_FORMAT_PLANAR, pb.PIXEL_FORMAT_I420)
        if planar and not any(plane.gap for plane in self._wire):
            return [np.ascontiguousarray(plane).data.cast("B") for plane in planes]
        out = np.empty(self.byte_size, np.uint8)
        self.write(out, planes)
        return [out.data]

    def write(self, memory: Bytes, planes: Sequence[Plane]) -> None:
        """Write the bytes of a frame to the begin of a memory; padding at the ends of rows is zero."""
        for wire in self._wire:
            wire.clear_gaps(memory)
        targets = [wire.lies_in(memory) for wire in self._wire]
        if self.pixel_format in _RGBA:
            g, b, r, a = planes
            _merge([r, g, b, a], targets[0])
        elif self.pixel_format in (pb.PIXEL_FORMAT_NV12, pb.PIXEL_FORMAT_P010):
            np.copyto(targets[0], planes[0])
            _merge(planes[1:], targets[1])
            if self.format.bit_depth > 8:
                for target in targets:
                    np.left_shift(target, _P010_SHIFT, out=target)
        else:
            for target, plane in zip(targets, planes, strict=True):
                np.copyto(target, plane)

    @property
    def _named(self) -> str:
        name = pb.PixelFormat.Name(self.pixel_format).removeprefix("PIXEL_FORMAT_")
        return f"{self.format.width}x{self.format.height} {name} with row strides {list(self.strides)}"


def layout_of(message: pb.FrameFormat, *, field: str = "format", max_pixels: int | None = None) -> Layout:
    """Check a message.

    Args:
        message: from the wire.
        field: its path, for the error.
        max_pixels: width times height may not be more.
    Raises:
        FieldError: what is wrong with which fields.
    """
    wrong: list[FieldViolation] = []

    def expect(good: bool, name: str, description: str) -> None:
        if not good:
            wrong.append(FieldViolation(field=f"{field}.{name}", description=description))

    width, height = message.width, message.height
    for name, side in (("width", width), ("height", height)):
        expect(1 <= side <= MAX_SIDE_PX, name, f"expected 1 to {MAX_SIDE_PX} pixels, got {side}")
    if max_pixels is not None and not wrong:
        expect(width * height <= max_pixels, "width", f"expected at most {max_pixels} pixels, got {width}x{height}")
    interlaced = message.field_order in (pb.FIELD_ORDER_TOP_FIRST, pb.FIELD_ORDER_BOTTOM_FIRST)
    expect(not interlaced, "field_order", "expected progressive pictures; deinterlace them first")
    planar = message.pixel_format == pb.PIXEL_FORMAT_PLANAR
    expect(
        message.pixel_format in PIXEL_FORMATS,
        "pixel_format",
        f"expected one of GetCapabilities, got {message.pixel_format}",
    )
    expect(planar or not message.planar_name, "planar_name", "expected none but with PIXEL_FORMAT_PLANAR")
    if planar:
        expect(_is_planar(message.planar_name), "planar_name", f"expected a planar format, got {message.planar_name!r}")
    aspect = _fraction(message.pixel_aspect) if message.HasField("pixel_aspect") else Fraction(1)
    expect(aspect is not None, "pixel_aspect", f"expected positive terms below {_MAX_TERM}")
    if wrong or aspect is None:
        raise FieldError(wrong)
    layout = _layout(message, aspect)
    least = layout.strides
    premultiplied = message.alpha_mode == pb.ALPHA_MODE_PREMULTIPLIED
    expect(not premultiplied or layout.format.num_planes in (2, 4), "alpha_mode", "this pixel format has no alpha")
    strides = tuple(message.row_strides)
    if strides:
        step = np.dtype(_sample_type(layout.pixel_format, layout.format)).itemsize
        good = len(strides) == len(least) and all(
            low <= s <= _MAX_STRIDE and s % step == 0 for low, s in zip(least, strides, strict=True)
        )
        expect(good, "row_strides", f"expected one per plane, at least {list(least)}, got {list(strides)[:8]}")
    if wrong:
        raise FieldError(wrong)
    return Layout(pixel_format=layout.pixel_format, format=layout.format, strides=strides)


def layout_message(layout: Layout) -> pb.FrameFormat:
    """The message of a layout; colour tags and alpha mode, which are the client's own, are left out."""
    fmt = layout.format
    return pb.FrameFormat(
        pixel_format=layout.pixel_format,
        planar_name=fmt.pix_fmt if layout.pixel_format == pb.PIXEL_FORMAT_PLANAR else "",
        width=fmt.width,
        height=fmt.height,
        row_strides=layout.strides,
        color_space=pb.ColorSpace(full_range=fmt.full_range),
        pixel_aspect=rational(fmt.sample_aspect),
    )


def planar_layout(fmt: PictureFormat) -> Layout:
    """Planar pictures of a format without gaps; what the command line sends."""
    return Layout(pixel_format=pb.PIXEL_FORMAT_PLANAR, format=fmt)


def time_base_of(message: pb.Rational, *, field: str = "time_base") -> Fraction:
    """Check a time base.

    Raises:
        FieldError: it is not a positive fraction.
    """
    value = _fraction(message)
    if value is None:
        raise field_error(
            field, f"expected positive terms below {_MAX_TERM}, got {message.numerator}/{message.denominator}"
        )
    return value


def rational(value: Fraction) -> pb.Rational:
    """The message of a fraction."""
    return pb.Rational(numerator=value.numerator, denominator=value.denominator)


def _layout(message: pb.FrameFormat, aspect: Fraction) -> Layout:
    wire = message.pixel_format
    name = message.planar_name if wire == pb.PIXEL_FORMAT_PLANAR else _RGBA[wire][1] if wire in _RGBA else _YUV[wire]
    fmt = picture_format(
        name,
        message.width,
        message.height,
        full_range=message.color_space.full_range or name.startswith("gbr"),
        sample_aspect=aspect,
    )
    return Layout(pixel_format=wire, format=fmt)


def _wire_shapes(pixel_format: pb.PixelFormat, fmt: PictureFormat) -> list[tuple[int, int]]:
    """Rows, and bytes in a row, of the planes of the wire."""
    size = np.dtype(_sample_type(pixel_format, fmt)).itemsize
    if pixel_format in _RGBA:
        return [(fmt.height, fmt.width * 4 * size)]
    shapes = [(rows, columns * size) for rows, columns in map(fmt.plane_shape, range(fmt.num_planes))]
    if pixel_format in (pb.PIXEL_FORMAT_NV12, pb.PIXEL_FORMAT_P010):
        return [shapes[0], (shapes[1][0], 2 * shapes[1][1])]
    return shapes


def _sample_type(pixel_format: pb.PixelFormat, fmt: PictureFormat) -> type[np.generic]:
    return _RGBA[pixel_format][0] if pixel_format in _RGBA else fmt.sample_type


def _is_planar(name: str) -> bool:
    try:
        return planar_name(name) == name
    except MediaError:
        return False


def _fraction(message: pb.Rational) -> Fraction | None:
    if not (0 < message.numerator < _MAX_TERM and 0 < message.denominator < _MAX_TERM):
        return None
    return Fraction(message.numerator, message.denominator)


def _aligned(samples: npt.NDArray[np.generic]) -> Plane:
    """Samples of several bytes where the processor expects them; in a message they may begin anywhere."""
    return cast("Plane", samples if samples.flags.aligned else samples.copy())


def _split(pixels: Plane) -> list[Plane]:
    """(H, W, C) to C planes."""
    # Of numpy's memory: into what OpenCV takes for itself it needs three times as long.
    planes = [np.empty_like(pixels[..., 0], order="C") for _ in range(pixels.shape[2])]
    cv2.split(pixels, planes)
    return planes


def _merge(planes: Sequence[Plane], target: npt.NDArray[np.generic]) -> None:
    """C planes to (H, W * C) samples of the target's type."""
    if target.dtype == planes[0].dtype and target.flags.c_contiguous and target.flags.aligned:
        cv2.merge(planes, cast("Plane", target).reshape(*planes[0].shape, len(planes)))
        return
    merged = np.asarray(cv2.merge(planes)).reshape(target.shape)
    if target.dtype.kind == "f":
        np.multiply(merged, np.float32(1 / 65535), out=target, dtype=np.float32, casting="same_kind")
    else:
        target[:] = merged


def _as_integers(samples: npt.NDArray[np.generic]) -> Plane:
    """Floating point to 16 bits, integers as they are."""
    if samples.dtype not in (np.float16, np.float32):
        return samples  # type: ignore[return-value]
    # OpenCV takes NaN and what is negative for 0, but what no integer can hold as well.
    most_one = np.minimum(samples.astype(np.float32, copy=False), np.float32(1))
    scaled = cv2.multiply(most_one, 65535.0, dtype=cv2.CV_16U)  # type: ignore[call-overload]  # a number will do
    return np.asarray(scaled, np.uint16)

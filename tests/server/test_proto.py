"""The wire: generated modules, settings, pixel formats."""

from __future__ import annotations

from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from vs3r.config import Config, ReconstructConfig, SmoothConfig, VggtConfig
from vs3r.engine.proto import generate
from vs3r.engine.proto.convert import SECTIONS, config_from, config_message
from vs3r.engine.proto.layout import (
    PIXEL_FORMATS,
    FieldError,
    Layout,
    layout_message,
    layout_of,
    planar_layout,
    time_base_of,
)
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.errors import InputError

RGBA_FLOAT = {pb.PIXEL_FORMAT_RGBA_F16: np.float16, pb.PIXEL_FORMAT_RGBA_F32: np.float32}


def message(pixel_format: pb.PixelFormat, width: int = 37, height: int = 21, **more: object) -> pb.FrameFormat:
    name = "yuv422p10le" if pixel_format == pb.PIXEL_FORMAT_PLANAR else ""
    return pb.FrameFormat(pixel_format=pixel_format, planar_name=name, width=width, height=height, **more)  # type: ignore[arg-type]


def some_bytes(layout: Layout) -> bytes:
    """Bytes that mean values of the format: 10 bits, or floats in [0, 1]."""
    rng = np.random.default_rng(layout.pixel_format)
    kind = RGBA_FLOAT.get(layout.pixel_format)
    if kind is not None:
        count = layout.byte_size // np.dtype(kind).itemsize
        return (rng.integers(0, 65536, count) / 65535).astype(kind).tobytes()
    if layout.pixel_format == pb.PIXEL_FORMAT_P010:
        return (rng.integers(0, 1024, layout.byte_size // 2).astype("<u2") << 6).astype("<u2").tobytes()
    if layout.format.bit_depth == 10:
        return rng.integers(0, 1024, layout.byte_size // 2).astype("<u2").tobytes()
    return rng.integers(0, 256, layout.byte_size, dtype=np.uint8).tobytes()


def test_generated_modules_are_up_to_date(tmp_path: Path) -> None:
    generate.generate(tmp_path)
    for name in ("engine_pb2.py", "engine_pb2.pyi"):
        made, kept = tmp_path / "vs3r" / "v1" / name, generate.HERE / "vs3r" / "v1" / name
        assert made.read_text() == kept.read_text(), "run: python -m vs3r.engine.proto.generate"


@pytest.mark.parametrize("section", SECTIONS)
def test_the_wire_has_every_setting(section: str) -> None:
    ours = [spec.name for spec in fields(getattr(Config(), section))]
    theirs = [field.name for field in getattr(pb.Config(), section).DESCRIPTOR.fields]
    assert ours == theirs


def test_settings_survive_the_wire() -> None:
    config = Config(
        smooth=SmoothConfig(smoothness=0.0),
        reconstruct=ReconstructConfig(hfov_deg=70.0),
        vggt=VggtConfig(vggt_window_frames=16, vggt_precision="fp32"),
    )
    sent = pb.Config.FromString(config_message(config).SerializeToString())
    assert config_from(sent) == config
    assert config_from(pb.Config()) == Config()


def test_wrong_settings_name_their_field() -> None:
    with pytest.raises(FieldError, match="smoothness") as caught:
        config_from(pb.Config(smooth=pb.SmoothConfig(smoothness=7)))
    assert caught.value.violations[0].field == "config.smooth"


@pytest.mark.parametrize("pixel_format", PIXEL_FORMATS)
@pytest.mark.parametrize("padding", [0, 64])
@pytest.mark.parametrize("size", [(37, 21), (1, 1), (64, 48)])
def test_pixels_survive(pixel_format: pb.PixelFormat, padding: int, size: tuple[int, int]) -> None:
    tight = layout_of(message(pixel_format, *size))
    strides = [stride + padding for stride in tight.strides]
    layout = layout_of(message(pixel_format, *size, row_strides=strides))
    planes = tight.unpack(some_bytes(tight))
    padded = b"".join(layout.pack(planes))
    assert len(padded) == layout.byte_size
    again = layout.unpack(padded)
    assert [p.shape for p in again] == [layout.format.plane_shape(i) for i in range(layout.format.num_planes)]
    assert all(np.array_equal(a, b) for a, b in zip(planes, again, strict=True))
    out, given = b"".join(tight.pack(again)), some_bytes(tight)
    if (kind := RGBA_FLOAT.get(pixel_format)) is not None:
        # Half a step of 16 bits, and half a step of the half float near 1.
        worst = np.abs(np.frombuffer(out, kind).astype(float) - np.frombuffer(given, kind)).max()
        assert worst <= 0.5 / 65535 + (2.0**-11 if kind is np.float16 else 1e-7)
    else:
        assert out == given


@pytest.mark.parametrize("pixel_format", PIXEL_FORMATS)
@pytest.mark.parametrize("padding", [0, 64])
@pytest.mark.parametrize("shift", [0, 1])
def test_pixels_are_written_where_they_go(pixel_format: pb.PixelFormat, padding: int, shift: int) -> None:
    """Into memory of any content, also at odd addresses: the bytes of the definition, and no others."""
    tight = layout_of(message(pixel_format))
    strides = [stride + padding for stride in tight.strides]
    layout = layout_of(message(pixel_format, row_strides=strides))
    planes = tight.unpack(some_bytes(tight))
    memory = np.full(shift + layout.byte_size + 3, 77, np.uint8)
    layout.write(memory[shift:-3], planes)
    assert set(memory[:shift]) | set(memory[-3:]) == {77}
    kind = RGBA_FLOAT.get(pixel_format)
    wire: list[npt.NDArray[Any]]
    if len(tight.strides) == 1:
        g, b, r, a = planes
        wire = [np.stack([r, g, b, a], -1).reshape(21, -1)]
        wire = [(wire[0] * np.float32(1 / 65535)).astype(kind)] if kind is not None else wire
    elif len(tight.strides) == 2:
        wire = [planes[0], np.stack(planes[1:], -1).reshape(11, -1)]
        wire = [plane << 6 for plane in wire] if pixel_format == pb.PIXEL_FORMAT_P010 else wire
    else:
        wire = list(planes)
    rows = [np.ascontiguousarray(plane).view(np.uint8) for plane in wire]
    definition = b"".join(np.pad(plane, ((0, 0), (0, padding))).tobytes() for plane in rows)
    assert memory[shift:-3].tobytes() == definition
    assert b"".join(layout.pack(planes)) == definition


def test_channels_are_not_swapped() -> None:
    layout = layout_of(message(pb.PIXEL_FORMAT_RGBA8, 1, 1))
    g, b, r, a = layout.unpack(bytes([10, 20, 30, 40]))
    assert [int(p[0, 0]) for p in (r, g, b, a)] == [10, 20, 30, 40]
    y, u, v = layout_of(message(pb.PIXEL_FORMAT_NV12, 2, 2)).unpack(bytes([1, 2, 3, 4, 5, 6]))
    assert (y.tolist(), u.tolist(), v.tolist()) == ([[1, 2], [3, 4]], [[5]], [[6]])


def test_floats_out_of_range_are_clipped() -> None:
    layout = layout_of(message(pb.PIXEL_FORMAT_RGBA_F32, 1, 1))
    for values in ([-1, 2, np.nan, np.inf], [-np.inf, 1e30, -np.nan, 1 + 1e-6], [-1e30, 3e5, -1e-9, 1]):
        planes = layout.unpack(np.array(values, np.float32).tobytes())
        assert [int(p[0, 0]) for p in planes] == [65535, 0, 0, 65535]


@pytest.mark.parametrize("pixel_format", RGBA_FLOAT)
def test_floats_are_rounded_to_the_nearest(pixel_format: pb.PixelFormat) -> None:
    layout = layout_of(message(pixel_format))
    samples = np.random.default_rng(3).uniform(-0.1, 1.1, layout.byte_size).astype(RGBA_FLOAT[pixel_format])
    samples = samples[: 37 * 21 * 4].reshape(21, 37, 4)
    g, b, r, a = layout.unpack(samples.tobytes())
    worst = np.abs(np.stack([r, g, b, a], -1) - np.clip(samples.astype(float), 0, 1) * 65535).max()
    assert 0.4 < worst <= 0.5 + 2**-8  # of a float near 65535


@pytest.mark.parametrize(
    ("fields_of", "named"),
    [
        ({"width": 0}, "width"),
        ({"height": 1 << 20}, "height"),
        ({"width": 60000, "height": 60000}, "width"),
        ({"pixel_format": 0}, "pixel_format"),
        ({"pixel_format": 99}, "pixel_format"),
        ({"row_strides": [10]}, "row_strides"),
        ({"row_strides": [1 << 31]}, "row_strides"),
        ({"row_strides": [256, 256]}, "row_strides"),
        ({"planar_name": "gray"}, "planar_name"),
        ({"pixel_format": pb.PIXEL_FORMAT_PLANAR, "planar_name": "nv12"}, "planar_name"),
        ({"pixel_format": pb.PIXEL_FORMAT_PLANAR, "planar_name": "no such"}, "planar_name"),
        ({"pixel_format": pb.PIXEL_FORMAT_PLANAR, "planar_name": "cuda"}, "planar_name"),
        ({"pixel_aspect": pb.Rational(numerator=1)}, "pixel_aspect"),
        ({"field_order": pb.FIELD_ORDER_TOP_FIRST}, "field_order"),
        ({"pixel_format": pb.PIXEL_FORMAT_NV12, "alpha_mode": pb.ALPHA_MODE_PREMULTIPLIED}, "alpha_mode"),
    ],
)
def test_wrong_formats_name_their_field(fields_of: dict[str, object], named: str) -> None:
    given = {"pixel_format": pb.PIXEL_FORMAT_RGBA8, "width": 16, "height": 16} | fields_of
    with pytest.raises(FieldError) as caught:
        layout_of(pb.FrameFormat(**given), max_pixels=1 << 30)  # type: ignore[arg-type]
    assert [v.field for v in caught.value.violations] == [f"format.{named}"]


def test_a_frame_of_the_wrong_size() -> None:
    with pytest.raises(InputError, match="expected 1024 bytes"):
        layout_of(message(pb.PIXEL_FORMAT_RGBA8, 16, 16)).unpack(bytes(1023))


def test_planar_layouts_survive_the_wire() -> None:
    layout = layout_of(message(pb.PIXEL_FORMAT_PLANAR, pixel_aspect=pb.Rational(numerator=4, denominator=3)))
    assert layout_of(layout_message(layout)) == layout == planar_layout(layout.format)
    assert layout.format.sample_aspect == Fraction(4, 3)


@pytest.mark.parametrize("terms", [(0, 1), (1, 0), (-1, 25), (1, 1 << 40)])
def test_time_bases_are_checked(terms: tuple[int, int]) -> None:
    with pytest.raises(FieldError):
        time_base_of(pb.Rational(numerator=terms[0], denominator=terms[1]))


def test_names_follow_the_conventions_of_buf() -> None:
    """Request and response are called as their call, enum values as their enum, the first of them unspecified."""
    (service,) = pb.DESCRIPTOR.services_by_name.values()
    assert service.name.endswith("Service")
    for method in service.methods:
        assert (method.input_type.name, method.output_type.name) == (f"{method.name}Request", f"{method.name}Response")
    for name, enum in pb.DESCRIPTOR.enum_types_by_name.items():
        prefix = "".join(f"_{c}" if c.isupper() else c for c in name).lstrip("_").upper()
        assert enum.values[0].name == f"{prefix}_UNSPECIFIED"
        assert all(value.name.startswith(f"{prefix}_") for value in enum.values)

"""Pixel formats: where each source format lands, and that no bit is lost on the way."""

from __future__ import annotations

import numpy as np
import pytest
from av.video.frame import VideoFrame

from tests.engine.clips import random_planes
from vs3r.engine.media.formats import Converter, encoder_pix_fmt, frame_of, picture_format, planar_name, planes_of
from vs3r.errors import MediaError
from vs3r.types import Plane

PLANAR = (
    "yuv420p", "yuv422p", "yuv444p", "yuv411p", "yuv410p", "yuv440p", "gray", "gbrp", "gbrap", "yuva420p", "ya8",
    "yuv420p9le", "yuv420p10le", "yuv422p10le", "yuv444p12le", "gray10le", "gray16le", "gbrp10le", "gbrap16le",
    "yuva444p16le", "ya16le",
)  # fmt: skip

NEAREST = {
    "yuvj420p": "yuv420p", "yuvj444p": "yuv444p", "nv12": "yuv420p", "nv21": "yuv420p", "nv16": "yuv422p",
    "p010le": "yuv420p10le", "p016be": "yuv420p16le", "p210le": "yuv422p10le", "p410le": "yuv444p10le",
    "yuyv422": "yuv422p", "uyvy422": "yuv422p", "uyyvyy411": "yuv411p", "y210le": "yuv422p10le", "vuya": "yuva444p",
    "rgb24": "gbrp", "bgr0": "gbrp", "bgra": "gbrap", "pal8": "gbrap", "rgb565le": "gbrp", "x2rgb10le": "gbrp10le",
    "rgb48be": "gbrp16le", "rgba64le": "gbrap16le", "monow": "gray", "gray10be": "gray10le", "yuv420p10be":
    "yuv420p10le", "bayer_rggb8": "gbrp", "gbrpf32le": "gbrp16le", "ya16be": "ya16le",
}  # fmt: skip


@pytest.mark.parametrize("name", PLANAR)
@pytest.mark.parametrize("size", [(64, 48), (17, 15), (1, 1)])
def test_planes_survive_an_av_frame(name: str, size: tuple[int, int]) -> None:
    fmt = picture_format(name, *size)
    planes = random_planes(fmt, 1)
    back = planes_of(frame_of(planes, fmt), fmt)
    assert len(back) == fmt.num_planes
    for i, (a, b) in enumerate(zip(planes, back, strict=True)):
        assert b.shape == fmt.plane_shape(i)
        assert b.flags.c_contiguous
        assert b.dtype == (np.uint8 if fmt.bit_depth <= 8 else np.uint16)
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", PLANAR)
def test_planar_formats_stay(name: str) -> None:
    assert planar_name(name) == name


@pytest.mark.parametrize(("name", "planar"), NEAREST.items())
def test_other_formats_go_to_the_nearest(name: str, planar: str) -> None:
    assert planar_name(name) == planar


@pytest.mark.parametrize("name", ["no_such_format", "cuda", "vaapi"])
def test_unknown_format_is_refused(name: str) -> None:
    with pytest.raises(MediaError, match="pixel format"):
        planar_name(name)


def _packed(name: str) -> tuple[VideoFrame, tuple[Plane, ...]]:
    """A picture of random samples in a format that is not planar, and its planes picked out by hand."""
    rng = np.random.default_rng(5)
    frame = VideoFrame(18, 14, name)
    views = []
    for plane in frame.planes:
        view = np.frombuffer(memoryview(plane), np.uint8)
        view[:] = rng.integers(0, 256, view.size, dtype=np.uint8)
        views.append(view.reshape(plane.height, -1))
    first = views[0]
    if name == "nv12":
        return frame, (first[:, :18], views[1][:, 0:18:2], views[1][:, 1:18:2])
    if name == "p010le":
        luma, chroma = (v.view("<u2") for v in views)
        for v in (luma, chroma):
            v &= 0xFFC0  # ten bits, at the top
        return frame, tuple(v // np.uint16(64) for v in (luma[:, :18], chroma[:, 0:18:2], chroma[:, 1:18:2]))
    if name == "yuyv422":
        return frame, (first[:, 0:36:2], first[:, 1:36:4], first[:, 3:36:4])
    if name == "rgb24":
        return frame, (first[:, 1:54:3], first[:, 2:54:3], first[:, 0:54:3])
    if name == "bgra":
        return frame, tuple(first[:, k:72:4] for k in (1, 0, 2, 3))
    if name == "bgr0":
        return frame, tuple(first[:, k:72:4] for k in (1, 0, 2))
    if name == "y210le":
        words = first.view("<u2")
        words &= 0xFFC0
        return frame, tuple(words[:, k:36:step] // np.uint16(64) for k, step in ((0, 2), (1, 4), (3, 4)))
    if name == "x2rgb10le":
        word = first.view("<u4")[:, :18]
        return frame, tuple(((word >> s) & 1023).astype(np.uint16) for s in (10, 0, 20))
    assert name == "gray10be"
    words = first.view(">u2")
    words &= 0x3FF
    return frame, (words[:, :18].astype(np.uint16),)


@pytest.mark.parametrize(
    "name", ["nv12", "p010le", "yuyv422", "rgb24", "bgra", "bgr0", "y210le", "x2rgb10le", "gray10be"]
)
@pytest.mark.parametrize("color_range", [0, 1, 2])
def test_unpacking_loses_nothing(name: str, color_range: int) -> None:
    frame, expected = _packed(name)
    frame.color_range = color_range
    fmt = picture_format(planar_name(name), 18, 14)
    got = planes_of(Converter().convert(frame, fmt), fmt)
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("codec", "name", "size", "expected", "note"),
    [
        ("libx264", "yuv420p", (64, 48), "yuv420p", ""),
        ("libx264", "yuv422p10le", (64, 48), "yuv422p10le", ""),
        ("libx264", "yuv420p", (63, 48), "yuv444p", "odd size"),
        ("libx264", "yuv420p", (64, 47), "yuv422p", "odd size"),
        ("libx264", "yuv422p", (64, 47), "yuv422p", ""),
        ("libx264", "gray", (63, 47), "gray", ""),
        ("libx264", "yuva420p", (64, 48), "yuv420p", "alpha channel is dropped"),
        ("libx264", "gbrp", (64, 48), "yuv444p", "RGB is converted"),
        ("libx264", "yuv420p12le", (64, 48), "yuv420p10le", "bit depth is reduced"),
        ("libx265", "yuva420p10le", (64, 48), "yuv420p10le", "alpha channel is dropped"),
        ("libx265", "gbrp", (64, 48), "gbrp", ""),
        ("prores_ks", "yuv420p", (64, 48), "yuv422p10le", "written as"),
        ("prores_ks", "yuva444p10le", (64, 48), "yuva444p10le", ""),
        ("dnxhd", "yuv422p", (64, 48), "yuv422p", ""),
        ("dnxhd", "yuv420p10le", (64, 48), "yuv422p10le", "written as"),
        ("ffv1", "yuv420p", (63, 47), "yuv420p", ""),
        ("ffv1", "gbrp", (63, 47), "bgr0", ""),
        ("ffv1", "ya8", (63, 47), "ya8", ""),
    ],
)
def test_encoder_format(codec: str, name: str, size: tuple[int, int], expected: str, note: str) -> None:
    chosen, notes = encoder_pix_fmt(codec, picture_format(name, *size))
    assert chosen == expected
    if note:
        assert len(notes) == 1
        assert note in notes[0]
        assert codec in notes[0]
    else:
        assert notes == []

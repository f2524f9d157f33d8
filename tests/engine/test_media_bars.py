"""Black bars: found where there are some, and left where they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.engine.clips import Clip, barred, make_frames, write_clip
from tests.engine.test_pipeline_files import CONFIG
from vs3r.config import SourceConfig
from vs3r.engine.files import analyze_file, render_file, stabilize_file
from vs3r.engine.media import VideoReader
from vs3r.engine.media.bars import EDGE_PX, Bars, Inset, find_bars
from vs3r.types import Frame, Plane

CLIP = Clip(frames=40, width=160, height=120, codec="ffv1")


def found(path: Path, frames: list[Frame], clip: Clip = CLIP) -> Bars:
    return find_bars(write_clip(path / "clip.mkv", clip, frames=frames))


def luma_changed(frame: Frame, change: Callable[[Plane], None]) -> Frame:
    luma = frame.planes[0].copy()
    change(luma)
    return replace(frame, planes=(luma, *frame.planes[1:]))


def test_a_clip_without_bars_has_none(tmp_path: Path) -> None:
    assert found(tmp_path, make_frames(CLIP)) == Bars()


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le", "yuv444p", "gray", "gbrp", "yuv411p"])
@pytest.mark.parametrize("bars", [Bars(top=20, bottom=12), Bars(left=32, right=24), Bars(left=8, top=16, bottom=16)])
def test_bars_are_found(tmp_path: Path, bars: Bars, pix_fmt: str) -> None:
    clip = replace(CLIP, pix_fmt=pix_fmt, color=(2, 2, 2, 0 if pix_fmt == "gbrp" else 2))
    step_x, step_y = (1 << shift for shift in clip.format.chroma_shift)

    def widened(width: int, step: int) -> int:
        return -(-(width + EDGE_PX) // step) * step if width else 0

    expected = Bars(
        left=widened(bars.left, step_x),
        right=widened(bars.right, step_x),
        top=widened(bars.top, step_y),
        bottom=widened(bars.bottom, step_y),
    )
    assert found(tmp_path, [barred(frame, bars) for frame in make_frames(clip)], clip) == expected


def test_bars_are_what_all_pictures_have(tmp_path: Path) -> None:
    """A part of the clip is higher, and it begins and ends in the dark."""
    frames = [barred(frame, Bars(top=8 if i > 15 else 24, bottom=24)) for i, frame in enumerate(make_frames(CLIP))]
    dark = {*range(10), 39}
    frames = [barred(frame, Bars(top=120)) if i in dark else frame for i, frame in enumerate(frames)]
    assert found(tmp_path, frames) == Bars(top=8 + EDGE_PX, bottom=24 + EDGE_PX)


def test_pictures_without_bars_between_key_frames(tmp_path: Path) -> None:
    """One key frame, at the beginning."""
    clip = replace(CLIP, frames=100, options={"g": "1000"})
    bars = Bars(top=20, bottom=20)
    frames = [barred(frame, bars) if i < 60 else frame for i, frame in enumerate(make_frames(clip))]
    assert found(tmp_path, frames, clip) == Bars()
    assert found(tmp_path, [barred(frame, bars) for frame in frames], clip) == Bars(top=22, bottom=22)


def test_pictures_whose_bars_are_not_black_are_counted() -> None:
    inset = Inset(CLIP.format, Bars(left=10, right=10, top=22, bottom=22))
    frames = [barred(frame, Bars(left=8, right=8, top=20, bottom=20)) for frame in make_frames(CLIP)]
    frames[3] = luma_changed(frames[3], lambda luma: luma[2:20, 30:90].fill(180))
    for frame in frames:
        inset.take(frame)
    assert not any("not black" in note for note in inset.notes)
    whole = make_frames(CLIP)
    for frame in (whole[0], barred(whole[1], Bars(left=8)), barred(whole[2], Bars(top=20, bottom=20))):
        inset.take(frame)
    assert any("in 3 of 43 pictures the bars are not black" in note for note in inset.notes)


def test_noise_and_ringing_in_bars_do_not_hide_them(tmp_path: Path) -> None:
    rng, bars = np.random.default_rng(0), Bars(top=20, bottom=20)

    def rough(luma: Plane) -> None:
        for part in (luma[:20], luma[-20:]):
            part[:] = rng.integers(10, 24, part.shape)

    frames = [luma_changed(barred(frame, bars), rough) for frame in make_frames(CLIP)]
    assert found(tmp_path, frames) == Bars(top=20 + EDGE_PX, bottom=20 + EDGE_PX)


def test_what_is_dark_but_no_bar(tmp_path: Path) -> None:
    y, x = np.mgrid[:120, :160]

    def night(i: int) -> Callable[[Plane], None]:
        """Black sky above roofs that shake by 6 px."""
        roofs = 40 + 15 * np.sin(x / 9) + 3 * np.sin(i * 2.1)
        return lambda luma: luma.__setitem__(y < roofs, 16)

    def fisheye(luma: Plane) -> None:
        """A round picture."""
        luma[np.hypot(x - 80, y - 60) > 58] = 16

    def subtitled(i: int) -> Callable[[Plane], None]:
        """Bars in which something stands in most pictures."""

        def change(luma: Plane) -> None:
            luma[:16], luma[-16:] = 16, 16
            if i > 4:
                luma[-10:-4, 50:110] = 200

        return change

    frames = make_frames(CLIP)
    assert found(tmp_path, [luma_changed(f, night(i)) for i, f in enumerate(frames)]) == Bars()
    assert found(tmp_path, [luma_changed(f, fisheye) for f in frames]) == Bars()
    assert found(tmp_path, [luma_changed(f, subtitled(i)) for i, f in enumerate(frames)]) == Bars(top=16 + EDGE_PX)
    assert found(tmp_path, [barred(f, Bars(top=120)) for f in frames]) == Bars(), "all is black"
    assert found(tmp_path, [barred(f, Bars(top=50, bottom=50)) for f in frames]) == Bars(), "a stripe is no picture"


def cut(frames: list[Frame], bars: Bars) -> list[Frame]:
    """The pictures between the bars."""
    out = []
    for frame in frames:
        fmt = replace(
            frame.format,
            width=frame.format.width - bars.left - bars.right,
            height=frame.format.height - bars.top - bars.bottom,
        )
        planes = []
        for number, plane in enumerate(frame.planes):
            (rows, columns), (sx, sy) = fmt.plane_shape(number), fmt.plane_shift(number)
            top, left = bars.top >> sy, bars.left >> sx
            planes.append(plane[top : top + rows, left : left + columns].copy())
        out.append(replace(frame, format=fmt, planes=tuple(planes)))
    return out


def read(path: Path) -> list[Frame]:
    with VideoReader(path) as reader:
        return list(reader)


def pixels(frames: list[Frame]) -> list[bytes]:
    return [b"".join(plane.tobytes() for plane in frame.planes) for frame in frames]


def barred_frames() -> list[Frame]:
    """Bars with something in them, now and then."""
    frames = [barred(frame, Bars(left=18, right=10, top=20, bottom=14)) for frame in make_frames(CLIP)]
    frames[5] = luma_changed(frames[5], lambda luma: luma[2:9, 30:90].fill(180))
    return frames


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "in.mkv", CLIP, frames=barred_frames())


BARS = Bars(left=20, right=12, top=22, bottom=16)
"""Of barred_frames, edges included."""


def test_what_lies_between_bars_is_stabilized_as_by_itself(source: Path, tmp_path: Path) -> None:
    between = replace(CLIP, width=160 - 32, height=120 - 38)
    alone = write_clip(tmp_path / "alone.mkv", between, frames=cut(barred_frames(), BARS))
    report = stabilize_file(source, tmp_path / "out.mkv", CONFIG)
    assert any("the 128x82 pixels between them" in note for note in report.notes)
    stabilize_file(alone, tmp_path / "expected.mkv", CONFIG)
    done = read(tmp_path / "out.mkv")
    assert pixels(cut(done, BARS)) == pixels(read(tmp_path / "expected.mkv"))
    for before, after in zip(read(source), done, strict=True):
        assert (after.format, after.pts) == (before.format, before.pts)
        for number, (ours, theirs) in enumerate(zip(after.planes, before.planes, strict=True)):
            shift = 1 if number else 0
            inside = np.zeros(theirs.shape, np.bool_)
            inside[BARS.top >> shift : -(BARS.bottom >> shift), BARS.left >> shift : -(BARS.right >> shift)] = True
            np.testing.assert_array_equal(ours[~inside], theirs[~inside])


def test_a_track_says_whether_it_is_of_what_lies_between_bars(source: Path, tmp_path: Path) -> None:
    off = replace(CONFIG, source=SourceConfig(bars="off"))
    between, whole = analyze_file(source, CONFIG), analyze_file(source, off)
    assert (between.width, between.height, whole.width, whole.height) == (128, 82, 160, 120)
    one = render_file(source, tmp_path / "a.mkv", between, CONFIG)
    other = render_file(source, tmp_path / "b.mkv", whole, CONFIG)
    assert [any("black bars" in note for note in report.notes) for report in (one, other)] == [True, False]
    first, second = (cut(read(tmp_path / name), Bars(top=120 - BARS.bottom)) for name in ("a.mkv", "b.mkv"))
    assert pixels(first) == pixels(cut(read(source), Bars(top=120 - BARS.bottom))) != pixels(second)

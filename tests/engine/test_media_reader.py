"""Reading: planes, times, and every kind of file that cannot be read."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.container import InputContainer
from av.stream import Stream
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from tests.engine.clips import Clip, flat_planes, make_frames, moving_planes, write_clip
from vs3r.engine.media import VideoReader, probe
from vs3r.engine.media.deinterlace import stated_parity
from vs3r.engine.media.formats import frame_of, picture_format, planes_of
from vs3r.engine.media.timing import Timeline
from vs3r.errors import MediaError
from vs3r.types import Plane

MILLI = Fraction(1, 1000)


@pytest.mark.parametrize(
    "pix_fmt", ["yuv420p", "yuv422p10le", "yuv444p", "gray", "gbrp", "yuva420p", "gray16le", "ya8"]
)
def test_planes_and_times_are_the_source_s(tmp_path: Path, pix_fmt: str) -> None:
    clip = Clip(codec="ffv1", pix_fmt=pix_fmt, width=66, height=50, frames=3, time_base=MILLI)
    expected = make_frames(clip, noise=True)
    with VideoReader(write_clip(tmp_path / "a.mkv", clip, noise=True)) as reader:
        got = list(reader)
        assert reader.info.format == clip.format
        assert reader.notes == ()
    assert [(f.pts, f.time_base, f.duration) for f in got] == [(f.pts, f.time_base, f.duration) for f in expected]
    for a, b in zip(expected, got, strict=True):
        for p, q in zip(a.planes, b.planes, strict=True):
            np.testing.assert_array_equal(p, q)


def test_info(tmp_path: Path) -> None:
    clip = Clip(
        frames=20, rate=Fraction(30000, 1001), time_base=Fraction(1, 30000), color=(2, 9, 16, 9),
        sample_aspect=Fraction(4, 3), rotation_deg=90, pix_fmt="yuv420p10le", audio="aac",
    )  # fmt: skip
    info = probe(write_clip(tmp_path / "a.mp4", clip))
    assert info.format == clip.format
    assert info.format.full_range
    assert (info.codec, info.source_pix_fmt, info.stream_index) == ("h264", "yuv420p10le", 0)
    assert info.time_base == Fraction(1, 30000)
    assert info.average_rate == Fraction(30000, 1001)
    assert info.frames_estimate == 20
    assert info.duration_s == pytest.approx(20 * 1001 / 30000)
    # The writer of the clip turned it counter-clockwise.
    assert info.rotation_deg == 270
    assert (info.color.range, info.color.primaries, info.color.transfer, info.color.matrix) == (2, 9, 16, 9)
    assert not info.interlaced
    assert info.notes == ()


def test_rate_of_raw_dv_is_not_its_clock(tmp_path: Path) -> None:
    clip = Clip(codec="dvvideo", frames=4, width=720, height=576, time_base=Fraction(1, 25))
    info = probe(write_clip(tmp_path / "a.dv", clip))
    assert info.average_rate == 25
    assert info.frames_estimate == 4


@pytest.mark.parametrize("bframes", [0, 3])
def test_variable_frame_rate_stays(tmp_path: Path, bframes: int) -> None:
    pts = (0, 40, 80, 700, 710, 720, 1500, 1540, 2000, 2001)
    clip = Clip(pts=pts, time_base=MILLI, last_duration=123, options={"bf": str(bframes), "preset": "medium"})
    with VideoReader(write_clip(tmp_path / "a.mp4", clip)) as reader:
        got = [(f.pts * f.time_base, f.duration * f.time_base) for f in reader]
    ends = (*pts[1:], 2001 + 123)
    assert got == [(a * MILLI, (b - a) * MILLI) for a, b in zip(pts, ends, strict=True)]


def test_a_late_start_is_kept(tmp_path: Path) -> None:
    clip = Clip(pts=tuple(500 + 40 * i for i in range(5)), time_base=MILLI, audio="aac")
    with VideoReader(write_clip(tmp_path / "a.mp4", clip)) as reader:
        assert [f.pts * f.time_base for f in reader] == [p * MILLI for p in clip.times]


def test_avi_pictures_take_decoding_times_in_order(tmp_path: Path) -> None:
    """AVI stores no presentation times, and B-frames that refer to each other defeat FFmpeg's guesses."""
    path = tmp_path / "a.avi"
    options = {"bf": "3", "x264-params": "b-pyramid=normal:b-adapt=0", "preset": "medium"}
    write_clip(path, Clip(frames=30, time_base=Fraction(1, 25), options=options))
    with VideoReader(path) as reader:
        got = list(reader)
        assert reader.notes == ()
    assert [f.pts * f.time_base for f in got] == [Fraction(i, 25) for i in range(30)]
    # In display order: each picture is nearest to the one drawn for its place.
    drawn = [moving_planes(got[0].format, i)[0].astype(int) for i in range(30)]
    for i, frame in enumerate(got):
        distance = [np.abs(frame.planes[0] - d).mean() for d in drawn]
        assert int(np.argmin(distance)) == i


def test_timeline_repairs_little() -> None:
    line = Timeline(MILLI, 40)
    assert [line.place(t) for t in (0, 40, 40, 39, 80, 500)] == [0, 40, 41, 42, 80, 500]
    assert line.repaired == 2


def test_timeline_keeps_the_distance_that_is_asked_for() -> None:
    line = Timeline(MILLI, 40, least=3)
    assert [line.place(t) for t in (0, 0, 2, 8, 9)] == [0, 3, 6, 8, 9]


def test_timeline_follows_a_restarted_clock() -> None:
    line = Timeline(MILLI, 40)
    times = [5000, 5040, 5080, 0, 40, 80]
    assert [line.place(t, 40) for t in times] == [5000, 5040, 5080, 5120, 5160, 5200]


def test_timeline_fills_missing_times() -> None:
    line = Timeline(MILLI, 40)
    assert [line.place(t) for t in (None, None, 100, None)] == [0, 40, 100, 140]


def test_interlaced_is_deinterlaced_one_for_one(tmp_path: Path) -> None:
    """Two fields 3 pixels apart: their comb must be gone, and the times unchanged."""
    clip = Clip(frames=8, codec="libx264", options={"x264-params": "tff=1", "preset": "medium", "crf": "5"})
    path, fmt = tmp_path / "a.mkv", clip.format
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=25, options=clip.options, time_base=MILLI)
        assert isinstance(video, VideoStream)
        video.codec_context.width, video.codec_context.height = 64, 48
        combed = []
        for i in range(8):
            fields = [moving_planes(fmt, 6 * i), moving_planes(fmt, 6 * i + 3)]
            planes = tuple(p.copy() for p in fields[0])
            for plane, later in zip(planes, fields[1], strict=True):
                plane[1::2] = later[1::2]
            combed.append(planes[0])
            picture = frame_of(planes, fmt)
            picture.pts, picture.time_base = 40 * i, MILLI
            out.mux(video.encode(picture))
        out.mux(video.encode(None))
    with VideoReader(path) as reader:
        got = list(reader)
        assert reader.info.interlaced
        assert sum("interlaced" in note for note in reader.notes) == 1
    assert [f.pts for f in got] == [40 * i for i in range(8)]

    def comb(luma: Plane) -> float:
        rows = luma.astype(float)
        return float(np.abs(rows[1:-1] - (rows[:-2] + rows[2:]) / 2).mean())

    for frame, before in zip(got, combed, strict=True):
        assert comb(frame.planes[0]) < 0.4 * comb(before)


def _stated(path: Path, codec: str, pix_fmt: str, field_order: int) -> list[Plane]:
    """A file that says that it is interlaced, of pictures that are not flagged as such; the luma of its pictures."""
    fmt, lumas = picture_format(pix_fmt, 64, 48), []
    with av.open(str(path), "w") as out:
        video = out.add_stream(codec, rate=25)
        assert isinstance(video, VideoStream)
        context = video.codec_context
        context.width, context.height, context.pix_fmt, context.field_order = 64, 48, pix_fmt, field_order
        for i in range(5):
            planes = moving_planes(fmt, 6 * i)
            for plane, later in zip(planes, moving_planes(fmt, 6 * i + 3), strict=True):
                plane[1::2] = later[1::2]
            lumas.append(planes[0])
            out.mux(video.encode(frame_of(planes, fmt)))
        out.mux(video.encode(None))
    return lumas


@pytest.mark.parametrize(("field_order", "kept"), [(2, 0), (4, 0), (3, 1), (5, 1)])
def test_the_container_alone_says_that_it_is_interlaced(tmp_path: Path, field_order: int, kept: int) -> None:
    """The lines of the field that comes first stay, those of the other are found anew."""
    lumas = _stated(tmp_path / "a.mov", "png", "gray", field_order)
    with VideoReader(tmp_path / "a.mov") as reader:
        got = [frame.planes[0] for frame in reader]
        assert reader.info.interlaced
        assert sum("interlaced" in note for note in reader.notes) == 1
    for luma, after in zip(lumas, got, strict=True):
        np.testing.assert_array_equal(after[kept::2], luma[kept::2])
        changed = np.abs(after[1 - kept :: 2].astype(int) - luma[1 - kept :: 2])
        assert changed[2:-2].mean() > 10


@pytest.mark.parametrize(
    ("codec", "expected"),
    [
        *[(name, "tff") for name in ("mjpeg", "png", "qtrle", "huffyuv", "ffvhuff")],
        *[(name, None) for name in ("h264", "mpeg2video", "prores", "dnxhd", "ffv1", "dvvideo", "utvideo", "cfhd")],
    ],
)
def test_pictures_that_say_what_they_are_count_for_more_than_the_container(codec: str, expected: str | None) -> None:
    context = av.CodecContext.create(codec, "r")
    assert isinstance(context, VideoCodecContext)
    context.field_order = 2
    assert stated_parity(context) == expected


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"), [("a.mov", "prores_ks", "yuv422p10le"), ("a.mkv", "ffv1", "yuv420p")]
)
def test_progressive_pictures_in_a_container_that_says_interlaced_stay(
    tmp_path: Path, name: str, codec: str, pix_fmt: str
) -> None:
    _stated(tmp_path / name, codec, pix_fmt, 2)
    with av.open(str(tmp_path / name)) as container:
        assert container.streams.video[0].codec_context.field_order == 2
        pictures = list(container.decode(video=0))
    with VideoReader(tmp_path / name) as reader:
        got = list(reader)
        assert not reader.info.interlaced
        assert reader.notes == ()
    for frame, picture in zip(got, pictures, strict=True):
        for plane, expected in zip(frame.planes, planes_of(picture, frame.format), strict=True):
            np.testing.assert_array_equal(plane, expected)


def test_closed_captions_are_named(tmp_path: Path) -> None:
    video = write_clip(tmp_path / "a.h264", Clip(frames=3)).read_bytes()
    # CEA-608 as ATSC A/53 puts it before a picture: an SEI message (6) of registered user data (4).
    captions = b"\xb5\x00\x31GA94\x03\x41\xff\xfc\x94\x20\xff"
    message = b"\x00\x00\x01\x06\x04" + bytes([len(captions)]) + captions + b"\x80"
    picture = b"\x00\x00\x01\x65"
    assert video.count(picture) == 1
    (tmp_path / "b.h264").write_bytes(video.replace(picture, message + picture))
    assert probe(tmp_path / "a.h264").notes == ()
    (note,) = probe(tmp_path / "b.h264").notes
    assert "closed captions" in note and "dropped" in note


def test_size_change_is_scaled_to_the_first(tmp_path: Path) -> None:
    """Two H.264 streams of different size, one after the other."""
    parts = []
    for width, luma in ((64, 60), (96, 180)):
        clip = Clip(frames=4, width=width, options={"preset": "medium"})
        part = tmp_path / f"{width}.h264"
        with av.open(str(part), "w") as out:
            video = out.add_stream("libx264", rate=25)
            assert isinstance(video, VideoStream)
            video.codec_context.width, video.codec_context.height = width, 48
            for _ in range(4):
                out.mux(video.encode(frame_of(flat_planes(clip.format, luma), clip.format)))
            out.mux(video.encode(None))
        parts.append(part.read_bytes())
    path = tmp_path / "both.h264"
    path.write_bytes(b"".join(parts))
    with VideoReader(path) as reader:
        got = list(reader)
        assert len([n for n in reader.notes if "changes" in n]) == 1
    assert len(got) == 8
    assert {f.format for f in got} == {picture_format("yuv420p", 64, 48)}
    assert [round(float(f.planes[0].mean()), -1) for f in got] == [60] * 4 + [180] * 4


def test_damage_in_the_middle_is_skipped(tmp_path: Path) -> None:
    clip = Clip(codec="png", pix_fmt="gray", time_base=MILLI)
    path = write_clip(tmp_path / "a.mov", clip)
    data = bytearray(path.read_bytes())
    signature = b"\x89PNG\r\n"
    start = -1
    for _ in range(5):
        start = data.index(signature, start + 1)
    data[start : start + 8] = bytes(8)  # no decoder makes a picture of this
    path.write_bytes(data)
    with VideoReader(path) as reader:
        got = list(reader)
        assert sum("1 damaged packets" in note for note in reader.notes) == 1
    assert [f.pts * f.time_base for f in got] == [40 * i * MILLI for i in range(10) if i != 4]
    # The picture before the gap stays until the next one.
    assert [f.duration * f.time_base for f in got] == [(80 if i == 3 else 40) * MILLI for i in range(9)]


def test_a_file_cut_in_the_middle_gives_what_is_there(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", Clip(codec="ffv1", frames=10), noise=True)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    with VideoReader(path) as reader:
        assert 4 <= len(list(reader)) < 10


def _audio_only(path: Path) -> None:
    clip = write_clip(path.with_suffix(".mkv"), Clip(audio="aac"))
    with av.open(str(clip)) as source, av.open(str(path), "w") as out:
        copy = out.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.stream = copy
                out.mux(packet)


def _cover_only(path: Path) -> None:
    _audio_only(path.with_name("sound.m4a"))
    cover = write_clip(path.with_name("cover.mkv"), Clip(codec="mjpeg", frames=1, color=(2, 2, 2, 2)))
    sound_file = av.open(str(path.with_name("sound.m4a")))
    with sound_file, av.open(str(cover)) as image, av.open(str(path), "w", format="mp4") as out:
        sound: Stream = out.add_stream_from_template(sound_file.streams.audio[0])
        picture: Stream = out.add_stream_from_template(image.streams.video[0], opaque=True)
        picture.disposition = av.stream.Disposition.attached_pic
        copies: tuple[tuple[InputContainer, Stream], ...] = ((image, picture), (sound_file, sound))
        for container, copy in copies:
            for packet in container.demux():
                if packet.dts is not None:
                    packet.stream = copy
                    out.mux(packet)


def _truncated(path: Path) -> None:
    data = write_clip(path, Clip()).read_bytes()
    path.write_bytes(data[: data.index(b"moov") - 4])


def _no_frames(path: Path) -> None:
    """Sound, and a video track without a picture."""
    clip = write_clip(path.with_name("both.mkv"), Clip(audio="aac"))
    with av.open(str(clip)) as source, av.open(str(path), "w") as out:
        copies = [out.add_stream_from_template(s, opaque=True) for s in source.streams]
        for packet in source.demux(source.streams[1]):
            if packet.dts is not None:
                packet.stream = copies[1]
                out.mux(packet)


def _nothing(path: Path) -> None:
    assert not path.exists()


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing.mp4": (_nothing, "not found"),
    "folder.mp4": (lambda path: path.mkdir(), "folder"),
    "empty.mp4": (lambda path: path.touch(), "empty"),
    "text.txt": (lambda path: path.write_text("not a video\n" * 50), "text file"),
    "text.mp4": (lambda path: path.write_text("not a video\n" * 50), "not a video"),
    "noise.mkv": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), "not a video"),
    "truncated.mp4": (_truncated, "cut short"),
    "no_frames.mkv": (_no_frames, "at least one frame"),
    "sound.m4a": (_audio_only, "video stream, got only audio"),
    "cover.m4a": (_cover_only, "cover picture"),
    "pipe.mp4": (os.mkfifo, "regular"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(tmp_path: Path, name: str) -> None:
    make, expected = BAD[name]
    path = tmp_path / name
    make(path)
    with pytest.raises(MediaError) as caught:
        probe(path)
    message = str(caught.value)
    assert expected in message
    assert name in message
    assert "\n" not in message


def test_unreadable_file(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4")
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # the superuser may read everything
    try:
        with pytest.raises(MediaError, match="Permission denied"):
            probe(path)
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("frames", [1, 2])
def test_very_short_clips(tmp_path: Path, frames: int) -> None:
    with VideoReader(write_clip(tmp_path / "a.mp4", Clip(frames=frames))) as reader:
        got = list(reader)
    assert [f.pts * f.time_base for f in got] == [Fraction(i, 25) for i in range(frames)]
    assert all(f.duration * f.time_base == Fraction(1, 25) for f in got)


def test_a_name_with_a_colon_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(tmp_path / "a.mp4", Clip(frames=1)).rename(tmp_path / "http:a.mp4")
    monkeypatch.chdir(tmp_path)
    assert probe("http:a.mp4").format.width == 64


def test_threads_do_not_change_the_pictures(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", Clip(frames=12))
    with VideoReader(path, threads=1) as one, VideoReader(path, threads=4) as four:
        for a, b in zip(one, four, strict=True):
            assert a.pts == b.pts
            for p, q in zip(a.planes, b.planes, strict=True):
                np.testing.assert_array_equal(p, q)

"""Writing: what goes in comes out, and the source's other streams come along."""

from __future__ import annotations

import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from tests.engine.clips import Clip, cut_by_edits, make_frames, write_clip
from vs3r.config import EncodeConfig
from vs3r.engine.media import HdrMetadata, VideoReader, VideoWriter, probe
from vs3r.errors import InputError, MediaError, ShapeError
from vs3r.types import Frame

MILLI = Fraction(1, 1000)
FAST = EncodeConfig(preset="ultrafast")


def copy(source: Path, target: Path, config: EncodeConfig = FAST) -> tuple[str, ...]:
    """Decode and encode again, as a run that changes nothing would; returns the writer's notes."""
    with VideoReader(source) as reader, VideoWriter(target, like=reader, config=config) as writer:
        for frame in reader:
            writer.write(frame)
    return writer.notes


def read(path: Path) -> list[Frame]:
    with VideoReader(path) as reader:
        return list(reader)


def packets(path: Path, kind: str, *, hidden: bool = True) -> list[tuple[Fraction, bytes]]:
    """Time in seconds and payload of each packet of the first stream of a kind, with those that an edit list hides."""
    with av.open(str(path)) as container:
        stream = next(s for s in container.streams if s.type == kind)
        found = [p for p in container.demux(stream) if p.size and (hidden or not p.is_discard)]
        return [(p.pts * p.time_base, bytes(p)) for p in found if p.pts is not None]


@pytest.mark.parametrize(
    "pix_fmt",
    ["yuv420p", "yuv422p10le", "yuv444p", "gray", "gbrp", "yuva420p", "ya8", "gray16le", "yuv420p12le", "gbrap"],
)
@pytest.mark.parametrize("size", [(64, 48), (35, 17), (16, 16)])
def test_ffv1_is_bit_exact(tmp_path: Path, pix_fmt: str, size: tuple[int, int]) -> None:
    clip = Clip(codec="ffv1", pix_fmt=pix_fmt, width=size[0], height=size[1], frames=3, time_base=MILLI)
    source = write_clip(tmp_path / "a.mkv", clip, noise=True)
    assert copy(source, tmp_path / "b.mkv", EncodeConfig(codec="ffv1")) == ()
    for a, b in zip(make_frames(clip, noise=True), read(tmp_path / "b.mkv"), strict=True):
        assert a.format == b.format
        assert (a.pts, a.duration) == (b.pts, b.duration)
        for p, q in zip(a.planes, b.planes, strict=True):
            np.testing.assert_array_equal(p, q)


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_times_are_kept(tmp_path: Path, ending: str, codec: str) -> None:
    pts = (80, 120, 160, 700, 710, 720, 1500, 1540, 2000, 2010)
    clip = Clip(pts=pts, time_base=MILLI, last_duration=123, options={"bf": "2"})
    source = write_clip(tmp_path / "a.mp4", clip)
    target = tmp_path / f"b{ending}"
    copy(source, target, EncodeConfig(codec=codec, preset="veryfast"))
    got = read(target)
    assert [f.pts * f.time_base for f in got] == [p * MILLI for p in pts]
    if ending != ".mkv":  # Matroska keeps no length for the last picture
        assert _movie_duration_s(target) == (2010 + 123) * MILLI


def _movie_duration_s(path: Path) -> Fraction:
    """What the movie header of an MP4 file says: the end of the last picture."""
    data = path.read_bytes()
    scale, duration = struct.unpack_from(">II", data, data.index(b"mvhd") + 16)
    return Fraction(duration, scale)


@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(24000, 1001), Fraction(25), Fraction(15)])
@pytest.mark.parametrize("codec", ["libx264", "prores_ks"])
def test_constant_rate_is_exact(tmp_path: Path, rate: Fraction, codec: str) -> None:
    source = write_clip(tmp_path / "a.mp4", Clip(rate=rate, time_base=1 / rate))
    copy(source, tmp_path / "b.mov", EncodeConfig(codec=codec))
    assert [f.pts * f.time_base for f in read(tmp_path / "b.mov")] == [i / rate for i in range(10)]
    assert probe(tmp_path / "b.mov").average_rate == rate


@pytest.mark.parametrize(
    ("codec", "ending", "pix_fmt"),
    [
        ("libx264", ".mp4", "yuv420p"),
        ("libx264", ".mkv", "yuv420p10le"),
        ("libx265", ".mp4", "yuv420p10le"),
        ("libx265", ".mkv", "yuv420p10le"),
        ("prores_ks", ".mov", "yuv422p10le"),
        ("dnxhd", ".mov", "yuv422p10le"),
        ("ffv1", ".mp4", "yuv420p10le"),
    ],
)
def test_colour_shape_and_orientation_are_kept(tmp_path: Path, codec: str, ending: str, pix_fmt: str) -> None:
    # DNxHR in FFmpeg always says BT.709.
    matrix = 1 if codec == "dnxhd" else 9
    clip = Clip(
        width=256, height=120, frames=2, pix_fmt=pix_fmt, color=(1, 9, 18, matrix), sample_aspect=Fraction(4, 3),
        rotation_deg=90,
    )  # fmt: skip
    source = write_clip(tmp_path / "a.mp4", clip)
    target = tmp_path / f"b{ending}"
    assert copy(source, target, EncodeConfig(codec=codec)) == ()
    before, after = probe(source), probe(target)
    assert before.rotation_deg == after.rotation_deg == 270
    assert after.display_matrix == before.display_matrix
    assert after.format == before.format
    assert replace(after.color, chroma_location=None) == replace(before.color, chroma_location=None)


@pytest.mark.parametrize(
    ("size", "matrix", "note"),
    [((256, 120), 2, "so colours shift"), ((256, 120), 1, ""), ((256, 120), 6, "the right mark"), ((1280, 120), 2, "")],
)
def test_a_colour_matrix_that_dnxhd_makes_up_is_told(
    tmp_path: Path, size: tuple[int, int], matrix: int, note: str
) -> None:
    clip = Clip(codec="ffv1", pix_fmt="yuv422p", width=size[0], height=size[1], frames=1, color=(1, 2, 2, matrix))
    notes = copy(write_clip(tmp_path / "a.mkv", clip), tmp_path / "b.mov", EncodeConfig(codec="dnxhd"))
    assert [note in text for text in notes] == ([True] if note else [])
    assert probe(tmp_path / "b.mov").color.matrix == 1


@pytest.mark.parametrize("codec", ["libx264", "libx265", "ffv1"])
@pytest.mark.parametrize("color_range", [1, 2])
def test_range_is_kept(tmp_path: Path, codec: str, color_range: int) -> None:
    clip = Clip(codec="ffv1", frames=2, color=(color_range, 1, 1, 1))
    source = write_clip(tmp_path / "a.mkv", clip)
    copy(source, tmp_path / "b.mkv", EncodeConfig(codec=codec, crf=5 if codec != "ffv1" else None))
    got = read(tmp_path / "b.mkv")
    assert got[0].format.full_range == (color_range == 2)
    assert probe(tmp_path / "b.mkv").color.range == color_range
    # Relabelled only: the luma itself has not been stretched.
    assert abs(float(got[0].planes[0].mean()) - float(make_frames(clip)[0].planes[0].mean())) < 1


def test_full_range_becomes_limited_for_prores(tmp_path: Path) -> None:
    clip = Clip(codec="ffv1", frames=2, color=(2, 1, 1, 1), pix_fmt="yuv422p10le")
    source = write_clip(tmp_path / "a.mkv", clip)
    notes = copy(source, tmp_path / "b.mov", EncodeConfig(codec="prores_ks"))
    assert any("limited range" in note for note in notes)
    got = read(tmp_path / "b.mov")[0]
    assert not got.format.full_range
    expected = make_frames(clip)[0].planes[0].astype(float) / 1023 * (219 * 4) + 64
    assert np.abs(got.planes[0] - expected).mean() < 2


@pytest.mark.parametrize(("codec", "pix_fmt"), [("libx264", "gray"), ("prores_ks", "gray"), ("libx264", "gbrp")])
def test_grey_and_rgb_keep_their_brightness(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    clip = Clip(codec="ffv1", frames=1, pix_fmt=pix_fmt, color=(1 if pix_fmt == "gray" else 2, 1, 1, 1))
    source = write_clip(tmp_path / "a.mkv", clip)
    copy(source, tmp_path / "b.mov", EncodeConfig(codec=codec, crf=5))
    got, drawn = read(tmp_path / "b.mov")[0], make_frames(clip)[0]
    luma = got.planes[0].astype(float) / (1 << (got.format.bit_depth - 8))
    expected = drawn.planes[0].astype(float)
    if pix_fmt == "gbrp":
        green, blue, red = (p.astype(float) for p in drawn.planes)
        expected = 16 + (0.2126 * red + 0.7152 * green + 0.0722 * blue) * 219 / 255
        assert probe(tmp_path / "b.mov").color.matrix == 1
    assert np.abs(luma - expected).mean() < 1.5


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_hdr_metadata_is_kept(tmp_path: Path, codec: str) -> None:
    hdr = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50):max-cll=1000,400"
    clip = Clip(
        codec="libx265", pix_fmt="yuv420p10le", color=(1, 9, 16, 9), frames=3,
        options={"x265-params": f"log-level=error:chromaloc=2:{hdr}"},
    )  # fmt: skip
    source = write_clip(tmp_path / "a.mp4", clip)
    before = probe(source)
    assert before.hdr == HdrMetadata(
        mastering_display="G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)",
        content_light="1000,400",
    )
    assert before.color.chroma_location == "topleft"
    copy(source, tmp_path / "b.mp4", EncodeConfig(codec=codec, preset="veryfast"))
    after = probe(tmp_path / "b.mp4")
    assert after.hdr == before.hdr
    assert after.color == before.color


def test_hdr_metadata_that_gets_lost_is_named(tmp_path: Path) -> None:
    options = {"x265-params": "log-level=error:max-cll=1000,400"}
    clip = Clip(codec="libx265", pix_fmt="yuv420p10le", frames=3, options=options)
    notes = copy(write_clip(tmp_path / "a.mp4", clip), tmp_path / "b.mov", EncodeConfig(codec="prores_ks"))
    assert any("HDR" in note for note in notes)


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("source_ending", [".mp4", ".mkv"])
def test_sound_chapters_and_tags_are_copied(tmp_path: Path, ending: str, source_ending: str) -> None:
    clip = Clip(
        frames=30, audio="aac", metadata={"title": "A walk", "comment": "by hand"},
        chapters=((0.0, 0.5, "start"), (0.5, 1.2, "end")),
    )  # fmt: skip
    source = write_clip(tmp_path / f"a{source_ending}", clip)
    target = tmp_path / f"b{ending}"
    assert copy(source, target) == ()
    before, after = packets(source, "audio"), packets(target, "audio")
    if (source_ending, ending) == (".mp4", ".mkv"):
        # Matroska cannot hide the run-in that the edit list of the MP4 file cuts off.
        before = [(time, data) for time, data in before if time >= 0]
    assert [data for _, data in before] == [data for _, data in after]
    for (a, _), (b, _) in zip(before, after, strict=True):
        assert abs(b - a) <= MILLI / 2
    assert read(target)[0].pts == 0
    with av.open(str(target)) as container:
        tags = {key.lower(): value for key, value in container.metadata.items()}
        assert tags["title"] == "A walk"
        assert tags["comment"] == "by hand"
        chapters = [
            (c["start"] * c["time_base"], c["end"] * c["time_base"], c["metadata"]["title"])
            for c in container.chapters()
            if c["time_base"]
        ]
    assert chapters == [(0, Fraction(1, 2), "start"), (Fraction(1, 2), Fraction(6, 5), "end")]


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize(
    "segments",
    [((1.0, 0.5),), ((0.5, 0.0), (0.5, 1.5)), ((0.5, 1.0), (0.5, 0.0)), ((0.5, -1), (1.0, 0.5))],
    ids=["beginning", "middle", "swapped", "late"],
)
def test_sound_that_an_edit_list_cuts_off_stays_off(
    tmp_path: Path, ending: str, segments: tuple[tuple[float, float], ...]
) -> None:
    whole = write_clip(tmp_path / "whole.mp4", Clip(frames=50, audio="aac", options={"g": "5"}))
    source = cut_by_edits(whole, tmp_path / "a.mp4", segments)
    target = tmp_path / f"b{ending}"
    copy(source, target)
    before, after = packets(source, "audio", hidden=False), packets(target, "audio", hidden=False)
    assert [data for _, data in after] == [data for _, data in before]
    # Matroska has no time below zero: where the first packet begins there, everything is moved.
    moved = read(target)[0].pts_s - read(source)[0].pts_s
    assert moved == 0 or (ending == ".mkv" and moved < 0.022)
    assert all(abs(b - a - moved) < 2e-3 for (a, _), (b, _) in zip(before, after, strict=True))


def test_subtitles_and_attachments_are_copied(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mkv", Clip(frames=60, subtitles="subrip", attachment=b"payload"))
    assert copy(source, tmp_path / "b.mkv") == ()
    assert packets(tmp_path / "b.mkv", "subtitle") == packets(source, "subtitle")
    with av.open(str(tmp_path / "b.mkv")) as container:
        assert [a.data for a in container.streams.attachments] == [b"payload"]


def test_what_the_container_cannot_hold_is_named(tmp_path: Path) -> None:
    clip = Clip(frames=5, subtitles="subrip", attachment=b"payload", audio="aac")
    notes = copy(write_clip(tmp_path / "a.mkv", clip), tmp_path / "b.mp4")
    assert len(notes) == 2
    why = "is left out: it cannot be copied into the mp4 container; .mkv keeps it"
    assert f"subtitle stream 2 (srt) {why}" in notes
    assert f"attachment stream 3 (notes.txt) {why}" in notes
    assert len(packets(tmp_path / "b.mp4", "audio")) == len(packets(tmp_path / "a.mkv", "audio"))


def _with_cover(path: Path, video: Path, cover: Path) -> Path:
    with av.open(str(video)) as movie, av.open(str(cover)) as image, av.open(str(path), "w") as out:
        main = out.add_stream_from_template(movie.streams.video[0], opaque=True)
        picture = out.add_stream_from_template(image.streams.video[0], opaque=True)
        picture.disposition = Disposition.attached_pic
        for container, stream in ((image, picture), (movie, main)):
            for packet in container.demux():
                if packet.dts is not None:
                    packet.stream = stream
                    out.mux(packet)
    return path


@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
def test_cover_art_is_copied(tmp_path: Path, ending: str) -> None:
    cover = write_clip(tmp_path / "cover.mkv", Clip(codec="mjpeg", frames=1, color=(2, 2, 2, 2)))
    video = write_clip(tmp_path / "video.mp4", Clip(frames=5))
    _with_cover(tmp_path / "a.mp4", video, cover)
    source, target = tmp_path / "a.mp4", tmp_path / f"b{ending}"
    assert probe(source).codec == "h264"
    assert copy(source, target) == ()
    with av.open(str(target)) as container:
        found = [s for s in container.streams.video if s.disposition & Disposition.attached_pic]
        assert len(found) == 1
        data = next(bytes(p) for p in container.demux(found[0]) if p.size)
    assert data == packets(cover, "video")[0][1]
    assert len(read(target)) == 5


def test_cover_art_that_mov_cannot_hold_is_named(tmp_path: Path) -> None:
    cover = write_clip(tmp_path / "cover.mkv", Clip(codec="mjpeg", frames=1, color=(2, 2, 2, 2)))
    video = write_clip(tmp_path / "video.mp4", Clip(frames=5))
    (note,) = copy(_with_cover(tmp_path / "a.mp4", video, cover), tmp_path / "b.mov")
    where = ".mp4 or .mkv keeps it"
    assert note == f"video stream 1 (mjpeg) is left out: it cannot be copied into the mov container; {where}"


@pytest.mark.parametrize(
    ("audio", "source_ending", "ending", "where"),
    [
        ("pcm_mulaw", ".mov", ".mkv", "; .mov keeps it"),
        ("pcm_mulaw", ".mov", ".mp4", "; .mov keeps it"),
        ("adpcm_ms", ".avi", ".mkv", ""),
    ],
)
def test_who_loses_sound_is_told_where_it_stays(
    tmp_path: Path, audio: str, source_ending: str, ending: str, where: str
) -> None:
    source = write_clip(tmp_path / f"a{source_ending}", Clip(frames=3, codec="mpeg4", audio=audio))
    (note,) = copy(source, tmp_path / f"b{ending}")
    container = "matroska" if ending == ".mkv" else "mp4"
    assert note.startswith("audio stream 1 (")
    assert note.endswith(f") is left out: it cannot be copied into the {container} container{where}")


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("source_ending", [".mp4", ".mov", ".mkv"])
def test_titles_of_tracks_are_kept(tmp_path: Path, source_ending: str, ending: str) -> None:
    plain, source, target = write_clip(tmp_path / "a.mp4", Clip(audio="aac")), f"b{source_ending}", f"c{ending}"
    with av.open(str(plain)) as container, av.open(str(tmp_path / source), "w") as out:
        copies = {s.index: out.add_stream_from_template(s, opaque=True) for s in container.streams}
        for stream, title in zip(copies.values(), ("Drone", "Ton été"), strict=True):
            stream.metadata["title"] = title
        for packet in container.demux():
            if packet.dts is not None:
                packet.stream = copies[packet.stream_index]
                out.mux(packet)
    assert copy(tmp_path / source, tmp_path / target) == ()
    with av.open(str(tmp_path / target)) as container:
        tags = [{key.lower(): value for key, value in s.metadata.items()} for s in container.streams]
    # FFmpeg reads what MP4 and MOV hold as "name".
    assert [t.get("title" if ending == ".mkv" else "name") for t in tags] == ["Drone", "Ton été"]


def _flash_and_click_s(path: Path) -> tuple[float, float]:
    flash = max(read(path), key=lambda f: float(f.planes[0].mean())).pts_s
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            wave = np.abs(frame.to_ndarray()[0].astype(float))
            loud = np.nonzero(wave > (0.3 if frame.format.name.startswith("flt") else 10_000))[0]
            if len(loud):
                assert frame.time is not None
                return flash, frame.time + loud[0] / frame.sample_rate
    raise AssertionError("no click")


@pytest.mark.parametrize("source_ending", [".mp4", ".mkv", ".ts", ".avi"])
@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
@pytest.mark.parametrize("start_ms", [0, 400])  # AVI starts at zero
def test_sound_stays_with_the_picture(tmp_path: Path, source_ending: str, ending: str, start_ms: int) -> None:
    pts = tuple(start_ms + 40 * i for i in range(50))
    clip = Clip(frames=50, pts=pts, time_base=MILLI, flash_frame=30, audio="aac", options={"bf": "2"})
    if source_ending == ".avi":
        clip = replace(clip, pts=tuple(range(50)), time_base=Fraction(1, 25), audio="pcm_s16le", options={"bf": "0"})
    source, target = write_clip(tmp_path / f"a{source_ending}", clip), tmp_path / f"b{ending}"
    copy(source, target, EncodeConfig(preset="medium"))
    flash, click = _flash_and_click_s(source)
    assert abs(click - flash) < 0.03  # the source itself is in step; AAC smears a click
    flash_after, click_after = _flash_and_click_s(target)
    assert abs((click_after - flash_after) - (click - flash)) < 0.0015


def test_streams_are_interleaved(tmp_path: Path) -> None:
    """In file order, the sound is never far from the picture: nothing was kept to the end."""
    source = write_clip(tmp_path / "a.mp4", Clip(frames=500, width=16, height=16, audio="aac"))
    copy(source, tmp_path / "b.mkv")
    last, worst = {"video": 0.0, "audio": 0.0}, 0.0
    with av.open(str(tmp_path / "b.mkv")) as container:
        for packet in container.demux():
            if packet.dts is not None:
                last[packet.stream.type] = float(packet.dts * packet.time_base)
                worst = max(worst, abs(last["video"] - last["audio"]))
    assert worst < 0.5


@pytest.mark.parametrize(
    ("codec", "ending", "size", "pix_fmt"),
    [
        ("libx264", ".mp4", (16, 16), "yuv420p"),
        ("libx264", ".mp4", (1, 1), "yuv420p"),
        ("libx264", ".mp4", (33, 35), "yuv420p"),
        ("libx264", ".mp4", (33, 35), "yuv422p10le"),
        ("libx265", ".mp4", (16, 16), "yuv420p"),
        ("libx265", ".mp4", (33, 35), "yuv420p10le"),
        ("prores_ks", ".mov", (16, 16), "yuv420p"),
        ("prores_ks", ".mov", (33, 35), "yuv420p"),
        ("dnxhd", ".mov", (257, 121), "yuv420p"),
        ("ffv1", ".mkv", (1, 1), "yuv420p"),
    ],
)
def test_sizes_are_exact(tmp_path: Path, codec: str, ending: str, size: tuple[int, int], pix_fmt: str) -> None:
    clip = Clip(codec="ffv1", width=size[0], height=size[1], frames=2, pix_fmt=pix_fmt)
    source, target = write_clip(tmp_path / "a.mkv", clip), tmp_path / f"b{ending}"
    copy(source, target, EncodeConfig(codec=codec))
    got = read(target)
    assert len(got) == 2
    assert (got[0].format.width, got[0].format.height) == size
    depth = got[0].format.bit_depth - clip.format.bit_depth
    error = np.abs(got[0].planes[0] / 2.0**depth - make_frames(clip)[0].planes[0])
    assert error.mean() < 3 * 2 ** (clip.format.bit_depth - 8)


@pytest.mark.parametrize(
    ("codec", "ending", "size", "expected"),
    [
        ("prores_ks", ".mp4", (64, 48), ".mov or .mkv"),
        ("ffv1", ".mov", (64, 48), ".mkv"),
        ("dnxhd", ".mkv", (256, 120), ".mov"),
        ("dnxhd", ".mov", (64, 48), "at least 256x120"),
        ("libx265", ".mp4", (8, 8), "at least 16x16"),
    ],
)
def test_impossible_combinations_say_what_to_do(
    tmp_path: Path, codec: str, ending: str, size: tuple[int, int], expected: str
) -> None:
    source = write_clip(tmp_path / "a.mkv", Clip(codec="ffv1", width=size[0], height=size[1], frames=1))
    with pytest.raises(MediaError, match=expected):
        copy(source, tmp_path / f"b{ending}", EncodeConfig(codec=codec))
    assert [p.name for p in tmp_path.iterdir()] == ["a.mkv"]


def test_settings_that_the_encoder_does_not_have_are_named(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4", Clip(frames=2))
    for codec, target, count in (("ffv1", "b.mkv", 1), ("libx264", "b.mp4", 0)):
        notes = copy(source, tmp_path / target, EncodeConfig(codec=codec, crf=20, preset="fast"))
        assert len(notes) == count
        assert all("crf 20 and preset fast had no effect" in note for note in notes)


def test_unknown_preset(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mkv", Clip(frames=1))
    with pytest.raises(InputError, match="veryslow"):
        copy(source, tmp_path / "b.mp4", EncodeConfig(preset="warp"))


@pytest.mark.parametrize("codec", ["libx264", "libx265", "prores_ks", "ffv1"])
def test_same_input_same_bytes(tmp_path: Path, codec: str) -> None:
    source = write_clip(tmp_path / "a.mkv", Clip(frames=12, width=128, height=96, audio="aac", subtitles="subrip"))
    for name in ("b", "c"):
        copy(source, tmp_path / f"{name}.mkv", EncodeConfig(codec=codec))
    assert (tmp_path / "b.mkv").read_bytes() == (tmp_path / "c.mkv").read_bytes()


def test_quality_setting_has_an_effect(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mkv", Clip(codec="ffv1", width=128, height=96), noise=True)
    sizes = []
    for crf in (10, None, 40):
        target = tmp_path / f"{crf}.mp4"
        copy(source, target, EncodeConfig(crf=crf))
        sizes.append(target.stat().st_size)
    assert sizes[0] > sizes[1] > sizes[2]


def test_frames_of_another_size_than_the_source(tmp_path: Path) -> None:
    """A side-by-side picture takes everything else from its source."""
    source = write_clip(tmp_path / "a.mp4", Clip(audio="aac"))
    wide = Clip(width=128)
    with VideoWriter(tmp_path / "b.mp4", like=source, config=FAST) as writer:
        for frame in make_frames(wide):
            writer.write(frame)
    assert read(tmp_path / "b.mp4")[0].format.width == 128
    assert len(packets(tmp_path / "b.mp4", "audio")) > 0


def test_format_and_order_are_checked(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4")
    frames, other = make_frames(Clip()), make_frames(Clip(width=32))
    writer = VideoWriter(tmp_path / "b.mp4", like=source)
    writer.write(frames[0])
    with pytest.raises(ShapeError):
        writer.write(other[1])
    writer = VideoWriter(tmp_path / "b.mp4", like=source)
    writer.write(frames[1])
    with pytest.raises(MediaError, match="later"):
        writer.write(frames[0])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4"]

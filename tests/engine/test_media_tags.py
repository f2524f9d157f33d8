"""Tags on the way from a source to the output."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.audio.frame import AudioFrame

from tests.engine.clips import Clip, flat_planes, write_clip
from tests.engine.test_media_writer import copy
from vs3r.engine.media import remux
from vs3r.engine.media.formats import frame_of
from vs3r.engine.media.tags import muxer_keeps


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize(
    "tags",
    [
        {"title": "A walk", "DIRECTOR": "Me", "firmware": "HD7.01"},
        {"title": "A walk", "make": "Sony", "model": "A7"},
        {"title": "A walk", "lyrics": "la la", "com.apple.quicktime.make": "Apple", "empty": ""},
    ],
)
def test_tags_that_are_not_on_a_muxer_s_list_are_kept(tmp_path: Path, ending: str, tags: dict[str, str]) -> None:
    source = write_clip(tmp_path / "a.mkv", Clip(frames=2, metadata=tags))
    assert copy(source, tmp_path / f"b{ending}") == ()
    with av.open(str(tmp_path / f"b{ending}")) as container:
        kept = {key.lower(): value for key, value in container.metadata.items()}
    assert {key: kept.get(key.lower()) for key, value in tags.items() if value} == {k: v for k, v in tags.items() if v}


@pytest.mark.parametrize(
    ("tags", "kept_by"),
    [
        ({}, {"mp4", "mov"}),
        ({"title": "A walk", "COMMENT": "by hand", "date": "2020-02-01"}, {"mp4", "mov"}),
        ({"make": "Sony"}, {"mov"}),
        ({"lyrics": "la la"}, {"mp4"}),
        ({"director": "Me"}, set()),
        ({"title": "caf\udce9", "creation_time": "2020-01-02T03:04:05.5Z", "timecode": "01:00:00:00"}, {"mp4", "mov"}),
    ],
)
def test_the_usual_box_holds_what_is_on_its_list(tags: dict[str, str], kept_by: set[str]) -> None:
    assert {muxer for muxer in ("mp4", "mov") if muxer_keeps(tags, muxer)} == kept_by


def _timecode(path: Path) -> tuple[str | None, int]:
    """The time code of a MOV or MP4 file, and how many pictures a second it counts."""
    data = path.read_bytes()
    # A sample description: type, 6 bytes, index, 4 bytes, flags, ticks a second and a picture, pictures a second.
    entry = data.rindex(b"tmcd\0\0\0\0\0\0\0\1")
    (count,) = struct.unpack_from(">B", data, entry + 4 + 8 + 4 + 4 + 8)
    with av.open(str(path)) as container:
        (stream,) = [s for s in container.streams if s.type == "data"]
        return stream.metadata.get("timecode"), count


@pytest.mark.parametrize("ending", [".mp4", ".mov"])
@pytest.mark.parametrize("timecode", ["01:00:00;00", "00:59:56:29"])
def test_time_code_of_a_source_with_missing_pictures(tmp_path: Path, ending: str, timecode: str) -> None:
    """20 pictures in the time of 23."""
    pts = tuple(1001 * i for i in range(23) if i not in (7, 8, 15))
    clip = Clip(
        frames=20, pts=pts, rate=Fraction(30000, 1001), time_base=Fraction(1, 30000), metadata={"timecode": timecode}
    )  # fmt: skip
    source = write_clip(tmp_path / "a.mov", clip)
    assert copy(source, tmp_path / f"b{ending}") == ()
    assert _timecode(tmp_path / f"b{ending}") == _timecode(source) == (timecode, 30)


@pytest.mark.parametrize("ending", [".mp4", ".mov"])
def test_time_code_of_a_source_with_pictures_between_the_others_times(tmp_path: Path, ending: str) -> None:
    """FFmpeg finds 60 frames a second in it."""
    pts = tuple(1000 * i + 500 * (i % 7 == 3) for i in range(40))
    clip = Clip(
        frames=40, pts=pts, rate=Fraction(30), time_base=Fraction(1, 30000), metadata={"timecode": "01:00:00:00"}
    )  # fmt: skip
    source = write_clip(tmp_path / "a.mov", clip)
    with av.open(str(source)) as container:
        assert container.streams.video[0].guessed_rate == 60
    assert copy(source, tmp_path / f"b{ending}") == ()
    assert _timecode(tmp_path / f"b{ending}") == _timecode(source) == ("01:00:00:00", 30)


def test_a_time_code_that_fits_the_average_rate_only_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def keeps(_timecode: str, rate: Fraction, _muxer: str) -> bool:
        asked.append(rate)
        return len(asked) > 1

    monkeypatch.setattr(remux, "muxer_keeps_timecode", keeps)
    pts = tuple(1000 * i for i in range(23) if i not in (7, 8, 15))
    clip = Clip(
        frames=20, pts=pts, rate=Fraction(30), time_base=Fraction(1, 30000), metadata={"timecode": "01:00:00:00"}
    )
    assert copy(write_clip(tmp_path / "a.mov", clip), tmp_path / "b.mov") == ()
    assert [round(rate) for rate in asked] == [30, 26]


@pytest.mark.parametrize(("timecode", "rate"), [("01:00:00;00", 25), ("01:00:00:00", 600)])
def test_a_time_code_that_does_not_fit_is_named(tmp_path: Path, timecode: str, rate: int) -> None:
    clip = Clip(frames=30, rate=Fraction(rate), time_base=Fraction(1, rate), metadata={"timecode": timecode})
    source = write_clip(tmp_path / "a.mkv", clip)
    (note,) = copy(source, tmp_path / "b.mov")
    assert note == f"the time code {timecode} is left out: it does not fit {rate} frames a second"
    assert copy(source, tmp_path / "b.mkv") == ()


def _with_sound_in(path: Path, *languages: str) -> Path:
    """A clip with one sound track for each language."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("mpeg4", rate=25)
        video.codec_context.width, video.codec_context.height, video.codec_context.pix_fmt = 64, 48, "yuv420p"
        tracks = [out.add_stream("aac", rate=48_000) for _ in languages]
        for track, language in zip(tracks, languages, strict=True):
            track.metadata["language"] = language
        picture = frame_of(flat_planes(Clip().format, 100), Clip().format)
        out.mux(video.encode(picture) + video.encode(None))
        for track in tracks:
            silence = AudioFrame.from_ndarray(np.zeros((1, 2048), np.int16), format="s16", layout="stereo")
            silence.sample_rate = 48_000
            out.mux(track.encode(silence) + track.encode(None))
    return path


def _languages(path: Path) -> list[str | None]:
    with av.open(str(path), metadata_errors="surrogateescape") as container:
        return [stream.metadata.get("language") for stream in container.streams.audio]


ISO = ("fre", "cze", "swe", "deu", "nld", "slk", "rum", "isl", "ell", "zho", "hrv", "srp", "gle", "eng", "jpn", "fas")
QUICKTIME = (
    "fra", "ces", "sve", "ger", "dut", "slk", "ron", "ice", "gre", "chi", "hr ", "sr ", "iri", "eng", "jpn", "per",
)  # fmt: skip


def test_languages_are_called_as_the_container_calls_them(tmp_path: Path) -> None:
    source = _with_sound_in(tmp_path / "a.mkv", *ISO)
    for ending, expected in ((".mkv", ISO), (".mp4", ISO), (".mov", QUICKTIME)):
        assert copy(source, tmp_path / f"b{ending}") == ()
        assert _languages(tmp_path / f"b{ending}") == list(expected)
    # And back: what has a name of FFmpeg's own gets one of ISO 639-2.
    for ending in (".mkv", ".mp4"):
        assert copy(tmp_path / "b.mov", tmp_path / f"c{ending}") == ()
        for language in ("swe", "hrv", "srp", "gle", "fra", "ger"):
            assert language in _languages(tmp_path / f"c{ending}")


def test_a_language_that_mov_cannot_name_is_told(tmp_path: Path) -> None:
    source = _with_sound_in(tmp_path / "a.mkv", "eng", "afr", "und")
    (note,) = copy(source, tmp_path / "b.mov")
    assert note == "audio stream 2 (aac, afr): its language is left out: the mov container cannot name it"
    assert _languages(tmp_path / "b.mov")[0] == "eng"


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv"])
def test_tags_of_sound_that_are_no_utf8_do_not_cost_it(tmp_path: Path, ending: str) -> None:
    source = _with_sound_in(tmp_path / "a.mkv", "eng", "xyz")
    data = source.read_bytes()
    assert data.count(b"\x83xyz") == 1
    source.write_bytes(data.replace(b"\x83xyz", b"\x83\xe9\xffz"))
    notes = copy(source, tmp_path / f"b{ending}")
    assert len(_languages(tmp_path / f"b{ending}")) == 2
    assert all("its language is left out" in note for note in notes)

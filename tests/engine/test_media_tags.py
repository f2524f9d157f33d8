"""Tags on the way from a source to the output."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import pytest

from tests.engine.clips import Clip, write_clip
from tests.engine.test_media_writer import copy
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


def test_a_time_code_that_does_not_fit_is_named(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mkv", Clip(frames=3, metadata={"timecode": "01:00:00;00"}))
    (note,) = copy(source, tmp_path / "b.mov")
    assert note == "the time code 01:00:00;00 is left out: it does not fit 25 frames a second"
    assert copy(source, tmp_path / "b.mkv") == ()

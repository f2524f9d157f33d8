"""Tags on the way from a source to the output."""

from __future__ import annotations

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

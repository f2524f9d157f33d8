"""Track files: nothing is lost on the way, and nothing that is not a track is taken for one."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import stat
import struct
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.engine.fakes import FMT, make_frame, make_geometry
from vs3r.engine.track_file import TrackBuilder, check_frame, load_track, save_track
from vs3r.errors import InputError, OutputError, TrackError
from vs3r.types import CameraTrack


def make_track(count: int = 5) -> CameraTrack:
    rng = np.random.default_rng(0)
    angle = rng.uniform(-1, 1, count)
    pose = np.tile(np.eye(4), (count, 1, 1))
    pose[:, 0, 0] = pose[:, 1, 1] = np.cos(angle)
    pose[:, 1, 0], pose[:, 0, 1] = np.sin(angle), -np.sin(angle)
    pose[:, :3, 3] = rng.normal(size=(count, 3))
    return CameraTrack(
        width=64,
        height=48,
        sample_aspect=Fraction(16, 15),
        time_base=Fraction(1001, 30000),
        pts=np.cumsum(rng.integers(1, 9, count)).astype(np.int64) - 20,
        segment=np.sort(rng.integers(0, 2, count)).astype(np.int32),
        K=np.tile([[60.5, 0, 32], [0, 60.5, 24], [0, 0, 1]], (count, 1, 1)),
        cam_from_world=pose,
        inv_depth=rng.uniform(0.1, 2, (count, 3, 4)).astype(np.float16),
        dynamic=rng.integers(0, 256, (count, 6, 8)).astype(np.uint8),
        distortion=np.full(count, -0.3),
        readout_s=rng.normal(size=count),
        row_motion=rng.normal(size=(count, 6, 6)),
    )


def test_round_trip(tmp_path: Path) -> None:
    track = make_track()
    save_track(track, tmp_path / "a.vs3r")
    save_track(track, tmp_path / "b.vs3r")
    assert (tmp_path / "a.vs3r").read_bytes() == (tmp_path / "b.vs3r").read_bytes()
    loaded = load_track(tmp_path / "a.vs3r")
    for spec in fields(CameraTrack):
        before, after = getattr(track, spec.name), getattr(loaded, spec.name)
        assert np.array_equal(before, after), spec.name
        assert getattr(before, "dtype", None) == getattr(after, "dtype", None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.vs3r", "b.vs3r"]


def test_builder_keeps_geometry_and_clips_what_half_precision_cannot_hold() -> None:
    builder = TrackBuilder(FMT, Fraction(1, 25))
    rows = [make_geometry(i, segment=i // 2) for i in range(4)]
    rows[1] = replace(rows[1], inv_depth=np.array([[1e-9, 1e9], [0.5, 0.25]], np.float32))
    rows[2] = replace(rows[2], dynamic=np.array([[0, 0.5], [1, 0.2]], np.float32).repeat(2, 0).repeat(2, 1))
    for i in range(4):
        builder.add_frame(make_frame(i))
    builder.add_geometry(rows[:3])
    builder.add_geometry(rows[3:])
    track = builder.finish()
    assert track.pts.tolist() == [0, 1, 2, 3]
    assert track.segment.tolist() == [0, 0, 1, 1]
    assert (track.inv_depth > 0).all()
    assert np.isfinite(track.inv_depth).all()
    assert track.frame(1).inv_depth[1].tolist() == [0.5, 0.25]
    assert np.abs(track.frame(2).dynamic - rows[2].dynamic).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.5, 0.9, 0.999])
def test_truncated(tmp_path: Path, share: float) -> None:
    whole = tmp_path / "whole.vs3r"
    save_track(make_track(), whole)
    cut = tmp_path / "cut.vs3r"
    cut.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    with pytest.raises(TrackError, match="cut short or not a track"):
        load_track(cut)


def test_not_a_track(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the track"):
        load_track(tmp_path / "missing.vs3r")
    with pytest.raises(TrackError, match=r"expected a .vs3r track file, got a folder"):
        load_track(tmp_path)
    text = tmp_path / "text.vs3r"
    text.write_text("hello\n" * 100)
    with pytest.raises(TrackError, match="not a track"):
        load_track(text)
    foreign = tmp_path / "foreign.vs3r"
    save_file({"weight": np.zeros(3)}, foreign)
    with pytest.raises(TrackError, match="another safetensors file"):
        load_track(foreign)


def test_header_that_claims_more_than_there_is(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.vs3r"
    header = json.dumps({"pts": {"dtype": "I64", "shape": [1 << 40], "data_offsets": [0, 1 << 43]}}).encode()
    bomb.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(TrackError, match="not a track"):
        load_track(bomb)
    bomb.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    with pytest.raises(TrackError, match="not a track"):
        load_track(bomb)


def altered(tmp_path: Path, *, header: dict[str, Any] | None = None, **arrays: Any) -> Path:
    """A file with some of the header or the arrays replaced; None leaves one out."""
    track = make_track()
    names = ("pts", "segment", "K", "cam_from_world", "inv_depth", "dynamic", "distortion", "readout_s", "row_motion")
    tensors = {name: getattr(track, name) for name in names} | arrays
    text = {
        "format": "vs3r-track",
        "version": "3",
        "width": "64",
        "height": "48",
        "sample_aspect": "16/15",
        "time_base": "1001/30000",
    }
    path = tmp_path / "altered.vs3r"
    kept = {name: np.ascontiguousarray(array) for name, array in tensors.items() if array is not None}
    save_file(kept, path, metadata={"vs3r": json.dumps(text | (header or {}))})
    return path


def test_unaltered_loads(tmp_path: Path) -> None:
    assert len(load_track(altered(tmp_path))) == 5


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ({"version": "2"}, "expected a track of version 3, got version '2'"),
        ({"version": ""}, "expected a track of version 3"),
        ({"format": "other"}, "another safetensors file"),
        ({"width": "0"}, "width is '0'"),
        ({"width": "-5"}, "width is '-5'"),
        ({"height": "9" * 300}, "height is '99999999999999999999'"),
        ({"height": "9" * 5000}, "another safetensors file"),
        ({"height": [[[]]]}, r"height is '\[\[\[\]\]\]'"),
        ({"time_base": "1/0"}, "time_base is '1/0'"),
        ({"time_base": "nan"}, "time_base is 'nan'"),
        ({"sample_aspect": "0/1"}, "sample_aspect is '0/1'"),
        ({"sample_aspect": "__import__('os')"}, "sample_aspect is"),
    ],
)
def test_wrong_header(tmp_path: Path, header: dict[str, Any], complaint: str) -> None:
    with pytest.raises(TrackError, match=complaint) as caught:
        load_track(altered(tmp_path, header=header))
    assert len(str(caught.value)) < 300


def with_value(array: Any, index: Any, value: float) -> Any:
    array = array.copy()
    array[index] = value
    return array


TRACK = make_track()


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"pts": None}, "missing or unknown arrays"),
        ({"extra": np.zeros(3)}, "missing or unknown arrays"),
        ({"pts": TRACK.pts.astype(np.int32)}, "pts is I32"),
        ({"K": TRACK.K.astype(np.float32)}, "K is F32"),
        ({"K": TRACK.K[:, :2]}, "K is F64"),
        ({"inv_depth": TRACK.inv_depth[0]}, "inv_depth is F16"),
        ({"segment": TRACK.segment[:3]}, "segment has the shape"),
        ({"inv_depth": np.zeros((5, 0, 4), np.float16)}, "inv_depth has the shape"),
        ({"dynamic": np.zeros((5, 2000, 200), np.uint8)}, "dynamic has the shape"),
        ({"pts": TRACK.pts[::-1]}, "times do not increase"),
        ({"segment": TRACK.segment[::-1]}, "segments are out of order"),
        ({"segment": TRACK.segment - 1}, "segments are out of order"),
        ({"K": with_value(TRACK.K, (2, 0, 0), np.nan)}, "not finite"),
        ({"K": with_value(TRACK.K, (2, 1, 1), -4)}, "camera matrix"),
        ({"cam_from_world": with_value(TRACK.cam_from_world, (1, 0, 3), np.inf)}, "not finite"),
        ({"cam_from_world": TRACK.cam_from_world * 1.1}, "not a rigid motion"),
        ({"cam_from_world": TRACK.cam_from_world * [[[1], [1], [-1], [1]]]}, "not a rigid motion"),
        ({"inv_depth": with_value(TRACK.inv_depth, (0, 0, 0), 0)}, "inverse depth is not positive"),
        ({"inv_depth": with_value(TRACK.inv_depth, (0, 0, 0), np.nan)}, "not finite"),
        ({"distortion": with_value(TRACK.distortion, 3, 0.1)}, "distortion is not in"),
        ({"distortion": with_value(TRACK.distortion, 3, np.nan)}, "distortion is not in"),
    ],
)
def test_wrong_arrays(tmp_path: Path, arrays: dict[str, Any], complaint: str) -> None:
    with pytest.raises(TrackError, match=complaint):
        load_track(altered(tmp_path, **arrays))


@pytest.mark.parametrize(
    ("array", "index", "value", "complaint"),
    [
        ("K", (2, 0, 0), 1e9, "frame 2: expected a focal length of 0.5586 to 3.667e+04 px, got 1e+09"),
        ("K", (3, 1, 1), 1e-3, "frame 3: expected a focal length of 0.5586 to 3.667e+04 px, got 0.001"),
        ("K", (1, 0, 2), -1e9, "frame 1: expected a principal point of -640 to 640 px, got -1e+09"),
        ("K", (1, 0, 1), 1e9, "frame 1: expected a skew of -3.667e+04 to 3.667e+04 px, got 1e+09"),
        ("cam_from_world", (4, 2, 3), 1e30, "frame 4: expected a translation of -1e+09 to 1e+09 units, got 1e+30"),
        ("cam_from_world", (4, 2, 3), -1e300, "frame 4: expected a translation of -1e+09 to 1e+09 units, got -1e+300"),
        ("cam_from_world", (0, slice(0, 3), slice(0, 3)), 1e200, "a pose is not a rigid motion"),
        ("readout_s", 2, -1e9, "frame 2: expected a read-out time of -60 to 60 s, got -1e+09"),
        ("row_motion", (3, 5, 1), 1e30, "frame 3: expected a translation between lines of 0 to 1e+09 units, got 1.56"),
        ("row_motion", (3, 0, 4), -9, "frame 3: expected a turn between lines of 0 to 3.142 rad, got 4."),
    ],
)
def test_what_no_camera_does(tmp_path: Path, array: str, index: Any, value: float, complaint: str) -> None:
    with pytest.raises(TrackError, match=re.escape(f"the track is damaged: {complaint}")):
        load_track(altered(tmp_path, **{array: with_value(getattr(TRACK, array), index, value)}))


@pytest.mark.parametrize(
    ("array", "index", "value"),
    [
        ("K", (slice(None), [0, 1], [0, 1]), 3e4),
        ("K", (slice(None), [0, 1], [0, 1]), 0.6),
        ("K", (1, 0, 2), -300),
        ("cam_from_world", (4, 2, 3), 1e8),
        ("readout_s", 2, -20),
        ("row_motion", (3, 0, 4), 3),
    ],
)
def test_what_a_camera_may_do(tmp_path: Path, array: str, index: Any, value: float) -> None:
    """A telescope, a lens of 177 degrees, a part of a picture, a long way, a slow shutter, a wild turn."""
    loaded = load_track(altered(tmp_path, **{array: with_value(getattr(TRACK, array), index, value)}))
    assert np.all(getattr(loaded, array)[index] == value)


MILLI = Fraction(1, 1000)


@pytest.mark.parametrize(
    ("track_unit", "unit", "first", "same", "other"),
    [
        (Fraction(1, 25), Fraction(1, 25), None, 2, 3),
        (Fraction(1, 25), Fraction(1, 25), 0, 2, 3),
        (Fraction(1, 25), Fraction(1, 25), 7, 9, 10),
        (Fraction(1, 25), MILLI, None, 100, 120),
        (Fraction(1, 25), MILLI, 0, 81, 120),
        (MILLI, Fraction(1, 25), 0, 2, 3),
        (MILLI, Fraction(1, 25), None, 2, 1),
        (MILLI, MILLI, 23, 104, 105),
    ],
)
def test_the_next_frame_is_another(
    track_unit: Fraction, unit: Fraction, first: int | None, same: int, other: int
) -> None:
    """Frame 2 of a clip of 25 frames a second, whose first is at `first` units, and what is too far from it."""
    times = np.arange(5) * int(Fraction(1, 25) / track_unit)
    track = replace(make_track(), time_base=track_unit, pts=times.astype(np.int64))
    first_s = None if first is None else first * unit
    check_frame(track, 2, replace(make_frame(0), pts=same, time_base=unit), first_s=first_s)
    with pytest.raises(TrackError, match="does not belong to this clip: the track has frame 2 at"):
        check_frame(track, 2, replace(make_frame(0), pts=other, time_base=unit), first_s=first_s)


def test_unwritable(tmp_path: Path) -> None:
    for target in (tmp_path / "no" / "folder.vs3r", tmp_path):
        with pytest.raises(OutputError):
            save_track(make_track(), target)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("umask", "rights"), [(0o022, 0o644), (0o007, 0o660)])
def test_rights_are_those_of_any_new_file(tmp_path: Path, umask: int, rights: int) -> None:
    before = os.umask(umask)
    try:
        save_track(make_track(), tmp_path / "a.vs3r")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.vs3r").stat().st_mode) == rights


def test_a_mount_that_refuses_rights_takes_the_track(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, _rights: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", path)

    monkeypatch.setattr(os, "chmod", refuse)
    save_track(make_track(), tmp_path / "a.vs3r")
    assert len(load_track(tmp_path / "a.vs3r")) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["a.vs3r"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    link, target = tmp_path / "a.vs3r", tmp_path / "far" / "b.vs3r"
    link.symlink_to(target)
    for count in (3, 5):
        save_track(make_track(count), link)
        assert link.is_symlink()
        assert len(load_track(target)) == count
    assert list((tmp_path / "far").iterdir()) == [target]


def test_long_name(tmp_path: Path) -> None:
    save_track(make_track(), tmp_path / f"{80 * '長'}.vs3r")
    assert len(list(tmp_path.iterdir())) == 1


def test_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.vs3r"
    save_track(make_track(), target)
    before = target.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OutputError, match="cannot write the track"):
            save_track(make_track(500), target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]

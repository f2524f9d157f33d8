"""Awkward, broken and hostile input through the command line: it works, or one line says what is wrong and what to do.

Never a traceback, never a lost or overwritten file.
"""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.engine.clips import Clip, flat_planes, make_frames, moving_planes, random_planes, write_clip
from vs3r.config import EncodeConfig
from vs3r.engine import cli
from vs3r.engine.media import VideoReader, VideoWriter, probe
from vs3r.engine.track_file import load_track, save_track
from vs3r.types import Frame, Plane

FAST = ("--lookahead-frames", "4", "--fill-window-frames", "4")

Shell = Callable[..., tuple[int, str]]


@pytest.fixture
def vs3r(capfd: pytest.CaptureFixture[str]) -> Shell:
    """Runs a command line; returns the exit code and what came on standard error."""

    def run(*args: object) -> tuple[int, str]:
        capfd.readouterr()
        code = cli.run([str(a) for a in args])
        return code, capfd.readouterr().err

    return run


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "steady.mp4"


def refused(vs3r: Shell, out: Path, source: Path, complaint: str) -> None:
    """Every command that reads a video ends with exit code 1, one line, and no file."""
    before = source.read_bytes() if source.is_file() else None
    for args in (
        ("stabilize", source, out, *FAST),
        ("analyze", source, "-o", out.with_suffix(".vs3r")),
        ("evaluate", source, source),
        ("compare", source, source, "-o", out),
    ):
        code, err = vs3r(*args)
        assert code == 1, args[0]
        assert err.startswith("vs3r: error: "), (args[0], err)
        assert err.count("\n") == 1, (args[0], err)
        if args[0] in ("stabilize", "analyze"):
            assert complaint in err, (args[0], err)
        assert not list(out.parent.iterdir()), args[0]
    assert (source.read_bytes() if source.is_file() else None) == before


def works(vs3r: Shell, out: Path, source: Path) -> list[Frame]:
    """stabilize ends well, with as many frames at the same times and of the same format; returns them."""
    code, err = vs3r("stabilize", source, out, *FAST)
    assert code == 0, err
    assert "Traceback" not in err
    assert list(out.parent.iterdir()) == [out]
    with VideoReader(source) as reader:
        before = list(reader)
    with VideoReader(out) as reader:
        after = list(reader)
    assert [f.pts * f.time_base for f in after] == [f.pts * f.time_base for f in before]
    assert (after[0].format.width, after[0].format.height) == (before[0].format.width, before[0].format.height)
    return after


def test_missing(vs3r: Shell, out: Path, tmp_path: Path) -> None:
    refused(vs3r, out, tmp_path / "missing.mp4", "not found")


def test_folder(vs3r: Shell, out: Path, tmp_path: Path) -> None:
    refused(vs3r, out, tmp_path, "got a folder")


def test_text(vs3r: Shell, out: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.mp4"
    text.write_text("This is no video.\n" * 50)
    refused(vs3r, out, text, str(text))


def test_empty_file(vs3r: Shell, out: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.mp4"
    empty.touch()
    refused(vs3r, out, empty, "0 bytes")


def test_truncated_before_its_index(vs3r: Shell, out: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", Clip(frames=20))
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    refused(vs3r, out, cut, "cut short")


def test_truncated_with_its_index_in_front(vs3r: Shell, out: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", Clip(frames=20, codec="ffv1"))
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    code, err = vs3r("stabilize", cut, out, *FAST)
    assert code == 0, err
    with VideoReader(out) as reader:
        assert 1 <= len(list(reader)) < 20


def test_zero_frames(vs3r: Shell, out: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.mkv"
    with av.open(str(bare), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    refused(vs3r, out, bare, "expected a video")


def test_audio_only(vs3r: Shell, out: Path, tmp_path: Path) -> None:
    sound = tmp_path / "sound.mkv"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    refused(vs3r, out, sound, "video stream")


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_very_short(vs3r: Shell, out: Path, tmp_path: Path, frames: int) -> None:
    assert len(works(vs3r, out, write_clip(tmp_path / "in.mp4", Clip(frames=frames)))) == frames


@pytest.mark.parametrize(
    "clip",
    [
        pytest.param(Clip(width=65, height=47, pix_fmt="yuv444p"), id="odd-444"),
        pytest.param(Clip(width=65, height=47, codec="ffv1"), id="odd-420"),
        pytest.param(Clip(width=16, height=16), id="16x16"),
        pytest.param(Clip(width=96, height=64, rotation_deg=90), id="portrait-tag"),
        pytest.param(Clip(pix_fmt="gray", codec="ffv1"), id="grey"),
        pytest.param(Clip(pix_fmt="yuva420p", codec="ffv1"), id="alpha"),
        pytest.param(Clip(pix_fmt="gbrp", codec="ffv1"), id="rgb"),
        pytest.param(Clip(pix_fmt="yuv420p10le", color=(1, 9, 16, 9)), id="10-bit-hdr"),
        pytest.param(Clip(pts=tuple(i * 512 + (i // 3) * 3000 + i % 2 * 90 for i in range(10))), id="variable-rate"),
        pytest.param(Clip(options={"x264-params": "interlaced=1", "flags": "+ildct+ilme"}), id="interlaced"),
        pytest.param(Clip(sample_aspect=Fraction(16, 15), width=72, height=58), id="anamorphic"),
    ],
)
def test_formats(vs3r: Shell, out: Path, tmp_path: Path, clip: Clip) -> None:
    source = write_clip(tmp_path / f"in.{'mkv' if clip.codec == 'ffv1' else 'mp4'}", replace(clip, frames=10))
    assert len(works(vs3r, out, source)) == 10
    before, after = probe(source), probe(out)
    assert after.rotation_deg == before.rotation_deg
    assert after.format.sample_aspect == before.format.sample_aspect
    assert after.format.bit_depth == before.format.bit_depth
    assert after.color.transfer == before.color.transfer


def test_ffv1_keeps_alpha_and_grey(vs3r: Shell, out: Path, tmp_path: Path) -> None:
    for pix_fmt in ("yuva420p", "gray"):
        source = write_clip(tmp_path / f"{pix_fmt}.mkv", Clip(pix_fmt=pix_fmt, codec="ffv1"))
        target = out.with_name(f"{pix_fmt}.mkv")
        code, err = vs3r("stabilize", source, target, *FAST, "--codec", "ffv1")
        assert code == 0, err
        assert probe(target).format.pix_fmt == pix_fmt


def test_size_changes_mid_stream(vs3r: Shell, out: Path, tmp_path: Path) -> None:
    parts = [write_clip(tmp_path / f"{w}.h264", Clip(frames=6, width=w)) for w in (64, 96)]
    source = tmp_path / "both.h264"
    source.write_bytes(b"".join(p.read_bytes() for p in parts))
    code, err = vs3r("stabilize", source, out, *FAST)
    assert code == 0, err
    with VideoReader(out) as reader:
        frames = list(reader)
    assert len(frames) == 12
    assert {f.format.width for f in frames} == {64}


def write_pictures(path: Path, pictures: list[tuple[Plane, ...]]) -> Path:
    """A lossless clip of given pictures."""
    template = make_frames(Clip(frames=len(pictures)))
    source = write_clip(path.with_name("template.mkv"), Clip(frames=1, codec="ffv1"))
    with VideoWriter(path, like=source, config=EncodeConfig(codec="ffv1")) as writer:
        for frame, planes in zip(template, pictures, strict=True):
            writer.write(replace(frame, planes=planes))
    source.unlink()
    return path


def content(kind: str) -> Iterator[tuple[Plane, ...]]:
    fmt = Clip().format
    for i in range(24):
        if kind == "black":
            yield flat_planes(fmt, 16)
        elif kind == "black-in-between":
            yield flat_planes(fmt, 16) if 8 <= i < 14 else moving_planes(fmt, i)
        elif kind == "frozen":
            yield moving_planes(fmt, 0)
        elif kind == "frozen-in-between":
            yield moving_planes(fmt, min(max(i - 8, 0), 9))
        elif kind == "cuts":
            yield tuple(np.roll(p, 17 * (i // 5), axis=1)[::-1].copy() for p in moving_planes(fmt, i + 40 * (i // 5)))
        elif kind == "noise":
            yield random_planes(fmt, i)
        elif kind == "flashes":
            yield flat_planes(fmt, 235 if i % 2 else 16)


@pytest.mark.parametrize(
    "kind", ["black", "black-in-between", "frozen", "frozen-in-between", "cuts", "noise", "flashes"]
)
def test_contents(vs3r: Shell, out: Path, tmp_path: Path, kind: str) -> None:
    source = write_pictures(tmp_path / "in.mkv", list(content(kind)))
    frames = works(vs3r, out, source)
    assert len(frames) == 24
    if kind == "black":
        assert max(abs(int(f.planes[0].astype(int).max()) - 16) for f in frames) <= 2


def test_frozen_picture_stays_as_it_is(vs3r: Shell, out: Path, tmp_path: Path) -> None:
    pictures = list(content("frozen"))
    source = write_pictures(tmp_path / "in.mkv", pictures)
    target = out.with_suffix(".mkv")
    code, err = vs3r("stabilize", source, target, *FAST, "--codec", "ffv1")
    assert code == 0, err
    with VideoReader(target) as reader:
        worst = max(np.abs(f.planes[0].astype(int) - pictures[0][0].astype(int)).max() for f in reader)
    assert worst <= 1


def test_disk_that_fills_up(vs3r: Shell, out: Path, tmp_path: Path) -> None:
    """A limit on the size of files fails a write in the middle, as a full disk does."""
    source = write_clip(tmp_path / "in.mkv", Clip(frames=30, codec="ffv1"), noise=True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        code, err = vs3r("stabilize", source, out, *FAST, "--crf", "0", "--quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    assert err.startswith("vs3r: error: ")
    assert err.count("\n") == 1
    assert not list(out.parent.iterdir())


def test_unwritable_target(vs3r: Shell, out: Path, tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4")
    targets = {
        out.parent / "no" / "such" / "folder.mp4": "no",
        out.parent: "folder",
        out.with_suffix(".txt"): ".mp4",
        out.with_name("steady"): ".mp4",
        out.with_name("x" * 300 + ".mp4"): "cannot use the name",
    }
    if os.path.exists("/proc/self"):
        targets[Path("/proc/steady.mp4")] = "/proc"
    for target, complaint in targets.items():
        code, err = vs3r("stabilize", source, target, *FAST, "--quiet")
        assert code == 1
        assert err.startswith("vs3r: error: ")
        assert err.count("\n") == 1
        assert complaint in err
        assert not list(out.parent.iterdir())


def test_output_equal_to_input(vs3r: Shell, tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4")
    link, hard = tmp_path / "link.mp4", tmp_path / "hard.mp4"
    link.symlink_to(source)
    os.link(source, hard)
    before = source.read_bytes()
    (tmp_path / "sub").mkdir()
    for target in (source, link, hard, tmp_path / "sub" / ".." / "in.mp4"):
        for more in ((), ("--overwrite",)):
            code, err = vs3r("stabilize", source, target, *FAST, *more, "--quiet")
            assert code == 1
            assert err == f"vs3r: error: the output {target} is the input; give another name\n"
    assert source.read_bytes() == before
    code, err = vs3r("analyze", source, "-o", source, "-y")
    assert (code, err.count("\n")) == (1, 1)
    assert source.read_bytes() == before


def test_broken_tracks(vs3r: Shell, out: Path, tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4")
    track = tmp_path / "in.vs3r"
    assert vs3r("analyze", source, "-o", track, "--quiet")[0] == 0
    cut = tmp_path / "cut.vs3r"
    cut.write_bytes(track.read_bytes()[:500])
    other = write_clip(tmp_path / "other.mp4", Clip(width=80))
    absurd, made = tmp_path / "absurd.vs3r", load_track(track)
    made.K[1, 0, 0] = 1e9
    save_track(made, absurd)
    for clip, path, complaint in (
        (source, absurd, "frame 1: expected a focal length of "),
        (source, cut, "cut short or not a track"),
        (source, source, "not a track"),
        (source, tmp_path / "missing.vs3r", "cannot read the track"),
        (other, track, "does not belong to this clip"),
    ):
        code, err = vs3r("render", clip, out, "--track", path)
        assert code == 1
        assert complaint in err
        assert err.count("\n") == 1
        assert not list(out.parent.iterdir())


def test_unusual_names(vs3r: Shell, tmp_path: Path) -> None:
    no_text = os.fsdecode(b"caf\xe9.mp4")
    for name in (
        "a b.mp4",
        "ünï.mp4",
        "-dash.mp4",
        "50%d.mp4",
        "a:b.mp4",
        "new\nline.mp4",
        no_text,
        82 * "長" + ".mp4",
    ):
        folder = tmp_path / "names"
        folder.mkdir()
        source = folder / name
        shutil.copy(write_clip(tmp_path / "in.mp4", Clip(frames=3)), source)
        code, err = vs3r("stabilize", "--", source, folder / f"o {name}")
        assert code == 0, err
        assert "error" not in err
        assert sorted(p.name for p in folder.iterdir()) == sorted([name, f"o {name}"])
        shutil.rmtree(folder)

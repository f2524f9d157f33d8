"""The output file: complete under its name, or not there at all."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.clips import Clip, make_frames, write_clip
from vs3r.config import EncodeConfig
from vs3r.engine.media import VideoReader, VideoWriter
from vs3r.errors import MediaError, OutputError

ROOT = Path(__file__).resolve().parents[2]
FAST = EncodeConfig(preset="ultrafast")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    return write_clip(folder / "a.mp4", Clip(audio="aac"))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "b.mp4"


def _write_all(source: Path, target: Path) -> None:
    with VideoReader(source) as reader, VideoWriter(target, like=reader, config=FAST) as writer:
        for frame in reader:
            writer.write(frame)


def test_nothing_under_the_name_before_close(source: Path, target: Path) -> None:
    writer = VideoWriter(target, like=source, config=FAST)
    for frame in make_frames(Clip()):
        writer.write(frame)
    assert not target.exists()
    assert len(list(target.parent.iterdir())) == 1
    writer.close()
    writer.close()
    assert [p.name for p in target.parent.iterdir()] == ["b.mp4"]
    with pytest.raises(MediaError, match="open writer"):
        writer.write(make_frames(Clip())[0])


def test_a_file_that_appears_meanwhile_stays(source: Path, target: Path) -> None:
    """Of two runs to one name the second to end gets another one."""
    writers = [VideoWriter(target, like=source, config=FAST) for _ in range(3)]
    for writer in writers:
        writer.write(make_frames(Clip())[0])
    writers[0].close()
    first = target.read_bytes()
    for writer, name in zip(writers[1:], ("b-2.mp4", "b-3.mp4"), strict=True):
        with pytest.raises(OutputError, match=f"meanwhile and stays; this output is .*{name}$"):
            writer.close()
        writer.close()
        assert (target.parent / name).read_bytes() == first
    assert target.read_bytes() == first
    assert sorted(p.name for p in target.parent.iterdir()) == ["b-2.mp4", "b-3.mp4", "b.mp4"]


def test_an_older_result_is_replaced_at_once(source: Path, target: Path) -> None:
    target.write_bytes(b"old")
    writer = VideoWriter(target, like=source, config=FAST)
    writer.write(make_frames(Clip())[0])
    assert target.read_bytes() == b"old"
    writer.close()
    assert target.stat().st_size > 500


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
@pytest.mark.parametrize("frames", [0, 1, 10])
def test_an_exception_leaves_nothing(source: Path, target: Path, error: type[BaseException], frames: int) -> None:
    target.write_bytes(b"old")

    def run() -> None:
        with VideoWriter(target, like=source, config=FAST) as writer:
            for frame in make_frames(Clip())[:frames]:
                writer.write(frame)
            raise error

    with pytest.raises(error):
        run()
    assert [p.name for p in target.parent.iterdir()] == ["b.mp4"]
    assert target.read_bytes() == b"old"


def test_a_forgotten_writer_leaves_nothing(source: Path, target: Path) -> None:
    writer = VideoWriter(target, like=source, config=FAST)
    writer.write(make_frames(Clip())[0])
    del writer
    gc.collect()
    assert list(target.parent.iterdir()) == []


def test_no_frames_is_an_error(source: Path, target: Path) -> None:
    with pytest.raises(OutputError, match="at least one frame"), VideoWriter(target, like=source):
        pass
    assert list(target.parent.iterdir()) == []


def _run(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_ctrl_c_and_exit_leave_nothing(source: Path, target: Path) -> None:
    code = """
import sys, time
from tests.engine.clips import Clip, make_frames
from vs3r.engine.media import VideoWriter
writer = VideoWriter(sys.argv[2], like=sys.argv[1])
for frame in make_frames(Clip()):
    writer.write(frame)
print("written", flush=True)
sys.stdin.read() if len(sys.argv) > 3 else sys.exit(0)
"""
    done = _run(code, source, target)
    assert done.wait(60) == 0
    assert list(target.parent.iterdir()) == []
    running = subprocess.Popen(
        [sys.executable, "-c", code, source, target, "wait"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert running.stdout is not None
    assert running.stdout.readline() == "written\n"
    assert len(list(target.parent.iterdir())) == 1
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    done.communicate()
    assert running.returncode not in (None, 0)
    assert list(target.parent.iterdir()) == []


def _no_space(source: Path, target: Path) -> None:
    """A file may grow to 20 kB only, which fails like a full disk, with another errno."""
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from tests.engine.clips import Clip, make_frames
from vs3r.engine.media import VideoWriter
from vs3r.errors import OutputError
clip = Clip(frames=60, width=320, height=240)
try:
    with VideoWriter(sys.argv[2], like=sys.argv[1]) as writer:
        for frame in make_frames(clip, noise=True):
            writer.write(frame)
except OutputError as error:
    print(error)
"""
    process = _run(code, source, target)
    out, err = process.communicate(timeout=120)
    assert err == ""
    assert out.count("\n") == 1
    assert "cannot write" in out
    assert str(target) in out


@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
def test_a_full_disk_is_one_line(source: Path, target: Path, ending: str) -> None:
    target = target.with_suffix(ending)
    _no_space(source, target)
    assert list(target.parent.iterdir()) == []


def test_bad_targets(source: Path, target: Path) -> None:
    folder = target.parent
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "link.mp4").symlink_to(source)
    (folder / "hard.mp4").hardlink_to(source)
    cases = {
        folder / "b.webm": "ending in .mp4, .mov, .mkv",
        folder / "b": "ending in",
        folder / "no" / "b.mp4": "does not exist",
        folder / "folder.mp4": "folder",
        folder / "pipe.mp4": "device or pipe",
        folder / "link.mp4": "the output is the input",
        folder / "hard.mp4": "the output is the input",
        source: "the output is the input",
        source.parent / ".." / "in" / "a.mp4": "the output is the input",
    }
    before, names = source.read_bytes(), sorted(folder.iterdir())
    for path, expected in cases.items():
        with pytest.raises(OutputError, match=expected) as caught:
            VideoWriter(path, like=source)
        assert "\n" not in str(caught.value)
    assert source.read_bytes() == before
    assert sorted(folder.iterdir()) == names


def test_a_link_to_another_file_is_followed(source: Path, target: Path) -> None:
    link = target.with_name("link.mp4")
    link.symlink_to(target)
    _write_all(source, link)
    assert link.is_symlink()
    assert target.stat().st_size > 500


def test_an_unwritable_folder(source: Path, target: Path) -> None:
    user = os.geteuid()
    for folder in source.parents:
        if folder.stat().st_mode & 0o777 == 0o700:  # as pytest makes its folders
            folder.chmod(0o755)
    target.parent.chmod(0o555)
    if user == 0:
        os.seteuid(65534)  # the superuser may write everywhere
    try:
        with pytest.raises(OutputError, match=r"cannot write into .*Permission denied"):
            VideoWriter(target, like=source)
    finally:
        os.seteuid(user)


def test_a_name_with_a_colon_is_a_file(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _write_all(source, Path("pipe:1.mp4"))
    assert (tmp_path / "pipe:1.mp4").stat().st_size > 500

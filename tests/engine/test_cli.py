"""The command line: options from the config, what it prints, exit codes, interruption."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest

from tests.engine.clips import Clip, write_clip
from vs3r.config import Config
from vs3r.engine import cli
from vs3r.engine.doctor import examine
from vs3r.engine.media import VideoReader
from vs3r.engine.options import config_from, flag_of
from vs3r.engine.progress import Progress
from vs3r.errors import OutputError

FAST = ("--lookahead-frames", "4", "--fill-window-frames", "4")
VS3R = (sys.executable, "-m", "vs3r")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "shaky.mp4", Clip(frames=12))


class Outcome:
    """What a command line did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def events(self) -> list[dict[str, Any]]:
        """The JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


class Shell:
    """Runs command lines in this process."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def __call__(self, *args: object) -> Outcome:
        self._capfd.readouterr()
        code = cli.run([str(a) for a in args])
        return Outcome(code, *self._capfd.readouterr())


@pytest.fixture
def vs3r(capfd: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capfd)


def settings() -> Iterator[tuple[str, Any]]:
    for section in fields(Config):
        for spec in fields(getattr(Config(), section.name)):
            yield section.name, spec


def flags(command: str) -> dict[str, click.Option]:
    found = cli.cli.commands[command].params
    return {p.opts[0]: p for p in found if isinstance(p, click.Option)}


def test_every_setting_is_an_option_with_its_documentation_and_bounds() -> None:
    offered = flags("stabilize")
    names = [flag_of(section, spec.name) for section, spec in settings()]
    assert len(set(names)) == len(names), "two settings share a flag"
    for section, spec in settings():
        flag = offered[flag_of(section, spec.name)]
        text = flag.help or ""
        assert text.startswith(spec.metadata["doc"])
        if spec.default is not None and not isinstance(spec.default, bool):
            assert f"default {spec.default}" in text
        if spec.metadata["choices"] is not None:
            assert isinstance(flag.type, click.Choice)
            assert tuple(flag.type.choices) == spec.metadata["choices"]
        elif spec.metadata["high"] is not None:
            assert f"{spec.metadata['low']:.10g} to {spec.metadata['high']:.10g}" in text
    server = {"--server", "--server-token-file", "--server-ca", "--client-cert", "--client-key"}
    own = {"--overwrite", "--json", "--quiet"} | server
    assert set(offered) == set(names) | own


def test_bounds_are_told_to_the_last_digit(vs3r: Shell) -> None:
    assert "[0 to 2147483647;" in (flags("stabilize")["--wan-seed"].help or "")
    done = vs3r("stabilize", "in.mp4", "out.mp4", "--analysis-pixels", "1")
    assert done.err == "vs3r: error: analysis_pixels: expected a value from 4096 to 2073600; got 1\n"


def test_other_commands_offer_their_sections() -> None:
    def of(*sections: str) -> set[str]:
        return {flag_of(section, spec.name) for section, spec in settings() if section in sections}

    own = {"--overwrite", "--json", "--quiet"}
    assert set(flags("analyze")) == of("flow", "reconstruct", "vggt", "network", "source") | own | {"--output"}
    assert set(flags("render")) == of("smooth", "render", "refine", "wan", "encode") | own | {"--track"}


def test_options_reach_the_config() -> None:
    assert config_from({}) == Config()
    given = {"smooth__smoothness": 0.8, "reconstruct__hfov_deg": 70.0, "refine__backend": "none", "encode__crf": 0}
    config = config_from(given)
    assert (config.smooth.smoothness, config.reconstruct.hfov_deg) == (0.8, 70.0)
    assert (config.refine.backend, config.encode.crf) == ("none", 0)


def test_stabilize_evaluate_compare(vs3r: Shell, clip: Path, tmp_path: Path) -> None:
    steady, both = tmp_path / "steady.mp4", tmp_path / "both.mp4"
    done = vs3r("stabilize", clip, steady, *FAST)
    assert done.code == 0
    assert done.out.startswith(f"{steady}: 12 frames in ")
    assert "fps" in done.out
    with VideoReader(steady) as reader:
        assert len(list(reader)) == 12

    done = vs3r("evaluate", clip, steady, "--json", "--quick")
    assert done.code == 0
    assert done.events[-1]["event"] == "result"
    assert done.events[-1]["frames"] == 12

    done = vs3r("evaluate", clip, steady, "--plot", tmp_path / "path.png")
    assert done.code == 0
    assert "residual jitter" in done.out
    assert (tmp_path / "path.png").read_bytes().startswith(b"\x89PNG")

    done = vs3r("compare", clip, steady, "-o", both)
    assert done.code == 0
    with VideoReader(both) as reader:
        assert len(list(reader)) == 12


def test_what_was_not_repaired_is_not_called_so(vs3r: Shell, clip: Path, tmp_path: Path) -> None:
    for more, rest in (((), "the rest repaired"), (("--refine", "none"), "the rest left empty")):
        assert rest in vs3r("stabilize", clip, tmp_path / "out.mp4", *FAST, "-y", *more).out


def test_analyze_then_render(vs3r: Shell, clip: Path, tmp_path: Path) -> None:
    track, steady = tmp_path / "a.vs3r", tmp_path / "steady.mkv"
    done = vs3r("analyze", clip, "-o", track)
    assert done.code == 0
    assert done.out == f"{track}: 12 frames\n"
    done = vs3r("render", clip, steady, "--track", track, "--smoothness", "0.9", "--fill-window-frames", "4")
    assert done.code == 0
    with VideoReader(steady) as reader:
        assert len(list(reader)) == 12


def test_json_is_one_object_a_line(vs3r: Shell, clip: Path, tmp_path: Path) -> None:
    done = vs3r("stabilize", clip, tmp_path / "out.mp4", *FAST, "--json")
    assert done.code == 0
    assert done.err == ""
    assert {e["event"] for e in done.events} >= {"progress", "result"}
    progress = next(e for e in done.events if e["event"] == "progress")
    assert progress["frames"] == 1
    assert progress["total"] == 12
    result = done.events[-1]
    assert result["frames"] == 12
    assert result["output"] == str(tmp_path / "out.mp4")
    assert result["fps"] > 0
    assert 0.9 < result["valid_share"] <= 1


def test_quiet_says_nothing(vs3r: Shell, clip: Path, tmp_path: Path) -> None:
    done = vs3r("stabilize", clip, tmp_path / "out.mp4", *FAST, "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_plain_lines_when_piped(vs3r: Shell, clip: Path, tmp_path: Path) -> None:
    done = vs3r("stabilize", clip, tmp_path / "out.mp4", *FAST)
    assert done.err.startswith("1/12 frames, ")
    assert "\r" not in done.err


def test_bar_on_a_terminal(vs3r: Shell, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    done = vs3r("stabilize", clip, tmp_path / "out.mp4", *FAST)
    assert done.code == 0
    assert "/12" in done.err
    assert "\r" in done.err
    assert done.out.count("\n") == 1


def test_reader_that_goes_away() -> None:
    with subprocess.Popen([*VS3R, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 1


@pytest.mark.parametrize("closed", [1, 2])
def test_closed_streams_do_no_harm(clip: Path, tmp_path: Path, closed: int) -> None:
    target = tmp_path / "both.mp4"
    args = [*VS3R, "compare", str(clip), str(clip), "-o", str(target)]
    command = f"import os; os.close({closed}); os.execv({args[0]!r}, {args!r})"
    done = subprocess.run([args[0], "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "error" not in done.stderr
    assert len(list(VideoReader(target))) == 12


def test_a_name_that_the_terminal_cannot_show_does_no_harm(clip: Path, tmp_path: Path) -> None:
    target = tmp_path / "\u9577.mp4"
    args = (*VS3R, "compare", str(clip), str(clip), "-o", str(target))
    done = subprocess.run(args, capture_output=True, check=False, env=os.environ | {"PYTHONIOENCODING": "latin-1"})
    assert (done.returncode, b"error" in done.stderr) == (0, False)
    assert done.stdout.startswith(os.fsencode(tmp_path / "?.mp4"))


def test_full_standard_output_is_one_line(vs3r: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("click.echo", full)
    done = vs3r("doctor")
    assert done.code == 1
    assert done.err == (
        "vs3r: error: cannot use standard output: No space left on device; check the disk and the path\n"
    )


def test_doctor(vs3r: Shell) -> None:
    done = vs3r("doctor")
    assert done.code == 0
    assert done.out.endswith("ready: vs3r stabilize can run here\n")
    done = vs3r("doctor", "--json")
    findings = {f["name"]: f for f in done.events[0]["findings"]}
    assert findings["encoder libx264"]["ok"]
    assert findings["GPU"]["detail"]
    # What the extras bring is told, whether it is here or not.
    assert findings["grpcio"]["ok"]


@pytest.mark.parametrize("name", ["accelerate", "diffusers", "peft", "transformers"])
def test_doctor_tells_every_package_that_refinement_needs(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    version = importlib.metadata.version

    def without(asked: str) -> str:
        if asked == name:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(asked)

    monkeypatch.setattr("importlib.metadata.version", without)
    (found,) = [finding for finding in examine() if finding.name == name]
    assert not found.ok
    assert found.detail == "not installed: needed for diffusion refinement; install with: pip install 'vs3r[refine]'"


def test_existing_output_needs_overwrite(vs3r: Shell, clip: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.mp4"
    target.write_bytes(b"precious")
    done = vs3r("stabilize", clip, target, *FAST)
    assert done.code == 1
    assert done.err == (f"vs3r: error: the output {target} exists; give another name, or --overwrite to replace it\n")
    assert target.read_bytes() == b"precious"
    assert vs3r("stabilize", clip, target, *FAST, "--overwrite").code == 0
    with VideoReader(target) as reader:
        assert len(list(reader)) == 12


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (("stabilize", "a.mp4"), "Missing argument 'OUT'"),
        (("stabilise", "a.mp4", "b.mp4"), "No such command 'stabilise'"),
        (("stabilize", "a.mp4", "b.mp4", "--smoothness", "2"), "smoothness: expected a value from 0 to 1; got 2"),
        (("stabilize", "a.mp4", "b.mp4", "--smoothness", "nan"), "smoothness: expected a value from 0 to 1; got nan"),
        (("stabilize", "a.mp4", "b.mp4", "--smoothness", "much"), "Invalid value for '--smoothness'"),
        (("stabilize", "a.mp4", "b.mp4", "--lookahead-frames", "-1"), "lookahead_frames: expected a value from 0"),
        (("stabilize", "a.mp4", "b.mp4", "--camera", "drone"), "'drone' is not one of"),
        (("stabilize", "a.mp4", "b.mp4", "--fish", "1"), "No such option"),
        (("stabilize", "a.mp4", "b.mp4", "--server-token-file", "t"), "need --server HOST:PORT, got none"),
        (("analyze", "a.mp4", "-o", "a.txt"), "expected an output name that ends in .vs3r"),
        (("render", "a.mp4", "b.mp4"), "Missing option '--track'"),
    ],
)
def test_usage_errors_are_one_line(vs3r: Shell, args: tuple[str, ...], complaint: str) -> None:
    done = vs3r(*args)
    assert done.code == 1
    assert done.out == ""
    assert done.err.startswith("vs3r: error: ")
    assert complaint in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("group", ["", "weights", "train"])
def test_no_command_shows_the_help(vs3r: Shell, group: str) -> None:
    done = vs3r(*group.split())
    assert done.code == 1
    assert done.out == ""
    assert done.err.startswith("Usage: vs3r")
    assert done.err.endswith("\nvs3r: error: expected a command, got none; choose one of those above\n")


@pytest.mark.parametrize("command", ["stabilize", "render", "analyze", "compare", "evaluate"])
def test_target_that_cannot_be_made_is_told_before_the_work(
    vs3r: Shell, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    tails = {
        "stabilize": ("{}.mp4",),
        "render": ("{}.mp4", "--track", "a.vs3r"),
        "analyze": ("-o", "{}.vs3r"),
        "compare": (clip, "-o", "{}.mp4"),
        "evaluate": (clip, "--plot", "{}.png"),
    }

    def refusal(folder: Path) -> str:
        done = vs3r(command, clip, *(str(a).format(folder / "out") for a in tails[command]))
        assert (done.code, done.out) == (1, "")
        return done.err

    missing = tmp_path / "missing"
    assert refusal(missing) == f"vs3r: error: the output folder does not exist: {missing}; create it first\n"
    # The tests may run as root, who may write anywhere.
    monkeypatch.setattr("os.access", lambda *_: False)
    assert refusal(tmp_path).startswith(f"vs3r: error: cannot write into {tmp_path}; ")


def test_a_link_is_written_where_it_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    link = tmp_path / "here" / "out.mp4"
    link.symlink_to(tmp_path / "there" / "real.mp4")

    def check_where_only(writable: str) -> None:
        monkeypatch.setattr("os.access", lambda folder, _mode: folder == tmp_path / writable)
        cli.check_target(str(link), False)

    check_where_only("there")
    with pytest.raises(OutputError, match=f"cannot write into {tmp_path / 'there'};"):
        check_where_only("here")
    (tmp_path / "there").rmdir()
    with pytest.raises(OutputError, match=f"folder does not exist: {tmp_path / 'there'};"):
        check_where_only("there")


def test_bug_is_one_line_and_debug_tells_more(
    vs3r: Shell, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vs3r.engine import pipeline

    def broken(*_args: object) -> None:
        raise ZeroDivisionError("first\nsecond")

    monkeypatch.setattr(pipeline, "make_analysis", broken)
    args = ("stabilize", clip, tmp_path / "out.mp4", *FAST)
    done = vs3r(*args)
    assert done.code == 1
    assert done.err == (
        "vs3r: error: this is a bug in vs3r (ZeroDivisionError: first second); please report it; "
        "rerun with --debug for details\n"
    )
    done = vs3r(*args, "--debug")
    assert done.code == 1
    assert "Traceback" in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_at_the_first_frame(tmp_path: Path, number: signal.Signals, count: int) -> None:
    long = write_clip(tmp_path / "long.mp4", Clip(frames=1500))
    target = tmp_path / "out" / "steady.mp4"
    target.parent.mkdir()
    with subprocess.Popen(
        [*VS3R, "stabilize", str(long), str(target), *FAST, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "progress"
        for _ in range(count):
            process.send_signal(number)
            time.sleep(0.02)  # as somebody impatient presses
        _, err = process.communicate(timeout=60)
    # The very end of the program no longer catches anything.
    assert process.returncode in ((130,) if count == 1 else (130, -number))
    assert err == "vs3r: error: interrupted; no unfinished file is left\n"
    assert not list(target.parent.iterdir())


def test_interrupt_while_the_command_line_is_loaded() -> None:
    program = """
import runpy, sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == "click":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
runpy.run_module("vs3r", run_name="__main__", alter_sys=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "vs3r: error: interrupted\n")


def test_help_and_version(vs3r: Shell) -> None:
    for command in ("", *cli.cli.commands):
        done = vs3r(*command.split(), "--help")
        assert done.code == 0
        assert done.out.startswith("Usage: vs3r")
    assert vs3r("--version").out.startswith("vs3r, version ")


def test_time_left_is_judged_since_the_first_frame() -> None:
    now = Progress(frames=11, total=31, elapsed_s=15.0, first_frame_s=5.0)
    assert now.left_s == pytest.approx(20.0)
    assert now.fps == pytest.approx(11 / 15)
    assert Progress(frames=1, total=31, elapsed_s=5.0, first_frame_s=5.0).left_s is None
    assert Progress(frames=11, total=None, elapsed_s=15.0, first_frame_s=5.0).left_s is None

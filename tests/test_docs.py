"""The examples in the documents: commands parse, named options and files exist, Python code runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from tests.engine.clips import Clip, write_clip
from vs3r.engine import cli
from vs3r.engine.media import VideoReader

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = [
    (path, line.split("#")[0].strip())
    for path in DOCUMENTS
    for line in path.read_text().splitlines()
    if re.match(r" {4}vs3r ", line)
]


@pytest.mark.parametrize(("path", "line"), COMMANDS, ids=lambda value: value if isinstance(value, str) else "")
def test_commands_parse(path: Path, line: str) -> None:
    name, *args = shlex.split(line)[1:]
    command = cli.cli.commands.get(name)
    assert command is not None, f"{path.name}: no command {name}"
    command.make_context(name, args)


def test_there_are_commands() -> None:
    named = {shlex.split(line)[1] for _, line in COMMANDS}
    assert named >= set(cli.cli.commands)


def test_named_options_exist() -> None:
    options = {"--debug", "--help"} | {
        name
        for command in cli.cli.commands.values()
        for option in command.params
        if isinstance(option, click.Option)
        for name in option.opts
    }
    found = set()
    for path in (ROOT / "README.md", ROOT / "docs" / "usage.md"):
        text = re.sub(r"^.*PIP_FLAGS.*$", "", path.read_text(), flags=re.MULTILINE)
        found |= set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert found
    assert found <= options


def test_links_lead_somewhere() -> None:
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    named = set()
    for path in (*DOCUMENTS, ROOT / ".ci" / "run"):
        for line in re.findall(r"^ *make ([^#\n]*)", path.read_text(), re.MULTILINE):
            named |= {word for word in shlex.split(line) if re.fullmatch("[a-z]+", word)}
    assert named >= {"demo", "test", "lint", "types"}
    assert named <= targets


def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_clip(Path("shaky.mp4"), Clip(frames=8))
    blocks = [b for path in DOCUMENTS for b in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)]
    assert blocks
    for block in blocks:
        exec(compile(block, "example", "exec"), {})
    with VideoReader("steady.mp4") as reader:
        assert len(list(reader)) == 8

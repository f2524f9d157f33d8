"""`vs3r export`, and a run that takes the engine it has built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.engine.clips import Clip, write_clip
from tests.export.nets import EagerFormat
from tests.flow.raft_weights import some_weights
from tests.reconstruct.vggt.common import SMALL as SIZE
from tests.reconstruct.vggt.common import seeded_state
from vs3r.engine import cli
from vs3r.export import build
from vs3r.export.cache import engines_folder
from vs3r.flow.raft import Raft
from vs3r.reconstruct.vggt import window
from vs3r.reconstruct.vggt.model import Vggt
from vs3r.weights import weights_folder

SMALL = ["--width", "160", "--height", "100", "--raft-iterations", "1"]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> EagerFormat:
    """A cache with RAFT's weights, and a format in AOTInductor's place."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights_folder("raft-large").mkdir(parents=True)
    torch.save(some_weights(Raft()), weights_folder("raft-large") / "raft.pth")
    fake = EagerFormat()
    monkeypatch.setitem(build.FORMATS, "aoti", fake)
    return fake


@pytest.mark.parametrize("pixels", [16000, 1920 * 1080])
def test_export_then_run(fake: EagerFormat, tmp_path: Path, capsys: pytest.CaptureFixture[str], pixels: int) -> None:
    """A clip is analyzed as it is where that is smaller than asked for: what counts is the size that it has."""
    clip, track = tmp_path / "in.mp4", tmp_path / "out.vs3r"
    write_clip(clip, Clip(frames=2, width=160, height=100))
    run = ["analyze", str(clip), "-o", str(track), "-y", "-q", "--flow", "raft", "--analysis-pixels", str(pixels)]
    run += ["--raft-iterations", "1", "--runtime", "aoti"]
    assert cli.run([*run, "--cached-engines-only"]) == 1
    assert "build it with vs3r export, or leave out --cached-engines-only" in capsys.readouterr().err

    assert cli.run(["export", "raft", "--format", "aoti", "--json", *SMALL]) == 0
    result = json.loads(capsys.readouterr().out)
    assert Path(result["output"]).parent.parent == engines_folder()
    assert result["key"]["inputs"] == ["float32[2,3,128,160]", "float32[2,3,128,160]", "float32[2,2,16,20]"]
    assert result["error"] < 1e-6
    assert cli.run(["export", "raft", "--format", "aoti", *SMALL]) == 0
    assert fake.builds == 1
    assert cli.run(["export", "raft", "--format", "aoti", "--overwrite", *SMALL]) == 0
    assert fake.builds == 2

    assert cli.run([*run, "--cached-engines-only"]) == 0
    assert fake.builds == 2


def test_both_passes_of_vggt(
    fake: EagerFormat, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exported for a shape and a window, and then run: what is built is found."""
    weights_folder("vggt-1b").mkdir(parents=True)
    torch.save(seeded_state(Vggt(SIZE)), weights_folder("vggt-1b") / "model.pt")
    monkeypatch.setattr(window, "Vggt", lambda: Vggt(SIZE))
    names = []

    def build_one(network: torch.nn.Module, example: tuple[torch.Tensor, ...], folder: Path) -> str:
        names.append((type(network).__name__, [tuple(value.shape) for value in example]))
        (folder / "engine.txt").write_text("1.0")
        engines[len(names)] = network
        return "engine.txt"

    engines: dict[int, torch.nn.Module] = {}
    monkeypatch.setattr(fake, "build", build_one)
    monkeypatch.setattr(fake, "load", lambda *_: engines[len(engines)])
    small = ["--vggt-long-side", "84", "--width", "160", "--height", "100"]
    export = ["export", "vggt4d", "--format", "aoti", "--json", "--frames", "4", *small]
    assert cli.run(export) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result["key"]["model"] for result in results] == ["vggt4d", "vggt4d-second"]
    assert names == [("FirstPass", [(4, 3, 56, 84)]), ("SecondPass", [(4, 24, 64), (4, 24)])]
    assert cli.run(export) == 0 and len(names) == 2

    clip = tmp_path / "in.mp4"
    write_clip(clip, Clip(frames=5, width=160, height=100))
    prepared: list[Path] = []

    def load(path: Path, _device: torch.device) -> torch.nn.Module:
        prepared.append(path)
        return engines[len(prepared)]

    monkeypatch.setattr(fake, "load", load)
    run = [
        "analyze",
        str(clip),
        "-o",
        str(tmp_path / "out.vs3r"),
        "-q",
        "--reconstruct",
        "vggt4d",
        "--vggt-device",
        "cpu",
    ]
    run += ["--vggt-window-frames", "4", "--vggt-overlap-frames", "1", "--vggt-long-side", "84", "--runtime", "aoti"]
    assert cli.run([*run, "--cached-engines-only", "--analysis-pixels", "4096"]) == 0
    assert [str(path) for path in prepared] == [result["output"] for result in results]


@pytest.mark.usefixtures("fake")
def test_what_cannot_be_exported(capsys: pytest.CaptureFixture[str]) -> None:
    for args, message in (
        (["dis", "--format", "aoti"], "expected a model: raft, vggt4d"),
        (["raft", "--format", "tensorrt"], "tensorrt: expected an NVIDIA GPU"),
        (["raft", "--format", "aoti", "--width", "9000", "--height", "9000"], "analysis_pixels: expected a value from"),
        (["raft", "--format", "aoti", "--raft-iterations", "0"], "raft_iterations: expected a value from 1 to 64"),
    ):
        assert cli.run(["export", *args]) == 1
        assert message in capsys.readouterr().err
    for sides in (["--width", "-480", "--height", "-270"], ["--width", "0"]):
        for model in ("raft", "vggt4d"):
            assert cli.run(["export", model, "--format", "aoti", *sides]) == 1
            assert "Invalid value for '--width'" in capsys.readouterr().err
    (weights_folder("raft-large") / "raft.pth").unlink()
    assert cli.run(["export", "raft", "--format", "aoti"]) == 1
    assert "vs3r weights fetch raft-large" in capsys.readouterr().err

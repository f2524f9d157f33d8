"""The benchmark's own arithmetic: what a command cost, what stands in the table, which frames a sheet shows."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import contact_sheet, reference, stabilize
from benchmarks.process import CommandFailed, Cost, median_cost, run
from benchmarks.table import Row, write_csv
from tests.engine.test_evaluate import write
from tests.metrics.scenes import shake, shaken_clip, texture
from vs3r.metrics import evaluate

COST = Cost(wall_s=4.0, cpu_s=6.0, peak_mib=100.0)


def test_cost_is_the_commands_own() -> None:
    """This process is far larger than the command, and must not be counted with it."""
    ballast = np.ones(40_000_000)
    cost = run([sys.executable, "-I", "-S", "-c", "sum(range(3_000_000))"])
    assert cost.cpu_s > 0 and cost.wall_s > 0
    assert 1 < cost.peak_mib < 60 < ballast.nbytes / 2**20


def test_memory_of_the_command_is_seen() -> None:
    assert run([sys.executable, "-I", "-S", "-c", "x = bytearray(150 << 20)"]).peak_mib > 150


def test_failures_say_why() -> None:
    with pytest.raises(CommandFailed, match="code 3: the reason"):
        run([sys.executable, "-c", "import sys; print('first'); sys.exit(print('the reason') or 3)"])
    with pytest.raises(CommandFailed, match="not found"):
        run(["no-such-command-anywhere"])


def test_costs_combine() -> None:
    second = Cost(wall_s=1.0, cpu_s=2.0, peak_mib=300.0)
    assert COST.then(second) == Cost(wall_s=5.0, cpu_s=8.0, peak_mib=300.0)
    assert median_cost([COST, second, COST]) == Cost(wall_s=4.0, cpu_s=6.0, peak_mib=300.0)
    assert median_cost([COST, second]) == Cost(wall_s=2.5, cpu_s=4.0, peak_mib=300.0)


@pytest.fixture(scope="module")
def known() -> tuple[reference.Reference, list[np.ndarray]]:
    shaky = shaken_clip(texture(), shake(6, 4.0, 0.5))
    theirs = evaluate(zip(shaky, shaken_clip(texture(), shake(6, 1.0, 0.125)), strict=True))
    found = reference.Reference(
        source=theirs.source,
        vidstab=theirs.output,
        vidstab_cropping=theirs.cropping,
        vidstab_sharpness=0.5,
        bicubic_sharpness=0.8,
        vidstab_cost=COST,
    )
    return found, shaky


def test_row_compares_with_both(known: tuple[reference.Reference, list[np.ndarray]]) -> None:
    """Ours has a tenth of the shake, vid.stab a quarter, all on the same random path."""
    yardstick, shaky = known
    ours = evaluate(zip(shaky, shaken_clip(texture(), shake(6, 0.4, 0.05)), strict=True), source=yardstick.source)
    row = stabilize.fill_row("clip.mp4", yardstick, ours, Cost(wall_s=6.0, cpu_s=9.0, peak_mib=800.0))
    assert row.ours_over_in_px == pytest.approx(0.1, abs=0.005)
    assert row.ours_over_vidstab_px == pytest.approx(0.4, abs=0.02)
    assert row.vidstab_over_in_px == pytest.approx(0.25, abs=0.01)
    assert (row.time_ratio, row.peak_mib_ours, row.wall_s_vidstab) == (1.5, 800.0, 4.0)
    assert "ours/vid.stab 0.4" in row.line()


def test_failed_clip_keeps_what_is_known(known: tuple[reference.Reference, list[np.ndarray]], tmp_path: Path) -> None:
    row = stabilize.fill_row("clip.mp4", known[0], None, None, error="it broke")
    assert row.jitter_in_px is not None and row.jitter_ours_px is None
    assert "FAILED: it broke" in row.line()
    write_csv([row, Row(clip="other.mp4")], tmp_path / "t.csv")
    with (tmp_path / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["jitter_in_px"]) == row.jitter_in_px
    assert rows[1]["jitter_in_px"] == ""


def test_clips_are_found_by_name(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.MOV", "notes.txt", "c.avi"):
        (tmp_path / name).touch()
    assert [p.name for p in stabilize.find_clips(tmp_path, [])] == ["a.MOV", "b.mp4", "c.avi"]
    assert [p.name for p in stabilize.find_clips(tmp_path, ["b.", "c"])] == ["b.mp4", "c.avi"]


def test_sheet_frames() -> None:
    assert contact_sheet.pick_frames(101, 5, [], 0) == [0, 25, 50, 75, 100]
    assert contact_sheet.pick_frames(3, 10, [], 0) == [0, 1, 2]
    assert contact_sheet.pick_frames(50, 5, [0, 20], 1) == [0, 1, 19, 20, 21]


def test_sheets(tmp_path: Path) -> None:
    clip = [np.full((48, 64, 3), 20 * n, np.uint8) for n in range(6)]
    path, out = write(tmp_path / "clip.mkv", clip), tmp_path / "sheet.png"
    arguments = [str(path), str(path), "--labels", "a", "b", "--out", str(out)]
    assert contact_sheet.main([*arguments, "--frames", "2", "--width", "64"]) == 0
    sheet = cv2.imread(str(out))
    assert sheet is not None
    assert sheet.shape[1] == 2 * (64 + 4)
    assert [int(sheet[y, 30, 0]) for y in (22 + 24, 2 * 22 + 48 + 4 + 24)] == pytest.approx([0, 100], abs=3)
    assert contact_sheet.main([*arguments, "--slices"]) == 0
    sliced = cv2.imread(str(out))
    assert sliced is not None
    assert [int(sliced[22 + 20, x, 0]) for x in range(6)] == pytest.approx([0, 20, 40, 60, 80, 100], abs=3)
    assert contact_sheet.main([str(tmp_path / "missing.mp4"), "--out", str(out)]) == 1

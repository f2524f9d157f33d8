"""The benchmark's rows as CSV and Markdown."""

from __future__ import annotations

import csv
import dataclasses
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean

from benchmarks.process import Cost
from benchmarks.reference import DETECT, ENCODE, TRANSFORM, ffmpeg_version
from vs3r.metrics import Jitter

Number = float | None


@dataclass(slots=True, kw_only=True)
class Row:
    """One clip. Jitter is the RMS second difference of the global motion: px at a long side of 1280, and degrees.

    A number is None where it was not or could not be measured.
    """

    clip: str
    error: str = ""
    frames: int | None = None
    jitter_in_px: Number = None
    jitter_in_deg: Number = None
    jitter_ours_px: Number = None
    jitter_ours_deg: Number = None
    jitter_vidstab_px: Number = None
    jitter_vidstab_deg: Number = None
    ours_over_in_px: Number = None
    ours_over_in_deg: Number = None
    vidstab_over_in_px: Number = None
    vidstab_over_in_deg: Number = None
    ours_over_vidstab_px: Number = None
    ours_over_vidstab_deg: Number = None
    stability_in: Number = None
    stability_ours: Number = None
    stability_vidstab: Number = None
    cropping_ours: Number = None
    cropping_vidstab: Number = None
    valid_in_min: Number = None
    valid_ours_min: Number = None
    valid_vidstab_min: Number = None
    ese_in: Number = None
    ese_ours: Number = None
    ese_vidstab: Number = None
    we_in: Number = None
    we_ours: Number = None
    we_vidstab: Number = None
    shear_in: Number = None
    shear_ours: Number = None
    shear_vidstab: Number = None
    stretch_in: Number = None
    stretch_ours: Number = None
    stretch_vidstab: Number = None
    readout_ms: Number = None
    sharpness_ours: Number = None
    sharpness_vidstab: Number = None
    sharpness_bicubic: Number = None
    wall_s_ours: Number = None
    wall_s_vidstab: Number = None
    time_ratio: Number = None
    cpu_s_ours: Number = None
    cpu_s_vidstab: Number = None
    peak_mib_ours: Number = None
    peak_mib_vidstab: Number = None

    def set_jitter(self, prefix: str, value: Jitter | None) -> None:
        """Set PREFIX_px and PREFIX_deg."""
        if value is not None:
            setattr(self, f"{prefix}_px", value.px)
            setattr(self, f"{prefix}_deg", value.deg)

    def set_cost(self, suffix: str, cost: Cost) -> None:
        """Set wall_s_SUFFIX, cpu_s_SUFFIX and peak_mib_SUFFIX."""
        for name in ("wall_s", "cpu_s", "peak_mib"):
            setattr(self, f"{name}_{suffix}", getattr(cost, name))

    def line(self) -> str:
        """A line for the terminal."""
        text = f"{self.clip}: jitter px in {_show(self.jitter_in_px)}, vid.stab {_show(self.jitter_vidstab_px)}"
        if self.jitter_ours_px is not None:
            text += f", ours {_show(self.jitter_ours_px)}, ours/vid.stab {_show(self.ours_over_vidstab_px)}"
        return text + (f"; FAILED: {self.error}" if self.error else "")


# Heading, and the fields of Row whose values stand in the cell, divided by " / ".
_QUALITY = (
    ("jitter px: in / ours / vid.stab", ("jitter_in_px", "jitter_ours_px", "jitter_vidstab_px")),
    ("ours/vid.stab px, deg", ("ours_over_vidstab_px", "ours_over_vidstab_deg")),
    ("jitter deg: in / ours / vid.stab", ("jitter_in_deg", "jitter_ours_deg", "jitter_vidstab_deg")),
    ("Stability: in / ours / vid.stab", ("stability_in", "stability_ours", "stability_vidstab")),
    ("Cropping: ours / vid.stab", ("cropping_ours", "cropping_vidstab")),
    ("worst valid: in / ours / vid.stab", ("valid_in_min", "valid_ours_min", "valid_vidstab_min")),
    ("sharpness: ours / vid.stab / bicubic", ("sharpness_ours", "sharpness_vidstab", "sharpness_bicubic")),
)
_ROLLING = (
    ("read-out found, ms", ("readout_ms",)),
    ("shear: in / ours / vid.stab", ("shear_in", "shear_ours", "shear_vidstab")),
    ("stretch: in / ours / vid.stab", ("stretch_in", "stretch_ours", "stretch_vidstab")),
)
_PAPER_AND_COST = (
    ("frames", ("frames",)),
    ("ESE px²: in / ours / vid.stab", ("ese_in", "ese_ours", "ese_vidstab")),
    ("WE: in / ours / vid.stab", ("we_in", "we_ours", "we_vidstab")),
    ("seconds: ours / vid.stab", ("wall_s_ours", "wall_s_vidstab")),
    ("time ratio", ("time_ratio",)),
    ("CPU s: ours / vid.stab", ("cpu_s_ours", "cpu_s_vidstab")),
    ("peak MiB: ours / vid.stab", ("peak_mib_ours", "peak_mib_vidstab")),
)


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """All fields of all rows, full precision."""
    names = [spec.name for spec in dataclasses.fields(Row)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)


def write_markdown(rows: Sequence[Row], path: Path, *, command: str) -> None:
    """The tables, under a header that says on what and how they were made."""
    parts = [
        "# Stabilization benchmark\n",
        f"    {command}\n",
        f"- machine: {_cpu_model()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        f"- versions: {_versions()}; {ffmpeg_version()}",
        f"- vid.stab: `{DETECT}`, then `{TRANSFORM}`, `{' '.join(ENCODE)}`",
        "- jitter: RMS second difference of the global motion, px at a long side of 1280 and degrees, lower is better; "
        "sharpness: variance of the Laplacian over the source's; valid: worst frame's share that is not black border "
        "(estimated from the pictures)\n",
        *_table(rows, _QUALITY),
        "",
        "Shear and stretch: slopes against the source's acceleration, see benchmarks/wobble.py.\n",
        *_table(rows, _ROLLING),
        "",
        *_table(rows, _PAPER_AND_COST),
        "",
        *_verdict(rows),
        *(f"- FAILED {row.clip}: {row.error}" for row in rows if row.error),
    ]
    path.write_text("\n".join(parts) + "\n")


def _table(rows: Sequence[Row], columns: Sequence[tuple[str, tuple[str, ...]]]) -> list[str]:
    lines = ["| clip | " + " | ".join(heading for heading, _ in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        cells = [" / ".join(_show(getattr(row, name)) for name in names) for _, names in columns]
        lines.append(f"| {row.clip}{' (failed)' if row.error else ''} | " + " | ".join(cells) + " |")
    return lines


def _verdict(rows: Sequence[Row]) -> list[str]:
    """Means and worst values over the clips that were measured."""
    lines = []
    specs: tuple[tuple[str, str, Callable[[list[float]], float], str], ...] = (
        ("ours/vid.stab jitter px", "ours_over_vidstab_px", max, "worst"),
        ("ours/vid.stab jitter deg", "ours_over_vidstab_deg", max, "worst"),
        ("Stability ours", "stability_ours", mean, "mean"),
        ("Stability vid.stab", "stability_vidstab", mean, "mean"),
        ("Cropping ours", "cropping_ours", mean, "mean"),
        ("valid ours", "valid_ours_min", min, "worst"),
        ("time ratio", "time_ratio", max, "worst"),
        ("peak MiB ours", "peak_mib_ours", max, "worst"),
    )
    for title, name, reduce, word in specs:
        values = [value for row in rows if (value := getattr(row, name)) is not None]
        if values:
            lines.append(f"- {title}: {word} {_show(reduce(values))} over {len(values)} clips")
    return lines


def _show(value: float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor")


def _versions() -> str:
    names = ("vs3r", "torch", "numpy", "opencv-python-headless", "av")
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} (not installed)")
    return ", ".join([f"Python {platform.python_version()}", *found])

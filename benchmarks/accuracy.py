"""How near to the truth: rendered shots with known camera, depth and moving people.

    python -m benchmarks.accuracy --out RESULTS                  # every shot
    python -m benchmarks.accuracy --out RESULTS walking crowd    # only these
    python -m benchmarks.accuracy --out RESULTS --no-video       # reconstruction only, no stabilized videos

Each shot is rendered, encoded and read back as a user's clip would be. Reconstruction runs with the focal length given
and estimated and is held against the camera that rendered the shot. Then `vs3r stabilize` and two-pass ffmpeg vid.stab
stabilize the clip, and both are held against the true stable view: what the camera would have seen without its shake.
They also stabilize that view itself. Where a tool makes another path of it, that is its choice and not shake: what is
left of the shake is what its two videos differ in.

Writes RESULTS/accuracy.md and RESULTS/accuracy.csv. Exit code 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.demo_scene import write_clip
from benchmarks.process import CommandFailed, run
from benchmarks.reference import DETECT, ENCODE, TRANSFORM
from benchmarks.truth import FastMotion, fast_motion, reconstruction_errors
from tests.scenes import HFOV_DEG, SHOTS, footage, shot
from vs3r.config import Config, ReconstructConfig
from vs3r.engine.media.reader import VideoReader
from vs3r.engine.pictures import read_pictures
from vs3r.reconstruct import make_reconstructor
from vs3r.types import FrameGeometry

NAMES = tuple(name for name in SHOTS if name != "street")
ROTATION_BARS = {"rotation": (0.05, 0.1), "walking": (0.05, 0.1), "running": (0.05, 0.1), "crowd": (0.15, 0.15)}
"""Largest RMS error of the rotation between frames in degrees: focal length given, estimated."""
SHAKE_BAR = 0.5
"""Largest shake left, as a share of what vid.stab leaves."""
IOU_BAR = 0.6
STILL_BAR_PX = 0.05
_CRF = 12


@dataclass(slots=True, kw_only=True)
class Row:
    """One shot. None where a number makes no sense or was not measured."""

    shot: str
    rotation_given_deg: float | None = None
    """RMS error of the rotation between consecutive frames, true focal length given."""
    rotation_estimated_deg: float | None = None
    """The same with the focal length estimated."""
    focal_error: float | None = None
    """Median relative error of the estimated focal length."""
    translation_deg: float | None = None
    """Median angle between true and found direction of travel over 5 frames, focal length given."""
    depth_error: float | None = None
    """Median relative error of the depth after one scale for the shot, focal length given."""
    iou: float | None = None
    """Moving people: true and found pixels in common, over their union; focal length estimated."""
    input_px: float | None = None
    """Shake of the clip itself: RMS of the fast motion against the true stable view."""
    ours_px: float | None = None
    """Shake that we leave: the fast motion that our video of the clip has and that of the true stable view has not."""
    vidstab_px: float | None = None
    """Shake that vid.stab leaves."""
    ours_view_px: float | None = None
    """All fast motion of our video against the true stable view, a path of our own choice included."""
    vidstab_view_px: float | None = None
    """The same of vid.stab's."""
    input_roll_deg: float | None = None
    """The rolling part of the clip's shake."""
    ours_roll_deg: float | None = None
    """The rolling part of what we leave."""
    vidstab_roll_deg: float | None = None
    """The rolling part of what vid.stab leaves."""
    missed: str = ""
    """Which bars were missed."""


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="SHOT", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--out", type=Path, required=True, help="folder for results and clips")
    parser.add_argument("--vs3r", default="vs3r stabilize", help="our command; IN and OUT are appended")
    parser.add_argument("--no-video", action="store_true", help="measure only the reconstruction")
    options = parser.parse_args(arguments)
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"no shot named {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    options.out.mkdir(parents=True, exist_ok=True)
    # The matrices are small: threads of their own would cost more than they gain.
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    rows = []
    for name in options.names or NAMES:
        rows.append(measure(name, options.out, command=None if options.no_video else shlex.split(options.vs3r)))
        print(_line(rows[-1]), flush=True)
    invocation = shlex.join(
        ["python", "-m", "benchmarks.accuracy", *(sys.argv[1:] if arguments is None else arguments)]
    )
    _write(rows, options.out, invocation)
    return int(any(row.missed for row in rows))


def measure(name: str, folder: Path, *, command: Sequence[str] | None) -> Row:
    """All numbers of one shot; without a command only the reconstruction's."""
    row, taken, truth = Row(shot=name), shot(name), footage(name)
    clip = folder / f"{name}.mp4"
    write_clip(clip, truth.rgb, taken.fps, crf=_CRF)
    estimated = reconstruction_errors(reconstruct(clip, hfov_deg=None), taken, truth)
    row.rotation_estimated_deg = estimated.rotation_deg
    row.focal_error, row.iou = estimated.focal, estimated.iou
    if np.ptp(taken.K[:, 0, 0]) == 0:  # one field of view can be given only where there is no zoom
        given = reconstruction_errors(reconstruct(clip, hfov_deg=HFOV_DEG), taken, truth)
        row.rotation_given_deg = given.rotation_deg
        row.translation_deg, row.depth_error = given.translation_deg, given.depth
    failure = []
    if command is not None:
        try:
            _measure_video(row, clip, command)
        except CommandFailed as error:
            failure = [str(error)]
    row.missed = "; ".join(failure + missed_bars(row))
    return row


def reconstruct(clip: Path, *, hfov_deg: float | None) -> list[FrameGeometry]:
    """The geometry of every frame of a clip."""
    config = Config(reconstruct=ReconstructConfig(hfov_deg=hfov_deg))
    with VideoReader(clip) as reader:
        reconstructor = make_reconstructor(config, reader.info.format)
        found = [geometry for frame in reader for geometry in reconstructor.push(reconstructor.observe(frame))]
    return found + reconstructor.flush()


def _measure_video(row: Row, clip: Path, command: Sequence[str]) -> None:
    stable, fps = footage(row.shot, stable=True), shot(row.shot).fps
    steady = clip.with_suffix(".steady.mp4")
    write_clip(steady, stable.rgb, fps, crf=_CRF)

    def motion(video: Path) -> FastMotion:
        pictures = (
            np.asarray(cv2.cvtColor(timed.picture, cv2.COLOR_BGR2GRAY), np.uint8) for timed in read_pictures(video)
        )
        return fast_motion(stable, pictures, fps=float(fps))

    row.input_px, row.input_roll_deg = (found := motion(clip)).px, found.roll_deg
    ours, theirs = (motion(video) for video in _stabilized(clip, command))
    row.ours_view_px, row.vidstab_view_px = ours.px, theirs.px
    ours_of_steady, theirs_of_steady = (motion(video) for video in _stabilized(steady, command))
    row.ours_px, row.ours_roll_deg = (left := ours - ours_of_steady).px, left.roll_deg
    row.vidstab_px, row.vidstab_roll_deg = (left := theirs - theirs_of_steady).px, left.roll_deg


def _stabilized(clip: Path, command: Sequence[str]) -> tuple[Path, Path]:
    """Our video of a clip, and vid.stab's."""
    ours, theirs = clip.with_suffix(".vs3r.mp4"), clip.with_suffix(".vidstab.mp4")
    ours.unlink(missing_ok=True)
    run([*command, str(clip), str(ours)])
    read = ("ffmpeg", "-v", "error", "-nostdin", "-y", "-i", clip.name)
    run([*read, "-vf", DETECT, "-f", "null", "-"], cwd=clip.parent)
    run([*read, "-vf", TRANSFORM, *ENCODE, theirs.name], cwd=clip.parent)
    return ours, theirs


def missed_bars(row: Row) -> list[str]:
    """What is not as good as it must be, in words."""
    out = []
    given_bar, estimated_bar = ROTATION_BARS.get(row.shot, (None, None))
    for label, value, bar in (
        ("rotation, focal given", row.rotation_given_deg, given_bar),
        ("rotation, focal estimated", row.rotation_estimated_deg, estimated_bar),
    ):
        if bar is not None and value is not None and not value <= bar:
            out.append(f"{label}: {value:.3f} > {bar} deg")
    if row.shot == "crowd" and row.iou is not None and not row.iou >= IOU_BAR:
        out.append(f"IoU: {row.iou:.2f} < {IOU_BAR}")
    if row.ours_px is None or row.vidstab_px is None or row.input_px is None or row.ours_view_px is None:
        return out
    if row.shot in ("still", "tripod"):
        if not row.ours_view_px - row.input_px < STILL_BAR_PX:
            out.append(f"jitter added: {row.ours_view_px - row.input_px:.3f} px >= {STILL_BAR_PX}")
    elif not row.ours_px <= SHAKE_BAR * row.vidstab_px:
        out.append(f"shake left: {row.ours_px / row.vidstab_px:.2f} of vid.stab's > {SHAKE_BAR}")
    return out


_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("shot", lambda row: row.shot),
    (
        "rotation given / estimated, deg",
        lambda row: f"{_n(row.rotation_given_deg, 3)} / {_n(row.rotation_estimated_deg, 3)}",
    ),
    ("focal error", lambda row: _n(row.focal_error, 3)),
    ("travel, deg", lambda row: _n(row.translation_deg, 1)),
    ("depth error", lambda row: _n(row.depth_error, 3)),
    ("IoU", lambda row: _n(row.iou, 2)),
    ("shake in / ours / vid.stab, px", lambda row: f"{_n(row.input_px)} / {_n(row.ours_px)} / {_n(row.vidstab_px)}"),
    (
        "roll in / ours / vid.stab, deg",
        lambda row: f"{_n(row.input_roll_deg)} / {_n(row.ours_roll_deg)} / {_n(row.vidstab_roll_deg)}",
    ),
    ("ours / vid.stab", lambda row: _n(row.ours_px / row.vidstab_px) if row.ours_px and row.vidstab_px else "-"),
    ("all against the true view, px", lambda row: f"{_n(row.ours_view_px)} / {_n(row.vidstab_view_px)}"),
    ("missed", lambda row: row.missed or "-"),
)


def _n(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _line(row: Row) -> str:
    return "  ".join(f"{title}: {cell(row)}" if title != "shot" else cell(row) for title, cell in _COLUMNS)


def _write(rows: Sequence[Row], folder: Path, invocation: str) -> None:
    with (folder / "accuracy.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [part.name for part in dataclasses.fields(Row)])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)
    lines = [
        f"`{invocation}`",
        "",
        "| " + " | ".join(title for title, _ in _COLUMNS) + " |",
        "|---" * len(_COLUMNS) + "|",
    ]
    lines += ["| " + " | ".join(cell(row) for _, cell in _COLUMNS) + " |" for row in rows]
    (folder / "accuracy.md").write_text("\n".join(lines) + "\n")
    print(f"wrote {folder / 'accuracy.md'}")


if __name__ == "__main__":
    sys.exit(main())

"""How good and how fast: `vs3r stabilize` and two-pass ffmpeg vid.stab on a folder of clips, one after the other.

    python -m benchmarks.stabilize CLIPS --out RESULTS              # every clip, every number
    python -m benchmarks.stabilize CLIPS crowd --out RESULTS --quick  # *crowd*, no Stability, ESE, WE

Writes RESULTS/stabilize.csv, RESULTS/stabilize.md and, per clip, the stabilized videos. What concerns the clip and
vid.stab is kept in RESULTS/cache and recalled while clip, settings and the code of the metrics stay the same; --fresh
does it again. Publish times only from a --fresh run on an idle machine. Exit code 1 when a clip failed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from contextlib import suppress
from pathlib import Path

from benchmarks.process import CommandFailed, Cost, median_cost, run
from benchmarks.reference import Reference, cache_folder, reference
from benchmarks.table import Row, write_csv, write_markdown
from benchmarks.wobble import frame_motions, wobble
from vs3r.engine.evaluate import evaluate_files
from vs3r.errors import Vs3rError
from vs3r.metrics import Evaluation, jitter_ratio

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm")


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, help="folder of video files")
    parser.add_argument("names", nargs="*", help="only clips whose name holds one of these")
    parser.add_argument("--out", type=Path, required=True, help="folder for results and cache")
    parser.add_argument("--vs3r", default="vs3r stabilize --json", help="our command; IN and OUT are appended")
    parser.add_argument("--repeat", type=int, default=1, help="runs per timing, the median counts")
    parser.add_argument("--quick", action="store_true", help="leave out Stability, ESE and WE")
    parser.add_argument("--fresh", action="store_true", help="do not use the cache")
    parser.add_argument("--reference-only", action="store_true", help="measure only the clips and vid.stab")
    options = parser.parse_args(arguments)

    clips = find_clips(options.clips, options.names)
    if not clips:
        parser.error(f"no video in {options.clips} with a name like {' or '.join(options.names) or '*'}")
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for clip in clips:
        rows.append(benchmark_clip(clip, options))
        print(rows[-1].line(), flush=True)
        write_csv(rows, options.out / "stabilize.csv")
    command = shlex.join(["python", "-m", "benchmarks.stabilize", *(sys.argv[1:] if arguments is None else arguments)])
    write_markdown(rows, options.out / "stabilize.md", command=command)
    print(f"wrote {options.out / 'stabilize.md'}")
    return int(any(row.error for row in rows))


def find_clips(folder: Path, names: list[str]) -> list[Path]:
    """Video files of a folder in name order, only those whose name holds one of `names` if there are any."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    return [path for path in found if not names or any(name in path.name for name in names)]


def benchmark_clip(clip: Path, options: argparse.Namespace) -> Row:
    """One row of the table. A failure becomes the row's error; what was measured before it stays."""
    known: Reference | None = None
    try:
        folder = cache_folder(options.out / "cache", clip)
        known = reference(clip, folder, quick=options.quick, repeat=options.repeat, fresh=options.fresh)
        if options.reference_only:
            return fill_row(clip.name, known, None, None)
        output = options.out / f"{clip.stem}.vs3r.mp4"
        costs = []
        for _ in range(options.repeat):
            output.unlink(missing_ok=True)
            costs.append(run([*shlex.split(options.vs3r), str(clip), str(output)]))
        cost = median_cost(costs)
        ours = evaluate_files(clip, output, quick=options.quick, source=known.source)
        row = fill_row(clip.name, known, ours, cost)
        fill_wobble(row, clip, output, folder / "vidstab.mp4")
        return row
    except (CommandFailed, Vs3rError) as error:
        return fill_row(clip.name, known, None, None, error=str(error))


def fill_row(name: str, known: Reference | None, ours: Evaluation | None, cost: Cost | None, *, error: str = "") -> Row:
    """Put a clip's numbers into a row."""
    row = Row(clip=name, error=error)
    if known is not None:
        source, theirs = known.source, known.vidstab
        row.frames = source.frames
        row.set_jitter("jitter_in", source.jitter)
        row.set_jitter("jitter_vidstab", theirs.jitter)
        row.set_jitter("vidstab_over_in", jitter_ratio(theirs.change, source.change))
        row.stability_in, row.stability_vidstab = source.stability, theirs.stability
        row.ese_in, row.ese_vidstab = source.epipolar_error_px2, theirs.epipolar_error_px2
        row.we_in, row.we_vidstab = source.warp_error, theirs.warp_error
        row.cropping_vidstab = known.vidstab_cropping
        row.valid_in_min, row.valid_vidstab_min = source.valid_share_min, theirs.valid_share_min
        row.sharpness_vidstab, row.sharpness_bicubic = known.vidstab_sharpness, known.bicubic_sharpness
        row.set_cost("vidstab", known.vidstab_cost)
    if known is not None and ours is not None and cost is not None:
        row.set_jitter("jitter_ours", ours.output.jitter)
        row.set_jitter("ours_over_in", ours.jitter_ratio)
        row.set_jitter("ours_over_vidstab", jitter_ratio(ours.output.change, known.vidstab.change))
        row.stability_ours = ours.output.stability
        row.ese_ours, row.we_ours = ours.output.epipolar_error_px2, ours.output.warp_error
        row.cropping_ours, row.valid_ours_min = ours.cropping, ours.valid_share_min
        row.sharpness_ours = ours.sharpness_ratio
        row.set_cost("ours", cost)
        with suppress(json.JSONDecodeError, KeyError):
            row.readout_ms = 1000 * json.loads(cost.said)["readout_s"]
        row.time_ratio = cost.wall_s / known.vidstab_cost.wall_s
    return row


def fill_wobble(row: Row, clip: Path, ours: Path, theirs: Path) -> None:
    """Put what a rolling shutter does to the clip, and what is left of it, into a row."""
    source = frame_motions(clip)
    row.shear_in, row.stretch_in = wobble(source, source)
    row.shear_ours, row.stretch_ours = wobble(frame_motions(ours), source)
    motions = frame_motions(theirs)
    if len(motions) == len(source):  # frames that ffmpeg cannot decode are missing
        row.shear_vidstab, row.stretch_vidstab = wobble(motions, source)


if __name__ == "__main__":
    sys.exit(main())

"""The yardstick of one clip: measurements of the clip and of what ffmpeg's vid.stab makes of it, in a cache.

vid.stab runs in two passes at its best detection settings, with no zoom and black borders, in the same codec and at the
same quality as ours. Audio is left out, so it pays for the picture only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import itertools
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import vs3r.metrics.evaluate
import vs3r.metrics.features
import vs3r.metrics.motion
import vs3r.metrics.picture
from benchmarks.process import Cost, median_cost, run
from vs3r.engine.evaluate import evaluate_files, measure_file, pair_by_number
from vs3r.metrics import ClipMetrics, Jitter, sharpness_ratio

DETECT = "vidstabdetect=shakiness=10:accuracy=15:result=transforms.trf"
TRANSFORM = "vidstabtransform=input=transforms.trf:smoothing=30:optzoom=0:crop=black"
# ffmpeg would repeat and drop frames of clips whose frame rate changes, and a repeated frame looks steady.
FRAMES = ("-fps_mode", "passthrough")
ENCODE = (*FRAMES, "-c:v", "libx264", "-crf", "18", "-preset", "medium")
_SHARPNESS_STEP = 10
_METRIC_MODULES = (vs3r.metrics.evaluate, vs3r.metrics.features, vs3r.metrics.motion, vs3r.metrics.picture)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """What our result of a clip is held against."""

    source: ClipMetrics
    """The clip itself."""
    vidstab: ClipMetrics
    """vid.stab's output."""
    vidstab_cropping: float | None
    """The paper's Cropping of vid.stab's output."""
    vidstab_sharpness: float | None
    """Sharpness ratio of vid.stab's output (its default, bilinear interpolation)."""
    bicubic_sharpness: float | None
    """Sharpness ratio with interpol=bicubic, from every 10th picture."""
    vidstab_cost: Cost
    """Both passes together."""


def reference(clip: Path, folder: Path, *, quick: bool, repeat: int, fresh: bool) -> Reference:
    """Make or recall the reference of a clip.

    Args:
        folder: the clip's cache folder; holds the videos and one JSON file per state of the metrics' code.
        quick: leave out the paper's Stability, ESE and WE.
        repeat: how often vid.stab runs for its time.
        fresh: do everything again.
    Raises:
        CommandFailed: ffmpeg failed.
        MediaError: a video cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cost = _vidstab(clip, folder, repeat=repeat, fresh=fresh)
    saved = folder / f"metrics-{_metrics_code()}{'-quick' if quick else ''}.json"
    if saved.exists() and not fresh:
        return _load(saved, cost)
    source = measure_file(clip, quick=quick)
    bilinear = evaluate_files(clip, folder / "vidstab.mp4", quick=quick, source=source)
    pairs = ((a.picture, b.picture) for a, b in pair_by_number(clip, folder / "bicubic.mp4"))
    found = Reference(
        source=source,
        vidstab=bilinear.output,
        vidstab_cropping=bilinear.cropping,
        vidstab_sharpness=bilinear.sharpness_ratio,
        bicubic_sharpness=sharpness_ratio(itertools.islice(pairs, 0, None, _SHARPNESS_STEP)),
        vidstab_cost=cost,
    )
    saved.write_text(json.dumps(dataclasses.asdict(found), default=np.ndarray.tolist))
    return found


def cache_folder(root: Path, clip: Path) -> Path:
    """Where the reference of a clip lies: named by its content and by all that decides about the videos."""
    digest = hashlib.sha256(clip.read_bytes())
    digest.update(repr((DETECT, TRANSFORM, ENCODE, ffmpeg_version())).encode())
    return root / f"{clip.stem}-{digest.hexdigest()[:12]}"


def ffmpeg_version() -> str:
    """First line of `ffmpeg -version`."""
    done = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0].split(" Copyright")[0]


def _vidstab(clip: Path, folder: Path, *, repeat: int, fresh: bool) -> Cost:
    times = folder / "cost.json"
    if times.exists() and not fresh:
        return Cost(**json.loads(times.read_text()))
    read = ("ffmpeg", "-v", "error", "-nostdin", "-y", "-i", str(clip.resolve()), "-map", "0:v:0")
    detect = (*read, "-vf", DETECT, *FRAMES, "-f", "null", "-")
    transform = (*read, "-vf", TRANSFORM, *ENCODE, "vidstab.mp4")
    bicubic = (*read, "-vf", f"{TRANSFORM}:interpol=bicubic", *ENCODE, "bicubic.mp4")
    cost = median_cost([run(detect, cwd=folder).then(run(transform, cwd=folder)) for _ in range(repeat)])
    run(bicubic, cwd=folder)
    times.write_text(json.dumps(dataclasses.asdict(cost)))
    return cost


def _metrics_code() -> str:
    """Changes with the code of the metrics, so that a stale number is never shown."""
    code = "".join(inspect.getsource(module) for module in _METRIC_MODULES)
    return hashlib.sha256(code.encode()).hexdigest()[:12]


def _load(path: Path, cost: Cost) -> Reference:
    raw: dict[str, Any] = json.loads(path.read_text())
    raw |= {"source": _clip(raw["source"]), "vidstab": _clip(raw["vidstab"]), "vidstab_cost": cost}
    return Reference(**raw)


def _clip(raw: dict[str, Any]) -> ClipMetrics:
    shake = Jitter(**raw["jitter"]) if raw["jitter"] is not None else None
    path = {name: np.array(raw[name], dtype=np.float64).reshape(-1, 3) for name in ("motion", "change")}
    return ClipMetrics(**{**raw, "jitter": shake, **path})

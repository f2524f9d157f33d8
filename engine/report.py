"""Measurements as text and pictures, for the command line."""

from __future__ import annotations

import importlib.util

import numpy as np

from vs3r.engine.media import probe
from vs3r.errors import BackendError
from vs3r.metrics import Evaluation

# Key of Evaluation.summary (source_... and output_... where it has both), what it is, format.
_BOTH = (
    ("jitter_px", "residual jitter, px at 720p", ".3f"),
    ("jitter_deg", "residual jitter, degrees of roll", ".4f"),
    ("stability", "stability (higher is better)", ".3f"),
    ("epipolar_error_px2", "epipolar error ESE, px^2", ".3f"),
    ("warp_error", "warp error WE", ".3f"),
)
_OUTPUT = (
    ("jitter_ratio_px", "jitter ratio (px)", ".3f"),
    ("cropping", "cropping (1 is none)", ".4f"),
    ("valid_share", "share of valid pixels", ".4f"),
    ("valid_share_min", "the same, worst frame", ".4f"),
    ("sharpness_ratio", "sharpness ratio", ".3f"),
    ("lpips", "LPIPS (lower is better)", ".4f"),
)


def evaluation_table(evaluation: Evaluation) -> str:
    """The numbers of an evaluation as a table of plain text."""
    row = evaluation.summary()

    def cell(key: str, form: str) -> str:
        value = row.get(key)
        return "-" if value is None else format(value, form)

    lines = [f"{evaluation.frames} frames{'':<29}{'source':>10}{'output':>10}"]
    for key, name, form in _BOTH:
        lines.append(f"{name:<40}{cell(f'source_{key}', form):>10}{cell(f'output_{key}', form):>10}")
    lines += [f"{name:<40}{'':>10}{cell(key, form):>10}" for key, name, form in _OUTPUT]
    return "\n".join(lines)


def check_plotting() -> None:
    """Raise BackendError where plot_motion cannot work, to be asked before a long run."""
    if importlib.util.find_spec("matplotlib") is None:
        raise BackendError("drawing the path needs matplotlib; install it with: pip install matplotlib")


def plot_motion(source: str, evaluation: Evaluation, path: str) -> None:
    """Draw the measured camera path of both clips over the source's mean frame rate.

    Raises:
        BackendError: matplotlib is not installed.
        OutputError: the picture cannot be written.
    """
    from vs3r.engine.path_plot import path_from_motion, plot_path

    before, after = path_from_motion(evaluation.source.motion), path_from_motion(evaluation.output.motion)
    count = min(len(before), len(after))
    rate = probe(source).average_rate or 1
    plot_path(np.arange(count) / float(rate), before[:count], after[:count], path)

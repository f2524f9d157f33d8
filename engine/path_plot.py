"""A plot of the camera path before and after: `vs3r evaluate --plot`, `make demo`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from vs3r.errors import BackendError, OutputError, ShapeError
from vs3r.types import DoubleArray

_ROWS = ("across (px)", "down (px)", "roll (degrees)")


def plot_path(
    pts_s: DoubleArray, before: DoubleArray, after: DoubleArray, out_png: str | Path, *, title: str = "camera path"
) -> None:
    """Draw three curves over time, the path before and after stabilization.

    Args:
        pts_s: (T,) presentation times in seconds.
        before: (T, 3) across and down in pixels, roll in degrees; NaN leaves a gap.
        after: (T, 3) likewise.
        out_png: file to write.
    Raises:
        ShapeError: the arrays do not fit each other.
        BackendError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    if pts_s.ndim != 1 or before.shape != (len(pts_s), 3) or after.shape != before.shape:
        raise ShapeError(
            f"expected times (T,) and two paths (T, 3); got {pts_s.shape}, {before.shape} and {after.shape}"
        )
    try:
        # The figure's own canvas draws without a window and without touching pyplot's global state.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise BackendError("plotting the path needs matplotlib; install it with: pip install matplotlib") from None
    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(_ROWS), 1, sharex=True)
    for panel, name, shaky, steady in zip(panels, _ROWS, before.T, after.T, strict=True):
        panel.plot(pts_s, shaky, color="tab:red", linewidth=1, label="before")
        panel.plot(pts_s, steady, color="tab:blue", linewidth=1.5, label="after")
        panel.set_ylabel(name)
        panel.grid(alpha=0.3)
    panels[0].set_title(title)
    panels[0].legend(loc="upper right")
    panels[-1].set_xlabel("time (s)")
    try:
        figure.savefig(out_png, format="png")
    except OSError as error:
        raise OutputError(f"{out_png}: expected a writable file; {error.strerror or error}") from None


def path_from_motion(motion: npt.NDArray[np.float64]) -> DoubleArray:
    """Add up frame-to-frame steps to a path, as plot_path draws it.

    Args:
        motion: (T - 1, 3) as in vs3r.metrics.ClipMetrics.motion; a NaN row (a cut) adds nothing.
    Returns:
        (T, 3) starting at 0.
    """
    steps = np.nan_to_num(np.asarray(motion, dtype=np.float64))
    # The picture moves against the camera.
    return np.asarray(-np.concatenate([np.zeros((1, 3)), np.cumsum(steps, axis=0)]), dtype=np.float64)

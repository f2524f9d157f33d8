"""Row-dependent wobble: the jelly of a rolling shutter, measured from the picture alone.

    python -m benchmarks.wobble CLIP STEADY [STEADY ...]

Between two frames, sideways acceleration shears a rolling shutter's picture and vertical acceleration stretches it.
Regressed over a clip, the slopes say how much of it there is. A steadied video is held against the acceleration of its
source: its own is small, and what it kept of the jelly belongs to that of the source. The slopes exceed the read-out
itself, the more the faster the shake; how a read-out of one frame would show is told first.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from vs3r.engine.pictures import read_pictures
from vs3r.types import read_axis

F64 = npt.NDArray[np.float64]
_WIDTH = 480
_MIN_TRACKS = 12
_OUTLIER = 6.0  # median absolute deviations


def frame_motions(path: Path) -> F64:
    """(T - 1, 4) between neighbours, px at 480 px width: shift x, y; shear in x and stretch in y over the height.

    Pictures whose columns are read one after the other are measured as if x were y.
    """
    out: list[list[float]] = []
    before: npt.NDArray[np.uint8] | None = None
    for timed in read_pictures(path):
        grey = np.asarray(cv2.cvtColor(timed.picture, cv2.COLOR_BGR2GRAY), np.uint8)
        if read_axis(grey.shape[1], grey.shape[0]) == 0:
            grey = np.ascontiguousarray(grey.T)
        scale = _WIDTH / grey.shape[1]
        small = np.asarray(cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
        if before is not None:
            out.append(_motion(before, small))
        before = small
    return np.array(out).reshape(-1, 4)


def _motion(before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8]) -> list[float]:
    corners = cv2.goodFeaturesToTrack(before, 600, 0.005, 7)
    if corners is None or len(corners) < _MIN_TRACKS:
        return [np.nan] * 4
    options = {"winSize": (21, 21), "maxLevel": 4}
    there, found, _ = cv2.calcOpticalFlowPyrLK(before, after, corners, None, **options)  # type: ignore[call-overload]
    back, found_back, _ = cv2.calcOpticalFlowPyrLK(after, before, there, None, **options)  # type: ignore[call-overload]
    kept = (found[:, 0] > 0) & (found_back[:, 0] > 0) & (np.linalg.norm(back - corners, axis=2)[:, 0] < 0.7)
    if kept.sum() < _MIN_TRACKS:
        return [np.nan] * 4
    A, _ = cv2.estimateAffine2D(corners[kept], there[kept], method=cv2.RANSAC, ransacReprojThreshold=2.0, maxIters=3000)
    if A is None:
        return [np.nan] * 4
    height, width = after.shape
    shift = A @ np.array([width / 2, height / 2, 1.0]) - np.array([width / 2, height / 2])
    # A roll turns both axes, a zoom scales both: what is left after them.
    return [*shift, (A[0, 1] + A[1, 0]) * height, (A[1, 1] - A[0, 0]) * height]


def wobble(motions: F64, source: F64) -> tuple[float, float]:
    """Slopes of shear and of stretch against the source's acceleration, which is in px per frame squared."""
    shift = source[:, :2]
    acceleration = np.full_like(shift, np.nan)
    acceleration[1:-1] = (shift[2:] - shift[:-2]) / 2
    return _slope(acceleration[:, 0], motions[:, 2]), _slope(acceleration[:, 1], motions[:, 3])


def excess(source: F64) -> tuple[float, float]:
    """Slopes of shear and of stretch that a read-out of one frame has, by what the source's motion is made of.

    Rows move with the velocities of both frames, and acceleration is taken from displacements between frames: at w
    radians a frame the slope is w / sin w. Here averaged as a regression does, over the spectrum of the displacements.
    """
    shift = source[:, :2]
    found = []
    for values in shift.T:
        known = np.flatnonzero(np.isfinite(values))
        whole = np.interp(np.arange(len(values)), known, values[known])
        power = np.abs(np.fft.rfft((whole - whole.mean()) * np.hanning(len(whole)))) ** 2
        w = np.linspace(0, np.pi, len(power))
        found.append(float((power * w * np.sin(w)).sum() / (power * np.sin(w) ** 2).sum()))
    return found[0], found[1]


def _slope(x: F64, y: F64) -> float:
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    off = np.abs(y - np.median(y)) if len(y) else y
    kept = off <= _OUTLIER * np.median(off) + 1e-9 if len(y) else off > 0
    x, y = x[kept], y[kept]
    if len(x) < _MIN_TRACKS or x.std() < 1e-3:
        return float("nan")
    return float(np.polyfit(x, y, 1)[0])


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("steady", type=Path, nargs="+")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    source = frame_motions(options.clip)
    print("a read-out of one frame: shear {:+.3f}, stretch {:+.3f}".format(*excess(source)))
    for path in (options.clip, *options.steady):
        print("{}: shear {:+.3f}, stretch {:+.3f}".format(path.name, *wobble(frame_motions(path), source)))


if __name__ == "__main__":
    main()

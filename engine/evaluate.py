"""Evaluate video files: `vs3r evaluate IN OUT`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from vs3r.engine.pictures import TimedPicture, count_pictures, read_pictures
from vs3r.metrics import ClipMetrics, Evaluation, Picture, evaluate, measure_clip

Progress = Callable[[int], object]
_Item = TypeVar("_Item")


def measure_file(path: str | Path, *, quick: bool = False, progress: Progress | None = None) -> ClipMetrics:
    """Measure one video file by itself, see vs3r.metrics.measure_clip.

    Args:
        quick: leave out the slow measurements.
        progress: called with the number of pictures done.
    Raises:
        MediaError: the file cannot be read.
    """
    pts_s: list[float] = []

    def pictures() -> Iterator[Picture]:
        for timed in read_pictures(path):
            pts_s.append(float(timed.pts_s))
            yield timed.picture

    return measure_clip(_counted(pictures(), progress), pts_s=pts_s, quick=quick)


def evaluate_files(
    in_path: str | Path,
    out_path: str | Path,
    *,
    quick: bool = False,
    source: ClipMetrics | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a stabilized file against its source, see vs3r.metrics.evaluate.

    An output of another size is scaled to the source's. Pictures are paired as in pair_files.

    Args:
        quick: leave out the slow measurements.
        source: measure_file(in_path), where it is known already; only with as many pictures in both files.
        progress: called with the number of pairs done.
    Raises:
        MediaError: a file cannot be read.
    """
    same_count = count_pictures(in_path) == count_pictures(out_path)
    pts_s: list[float] = []

    def pairs() -> Iterator[tuple[Picture, Picture]]:
        for before, after in pair_files(in_path, out_path):
            pts_s.append(float(before.pts_s))
            yield before.picture, after.picture

    return evaluate(_counted(pairs(), progress), pts_s=pts_s, quick=quick, source=source if same_count else None)


def pair_files(a: str | Path, b: str | Path) -> Iterator[tuple[TimedPicture, TimedPicture]]:
    """Pictures of the same moment in two files: by number where both files have as many, else by time.

    Raises:
        MediaError: a file cannot be read.
    """
    return pair_by_number(a, b) if count_pictures(a) == count_pictures(b) else pair_by_time(a, b)


def pair_by_number(a: str | Path, b: str | Path) -> Iterator[tuple[TimedPicture, TimedPicture]]:
    """Pairs of the n-th pictures of two files, up to the end of the shorter one."""
    return zip(read_pictures(a), read_pictures(b), strict=False)


def pair_by_time(a: str | Path, b: str | Path) -> Iterator[tuple[TimedPicture, TimedPicture]]:
    """Pairs of pictures of two files whose times, counted from each file's first picture, are nearest each other.

    A picture without a partner within half the time to its neighbour is left out.

    Raises:
        MediaError: a file cannot be read.
    """
    others = _with_next(read_pictures(b))
    other, following = next(others)
    step = None
    for mine, next_mine in _with_next(read_pictures(a)):
        while following is not None and abs(following.pts_s - mine.pts_s) <= abs(other.pts_s - mine.pts_s):
            other, following = next(others)
        if next_mine is not None:
            step = next_mine.pts_s - mine.pts_s
        if step is None or 2 * abs(other.pts_s - mine.pts_s) < step:
            yield mine, other


def _with_next(pictures: Iterator[TimedPicture]) -> Iterator[tuple[TimedPicture, TimedPicture | None]]:
    current = next(pictures, None)
    while current is not None:
        following = next(pictures, None)
        yield current, following
        current = following


def _counted(items: Iterator[_Item], progress: Progress | None) -> Iterator[_Item]:
    for number, item in enumerate(items, 1):
        yield item
        if progress is not None:
            progress(number)

"""Pictures to look at: frames of several videos side by side, and slices through time.

    python -m benchmarks.contact_sheet shaky.mp4 steady.mp4 vidstab.mp4 --labels in ours vid.stab --out sheet.png
    python -m benchmarks.contact_sheet shaky.mp4 steady.mp4 --around 120 --radius 3 --out jump.png
    python -m benchmarks.contact_sheet shaky.mp4 steady.mp4 --slices --out slices.png

A sheet has a column per video and a row per frame. Slices show one column of the picture over time above one row over
time, time running to the right: shake is a wiggle, a jump is a step, a boiling border is noise at the rim.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from vs3r.engine.pictures import count_pictures, read_pictures
from vs3r.errors import OutputError, Vs3rError
from vs3r.metrics import Picture

_LABEL_PX = 22
_GAP_PX = 4


def main(arguments: list[str] | None = None) -> int:
    """Make one picture file; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, nargs="+")
    parser.add_argument("--labels", nargs="+", help="one per video; the file names when not given")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--frames", type=int, default=6, help="evenly spaced frames")
    parser.add_argument(
        "--around", type=int, nargs="*", default=[], help="frame numbers to show with neighbours instead"
    )
    parser.add_argument("--radius", type=int, default=1, help="neighbours to each side of --around")
    parser.add_argument("--width", type=int, default=480, help="width of a picture in the sheet; 0 keeps full size")
    parser.add_argument("--slices", action="store_true", help="slices through time instead of frames")
    parser.add_argument("--column", type=float, default=0.5, help="where --slices cuts across, 0 left to 1 right")
    parser.add_argument("--row", type=float, default=0.5, help="where --slices cuts down, 0 top to 1 bottom")
    options = parser.parse_args(arguments)
    labels = options.labels or [path.name for path in options.videos]
    if len(labels) != len(options.videos):
        parser.error(f"expected {len(options.videos)} labels, one per video; got {len(labels)}")
    try:
        if options.slices:
            sheet = slice_sheet(options.videos, labels, column=options.column, row=options.row)
        else:
            count = min(count_pictures(path) for path in options.videos)
            numbers = pick_frames(count, options.frames, options.around, options.radius)
            sheet = frame_sheet(options.videos, labels, numbers, width=options.width)
        if not cv2.imwrite(str(options.out), sheet):
            raise OutputError(f"cannot write {options.out}; the folder must exist and the name end in .png or .jpg")
    except Vs3rError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"wrote {options.out} ({sheet.shape[1]}x{sheet.shape[0]})")
    return 0


def pick_frames(count: int, evenly: int, around: Sequence[int], radius: int) -> list[int]:
    """Frame numbers: those around the given ones, or evenly spaced ones from the first to the last."""
    if around:
        wanted = {number + offset for number in around for offset in range(-radius, radius + 1)}
        return sorted(number for number in wanted if 0 <= number < count)
    return sorted({round(x) for x in np.linspace(0, count - 1, min(evenly, count))})


def frame_sheet(videos: Sequence[Path], labels: Sequence[str], numbers: Sequence[int], *, width: int) -> Picture:
    """A column per video, a row per frame number; frames that a video lacks stay black.

    Raises:
        MediaError: a video cannot be read.
    """
    columns = []
    for path, label in zip(videos, labels, strict=True):
        cells: dict[int, Picture] = {}
        for number, timed in enumerate(read_pictures(path)):
            if number in numbers:
                cells[number] = _labelled(_scaled(timed.picture, width), f"{label} #{number}")
            if number >= max(numbers, default=-1):
                break
        blank = (
            np.zeros_like(next(iter(cells.values()))) if cells else np.zeros((_LABEL_PX, max(width, 1), 3), np.uint8)
        )
        columns.append([cells.get(number, blank) for number in numbers])
    rows = [_beside([column[index] for column in columns]) for index in range(len(numbers))]
    return _below(rows)


def slice_sheet(videos: Sequence[Path], labels: Sequence[str], *, column: float, row: float) -> Picture:
    """Per video a column of the picture over time and a row over time, one above the other; time runs to the right.

    Raises:
        MediaError: a video cannot be read.
    """
    panels = []
    for path, label in zip(videos, labels, strict=True):
        down, across = [], []
        for timed in read_pictures(path):
            height, width = timed.picture.shape[:2]
            down.append(timed.picture[:, min(int(column * width), width - 1)])
            across.append(timed.picture[min(int(row * height), height - 1)])
        panels.append(_labelled(np.stack(down, axis=1), f"{label}: column {column:g}, x is time"))
        panels.append(_labelled(np.stack(across, axis=1), f"{label}: row {row:g}, left edge on top"))
    return _below([_beside(panels[0::2]), _beside(panels[1::2])])


def _scaled(picture: Picture, width: int) -> Picture:
    if width == 0 or picture.shape[1] == width:
        return picture
    size = (width, max(1, round(picture.shape[0] * width / picture.shape[1])))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _labelled(picture: Picture, text: str) -> Picture:
    bar = np.full((_LABEL_PX, picture.shape[1], 3), 32, np.uint8)
    cv2.putText(bar, text, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
    return np.vstack([bar, picture])


def _beside(pictures: Sequence[Picture]) -> Picture:
    height = max(picture.shape[0] for picture in pictures)
    padded = [np.pad(p, ((0, height - p.shape[0]), (0, _GAP_PX), (0, 0))) for p in pictures]
    return np.hstack(padded)


def _below(pictures: Sequence[Picture]) -> Picture:
    width = max(picture.shape[1] for picture in pictures)
    padded = [np.pad(p, ((0, _GAP_PX), (0, width - p.shape[1]), (0, 0))) for p in pictures]
    return np.vstack(padded)


if __name__ == "__main__":
    sys.exit(main())

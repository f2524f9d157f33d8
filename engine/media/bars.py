"""Black bars around the picture: they stay where they are, and what lies between them is stabilized."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import cast

import av
import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame

from vs3r.config import SourceConfig
from vs3r.engine.media.formats import Converter, planes_of
from vs3r.engine.media.info import MediaInfo
from vs3r.engine.media.reader import VideoReader, main_video, open_input
from vs3r.types import DoubleArray, Frame, PictureFormat, Plane

BLACK = 0.04
"""Of the full range above black: encoders leave that much in a bar."""
SPECKS = 0.005
"""A line of which no more than this share is brighter is still black."""
LIT = 0.5
"""Share of the line beside a bar that is bright in half of the pictures: bars end in straight lines, night does not."""
EDGE_PX = 2
"""What belongs to the bar beyond its last black line: encoders and scalers make edges soft."""
FIRST_FRAMES = 48
"""Of the clip's beginning every so many-th is looked at,"""
FRAME_STEP = 8
PLACES = 12
"""and one picture at so many places further on."""
SMALLEST = 0.25
"""Share of the width and of the height that is a picture at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """Widths of the black bars around a picture, in pixels."""

    left: int = 0
    """Columns."""
    right: int = 0
    """Columns."""
    top: int = 0
    """Rows."""
    bottom: int = 0
    """Rows."""

    def __bool__(self) -> bool:
        return bool(self.left or self.right or self.top or self.bottom)


class Inset:
    """The picture between the bars. Frames are put back in the order in which they were taken, by any thread."""

    def __init__(self, fmt: PictureFormat, bars: Bars) -> None:
        """
        Args:
            fmt: of the whole frames.
            bars: what to take away; whole chroma samples.
        """
        self._outer, self._bars = fmt, bars
        self.format = replace(fmt, width=fmt.width - bars.left - bars.right, height=fmt.height - bars.top - bars.bottom)
        """Of the picture between the bars."""
        self._kept: deque[list[tuple[Plane, ...]]] = deque()
        self._taken = self._filled = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """One-line remarks; complete after the last frame."""
        if not self._bars:
            return ()
        size = f"{self.format.width}x{self.format.height}"
        notes = [f"black bars stay where they are: the {size} pixels between them are stabilized (--bars off: all)"]
        if self._filled:
            count = f"{self._filled} of {self._taken} pictures"
            notes.append(f"in {count} the bars are not black: what stands there is not stabilized (--bars off: all is)")
        return tuple(notes)

    def take(self, frame: Frame) -> Frame:
        """The part between the bars; what lies around it is kept until `put`."""
        if not self._bars:
            return frame
        self._taken += 1
        self._filled += self._is_filled(frame)
        inner, kept = [], []
        for number, plane in enumerate(frame.planes):
            rows, columns = self._place(number)
            inner.append(plane[rows, columns].copy())
            kept.append(tuple(part.copy() for part in _around(plane, rows, columns)))
        self._kept.append(kept)
        return replace(frame, format=self.format, planes=tuple(inner))

    def put(self, frame: Frame) -> Frame:
        """The whole frame again: a picture of `format` between the bars of the frame that was taken first."""
        if not self._bars:
            return frame
        planes = []
        for number, (inner, kept) in enumerate(zip(frame.planes, self._kept.popleft(), strict=True)):
            rows, columns = self._place(number)
            plane = np.empty(self._outer.plane_shape(number), inner.dtype)
            plane[rows, columns] = inner
            for part, pixels in zip(_around(plane, rows, columns), kept, strict=True):
                part[:] = pixels
            planes.append(cast("Plane", plane))
        return replace(frame, format=self._outer, planes=tuple(planes))

    def _is_filled(self, frame: Frame) -> bool:
        """The picture reaches to the outer end of a bar, unlike a title or a logo."""
        ends = (
            (self._bars.top, np.s_[0]),
            (self._bars.bottom, np.s_[-1]),
            (self._bars.left, np.s_[:, 0]),
            (self._bars.right, np.s_[:, -1]),
        )
        return any(_lit([plane[end] for plane in frame.planes], frame.format).mean() > LIT for bar, end in ends if bar)

    def _place(self, number: int) -> tuple[slice, slice]:
        sx, sy = self._outer.plane_shift(number)
        (rows, columns), (height, width) = self._outer.plane_shape(number), self.format.plane_shape(number)
        top, left = self._bars.top >> sy, self._bars.left >> sx
        assert top + height <= rows and left + width <= columns
        return slice(top, top + height), slice(left, left + width)


def _around(plane: Plane, rows: slice, columns: slice) -> tuple[Plane, ...]:
    """Views of what lies around a rectangle: above, below, left, right."""
    return (
        plane[: rows.start],
        plane[rows.stop :],
        plane[rows, : columns.start],
        plane[rows, columns.stop :],
    )


def find_inset(info: MediaInfo, config: SourceConfig) -> Inset:
    """The part of a file's pictures that is to be stabilized.

    Raises:
        MediaError: the file cannot be used.
    """
    return Inset(info.format, find_bars(info.path) if config.bars == "auto" else Bars())


def find_bars(path: str | os.PathLike[str]) -> Bars:
    """The bars that every picture of a video file has; pictures throughout the file are looked at.

    Where the first picture has none at any side, no other is decoded.

    Raises:
        MediaError: the file cannot be used.
    """
    path = Path(path)
    with VideoReader(path) as reader:
        fmt = reader.info.format
        early = (_Profile.of(frame.planes, fmt) for frame in islice(reader, 0, FIRST_FRAMES, FRAME_STEP))
        first = next(early)
        if not first.dark and not any(first.margins):
            return Bars()
        profiles = [first, *early]
    profiles = [profile for profile in [*profiles, *_later(path, fmt)] if not profile.dark]
    return _common(profiles, fmt) if profiles else Bars()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Profile:
    """How much of every line of a picture is not black."""

    rows: DoubleArray
    """(H,) share of the row's pixels."""
    columns: DoubleArray
    """(W,) share of the column's."""

    @classmethod
    def of(cls, planes: tuple[Plane, ...], fmt: PictureFormat) -> _Profile:
        lit = _lit(planes, fmt)
        return cls(rows=lit.mean(axis=1), columns=lit.mean(axis=0))

    @property
    def dark(self) -> bool:
        """There is nothing to see."""
        return bool((self.rows <= SPECKS).all() or (self.columns <= SPECKS).all())

    @property
    def margins(self) -> tuple[int, int, int, int]:
        """Black lines at the left, right, top and bottom."""
        sides = (self.columns, self.columns[::-1], self.rows, self.rows[::-1])
        left, right, top, bottom = (int(np.argmax(side > SPECKS)) for side in sides)
        return left, right, top, bottom


def _lit(planes: Sequence[Plane], fmt: PictureFormat) -> npt.NDArray[np.bool_]:
    """Which pixels are not black, of all planes or the same part of each."""
    limit = fmt.black(0) + BLACK * ((1 << fmt.bit_depth) - 1)
    lit: npt.NDArray[np.bool_] = np.logical_or.reduce([p > limit for p in planes[: 3 if fmt.is_rgb else 1]])
    return lit


def _later(path: Path, fmt: PictureFormat) -> Iterator[_Profile]:
    """Of pictures spread over the file, as far as it can be searched."""
    container, converter = open_input(path), Converter()
    try:
        stream = main_video(container, path)
        stream.thread_type = "AUTO"
        start, length = container.start_time or 0, container.duration or 0
        searching, landings = True, set()
        for place in range(1, PLACES + 1):
            wanted = start + length * place // (PLACES + 1)
            with contextlib.suppress(av.FFmpegError):
                if searching:
                    container.seek(wanted)
                landing, picture = _first_from(container.decode(stream), wanted)
                if picture is not None:
                    yield _Profile.of(planes_of(converter.convert(picture, fmt), fmt), fmt)
                # Where key frames are further apart than the places, going on is faster than starting there again.
                searching &= landing is None or landing not in landings
                landings.add(landing)
    finally:
        container.close()


def _first_from(pictures: Iterable[VideoFrame], wanted: int) -> tuple[int | None, VideoFrame | None]:
    """The time of the first picture, and the first picture from a time on or else the last one; in microseconds."""
    landing, last = None, None
    for picture in pictures:
        ticks, last = picture.dts if picture.pts is None else picture.pts, picture
        if ticks is None or picture.time_base is None:
            break  # nothing tells how far it is
        time = int(ticks * picture.time_base * av.time_base)
        landing = time if landing is None else landing
        if time >= wanted:
            break
    return landing, last


def _common(profiles: list[_Profile], fmt: PictureFormat) -> Bars:
    """What is black in all pictures, and ends in a straight line."""
    left, right, top, bottom = np.min([profile.margins for profile in profiles], axis=0).tolist()
    rows = np.median([profile.rows for profile in profiles], axis=0) * (fmt.width / (fmt.width - left - right))
    columns = np.median([profile.columns for profile in profiles], axis=0) * (fmt.height / (fmt.height - top - bottom))
    step_x, step_y = 1 << fmt.chroma_shift[0], 1 << fmt.chroma_shift[1]
    bars = Bars(
        left=_bar(columns, left, step_x),
        right=_bar(columns[::-1], right, step_x),
        top=_bar(rows, top, step_y),
        bottom=_bar(rows[::-1], bottom, step_y),
    )
    narrow = fmt.width - bars.left - bars.right < SMALLEST * fmt.width
    return Bars() if narrow or fmt.height - bars.top - bars.bottom < SMALLEST * fmt.height else bars


def _bar(lit: DoubleArray, width: int, step: int) -> int:
    """Width of the bar at the beginning of a profile, in whole chroma samples; 0 where it is none."""
    if width == 0 or lit[min(width + EDGE_PX, len(lit) - 1)] < LIT:
        return 0
    return -(-(width + EDGE_PX) // step) * step

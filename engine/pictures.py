"""Video files as upright 8-bit BGR pictures, for measuring and looking at (rendering keeps every bit instead)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from vs3r.engine.media.reader import main_video, open_input
from vs3r.errors import MediaError
from vs3r.metrics import Picture


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TimedPicture:
    """One decoded picture."""

    picture: Picture
    """(H, W, 3) BGR, turned upright as a player would show it."""
    pts_s: Fraction
    """Presentation time in seconds from the first picture."""


def read_pictures(path: str | Path) -> Iterator[TimedPicture]:
    """Decode the main video stream of a file, one picture at a time; all have the size of the first.

    Raises:
        MediaError: the file cannot be opened or decoded, or has no video stream or no picture.
    """
    with _video(path) as (container, stream):
        first: Fraction | None = None
        size: tuple[int, int] | None = None
        for number, frame in enumerate(container.decode(stream)):
            base = frame.time_base or Fraction(1)
            rate = stream.average_rate or Fraction(30)
            at = frame.pts * base if frame.pts is not None else (first or 0) + number / rate
            if first is None:
                first, size = at, (frame.width, frame.height)
            assert size is not None
            picture = frame.to_ndarray(format="bgr24", width=size[0], height=size[1])
            # PyAV's rotation is counter-clockwise, as numpy's.
            upright = np.rot90(picture, round(frame.rotation / 90) % 4)
            yield TimedPicture(picture=np.ascontiguousarray(upright, dtype=np.uint8), pts_s=at - first)
        if first is None:
            raise MediaError(f"expected at least one picture, the video stream holds none: {path}")


def count_pictures(path: str | Path) -> int:
    """Number of coded pictures in the main video stream, without decoding them.

    Raises:
        MediaError: as read_pictures.
    """
    with _video(path) as (container, stream):
        return sum(packet.size > 0 for packet in container.demux(stream))


@contextmanager
def _video(path: str | Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    try:
        with open_input(Path(path)) as container:
            stream = main_video(container, Path(path))
            stream.thread_type = "AUTO"
            yield container, stream
    except av.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise MediaError(f"expected a video that plays to its end; {reason}: {path}; copy or repair it") from None

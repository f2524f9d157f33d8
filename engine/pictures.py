"""Video files as upright 8-bit BGR pictures, for measuring and looking at (rendering keeps every bit instead)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation

from vs3r.engine.media.formats import frame_of
from vs3r.engine.media.reader import VideoReader, main_video, open_input
from vs3r.errors import MediaError
from vs3r.metrics import Picture

_LIMITED, _FULL = 1, 2  # AVColorRange
# Without it every picture comes out a grey level darker.
_EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TimedPicture:
    """One decoded picture."""

    picture: Picture
    """(H, W, 3) BGR, turned upright as a player would show it."""
    pts_s: Fraction
    """Presentation time in seconds from the first picture."""
    pts: int
    """Presentation time in units of the file's time base, see MediaInfo.time_base."""
    duration: int
    """Length in the same units."""


def read_pictures(path: str | Path) -> Iterator[TimedPicture]:
    """Decode a file's main video stream, one picture at a time; all have the size of the first.

    Raises:
        MediaError: the file cannot be opened, or holds no video that decodes.
    """
    with VideoReader(path) as reader:
        matrix = reader.info.color.matrix
        first_s: Fraction | None = None
        for frame in reader:
            at_s = frame.pts * frame.time_base
            first_s = at_s if first_s is None else first_s
            picture = frame_of(frame.planes, frame.format)
            if not frame.format.is_rgb:
                picture.color_range, picture.colorspace = _FULL if frame.format.full_range else _LIMITED, matrix
            bgr = np.asarray(picture.to_ndarray(format="bgr24", interpolation=_EXACT), np.uint8)
            yield TimedPicture(
                picture=_upright(bgr, reader.info.display_matrix),
                pts_s=at_s - first_s,
                pts=frame.pts,
                duration=frame.duration,
            )


def _upright(picture: Picture, matrix: tuple[int, ...] | None) -> Picture:
    """A picture turned by quarters and mirrored as FFmpeg's 3x3 display matrix says, None for not at all."""
    if matrix is None:
        return picture
    # Shown columns are a x + c y, shown rows b x + d y of the columns and rows in the file.
    a, b, _, c, d = matrix[:5]
    if abs(a) + abs(d) < abs(b) + abs(c):
        picture, a, d = picture.swapaxes(0, 1), c, b
    return np.ascontiguousarray(picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def count_pictures(path: str | Path) -> int:
    """Number of coded pictures in the main video stream, without decoding them.

    Raises:
        MediaError: as read_pictures.
    """
    path = Path(path)
    try:
        with open_input(path) as container:
            return sum(packet.size > 0 for packet in container.demux(main_video(container, path)))
    except av.FFmpegError as error:
        raise MediaError(f"expected a video that can be read to its end, got {error.strerror}: {path}") from None

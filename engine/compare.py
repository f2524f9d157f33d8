"""Two videos side by side: `vs3r compare A B -o OUT`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation

from vs3r.config import EncodeConfig
from vs3r.engine.evaluate import pair_files
from vs3r.engine.media import MediaInfo, VideoWriter, probe
from vs3r.engine.media.formats import picture_format, planes_of
from vs3r.metrics import Picture
from vs3r.types import Frame, PictureFormat

# Two of these beside each other still play everywhere.
_MAX_WIDTH = 1280
_LIMITED = 1  # AVColorRange
# Without it every picture comes out a grey level darker.
_EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP | Interpolation.BITEXACT
_MATRIX_RGB, _MATRIX_UNSPECIFIED = 0, 2


def compare_files(
    a: str | Path,
    b: str | Path,
    out_path: str | Path,
    *,
    labels: tuple[str, str] = ("before", "after"),
    config: EncodeConfig | None = None,
    progress: Callable[[int], object] | None = None,
) -> tuple[str, ...]:
    """Write a video that shows `a` on the left and `b` on the right, upright and labelled.

    Times, sound and subtitles are those of `a`; `b` is scaled to its height. Each side is at most 1280 pixels wide and
    8 bits deep. Pictures are paired as in vs3r.engine.evaluate.pair_files.

    Args:
        labels: words in the upper left corner of each side.
        config: encoder settings, None for the defaults.
        progress: called with the number of pictures written.
    Returns:
        One-line remarks on what the output cannot keep of `a`.
    Raises:
        MediaError: a file cannot be read, or the encoder fails.
        OutputError: the output cannot be written.
    """
    info, other = probe(a), probe(b)
    matrix = _MATRIX_UNSPECIFIED if info.color.matrix == _MATRIX_RGB else info.color.matrix
    # The pictures are turned upright, so the output carries no rotation.
    like = replace(
        info, display_matrix=None, rotation_deg=0, color=replace(info.color, range=_LIMITED, matrix=matrix), hdr=None
    )
    with VideoWriter(out_path, like=like, config=config) as writer:
        for number, (left, right) in enumerate(pair_files(a, b), 1):
            sheet = side_by_side(_square(left.picture, info), _square(right.picture, other), labels)
            writer.write(_as_frame(sheet, like, left.pts, left.duration))
            if progress is not None:
                progress(number)
    return writer.notes


def side_by_side(left: Picture, right: Picture, labels: tuple[str, str]) -> Picture:
    """(H, W, 3) the two BGR pictures beside each other at the left one's height; H and W even."""
    scale = min(1.0, _MAX_WIDTH / left.shape[1])
    height = max(2, round(left.shape[0] * scale / 2) * 2)
    sides = []
    for picture, label in zip((left, right), labels, strict=True):
        width = max(2, round(picture.shape[1] * height / picture.shape[0] / 2) * 2)
        small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        sides.append(_labelled(np.asarray(small, dtype=np.uint8), label))
    return np.hstack(sides)


def _square(picture: Picture, info: MediaInfo) -> Picture:
    """An upright picture with square pixels."""
    aspect = info.format.sample_aspect
    if aspect == 1:
        return picture
    if info.rotation_deg % 180:
        aspect = 1 / aspect
    size = (max(2, round(picture.shape[1] * aspect)), picture.shape[0])
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _labelled(picture: Picture, label: str) -> Picture:
    size = max(0.4, picture.shape[0] / 700)
    (width, height), below = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
    margin = max(4, height // 2)
    cv2.rectangle(picture, (0, 0), (width + 2 * margin, height + below + margin), (0, 0, 0), cv2.FILLED)
    at = (margin, height + margin // 2)
    cv2.putText(picture, label, at, cv2.FONT_HERSHEY_SIMPLEX, size, (255, 255, 255), 1, cv2.LINE_AA)
    return picture


def _as_frame(picture: Picture, like: MediaInfo, pts: int, duration: int) -> Frame:
    height, width = picture.shape[:2]
    fmt: PictureFormat = picture_format("yuv420p", width, height, sample_aspect=Fraction(1))
    yuv = VideoFrame.from_ndarray(picture, format="bgr24").reformat(
        format=fmt.pix_fmt, dst_colorspace=like.color.matrix, dst_color_range=_LIMITED, interpolation=_EXACT
    )
    return Frame(
        format=fmt, planes=planes_of(yuv, fmt), pts=pts, time_base=like.time_base, duration=duration, key_frame=False
    )

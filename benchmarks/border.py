"""What fills the border, against pictures that were cut away: a truth for real clips.

    python -m benchmarks.border CLIP [CLIP ...] [--every 10] [--share 0.04]

All frames are cropped on all sides, their cameras, depths and masks with them; the view of a frame is then shifted to
two of its sides (in turn), where its pixels are known and no cropped frame has them at that time. To hide pixels from
drawing alone is not enough: what finds out how to fill looks at the frame, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

from vs3r.config import Config
from vs3r.engine.files import analyze_file
from vs3r.engine.media import VideoReader
from vs3r.refine import make_refiner
from vs3r.render import SourceFrame, WarpRenderer
from vs3r.render.warp import sample_cells
from vs3r.smooth import unsmoothed
from vs3r.types import CameraTrack, FloatArray, PictureFormat, Plane, read_axis

SIDES = ((1, 1), (-1, 1), (1, -1), (-1, -1))
"""Right and below, left and below, right and above, left and above."""


def crop(source: SourceFrame, margin: int) -> SourceFrame:
    """A frame without `margin` px (even) on each side, and what is known of it."""
    fmt, planes = source.frame.format, list[Plane]()
    width, height = fmt.width - 2 * margin, fmt.height - 2 * margin
    for number, plane in enumerate(source.frame.planes):
        across, down = (margin >> shift for shift in fmt.plane_shift(number))
        inner = plane[down : plane.shape[0] - down, across : plane.shape[1] - across]
        planes.append(cast("Plane", np.ascontiguousarray(inner)))
    geometry, K = source.geometry, source.geometry.K.copy()
    K[:2, 2] -= margin
    # The motion between lines is a polynomial of the line's place in the picture.
    scale = (width / fmt.width, height / fmt.height)[read_axis(fmt.width, fmt.height)]
    orders = np.arange(1, len(geometry.row_motion) + 1)[:, None]
    return SourceFrame(
        frame=replace(source.frame, format=replace(fmt, width=width, height=height), planes=tuple(planes)),
        geometry=replace(
            geometry,
            K=K,
            inv_depth=_crop_cells(geometry.inv_depth, fmt, margin),
            dynamic=_crop_cells(geometry.dynamic, fmt, margin),
            row_motion=geometry.row_motion * scale**orders,
        ),
    )


def _crop_cells(cells: FloatArray, fmt: PictureFormat, margin: int) -> FloatArray:
    rows, cols = cells.shape
    x = margin + (np.arange(cols) + 0.5) * (fmt.width - 2 * margin) / cols
    y = margin + (np.arange(rows) + 0.5) * (fmt.height - 2 * margin) / rows
    grid_x, grid_y = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
    return sample_cells(np.ascontiguousarray(cells, np.float32), grid_x, grid_y, (fmt.width, fmt.height))


def fill_errors(
    sources: Sequence[SourceFrame], config: Config, *, share: float, every: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Every so many-th frame: mean square error of luma where cropped pixels are filled (full range 1), share invented.

    Args:
        sources: the frames of a clip, in order.
        config: of rendering and refinement.
        share: what is cropped on each side, of the longer side.
        every: of how many frames one is looked at.
    """
    fmt = sources[0].frame.format
    margin = 2 * round(share * max(fmt.width, fmt.height) / 2)
    cropped = [crop(source, margin) for source in sources]
    size = cropped[0].frame.format
    whole, renderer = WarpRenderer(fmt, config.render), WarpRenderer(size, config.render)
    refiner, reach = make_refiner(config.refine), config.render.fill_window_frames
    row, column = np.arange(size.height)[:, None], np.arange(size.width)
    errors, invented = [], []
    for index in range(every - 1, len(sources) - 1, every):
        right, down = (margin * side for side in SIDES[index // every % len(SIDES)])
        truth = whole.render(index, unsmoothed(sources[index].geometry), {index: sources[index]})
        camera = unsmoothed(cropped[index].geometry)
        K = camera.K.copy()
        K[:2, 2] -= right, down
        window = range(max(0, index - reach), min(len(sources), index + reach + 1))
        view = renderer.render(index, replace(camera, K=K), {number: cropped[number] for number in window})
        part = np.s_[margin + down : margin + down + size.height, margin + right : margin + right + size.width]
        seen = cv2.resize(truth.valid, (fmt.width, fmt.height), interpolation=cv2.INTER_NEAREST)[part] == 255
        kept_y, kept_x = row + down, column + right
        hidden = (kept_y < 0) | (kept_y >= size.height) | (kept_x < 0) | (kept_x >= size.width)
        off_by = truth.frame.planes[0][part].astype(np.float64) - refiner(view).planes[0]
        errors.append(float(np.square(off_by[seen & hidden]).mean()) / ((1 << fmt.bit_depth) - 1) ** 2)
        invented.append(float((view.valid < 128).mean()))
    return np.array(errors), np.array(invented)


def read_sources(clip: Path, track: CameraTrack) -> list[SourceFrame]:
    """The frames of a clip with its track, all of them in memory."""
    with VideoReader(clip) as reader:
        return [SourceFrame(frame=frame, geometry=track.frame(index)) for index, frame in enumerate(reader)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", type=Path, metavar="CLIP")
    parser.add_argument("--every", type=int, default=10, help="of how many frames one is looked at (default: 10)")
    parser.add_argument("--share", type=float, default=0.04, help="cropped on each side, of the longer (default: 0.04)")
    options = parser.parse_args(arguments)
    for clip in options.clips:
        sources = read_sources(clip, analyze_file(clip, Config()))
        errors, invented = fill_errors(sources, Config(), share=options.share, every=options.every)
        psnr = -10 * np.log10(errors.mean())
        print(
            f"{clip.name}: {psnr:.2f} dB of {len(errors)} pictures, {invented.mean():.4f} of them invented", flush=True
        )


if __name__ == "__main__":
    main()

"""Rolling shutter on rendered shots: the read-out found, the rotations, and the picture against a global shutter's.

    python -m benchmarks.rolling                                   # turning and walking, five read-outs
    python -m benchmarks.rolling --shots walking --readouts 0.7

Each shot is rendered with a camera per row, encoded and read back. Every frame is then rendered from its own middle
row's camera by itself, and held, where it covers the picture, against what a global shutter would have seen; `as
filmed` is the frame before that. Read-outs are in intervals between frames.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.accuracy import reconstruct
from benchmarks.demo_scene import write_clip
from benchmarks.truth import reconstruction_errors
from tests.scenes import footage, shot
from vs3r.config import RenderConfig
from vs3r.engine.media.reader import VideoReader
from vs3r.render import SourceFrame, WarpRenderer
from vs3r.smooth import unsmoothed
from vs3r.types import FrameGeometry

READOUTS = (0.0, 0.3, 0.7, 1.0, -1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One shot with one read-out."""

    readout_frames: float
    """Found, at the end of the clip."""
    rotation_deg: float
    """RMS error of the rotation between frames."""
    filmed_db: float
    """PSNR of the frames as filmed against a global shutter's, median over frames."""
    rendered_db: float
    """The same of the rendered frames."""


def measure(name: str, readout_frames: float, folder: Path) -> Row:
    """All numbers of a row."""
    taken, truth = shot(name), footage(name)
    rolled = footage(name, readout_frames=readout_frames)
    clip = folder / f"{name}{readout_frames:+g}.mp4"
    write_clip(clip, rolled.rgb, taken.fps, crf=12)
    found = reconstruct(clip, hfov_deg=None)
    filmed, rendered = pictures_db(clip, found, truth.rgb)
    return Row(
        readout_frames=found[-1].readout_s * float(taken.fps),
        rotation_deg=reconstruction_errors(found, taken, truth).rotation_deg,
        filmed_db=filmed,
        rendered_db=rendered,
    )


def pictures_db(
    clip: Path, found: list[FrameGeometry], true_rgb: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> tuple[float, float]:
    """Median PSNR of luma, as filmed and rendered from each frame's own middle row."""
    with VideoReader(clip) as reader:
        renderer = WarpRenderer(reader.info.format, RenderConfig())
        pairs = []
        for geometry, frame, rgb in zip(found, reader, true_rgb, strict=True):
            source = SourceFrame(frame=frame, geometry=geometry)
            done = renderer.render(geometry.index, unsmoothed(geometry), {geometry.index: source})
            # The encoder's luma of the true picture: limited range.
            true = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2YUV_I420)[: rgb.shape[0]]
            covered = cv2.resize(done.valid, rgb.shape[1::-1], interpolation=cv2.INTER_NEAREST) == 255
            pairs.append([psnr(planes[0][covered], true[covered]) for planes in (frame.planes, done.frame.planes)])
    filmed, rendered = np.median(pairs, axis=0)
    return float(filmed), float(rendered)


def psnr(
    a: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], b: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> float:
    """In dB."""
    return float(10 * np.log10(255**2 / max(np.square(a.astype(np.float64) - b).mean(), 1e-9)))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shots", nargs="+", default=["rotation", "walking"], metavar="SHOT")
    parser.add_argument("--readouts", nargs="+", type=float, default=READOUTS, metavar="FRAMES")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    print("| shot | read-out: true / found | rotation, deg | as filmed / rendered, dB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.shots:
            for readout in options.readouts:
                row = measure(name, readout, Path(folder))
                print(
                    f"| {name} | {readout:g} / {row.readout_frames:.3f} | {row.rotation_deg:.4f}"
                    f" | {row.filmed_db:.1f} / {row.rendered_db:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()

"""Render the street scene of `make demo` into a video file.

    python -m benchmarks.demo_scene street.mp4            # 6 s of a shaky walk, 1280x720
    python -m benchmarks.demo_scene street.mp4 --stable   # the same from the path that was intended

Any other shot of tests/scenes can be written likewise with --shot.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt

from tests.scenes import SHOTS, shot

Picture = npt.NDArray[np.uint8]


def main(arguments: list[str] | None = None) -> int:
    """Render and write; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="video file to write")
    parser.add_argument("--shot", default="street", choices=sorted(SHOTS), help="which scene and camera (street)")
    parser.add_argument("--stable", action="store_true", help="from the intended path, without shake")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that render side by side")
    options = parser.parse_args(arguments)
    frames = len(shot(options.shot))
    pictures = render_shot(options.shot, stable=options.stable, jobs=options.jobs)
    write_clip(options.output, _counted(pictures, frames), shot(options.shot).fps)
    print(f"wrote {options.output}")
    return 0


def render_shot(name: str, *, stable: bool = False, jobs: int = 1) -> Iterator[Picture]:
    """The (H, W, 3) RGB pictures of a shot in order, rendered by several processes."""
    # Where processes start by forking, the scene is built once, here, and shared.
    cv2.setNumThreads(1)
    frames = range(len(shot(name)))
    with ProcessPoolExecutor(jobs, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield from pool.map(partial(_render, name, stable), frames, chunksize=2)


def _render(name: str, stable: bool, index: int) -> Picture:
    taken = shot(name)
    return (taken.render_stable(index) if stable else taken.render(index)).rgb


def write_clip(path: Path, pictures: Iterable[Picture], fps: Fraction, *, crf: int = 18) -> None:
    """Write (H, W, 3) RGB pictures as H.264."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf), "preset": "medium"})
        stream.pix_fmt = "yuv420p"
        for number, picture in enumerate(pictures):
            if number == 0:
                stream.height, stream.width = picture.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())


def _counted(pictures: Iterable[Picture], total: int) -> Iterator[Picture]:
    """Pass the pictures on, and say now and then how far it is."""
    for number, picture in enumerate(pictures, start=1):
        if number % 30 == 0 or number == total:
            print(f"rendered {number} of {total} frames", flush=True)
        yield picture


if __name__ == "__main__":
    sys.exit(main())

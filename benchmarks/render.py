"""Time of rendering and filling one frame, per stage, on one thread: python -m benchmarks.render [--size 1920x1080]

A walk past a slanted plane with depth, a shaken camera and a steady target, so that about a tenth of the picture has to
come from neighbours. Prints the median over frames, in milliseconds of processor time and of the clock, and what share
of the picture was filled. With --render-device cuda the planes are drawn on the GPU, and the rest as ever.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
from fractions import Fraction

import cv2
import numpy as np

from vs3r.config import RefineConfig, RenderConfig
from vs3r.refine import make_refiner
from vs3r.render import SourceFrame, WarpRenderer
from vs3r.types import Frame, FrameGeometry, PictureFormat, VirtualCamera

STAGES = {
    "own map": "_own_layer",
    "choose": "__init__",
    "fit": "fit",
    "planes": "draw",
    "coverage": "_share",
}
"""Name to the function whose cumulative time it is, in vs3r/render."""


def clip(width: int, height: int, count: int) -> dict[int, SourceFrame]:
    """Frames of a noise picture through a shaken camera; only the geometry and the cost are meant to be real."""
    fmt = PictureFormat(
        pix_fmt="yuv420p", width=width, height=height, bit_depth=8, chroma_shift=(1, 1), num_planes=3, is_rgb=False
    )
    rng = np.random.default_rng(0)
    wide = cv2.GaussianBlur(rng.integers(0, 256, (height * 2, width * 2), np.uint8), (0, 0), 2.0)
    wide = cv2.normalize(wide, np.empty(0), 16, 235, cv2.NORM_MINMAX)
    focal = 0.87 * width
    K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    columns = np.linspace(0.8, 1.2, 40, dtype=np.float32)
    inv_depth = np.repeat(columns[None], 23, axis=0)
    angles = np.cumsum(rng.normal(0, 0.015, (count, 3)), axis=0)
    angles -= cv2.blur(angles, (1, 25))
    sources = {}
    for index in range(count):
        turn = np.eye(4)
        turn[:3, :3] = cv2.Rodrigues(angles[index])[0]
        turn[:3, 3] = angles[index] * 0.5
        H = np.array([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1.0]]) @ K @ turn[:3, :3].T @ np.linalg.inv(K)
        size = (width, height)
        luma = cv2.warpPerspective(wide, H, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        chroma = cv2.resize(luma, (-(-width // 2), -(-height // 2)), interpolation=cv2.INTER_AREA)
        planes = (np.asarray(luma, np.uint8), np.asarray(chroma, np.uint8), np.asarray(chroma, np.uint8))
        geometry = FrameGeometry(
            index=index,
            pts_s=index / 30,
            segment=0,
            K=K,
            cam_from_world=turn,
            inv_depth=inv_depth,
            dynamic=np.zeros((34, 60), np.float32),
        )
        frame = Frame(format=fmt, planes=planes, pts=index, time_base=Fraction(1, 30))
        sources[index] = SourceFrame(frame=frame, geometry=geometry)
    return sources


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", default="1920x1080")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--render-device", choices=("auto", "cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    cv2.setNumThreads(1)
    count = 40
    sources = clip(width, height, count)
    fmt = sources[0].frame.format
    config = RenderConfig(render_device=arguments.render_device)
    renderer, refine = WarpRenderer(fmt, config), make_refiner(RefineConfig())
    camera = VirtualCamera(K=sources[0].geometry.K, cam_from_world=np.eye(4))
    first = (count - arguments.frames) // 2
    render_ms, clock_ms, refine_ms, own, valid = [], [], [], [], []
    renderer.render(first, camera, sources)
    for index in range(first, first + arguments.frames):
        begin, start = time.perf_counter(), time.process_time()
        rendered = renderer.render(index, camera, sources)
        middle = time.process_time()
        clock_ms.append((time.perf_counter() - begin) * 1e3)
        refine(rendered)
        refine_ms.append((time.process_time() - middle) * 1e3)
        render_ms.append((middle - start) * 1e3)
        own.append(rendered.own_share)
        valid.append(rendered.valid_share)
    profile = cProfile.Profile()
    profile.enable()
    for index in range(first, first + arguments.frames):
        renderer.render(index, camera, sources)
    profile.disable()
    device, frames = arguments.render_device, arguments.frames
    print(f"{width}x{height} yuv420p, one thread, planes on {device}, median of {frames} frames")
    filled, unseen = np.mean(valid) - np.mean(own), 1 - np.mean(valid)
    print(f"  filled from neighbours {100 * filled:.1f} %, unseen {100 * unseen:.2f} %")
    print(f"  render {statistics.median(render_ms):7.1f} ms, by the clock {statistics.median(clock_ms):.1f} ms")
    table = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    for name, function in STAGES.items():
        spent = sum(row[3] for key, row in table.items() if key[2] == function and "/render/" in key[0])
        print(f"    {name:13s}{1e3 * spent / arguments.frames:7.1f} ms")
    print(f"  refine {statistics.median(refine_ms):7.1f} ms")


if __name__ == "__main__":
    main()

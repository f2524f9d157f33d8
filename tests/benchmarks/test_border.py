"""The truth for what fills the border, on a plane that is known everywhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.border import crop, fill_errors
from tests.render.plane_world import make_format, pose, source
from vs3r.config import Config
from vs3r.render import WarpRenderer
from vs3r.smooth import unsmoothed

FMT = make_format("yuv420p", 320, 192)


def test_a_cropped_frame_shows_the_same() -> None:
    """Also what its rolling shutter bends: seen by its own camera, it is the crop of what the whole frame shows."""
    whole = source(FMT, pose(1.0, 0.5, 2.0))
    motion = np.array([[0.02, 0.01, 0, 0.01, -0.02, 0.03], [0, 0.02, 0, 0.02, 0, 0.01]])
    whole = replace(whole, geometry=replace(whole.geometry, row_motion=motion))
    part = crop(whole, 16)
    shown = {}
    for name, frame in {"whole": whole, "part": part}.items():
        renderer = WarpRenderer(frame.frame.format, Config().render)
        shown[name] = renderer.render(0, unsmoothed(frame.geometry), {0: frame}).frame.planes[0].astype(float)
    difference = np.abs(shown["whole"][16:-16, 16:-16] - shown["part"])[24:-24, 24:-24]
    assert np.percentile(difference, 99) < 4
    assert np.abs(shown["whole"] - whole.frame.planes[0]).mean() > 8, "the shutter bends what is seen"


def test_fills_are_measured_where_pixels_were_cut_away() -> None:
    """Neighbours that look around see the plane there; those that look the same way do not."""
    angles = np.random.default_rng(0).uniform(-5, 5, (24, 2))
    looking = [source(FMT, pose(*angle), index) for index, angle in enumerate(angles)]
    same = [source(FMT, pose(), index) for index in range(24)]
    (around, invented), (still, all_invented) = (
        fill_errors(frames, Config(), share=0.04, every=5) for frames in (looking, same)
    )
    assert len(around) == 4
    assert around.mean() < 0.1 * still.mean()
    assert invented.mean() < 0.01 < 0.05 < all_invented.mean()

"""`--refine wan` on a file, with a small random model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.engine.clips import Clip, write_clip
from tests.engine.fakes import CopyingRenderer, make_frame, make_geometry
from vs3r.config import Config, RefineConfig, WanConfig
from vs3r.engine.cli import run
from vs3r.engine.files import analyze_file, render_file, stabilize_file
from vs3r.engine.media import VideoReader
from vs3r.engine.pipeline import ClipRendering, SourceWindow
from vs3r.engine.threads import Cancellation, Stopped
from vs3r.errors import BackendError
from vs3r.refine import make_refiner
from vs3r.render import SourceFrame
from vs3r.smooth import SmoothedFrame
from vs3r.types import Frame, RenderedFrame, VirtualCamera

pytestmark = pytest.mark.usefixtures("own_cache")


def lumas(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    with VideoReader(path) as reader:
        return np.stack([np.asarray(frame.planes[0], np.uint8) for frame in reader])


def wan(folder: Path, *, backend: str = "wan") -> Config:
    settings = WanConfig(
        wan_weights=str(folder), wan_device="cpu", wan_precision="fp32", wan_steps=2, wan_pixels=96 * 64,
        wan_window_frames=9, wan_stride_frames=8,
    )  # fmt: skip
    base = Config()
    return replace(
        base,
        refine=RefineConfig(backend=backend),
        wan=settings,
        render=replace(base.render, camera="wide"),
        encode=replace(base.encode, codec="ffv1"),
    )


def test_a_clip_along_its_track(wan_folder: Path, tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mkv", Clip(frames=20))
    track = analyze_file(source, Config())
    refined, again, plain = (tmp_path / f"{name}.mkv" for name in ("refined", "again", "plain"))
    report = render_file(source, refined, track, wan(wan_folder))
    assert report.frames == 20 and report.valid_share < 1.0, "the clip has holes"
    render_file(source, plain, track, wan(wan_folder, backend="fill"))
    ours, filled = lumas(refined), lumas(plain)
    assert ours.shape == filled.shape
    height, width = ours.shape[1:]
    middle = slice(None), slice(3 * height // 8, 5 * height // 8), slice(3 * width // 8, 5 * width // 8)
    np.testing.assert_array_equal(ours[middle], filled[middle], "what was seen is not the model's")
    assert (ours[:, 0] != filled[:, 0]).mean() > 0.5
    render_file(source, again, track, wan(wan_folder))
    np.testing.assert_array_equal(lumas(again), ours)


def test_an_interrupt_ends_it_and_leaves_nothing(wan_folder: Path, tmp_path: Path) -> None:
    source, target = write_clip(tmp_path / "in.mkv", Clip(frames=20)), tmp_path / "out.mkv"
    cancel = Cancellation()
    with pytest.raises(Stopped):
        stabilize_file(source, target, wan(wan_folder), progress=lambda _: cancel.cancel(), cancel=cancel)
    assert not target.exists()


def test_the_command_line_says_what_is_missing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = write_clip(tmp_path / "in.mkv", Clip(frames=4))
    args = ["stabilize", str(source), str(tmp_path / "out.mkv"), "--refine", "wan", "--wan-device", "cpu"]
    assert run(args) == 1
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("vs3r: error: expected the weights wan2.2-i2v-a14b in") and "vs3r weights fetch" in error
    assert not (tmp_path / "out.mkv").exists()


def test_frame_by_frame_it_is_refused() -> None:
    with pytest.raises(BackendError, match="does not run on a server"):
        make_refiner(RefineConfig(backend="wan"))


class Delayed:
    """Gives pictures back three frames later, or when the scene ends."""

    def __init__(self) -> None:
        self.held: list[Frame] = []
        self.segment = 0
        self.largest = 0

    def push(self, rendered: RenderedFrame, *, segment: int) -> list[Frame]:
        done = self.flush() if segment != self.segment else []
        self.segment = segment
        self.held.append(rendered.frame)
        self.largest = max(self.largest, len(self.held))
        return done + [self.held.pop(0)] if len(self.held) > 3 else done

    def flush(self) -> list[Frame]:
        done, self.held = self.held, []
        return done

    def reset(self) -> None:
        self.held.clear()
        self.segment = 0


def test_pictures_come_in_order_and_with_their_scene() -> None:
    refiner = Delayed()
    rendering = ClipRendering(CopyingRenderer(), refiner, SourceWindow(before=2, after=2))
    for _ in range(2):
        done = []
        for i in range(12):
            geometry = make_geometry(i, segment=int(i >= 7))
            camera = VirtualCamera(K=geometry.K, cam_from_world=geometry.cam_from_world)
            done += rendering.push(SourceFrame(frame=make_frame(i), geometry=geometry))
            done += rendering.push(SmoothedFrame(geometry=geometry, camera=camera))
            assert rendering.held <= 5 + 4
        assert len(done) == 7, "the scene that ended is out, of the other none before the fourth"
        done += rendering.flush()
        assert [(picture.index, picture.frame.pts) for picture in done] == [(i, make_frame(i).pts) for i in range(12)]
        rendering.reset()
        assert rendering.held == 0
    assert refiner.largest == 4

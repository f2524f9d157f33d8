"""The pipeline around the method: which sources fill a frame, bounded memory, order, reset."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from tests.engine.clips import Clip, make_frames
from tests.engine.fakes import (
    FMT,
    BatchReconstructor,
    LookaheadSmoother,
    RecordingRenderer,
    make_frame,
    take_picture,
)
from tests.reconstruct.test_flow_ba import make_frames as gray_frames
from tests.reconstruct.test_flow_ba import pictures
from vs3r.config import Config, RenderConfig, SmoothConfig
from vs3r.engine.pipeline import Analysis, Rendering, SourceWindow, StabilizedFrame, Stabilizer
from vs3r.engine.threads import Crew
from vs3r.errors import ShapeError


class Run:
    """The two stages with stand-ins inside."""

    def __init__(
        self, *, batch: int, lookahead: int, fill: int, cuts: tuple[int, ...] = (), crew: Crew | None = None
    ) -> None:
        config = Config(smooth=SmoothConfig(lookahead_frames=lookahead), render=RenderConfig(fill_window_frames=fill))
        self.renderer = RecordingRenderer()
        self.analysis = Analysis(BatchReconstructor(batch, cuts), LookaheadSmoother(lookahead))
        self.rendering = Rendering(self.renderer, take_picture, SourceWindow.of_stream(config), crew)
        self.most_held = 0

    def frames(self, count: int) -> list[StabilizedFrame]:
        done = []
        for index in range(count):
            for item in self.analysis.push(self.analysis.observe(make_frame(index))):
                done.extend(self.rendering.push(item))
                self.most_held = max(self.most_held, self.rendering.held)
        for item in self.analysis.flush():
            done.extend(self.rendering.push(item))
        return done + self.rendering.flush()


def test_pictures_drawn_at_once_come_in_order() -> None:
    one = Run(batch=8, lookahead=3, fill=5)
    alone = one.frames(31)
    with ThreadPoolExecutor(3) as pool:
        many = Run(batch=8, lookahead=3, fill=5, crew=Crew(pool=pool, ahead=4))
        together = many.frames(31)
    assert sorted(many.renderer.calls) == one.renderer.calls
    assert [d.index for d in together] == [d.index for d in alone]
    assert many.most_held == one.most_held + 4


@pytest.mark.parametrize("batch", [1, 8, 11, 1000])
@pytest.mark.parametrize(("lookahead", "fill"), [(0, 5), (3, 5), (5, 3), (6, 0), (50, 50)])
@pytest.mark.parametrize("cuts", [(), (7, 8, 20)])
def test_sources_depend_on_frame_numbers_only(batch: int, lookahead: int, fill: int, cuts: tuple[int, ...]) -> None:
    count = 31
    run = Run(batch=batch, lookahead=lookahead, fill=fill, cuts=cuts)
    done = run.frames(count)
    scene = [sum(i >= cut for cut in cuts) for i in range(count)]
    expected = [
        (t, tuple(i for i in range(count) if t - fill <= i <= t + min(fill, lookahead) and scene[i] == scene[t]))
        for t in range(count)
    ]
    assert run.renderer.calls == expected
    assert [d.index for d in done] == list(range(count))
    assert [int(d.frame.planes[0][0, 0]) for d in done] == list(range(count))


def test_memory_is_bounded() -> None:
    held = []
    for count in (100, 400):
        run = Run(batch=8, lookahead=10, fill=12)
        run.frames(count)
        held.append(run.most_held)
    assert held[0] == held[1] <= 10 + 12 + 2


def test_output_comes_a_bounded_number_of_frames_later() -> None:
    run = Run(batch=8, lookahead=10, fill=12)
    latest = -1
    for index in range(100):
        for item in run.analysis.push(run.analysis.observe(make_frame(index))):
            for done in run.rendering.push(item):
                latest = done.index
        assert latest >= index - 8 - 10


CLIP = make_frames(Clip(frames=24))


def config(lookahead: int = 4) -> Config:
    return Config(smooth=SmoothConfig(lookahead_frames=lookahead), render=RenderConfig(fill_window_frames=4))


def stabilize(stabilizer: Stabilizer, count: int) -> list[bytes]:
    frames = CLIP[:count]
    done = [d for frame in frames for d in stabilizer.push(frame)]
    done += stabilizer.flush()
    assert [d.index for d in done] == list(range(count))
    assert [d.frame.pts for d in done] == [f.pts for f in frames]
    return [b"".join(p.tobytes() for p in d.frame.planes) for d in done]


def test_same_input_gives_same_bytes_also_after_reset_and_flush() -> None:
    fmt = CLIP[0].format
    stabilizer = Stabilizer(config(), fmt)
    first = stabilize(stabilizer, 21)
    assert stabilize(stabilizer, 21) == first, "flush() must leave no trace"
    for frame in CLIP[:13]:
        stabilizer.push(frame)
    stabilizer.reset()
    assert stabilize(stabilizer, 21) == first, "reset() must leave no trace"
    assert stabilize(Stabilizer(config(), fmt), 21) == first


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_very_short_streams(count: int) -> None:
    fmt = CLIP[0].format
    assert len(stabilize(Stabilizer(config(), fmt), count)) == count


def test_frame_of_another_format_is_refused() -> None:
    stabilizer = Stabilizer(config(), replace(FMT, width=18))
    with pytest.raises(ShapeError, match=r"expected frames of 18x16 yuv420p, got one of 16x16"):
        stabilizer.push(make_frame(0))


def test_shares_are_shares() -> None:
    stabilizer = Stabilizer(config(), CLIP[0].format)
    done = [d for frame in CLIP for d in stabilizer.push(frame)] + stabilizer.flush()
    own, valid = (np.array([getattr(d, name) for d in done]) for name in ("own_share", "valid_share"))
    assert ((own >= 0) & (own <= valid + 1e-6) & (valid <= 1)).all()


def test_a_flash_is_white_up_to_its_border() -> None:
    """It is not filled from frames that show something, and does not fill theirs."""
    shown = list(pictures("walking"))
    shown[13] = np.full_like(shown[13], 255)
    frames = gray_frames(shown)
    stabilizer = Stabilizer(Config(), frames[0].format)
    done = [d.frame.planes[0] for frame in frames for d in stabilizer.push(frame)]
    done += [d.frame.planes[0] for d in stabilizer.flush()]
    assert (done[13] == 255).all() and not (done[12] == shown[12]).all()
    brightest = max(int(plane.max()) for plane in pictures("walking"))
    assert brightest < 240 and all(int(done[k].max()) < 250 for k in (*range(13), *range(14, len(done))))

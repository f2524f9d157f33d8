"""Files through the threaded stages: the same pictures as one after the other, errors, interruption."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tests.engine.clips import Clip, write_clip
from vs3r.config import Config, EncodeConfig, RenderConfig, SmoothConfig
from vs3r.engine import files, pipeline
from vs3r.engine.files import analyze_file, render_file, stabilize_file
from vs3r.engine.media import VideoReader
from vs3r.engine.progress import Progress
from vs3r.engine.threads import Cancellation, Channel, Stages, Stopped
from vs3r.errors import MediaError, TrackError
from vs3r.render.renderer import WarpRenderer

CONFIG = Config(
    smooth=SmoothConfig(lookahead_frames=4),
    render=RenderConfig(fill_window_frames=4),
    encode=EncodeConfig(codec="ffv1"),
)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "in.mkv", Clip(frames=30, codec="ffv1"))


def pictures(path: Path) -> list[bytes]:
    with VideoReader(path) as reader:
        return [b"".join(p.tobytes() for p in frame.planes) for frame in reader]


_OTHERS: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def others() -> None:
    """Threads that were there before: a server of another test may still have a call to end."""
    _OTHERS.clear()
    _OTHERS.update(threading.enumerate())


def no_leftovers(folder: Path) -> bool:
    workers = [t for t in threading.enumerate() if t.name.startswith("vs3r") and t not in _OTHERS]
    return not workers and not list(folder.iterdir())


def cores(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Half as many pictures are drawn at a time, but two at least."""
    monkeypatch.setattr("vs3r.engine.threads.usable_cores", lambda: count)


def test_threads_change_nothing(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cores(monkeypatch, 2)
    report = stabilize_file(clip, tmp_path / "a.mkv", CONFIG)
    stabilize_file(clip, tmp_path / "b.mkv", CONFIG)
    cores(monkeypatch, 8)
    stabilize_file(clip, tmp_path / "c.mkv", CONFIG)
    assert (tmp_path / "a.mkv").read_bytes() == (tmp_path / "b.mkv").read_bytes() == (tmp_path / "c.mkv").read_bytes()
    with VideoReader(clip) as reader:
        stabilizer = pipeline.Stabilizer(CONFIG, reader.info.format)
        done = [d for frame in reader for d in stabilizer.push(frame)] + stabilizer.flush()
    assert pictures(tmp_path / "a.mkv") == [b"".join(p.tobytes() for p in d.frame.planes) for d in done]
    assert report.frames == 30
    assert report.valid_share == pytest.approx(sum(d.valid_share for d in done) / 30)
    assert report.worst_valid_share == min(d.valid_share for d in done)


def test_progress_counts_every_frame(clip: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    stabilize_file(clip, tmp_path / "out.mkv", CONFIG, progress=seen.append)
    assert [p.frames for p in seen] == list(range(1, 31))
    assert {p.total for p in seen} == {30}
    assert all(p.left_s is not None and p.left_s >= 0 for p in seen[1:])


def test_render_with_its_own_track_is_repeatable(clip: Path, tmp_path: Path) -> None:
    track = analyze_file(clip, CONFIG)
    assert len(track) == 30
    for name in ("a.mkv", "b.mkv"):
        assert render_file(clip, tmp_path / name, track, CONFIG).frames == 30
    assert (tmp_path / "a.mkv").read_bytes() == (tmp_path / "b.mkv").read_bytes()


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (Clip(frames=30, width=66), "has 64x48 pixels, the clip 66x48"),
        (Clip(frames=29), "has 30 frames, the clip 29"),
        (Clip(frames=31), "has 30 frames, the clip more"),
        (Clip(frames=30, pts=tuple(i * 512 + (i == 17) * 90 for i in range(30))), "has frame 17 at 0.6800 s"),
    ],
)
def test_track_of_another_clip_is_refused(clip: Path, tmp_path: Path, other: Clip, complaint: str) -> None:
    track = analyze_file(clip, CONFIG)
    stranger = write_clip(tmp_path / "other.mp4", other)
    target = tmp_path / "new"
    target.mkdir()
    with pytest.raises(TrackError, match=complaint):
        render_file(stranger, target / "out.mkv", track, CONFIG)
    assert no_leftovers(target)


def test_track_serves_the_clip_in_another_container(tmp_path: Path) -> None:
    made = Clip(frames=4, rate=Fraction(30), time_base=Fraction(1, 30))
    rounded = replace(made, pts=(0, 33, 67, 100), time_base=Fraction(1, 1000))
    track = analyze_file(write_clip(tmp_path / "a.mp4", made), CONFIG)
    assert render_file(write_clip(tmp_path / "a.mkv", rounded), tmp_path / "b.mkv", track, CONFIG).frames == 4
    # Matroska moves a clip whose sound begins below zero, and rounds its first time, too: 21.3, 54.7, 88, 121.3 ms.
    moved = write_clip(tmp_path / "moved.mkv", replace(rounded, pts=(21, 55, 88, 121)))
    assert render_file(moved, tmp_path / "c.mkv", track, CONFIG).frames == 4
    back = analyze_file(moved, CONFIG)
    assert render_file(tmp_path / "a.mp4", tmp_path / "d.mkv", back, CONFIG).frames == 4
    late = write_clip(tmp_path / "late.mkv", replace(rounded, pts=(21, 55, 89, 121)))
    with pytest.raises(TrackError, match=r"frame 2 at 0\.0667 s, the clip 0\.0680 s"):
        render_file(late, tmp_path / "e.mkv", track, CONFIG)


class Failing:
    """A stage that fails at its n-th push, at the end, or (n = -1) at its first observation."""

    def __init__(self, stage: Any, at: int) -> None:
        self._stage, self._left = stage, at

    def observe(self, frame: Any) -> Any:
        if self._left < 0:
            raise MediaError("broken on purpose")
        return self._stage.observe(frame)

    def push(self, item: Any) -> Sequence[Any]:
        self._left -= 1
        if self._left == 0:
            raise MediaError("broken on purpose")
        return self._stage.push(item)  # type: ignore[no-any-return]

    def flush(self) -> Sequence[Any]:
        raise MediaError("broken on purpose")


@pytest.mark.parametrize(
    ("stage", "at"),
    [("make_analysis", -1), *((stage, at) for stage in ("make_analysis", "make_rendering") for at in (1, 20, 1000))],
)
def test_error_of_a_stage_stops_all(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, at: int
) -> None:
    make: Callable[..., Any] = getattr(pipeline, stage)
    monkeypatch.setattr(pipeline, stage, lambda *args, **more: Failing(make(*args, **more), at))
    with pytest.raises(MediaError, match="broken on purpose"):
        stabilize_file(clip, tmp_path / "out.mkv", CONFIG)
    assert no_leftovers(tmp_path)


@pytest.mark.parametrize("count", [2, 8])
def test_error_of_a_drawing_stops_all(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    def render(self: WarpRenderer, index: int, *given: Any) -> Any:
        if index == 7:
            raise MediaError("broken on purpose")
        return drawn(self, index, *given)

    drawn = WarpRenderer.render
    monkeypatch.setattr(WarpRenderer, "render", render)
    cores(monkeypatch, count)
    with pytest.raises(MediaError, match="broken on purpose"):
        stabilize_file(clip, tmp_path / "out.mkv", CONFIG)
    assert no_leftovers(tmp_path)


@pytest.mark.parametrize("place", ["_read", "_write"])
def test_error_of_reader_or_writer_stops_all(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def broken(*_args: object) -> None:
        raise MediaError("broken on purpose")

    monkeypatch.setattr(files, place, broken)
    with pytest.raises(MediaError, match="broken on purpose"):
        stabilize_file(clip, tmp_path / "out.mkv", CONFIG)
    assert no_leftovers(tmp_path)


def test_interrupt_leaves_nothing(clip: Path, tmp_path: Path) -> None:
    def press(now: Progress) -> None:
        if now.frames == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stabilize_file(clip, tmp_path / "out.mkv", CONFIG, progress=press)
    assert no_leftovers(tmp_path)


@pytest.mark.parametrize("before", [True, False])
def test_cancel_leaves_nothing(clip: Path, tmp_path: Path, before: bool) -> None:
    switch = Cancellation()
    if before:
        switch.cancel()
    with pytest.raises(Stopped):
        stabilize_file(clip, tmp_path / "out.mkv", CONFIG, cancel=switch, progress=lambda _: switch.cancel())
    assert no_leftovers(tmp_path)


def test_existing_output_survives_a_failed_run(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out.mkv"
    target.write_bytes(b"precious")
    make = pipeline.make_rendering
    monkeypatch.setattr(pipeline, "make_rendering", lambda *args, **more: Failing(make(*args, **more), 20))
    with pytest.raises(MediaError):
        stabilize_file(clip, target, CONFIG)
    assert target.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [target]


def test_thread_pools_are_put_back(clip: Path, tmp_path: Path) -> None:
    import cv2
    import torch

    before = cv2.getNumThreads(), torch.get_num_threads()
    stabilize_file(clip, tmp_path / "out.mkv", CONFIG)
    assert (cv2.getNumThreads(), torch.get_num_threads()) == before


def test_channel_delivers_in_order_and_bounded() -> None:
    numbers: Channel[int] = Channel(3)
    most = []

    def count() -> None:
        for number in range(100):
            numbers.put(number)
            most.append(number)
        numbers.end()

    with Stages([numbers]) as stages:
        stages.start("count", count)
        got: list[int] = []
        for number in numbers:
            # What was put but not taken is at most the queue's size, plus the one whose put has just returned.
            assert len(most) - len(got) <= 3 + 1
            got.append(number)
    assert got == list(range(100))


def test_error_of_the_caller_goes_before_that_of_a_stage() -> None:
    channel: Channel[int] = Channel(1)

    def fail() -> None:
        raise MediaError("of the stage")

    def run(*, interrupt: bool) -> None:
        with Stages([channel]) as stages:
            stages.start("fail", fail)
            if interrupt:
                raise KeyboardInterrupt
            list(channel)

    with pytest.raises(MediaError, match="of the stage"):
        run(interrupt=False)
    with pytest.raises(KeyboardInterrupt):
        run(interrupt=True)

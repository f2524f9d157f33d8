"""Broadcast recordings joined end to end: every one's sound stays with its pictures."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.packet import Packet
from av.stream import Stream

from tests.engine.clips import Clip, write_clip
from tests.engine.test_media_writer import copy, packets, read
from vs3r.engine.media import VideoReader
from vs3r.engine.media.timing import Joins

MILLI = Fraction(1, 1000)


def _later(path: Path, target: Path, by_s: int) -> Path:
    """MPEG-TS whose clock starts so much later."""
    with av.open(str(path)) as container, av.open(str(target), "w") as out:
        copies = {s.index: out.add_stream_from_template(s, opaque=True) for s in container.streams}
        for packet in container.demux():
            if packet.dts is not None and packet.pts is not None:
                packet.stream = copies[packet.stream.index]
                packet.pts += round(by_s / packet.time_base)
                packet.dts += round(by_s / packet.time_base)
                out.mux(packet)
    return target


def _clicks_s(path: Path) -> list[float]:
    found: list[float] = []
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            loud = np.nonzero(np.abs(frame.to_ndarray()[0]) > 0.3)[0]
            if len(loud) and frame.time is not None:
                time_s = frame.time + float(loud[0] / frame.sample_rate)
                if not found or time_s - found[-1] > 0.5:
                    found.append(time_s)
    return found


@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
@pytest.mark.parametrize("starts_s", [(0,) * 12, (20_000, 0, 30_000)])
def test_sound_does_not_drift_from_join_to_join(tmp_path: Path, starts_s: tuple[int, ...], ending: str) -> None:
    """As recorders of streams and tools that cut them into parts leave them. Sound is longer than the pictures."""
    pts = tuple(range(0, 1600, 40))
    clip = Clip(frames=40, pts=pts, last_duration=110, time_base=MILLI, flash_frame=15, audio="aac")
    one = write_clip(tmp_path / "one.ts", clip)
    parts = [_later(one, tmp_path / f"{i}.ts", start_s).read_bytes() for i, start_s in enumerate(starts_s)]
    (tmp_path / "joined.ts").write_bytes(b"".join(parts))
    assert copy(tmp_path / "joined.ts", tmp_path / f"b{ending}") == ()
    assert len(packets(tmp_path / f"b{ending}", "audio")) == len(packets(tmp_path / "joined.ts", "audio"))
    frames = read(tmp_path / f"b{ending}")
    assert len(frames) == 40 * len(starts_s)
    flashes_s = [f.pts_s for f in frames if float(f.planes[0].mean()) > 128]
    assert np.diff(flashes_s) == pytest.approx(np.full(len(starts_s) - 1, 1.6), abs=0.002)
    assert _clicks_s(tmp_path / f"b{ending}") == pytest.approx(flashes_s, abs=0.03)  # AAC smears a click


def test_joins_are_told(tmp_path: Path) -> None:
    """Also those that are shorter than a second."""
    one = write_clip(tmp_path / "one.ts", Clip(frames=12)).read_bytes()
    (tmp_path / "joined.ts").write_bytes(one + one)
    with VideoReader(tmp_path / "joined.ts") as reader:
        times_s = [frame.pts_s for frame in reader]
        assert np.diff(times_s) == pytest.approx(np.full(23, 1 / 25), abs=0.001)
        assert reader.notes == ("the file joins 2 recordings: each follows the one before",)


def test_sound_moves_as_the_pictures_do() -> None:
    pictures, sound = Joins(MILLI), Joins(MILLI)
    for time in (5000, 5040, 2000, 2040):
        pictures.meet(time, 40)
    assert pictures.shifts == [0, Fraction(3080, 1000)]
    for time in (5000, 5050):
        sound.meet(time, 50)
    assert sound.shift_like(pictures) == 0
    sound.meet(2000, 50)
    assert sound.shift_like(pictures) == Fraction(3080, 1000)
    # The pictures' next join has not been met yet: the sound goes on by itself until then.
    sound.meet(20, 50)
    assert sound.shift_like(pictures) == Fraction(3080 + 2030, 1000)
    pictures.meet(10, 40)
    assert sound.shift_like(pictures) == Fraction(3080 + 2070, 1000)


@pytest.mark.parametrize("damaged", ["pictures", "sound"])
def test_a_damaged_time_is_no_recording(damaged: str) -> None:
    """It would be counted, and the sound of the next recording moved as the pictures of another."""
    pictures, sound = Joins(MILLI), Joins(MILLI)
    for time in (500_000, 500_040, 90_000_000, 500_120, 500_160, 0, 40):
        for name, line in (("pictures", pictures), ("sound", sound)):
            if time < 90_000_000 or name == damaged:
                line.meet(time, 40)
        placed = time * MILLI + sound.shift_like(pictures)
    assert float(placed) == pytest.approx(500.240, abs=0.05)
    assert sound.shift_like(pictures) == pictures.shifts[-1]


def test_sound_that_begins_long_after_its_pictures() -> None:
    pictures, sound = Joins(MILLI), Joins(MILLI)
    for time in (500_000, 500_040, *range(0, 20_000, 40)):
        pictures.meet(time, 40)
        if time > 15_000:
            sound.meet(time, 40)
            assert sound.shift_like(pictures) == pictures.shifts[-1]


def test_sound_that_begins_in_a_later_recording() -> None:
    pictures = Joins(MILLI)
    for time in (5000, 5040, 2000):
        pictures.meet(time, 40)
    sound = Joins(MILLI, pictures)
    sound.meet(2010, 50)
    assert sound.shift_like(pictures) == pictures.shifts[1]


def test_subtitles_move_with_the_pictures(tmp_path: Path) -> None:
    """They are too seldom to tell of a join: here each recording's begin later than those of the one before ended."""
    pts = tuple(range(0, 3200, 40))
    one = write_clip(tmp_path / "v.ts", Clip(frames=80, pts=pts, time_base=MILLI))
    parts = []
    for number, time in enumerate((0, 2)):
        with av.open(str(one)) as container, av.open(str(tmp_path / f"{number}.ts"), "w") as out:
            main = out.add_stream_from_template(container.streams.video[0], opaque=True)
            words = out.add_mux_stream("dvbsub", time_base=Fraction(1, 90_000))
            packet: Packet[Stream] = Packet(b"\x0f\x80\0\1\0\0")
            packet.stream, packet.time_base = words, Fraction(1)
            packet.pts = packet.dts = time + 1
            beside = [packet]
            for moving in container.demux(video=0):
                if moving.dts is not None:
                    if beside and moving.dts * moving.time_base >= time + 1:
                        out.mux(beside.pop())
                    moving.stream = main
                    out.mux(moving)
        parts.append((tmp_path / f"{number}.ts").read_bytes())
    (tmp_path / "joined.ts").write_bytes(b"".join(parts))
    copy(tmp_path / "joined.ts", tmp_path / "b.mkv")
    first, second = (time_s for time_s, _ in packets(tmp_path / "b.mkv", "subtitle"))
    assert float(second - first) == pytest.approx(3.2 + 2, abs=0.1)


@pytest.mark.parametrize("time", [4900, 5040 + 3_599_000])
def test_what_is_no_join(time: int) -> None:
    line = Joins(MILLI)
    for met in (5000, 5040, None, time):
        line.meet(met, 40)
    assert line.shifts == [0]

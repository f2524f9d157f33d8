"""The MLT filter on clips of every form, in melt, against the command line."""

from __future__ import annotations

import os
import shutil
import signal
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from tests.bridge.conftest import (
    FRAMES,
    HEIGHT,
    WIDTH,
    Analysed,
    Form,
    Host,
    Pictures,
    engines,
    luma,
    make_clip,
    stabilize,
)
from tests.bridge.test_mlt import near, status
from vs3r.engine.track_file import load_track

# Mean difference of luma of pictures that two programs have scaled. Worst seen: 0.2; another frame: above 1.
SCALED = 0.5


def profile(
    folder: Path, width: int, height: int, pixel_aspect: Fraction = Fraction(1), *, rate: int = 25
) -> tuple[str, str]:
    """Arguments that give a timeline its size and frames a second."""
    path = folder / f"{width}x{height}"
    shown = Fraction(width, height) * pixel_aspect
    path.write_text(
        f"description=own\nframe_rate_num={rate}\nframe_rate_den=1\nwidth={width}\nheight={height}\nprogressive=1\n"
        f"sample_aspect_num={pixel_aspect.numerator}\nsample_aspect_den={pixel_aspect.denominator}\n"
        f"display_aspect_num={shown.numerator}\ndisplay_aspect_den={shown.denominator}\ncolorspace=601\n"
    )
    return "-profile", str(path)


@pytest.fixture(scope="module")
def upright(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """What the command line makes of the clip that is turned below: as it is coded, so it is not turned itself."""
    folder = tmp_path_factory.mktemp("upright")
    return stabilize(make_clip(folder / "clip.mp4", seed=20), folder / "steady.mkv")


@pytest.mark.parametrize(("turn", "rotation"), [(1, 90), (2, 180), (3, 270)])
def test_a_portrait_clip_stands_upright(
    melt: Host, upright: Pictures, tmp_path: Path, turn: int, rotation: int
) -> None:
    clip = make_clip(tmp_path / "portrait.mp4", seed=20, form=Form(rotation_deg=rotation))
    size = (WIDTH, HEIGHT) if rotation == 180 else (HEIGHT, WIDTH)
    found = melt.render(*profile(tmp_path, *size), str(clip), "-attach", "vs3r", "unanalysed=wait")
    assert near(found, np.rot90(upright, turn, axes=(1, 2)))
    assert not near(found, np.rot90(upright, turn + 2, axes=(1, 2)))


def test_an_anamorphic_clip_is_as_wide_as_it_is_shown(melt: Host, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "wide.mkv", seed=21, form=Form(pixel_aspect=Fraction(2)))
    steady = stabilize(clip, tmp_path / "steady.mkv")
    melt.analyse(clip)
    found = melt.render(*profile(tmp_path, WIDTH, HEIGHT, Fraction(2)), str(clip), "-attach", "vs3r")
    assert near(found, steady)
    found = melt.render(*profile(tmp_path, 2 * WIDTH, HEIGHT), str(clip), "-attach", "vs3r")
    assert near(found, np.stack([cv2.resize(frame, (2 * WIDTH, HEIGHT)) for frame in steady]), SCALED)


def test_an_interlaced_clip_is_shown_whole(melt: Host, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "fields.mkv", seed=22, form=Form(is_interlaced=True))
    with av.open(str(clip)) as file:
        assert next(file.decode(video=0)).interlaced_frame
    steady = stabilize(clip, tmp_path / "steady.mkv")
    found = melt.render(*profile(tmp_path, WIDTH, HEIGHT), str(clip), "-attach", "vs3r", "unanalysed=wait")
    assert near(found, steady)


def test_a_clip_whose_time_begins_late(melt: Host, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "late.mkv", seed=23, form=Form(start=250))
    steady = stabilize(clip, tmp_path / "steady.mkv")
    # MLT counts from the clip's first frame, and holds the last one: it takes the clip's end for its length.
    found = melt.render(str(clip), "out=30", "-attach", "vs3r", "unanalysed=wait")
    assert near(found, steady[np.minimum(np.arange(31), FRAMES - 1)])


@pytest.mark.parametrize("speed", [2.0, 0.5])
def test_a_retimed_clip_shows_the_frames_of_that_time(melt: Host, analysed: Analysed, speed: float) -> None:
    found = melt.render(f"timewarp:{speed}:{analysed.clip}", "-attach", "vs3r")
    assert abs(len(found) - FRAMES / speed) <= 1
    # As MLT's own decoder counts.
    shown = np.minimum(np.floor(np.arange(len(found)) * speed + 0.5).astype(int), FRAMES - 1)
    assert near(found, analysed.steady[shown])


@pytest.mark.parametrize(("rate", "seconds"), [(25, 0.46), (50, 0.47), (50, None)])
def test_a_clip_whose_time_is_remapped(
    melt: Host, analysed: Analysed, tmp_path: Path, rate: int, seconds: float | None
) -> None:
    """By a link of its chain, as the editors do it: to half its speed, or only to the timeline's rate."""
    length = FRAMES * rate // 25
    timing = f'<property name="map">0=0;{length - 1}={seconds}</property>' if seconds is not None else ""

    def shown(filter_: str) -> Pictures:
        project = tmp_path / "project.mlt"
        project.write_text(
            f'<mlt><chain in="0" out="{length - 1}"><property name="length">{length}</property>'
            f'<property name="resource">{analysed.clip}</property><property name="mlt_service">avformat</property>'
            f'<link><property name="mlt_service">timeremap</property>{timing}</link>{filter_}</chain></mlt>'
        )
        return melt.render(*profile(tmp_path, WIDTH, HEIGHT, rate=rate), str(project))

    bare, clip = shown(""), luma(analysed.clip).astype(float)
    frames = [int(np.abs(clip - picture).mean(axis=(1, 2)).argmin()) for picture in bare]
    assert len(frames) == length and max(frames) <= (FRAMES // 2 if seconds else FRAMES - 1)
    found = shown('<filter><property name="mlt_service">vs3r</property></filter>')
    assert near(found, analysed.steady[frames])


def test_a_proxy_shows_its_file(melt: Host, analysed: Analysed, tmp_path: Path) -> None:
    for name in ("kdenlive:originalurl", "shotcut:resource"):
        project = on_proxy(tmp_path, analysed.clip, WIDTH // 2, HEIGHT // 2, name)
        assert near(melt.render(*profile(tmp_path, WIDTH, HEIGHT), str(project)), analysed.steady)


def on_proxy(folder: Path, clip: Path, width: int, height: int, name: str = "kdenlive:originalurl") -> Path:
    """A project with the filter on a clip's proxy; name: of the property that tells the clip."""
    proxy, project = folder / "proxy.mkv", folder / "project.mlt"
    with av.open(str(proxy), "w") as out, av.open(str(clip)) as file:
        video = out.add_stream("libx264", rate=25, options={"crf": "20"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        for frame in file.decode(video=0):
            out.mux(video.encode(frame.reformat(width, height)))
        out.mux(video.encode(None))
    project.write_text(
        f'<mlt><producer id="clip"><property name="resource">{proxy}</property>'
        f'<property name="{name}">{clip}</property>'
        '<filter><property name="mlt_service">vs3r</property></filter></producer></mlt>'
    )
    return project


@pytest.mark.parametrize(("width", "height", "shown"), [(WIDTH, HEIGHT + 2, 66), (WIDTH + 4, HEIGHT, 61)])
def test_a_proxy_that_is_rounded_is_filled(
    melt: Host, analysed: Analysed, tmp_path: Path, width: int, height: int, shown: int
) -> None:
    """Taller and wider than its file; shown: rows of it on the timeline."""
    project = on_proxy(tmp_path, analysed.clip, width, height)
    found = melt.render(*profile(tmp_path, WIDTH, WIDTH), str(project))
    top = (WIDTH - shown) // 2
    steady = np.stack([cv2.resize(frame, (WIDTH, shown)) for frame in analysed.steady])
    # Rows of colour in 4:2:0 reach over the edge.
    assert near(found[:, top + 2 : top + shown - 2], steady[:, 2:-2], SCALED)


def test_a_track_that_cannot_be_read_leaves_the_source(melt: Host, analysed: Analysed, tmp_path: Path) -> None:
    folder = f"filename={tmp_path}"
    found = melt.render(str(analysed.clip), "-attach", "vs3r", folder)
    assert near(found, melt.render(str(analysed.clip)))
    words = f"cannot read the track '{tmp_path}'"
    assert words in status(melt, analysed.clip, None, folder).replace("&apos;", "'")


# Analyses at once, and has nothing when it is asked for it.
FORGETFUL = """#!/usr/bin/env python3
import os, socket

stream = socket.socket(fileno=os.dup(0)).makefile("rw")
for request in stream:
    stream.write("ready\\t24\\tcontent\\n" if request.startswith("open\\t1") else "unanalysed\\n")
    stream.flush()
"""


def test_an_analysis_that_the_engine_has_lost_is_told(melt: Host, clip: Path, tmp_path: Path) -> None:
    bridge, track, out = tmp_path / "bridge", tmp_path / "shaky.vs3r", tmp_path / "job.mlt"
    bridge.write_text(FORGETFUL)
    bridge.chmod(0o700)
    job = ("-attach", "vs3r", "analyze=1", f"filename={track}", "-consumer", f"xml:{out}", "all=1", "real_time=-1")
    melt.run(str(clip), *job, environment={"VS3R_BRIDGE": str(bridge)})
    assert not track.exists() and 'name="results"' not in out.read_text()
    assert "the engine has lost the clip's analysis" in out.read_text()


def test_a_track_file_is_for_its_clip_on_any_machine(
    melt: Host, analysed: Analysed, clip: Path, tmp_path: Path
) -> None:
    track = tmp_path / "shaky.vs3r"
    out = tmp_path / "job.mlt"
    job = ("-attach", "vs3r", "analyze=1", f"filename={track}", "-consumer", f"xml:{out}", "all=1", "real_time=-1")
    melt.run(str(analysed.clip), *job)
    assert len(load_track(track)) == FRAMES
    results = out.read_text().partition('name="results">')[2].partition("<")[0]
    assert results.startswith(f"file-{analysed.clip.stat().st_size}-")
    (tmp_path / "run").mkdir(mode=0o700)
    elsewhere = {"XDG_RUNTIME_DIR": str(tmp_path / "run"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    try:
        use = ("-attach", "vs3r", f"filename={track}", f"results={results}")
        assert near(melt.render(str(analysed.clip), *use, environment=elsewhere), analysed.steady)
        # A project that names them from its own folder, which was moved there.
        (tmp_path / "home").mkdir()
        shutil.copy(analysed.clip, tmp_path / "home" / "clip.mp4")
        shutil.copy(track, tmp_path / "home")
        here = (f"xml:{tmp_path}/home/project.mlt", f"root={tmp_path}/home", "no_root=1")
        own = ("-attach", "vs3r", f"filename={tmp_path}/home/{track.name}", f"results={results}")
        melt.run(str(tmp_path / "home" / "clip.mp4"), *own, "-consumer", *here)
        (tmp_path / "home").rename(tmp_path / "moved")
        assert str(tmp_path) not in (tmp_path / "moved" / "project.mlt").read_text()
        found = melt.render(str(tmp_path / "moved" / "project.mlt"), environment=elsewhere)
        assert near(found, analysed.steady)
        # The same filter on another clip, and one whose track file is lost.
        for source, filter_ in ((clip, use), (analysed.clip, (*use[:2], f"filename={tmp_path}/none.vs3r", use[3]))):
            found = melt.render(str(source), *filter_, environment=elsewhere)
            assert near(found, melt.render(str(source)))
        assert "not analysed" in status(melt, clip, elsewhere)
    finally:
        for engine in engines(tmp_path):
            os.kill(engine, signal.SIGKILL)

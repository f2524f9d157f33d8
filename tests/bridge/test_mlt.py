"""The MLT filter in melt, against the command line."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.bridge.conftest import (
    BUILD,
    FRAMES,
    HEIGHT,
    WIDTH,
    Analysed,
    Form,
    Host,
    Pictures,
    luma,
    make_clip,
    need,
    stabilize,
)

# Luma goes to RGB and back, and MLT brings chroma to 4:2:2 on the way. Worst seen: 0.0013; another frame: above 1.0.
MEAN_LUMA = 0.05
# In levels of 10 bits. Worst seen: 0.0; by way of 8 bits: 0.51.
DEEP_MEAN_LUMA = 0.1
# Of pictures that were halved by another filter.
SCALED = 3.0


def near(found: Pictures, expected: Pictures, limit: float = MEAN_LUMA) -> bool:
    """Every frame is the one that was expected."""
    if found.shape != expected.shape:
        return False
    each = np.abs(found.astype(float) - expected).mean(axis=(1, 2))
    return bool((each < limit).all())


def test_a_job_leaves_its_result_in_the_project(analysed: Analysed) -> None:
    assert '<property name="results">' in analysed.job
    assert f"analysed: {FRAMES} frames" in analysed.job


@pytest.mark.parametrize(("attach", "real_time"), [("-attach", -1), ("-attach-cut", -3), ("-filter", -3)])
def test_the_result_is_that_of_the_command_line(melt: Host, analysed: Analysed, attach: str, real_time: int) -> None:
    found = melt.render(str(analysed.clip), attach, "vs3r", real_time=real_time)
    assert near(found, analysed.steady)
    assert not near(found, np.roll(analysed.steady, 1, axis=0))


def test_a_trimmed_clip_shows_its_own_frames(melt: Host, analysed: Analysed) -> None:
    found = melt.render(str(analysed.clip), "in=8", "out=15", "-attach", "vs3r")
    assert near(found, analysed.steady[8:16])


def test_a_deep_clip_stays_deep(melt: Host, tmp_path: Path) -> None:
    """Where the host asks for more than 8 bits; of 8 bits in between the difference is seen."""
    if melt.version < (7, 34):
        pytest.skip("this MLT has no deep pictures with alpha: 7.34 and newer have")
    deep = "yuv420p10le"
    clip, steady = make_clip(tmp_path / "deep.mkv", form=Form(pix_fmt=deep)), tmp_path / "steady.mkv"
    melt.analyse(clip)
    stabilize(clip, steady)

    expected, asked = luma(steady, deep).astype(float), "mlt_image_format="
    errors = {
        name: float(
            np.abs(melt.render(str(clip), "-attach", "vs3r", pix_fmt=deep, consumer=(asked + name,)) - expected).mean()
        )
        for name in ("rgba64", "yuv420p10", "rgba")
    }
    assert max(errors["rgba64"], errors["yuv420p10"]) < DEEP_MEAN_LUMA < errors["rgba"] / 3, errors


def test_alpha_of_filters_before_it_is_kept(melt: Host, analysed: Analysed) -> None:
    rgba, half = ("mlt_image_format=rgba",), ("-attach", "brightness", "alpha=0.5")
    opaque = melt.render(str(analysed.clip), "-attach", "vs3r", pix_fmt="bgra", consumer=rgba)
    found = melt.render(str(analysed.clip), *half, "-attach", "vs3r", pix_fmt="bgra", consumer=rgba)
    assert (opaque[..., 3] == 255).all() and (np.abs(found[..., 3].astype(int) - 128) <= 1).all()
    assert (found[..., :3] == opaque[..., :3]).all()


def test_a_preview_is_the_same_picture_smaller(melt: Host, analysed: Analysed) -> None:
    found = melt.render(str(analysed.clip), "-attach", "vs3r", consumer=("scale=0.5",))
    small = np.stack([cv2.resize(f, (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_AREA) for f in analysed.steady])
    assert near(found, small, SCALED)
    assert not near(found, np.roll(small, 1, axis=0), SCALED)


def test_a_timeline_of_another_rate(melt: Host, analysed: Analysed, tmp_path: Path) -> None:
    profile = tmp_path / "fast"
    profile.write_text(
        f"description=fast\nframe_rate_num=50\nframe_rate_den=1\nwidth={WIDTH}\nheight={HEIGHT}\nprogressive=1\n"
        "sample_aspect_num=1\nsample_aspect_den=1\ndisplay_aspect_num=3\ndisplay_aspect_den=2\ncolorspace=601\n"
    )
    bare = melt.render("-profile", str(profile), str(analysed.clip))
    found = melt.render("-profile", str(profile), str(analysed.clip), "-attach", "vs3r")
    assert len(found) == len(bare) == 2 * FRAMES
    assert near(found[1:-1:2], analysed.steady[1:]) or near(found[::2], analysed.steady)


def test_a_clip_played_backward(melt: Host, analysed: Analysed) -> None:
    found = melt.render(f"timewarp:-1:{analysed.clip}", "-attach", "vs3r")
    assert near(found, analysed.steady[::-1])


def test_bars_stay_where_the_shapes_differ(melt: Host, analysed: Analysed, tmp_path: Path) -> None:
    profile = tmp_path / "tall"
    profile.write_text(
        f"description=tall\nframe_rate_num=25\nframe_rate_den=1\nwidth={WIDTH}\nheight=128\nprogressive=1\n"
        "sample_aspect_num=1\nsample_aspect_den=1\ndisplay_aspect_num=3\ndisplay_aspect_den=4\ncolorspace=601\n"
    )
    found = melt.render("-profile", str(profile), str(analysed.clip), "-attach", "vs3r")
    assert (found[:, :31] < 20).all() and (found[:, 97:] < 20).all()
    assert near(found[:, 34:94], analysed.steady[:, 2:62])


def test_a_moved_project_needs_no_analysis(melt: Host, analysed: Analysed, tmp_path: Path) -> None:
    shutil.copy(analysed.clip, tmp_path / "first.mp4")
    melt.run(str(tmp_path / "first.mp4"), "-attach", "vs3r", "-consumer", f"xml:{tmp_path}/project.mlt")
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / "first.mp4").rename(moved / "first.mp4")
    text = (tmp_path / "project.mlt").read_text()
    assert str(tmp_path / "first.mp4") in text
    (moved / "project.mlt").write_text(text.replace(str(tmp_path), str(moved)))
    assert near(melt.render(str(moved / "project.mlt")), analysed.steady)


def test_looking_at_a_clip_starts_no_analysis(melt: Host, clip: Path) -> None:
    bare = melt.render(str(clip))
    assert near(melt.render(str(clip), "-attach", "vs3r"), bare)
    assert "not analysed yet" in status(melt, clip)


def test_without_an_engine_the_source_passes_and_the_status_says_why(melt: Host, clip: Path, tmp_path: Path) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    none = {"XDG_RUNTIME_DIR": str(runtime), "VS3R_COMMAND": "/nonexistent/vs3r"}
    assert "/nonexistent/vs3r cannot be run" in status(melt, clip, none)
    found = melt.render(str(clip), "-attach", "vs3r", environment=none)
    assert near(found, melt.render(str(clip)))
    assert "cannot be run" in melt.analyse(clip, none)
    elsewhere = f"unix:{tmp_path}/nobody.sock"
    assert f"cannot reach the engine at {elsewhere}" in status(melt, clip, none, f"engine={elsewhere}")


def test_an_export_waits_for_the_analysis_where_asked(melt: Host, clip: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.mp4"
    data = clip.read_bytes()
    copy.write_bytes(data + b"\0\0\0\x08free")  # another clip with the same pictures
    found = melt.render(str(copy), "-attach", "vs3r", "unanalysed=wait")
    assert len(found) == FRAMES and not near(found, melt.render(str(clip)))


def test_nothing_of_grpc_enters_the_host() -> None:
    module = "libmltvs3r.so"
    need(module, "nm", "ldd")
    listed = subprocess.run(["nm", "-D", "--defined-only", BUILD / module], capture_output=True, text=True, check=True)
    names = {line.split()[-1] for line in listed.stdout.splitlines()}
    assert names == {"mlt_register"}
    linked = subprocess.run(["ldd", BUILD / module], capture_output=True, text=True, check=True).stdout
    assert "libmlt" in linked and "grpc" not in linked and "protobuf" not in linked


def status(melt: Host, clip: Path, environment: dict[str, str] | None = None, *properties: str) -> str:
    """The status line after a frame was asked for."""
    out = melt.folder / "status.mlt"
    consumer = ("-consumer", f"xml:{out}", "all=1", "real_time=-1")
    melt.run(str(clip), "-attach", "vs3r", *properties, *consumer, environment=environment)
    text = out.read_text()
    return text.partition('name="status">')[2].partition("<")[0]

"""Files in, numbers out: pairing by number and by time, orientation, side by side, the plot of the path."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.engine.clips import Clip, write_clip
from tests.metrics.scenes import HEIGHT, WIDTH, shake, shaken_clip, similarity, texture, view
from vs3r.engine.compare import compare_files
from vs3r.engine.evaluate import evaluate_files, measure_file, pair_by_time
from vs3r.engine.path_plot import path_from_motion, plot_path
from vs3r.engine.pictures import count_pictures, read_pictures
from vs3r.errors import MediaError, OutputError, ShapeError
from vs3r.metrics import Picture, evaluate

COUNT = 8


def write(path: Path, pictures: list[Picture], *, times: list[int] | None = None, rate: int = 30) -> Path:
    """A nearly lossless file of BGR pictures; times in frames at `rate`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "4", "preset": "ultrafast"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv444p"
        stream.codec_context.time_base = Fraction(1, rate)
        for at, picture in zip(times or range(len(pictures)), pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = at, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def shaky() -> list[Picture]:
    return shaken_clip(texture(), shake(COUNT, 4.0, 0.5))


@pytest.fixture(scope="module")
def steady() -> list[Picture]:
    return shaken_clip(texture(), shake(COUNT, 0.4, 0.05))


def test_files_measure_as_arrays_do(tmp_path: Path, shaky: list[Picture], steady: list[Picture]) -> None:
    source, output = write(tmp_path / "in.mkv", shaky), write(tmp_path / "out.mkv", steady)
    seen: list[int] = []
    found = evaluate_files(source, output, quick=True, progress=seen.append)
    wanted = evaluate(zip(shaky, steady, strict=True), quick=True)
    assert seen == list(range(1, COUNT + 1))
    assert found.source.jitter is not None and wanted.source.jitter is not None
    assert found.source.jitter.px == pytest.approx(wanted.source.jitter.px, rel=0.01)
    assert found.cropping == pytest.approx(wanted.cropping, abs=0.002)
    reused = evaluate_files(source, output, quick=True, source=measure_file(source, quick=True))
    assert reused.summary() == found.summary()
    json.dumps(found.summary(), allow_nan=False)


def test_pictures_come_back_as_written(tmp_path: Path, steady: list[Picture]) -> None:
    path = write(tmp_path / "clip.mkv", steady, times=[0, 1, 2, 3, 10, 11, 12, 13])
    found = list(read_pictures(path))
    assert count_pictures(path) == len(found) == COUNT
    assert float(found[4].pts_s) == pytest.approx(10 / 30, abs=0.001)
    error = found[3].picture.astype(np.int16) - steady[3]
    assert abs(error.mean()) < 0.2  # a conversion that rounds down is 1 to 2 off
    assert np.abs(error).mean() < 2


def test_dropped_frames_are_paired_by_time(tmp_path: Path, shaky: list[Picture]) -> None:
    """The output lacks frames 2 and 5: what is left must meet its own source frames."""
    kept = [0, 1, 3, 4, 6, 7]
    source = write(tmp_path / "in.mkv", shaky)
    output = write(tmp_path / "out.mkv", [shaky[n] for n in kept], times=kept)
    pairs = list(pair_by_time(source, output))
    assert [round(mine.pts_s * 30) for mine, _ in pairs] == kept
    assert all(np.abs(a.picture.astype(np.int16) - b.picture).mean() < 3 for a, b in pairs)
    assert evaluate_files(source, output, quick=True).frames == len(kept)


def test_half_rate_and_short_outputs(tmp_path: Path, shaky: list[Picture]) -> None:
    source = write(tmp_path / "in.mkv", shaky)
    half = write(tmp_path / "half.mkv", shaky[::2], rate=15)
    assert [round(mine.pts_s * 30) for mine, _ in pair_by_time(source, half)] == [0, 2, 4, 6]
    short = write(tmp_path / "short.mkv", shaky[:3])
    assert [round(mine.pts_s * 30) for mine, _ in pair_by_time(source, short)] == [0, 1, 2]
    assert len(list(pair_by_time(short, source))) == 3


def test_smaller_output_is_scaled(tmp_path: Path, steady: list[Picture]) -> None:
    source = write(tmp_path / "in.mkv", steady)
    output = write(tmp_path / "out.mkv", [p[36:-36, 64:-64].copy() for p in steady])
    assert evaluate_files(source, output, quick=True).cropping == pytest.approx(0.8, abs=0.005)


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((1, 0, 0, 1), [[0, 80], [160, 240]]),
        ((-1, 0, 0, 1), [[80, 0], [240, 160]]),
        ((1, 0, 0, -1), [[160, 240], [0, 80]]),
        ((-1, 0, 0, -1), [[240, 160], [80, 0]]),
        ((0, 1, -1, 0), [[160, 0], [240, 80]]),
        ((0, -1, 1, 0), [[80, 240], [0, 160]]),
        ((0, 1, 1, 0), [[0, 160], [80, 240]]),
        ((0, -1, -1, 0), [[240, 80], [160, 0]]),
    ],
)
def test_pictures_are_turned_and_mirrored(
    tmp_path: Path, matrix: tuple[int, int, int, int], shown: list[list[int]]
) -> None:
    quarters = np.array([[0, 80], [160, 240]], np.uint8).repeat(16, 0).repeat(32, 1)
    a, b, c, d = (value << 16 for value in matrix)
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream = container.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "gray"
        stream.set_display_matrix((a, b, 0, c, d, 0, 0, 0, 1 << 30))
        container.mux(stream.encode(av.VideoFrame.from_ndarray(quarters, format="gray")) + stream.encode(None))
    (found,) = read_pictures(tmp_path / "a.mov")
    height, width = found.picture.shape[:2]
    assert (height, width) == ((32, 64) if a or d else (64, 32))
    assert found.picture[height // 4 :: height // 2, width // 4 :: width // 2, 1].tolist() == shown


def test_unusable_files(tmp_path: Path, steady: list[Picture]) -> None:
    good = write(tmp_path / "good.mkv", steady[:2])
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    for bad in (tmp_path / "missing.mp4", tmp_path, text):
        with pytest.raises(MediaError) as caught:
            evaluate_files(good, bad)
        assert "\n" not in str(caught.value)


def test_compare_shows_both(tmp_path: Path, shaky: list[Picture], steady: list[Picture]) -> None:
    times = [0, 1, 2, 5, 6, 7, 8, 9]
    a, b = write(tmp_path / "a.mkv", shaky, times=times), write(tmp_path / "b.mkv", steady, times=times)
    out = tmp_path / "both.mkv"
    compare_files(a, b, out, labels=("in", "out"))
    found = list(read_pictures(out))
    assert [round(timed.pts_s * 30) for timed in found] == times
    below_label = slice(60, None)
    for timed, left, right in zip(found, shaky, steady, strict=True):
        assert timed.picture.shape == (HEIGHT, 2 * WIDTH, 3)
        for half, wanted in ((timed.picture[:, :WIDTH], left), (timed.picture[:, WIDTH:], right)):
            error = half[below_label].astype(np.int16) - wanted[below_label]
            assert np.abs(error).mean() < 6 and abs(error.mean()) < 0.5  # 4:2:0 takes colour detail
    with pytest.raises(OutputError):
        compare_files(a, b, a)


def test_compare_names_what_is_left_out(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mkv", Clip(frames=3, subtitles="subrip"))
    assert compare_files(clip, clip, tmp_path / "both.mkv") == ()
    (note,) = compare_files(clip, clip, tmp_path / "both.mp4")
    assert "subtitle" in note and "left out" in note


def test_compare_of_unequal_sizes(tmp_path: Path, steady: list[Picture]) -> None:
    a = write(tmp_path / "a.mkv", steady[:2])
    b = write(tmp_path / "b.mkv", [p[:180, :180].copy() for p in steady[:2]])
    compare_files(a, b, tmp_path / "both.mp4")
    assert next(read_pictures(tmp_path / "both.mp4")).picture.shape == (HEIGHT, WIDTH + HEIGHT, 3)


def test_path_adds_up_the_motion() -> None:
    motion = np.array([[1.0, 2, 0.5], [math.nan] * 3, [-3, 0, 0.5]])
    wanted = np.array([[0, 0, 0], [-1, -2, -0.5], [-1, -2, -0.5], [2, -2, -1]], dtype=np.float64)
    np.testing.assert_allclose(path_from_motion(motion), wanted)


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    times = np.arange(20) / 30
    path = np.stack([np.sin(times), np.cos(times), times], axis=1)
    plot_path(times, path, path / 2, tmp_path / "path.png")
    assert (tmp_path / "path.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ShapeError, match="two paths"):
        plot_path(times, path, path[:-1], tmp_path / "path.png")
    with pytest.raises(OutputError):
        plot_path(times, path, path, tmp_path / "missing" / "path.png")


def test_still_file_has_no_jitter(tmp_path: Path) -> None:
    still = view(texture(), similarity(0, 0))
    found = measure_file(write(tmp_path / "still.mkv", [still] * 5), quick=True)
    assert found.jitter is not None
    assert found.jitter.px < 0.02

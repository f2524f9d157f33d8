"""The whole evaluation on clips with known crop, border, blur and shake; each number must react to its own damage."""

from __future__ import annotations

import ast
import dataclasses
import inspect

import cv2
import numpy as np
import pytest

from tests.metrics.scenes import HEIGHT, WIDTH, blur, shake, shaken_clip, similarity, texture, view
from vs3r.errors import ShapeError
from vs3r.metrics import ClipMetrics, Evaluation, Jitter, Picture, border_mask, evaluate, measure_clip, sharpness_ratio
from vs3r.metrics.picture import sharpness_pair, to_grey

COUNT = 6


@pytest.fixture(scope="module")
def shaky() -> list[Picture]:
    return shaken_clip(texture(), shake(COUNT, 4.0, 0.5))


@pytest.fixture(scope="module")
def steady() -> list[Picture]:
    return shaken_clip(texture(), shake(COUNT, 0.4, 0.05))


@pytest.fixture(scope="module")
def good(shaky: list[Picture], steady: list[Picture]) -> Evaluation:
    return evaluate(zip(shaky, steady, strict=True))


def quick(source: list[Picture], output: list[Picture]) -> Evaluation:
    return evaluate(zip(source, output, strict=True), quick=True)


def test_good_result(good: Evaluation) -> None:
    assert good.frames == COUNT
    assert good.cropping is not None and good.cropping > 0.995
    assert good.valid_share == good.valid_share_min == 1.0 and good.valid_is_estimated
    # The same random path at a tenth of the size, up to the noise of the measurement.
    assert good.jitter_ratio is not None
    assert good.jitter_ratio.px == pytest.approx(0.1, abs=0.005)
    assert good.jitter_ratio.deg == pytest.approx(0.1, abs=0.01)
    assert good.sharpness_ratio == pytest.approx(1.0, abs=0.03)
    assert good.lpips is None
    assert good.source.warp_error is not None and good.output.warp_error is not None
    assert good.output.warp_error < good.source.warp_error
    assert None not in [value for key, value in good.summary().items() if key != "lpips"]


def test_the_same_on_every_run(shaky: list[Picture], steady: list[Picture], good: Evaluation) -> None:
    cv2.setRNGSeed(12345)
    again = evaluate(zip(shaky, steady, strict=True))
    assert again.summary() == good.summary()
    np.testing.assert_array_equal(again.output.motion, good.output.motion)


def test_source_measured_before(shaky: list[Picture], steady: list[Picture], good: Evaluation) -> None:
    reused = evaluate(zip(shaky, steady, strict=True), source=measure_clip(shaky))
    assert reused.summary() == good.summary()


@pytest.mark.parametrize("zoom", [1.1, 1.4])
def test_zoom_is_cropping(steady: list[Picture], zoom: float) -> None:
    zoomed = [view(p, similarity(0, 0, 0, zoom)) for p in steady]
    found = quick(steady, zoomed)
    assert found.cropping == pytest.approx(1 / zoom, abs=0.005)
    # A magnified picture shows the same detail: it is compared at the source's scale. Worst seen: 0.93.
    assert found.sharpness_ratio is not None and 0.85 < found.sharpness_ratio < 1.15


def test_shrinking_is_capped(steady: list[Picture]) -> None:
    shrunk = [view(p, similarity(0, 0, 0, 0.8)) for p in steady]
    found = quick(steady, shrunk)
    assert found.cropping == 1.0
    assert found.valid_share == pytest.approx(0.64, abs=0.02)


def test_cropped_file_of_another_size(steady: list[Picture]) -> None:
    """The middle 80 % written as a smaller file is scaled up again, which shows as cropping."""
    cut_y, cut_x = HEIGHT // 10, WIDTH // 10
    found = quick(steady, [p[cut_y:-cut_y, cut_x:-cut_x] for p in steady])
    assert found.cropping == pytest.approx(0.8, abs=0.005)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_blur_lowers_sharpness(steady: list[Picture], sigma: float) -> None:
    blurred = [blur(p, sigma) for p in steady]
    found = quick(steady, blurred)
    inner = (slice(20, -20), slice(20, -20))
    before, after = (
        np.mean([cv2.Laplacian(to_grey(p), cv2.CV_32F)[inner].var() for p in clip]) for clip in (steady, blurred)
    )
    assert found.sharpness_ratio == pytest.approx(after / before, rel=0.05)


def test_sharpness_alone(steady: list[Picture]) -> None:
    blurred = [blur(p, 1.0) for p in steady]
    assert sharpness_ratio(zip(steady[::7], blurred[::7], strict=True)) == pytest.approx(
        quick(steady[::7], blurred[::7]).sharpness_ratio, rel=0.05
    )
    assert sharpness_ratio([]) is None


def test_sharpness_ignores_what_only_one_shows() -> None:
    """Detail beside the common region, and the hard edge of a black border, do not count."""
    source = to_grey(view(texture(), similarity(0, 0)))
    moved = np.asarray(cv2.warpPerspective(source, similarity(60, 0), (WIDTH, HEIGHT)), dtype=np.uint8)
    found = sharpness_pair(source, moved, similarity(60, 0))
    filled = moved.copy()
    filled[:, :60] = np.random.default_rng(0).integers(0, 255, (HEIGHT, 60))
    other = sharpness_pair(source, filled, similarity(60, 0))
    assert found is not None and other is not None
    assert found[1] / found[0] == pytest.approx(1, abs=1e-6)
    assert other == pytest.approx(found, rel=1e-6)
    assert sharpness_pair(source, moved, similarity(3 * WIDTH, 0)) is None


def test_black_border_is_not_valid(shaky: list[Picture], steady: list[Picture]) -> None:
    bordered = [p.copy() for p in steady]
    for index, picture in enumerate(bordered):
        picture[:, : 16 * index] = 0
    found = quick(shaky, bordered)
    assert found.valid_share_min == pytest.approx(1 - 16 * (COUNT - 1) / WIDTH, abs=0.003)
    assert found.valid_share == pytest.approx(1 - 8 * (COUNT - 1) / WIDTH, abs=0.003)


def test_known_validity_wins(shaky: list[Picture], steady: list[Picture]) -> None:
    found = evaluate(zip(shaky, steady, strict=True), valid_shares=[0.5] + [1.0] * (COUNT - 1), quick=True)
    assert (found.valid_share_min, found.valid_is_estimated) == (0.5, False)


def test_black_inside_the_picture_is_no_border() -> None:
    picture = to_grey(view(texture(), similarity(0, 0)))
    picture[100:200, 100:300] = 0
    assert not border_mask(picture).any()
    picture[:40, 50:400] = 2
    assert border_mask(picture).sum() == pytest.approx(40 * 350, rel=0.02)


def test_flicker_raises_warp_error(shaky: list[Picture], steady: list[Picture], good: Evaluation) -> None:
    flickering = [np.clip(p.astype(np.int16) + 25 * (i % 2), 0, 255).astype(np.uint8) for i, p in enumerate(steady)]
    found = evaluate(zip(shaky, flickering, strict=True), source=good.source)
    assert found.output.warp_error is not None and good.output.warp_error is not None
    assert found.output.warp_error > good.output.warp_error + 100


def test_bending_raises_epipolar_error(shaky: list[Picture], steady: list[Picture], good: Evaluation) -> None:
    rows, columns = np.indices((HEIGHT, WIDTH), dtype=np.float32)
    bent = []
    for index, picture in enumerate(steady):
        wave = (3.0 * np.sin(rows / 25 + 2 * index) + 3.0 * np.sin(columns / 30 + 3 * index)).astype(np.float32)
        bent.append(np.asarray(cv2.remap(picture, columns + wave, rows + wave, cv2.INTER_LINEAR), dtype=np.uint8))
    found = evaluate(zip(shaky, bent, strict=True), source=good.source)
    assert found.output.epipolar_error_px2 is not None and good.output.epipolar_error_px2 is not None
    assert found.output.epipolar_error_px2 > 2 * good.output.epipolar_error_px2


def test_perceptual_sees_aligned_pictures(shaky: list[Picture], steady: list[Picture]) -> None:
    calls = []

    def mean_difference(a: Picture, b: Picture) -> float:
        calls.append(1)
        return float(np.abs(a.astype(np.float32) - b).mean())

    found = evaluate(zip(shaky, steady, strict=True), perceptual=mean_difference)
    assert len(calls) == 2  # frames 0 and 5
    assert found.lpips is not None
    unaligned = mean_difference(shaky[0], steady[0])
    assert found.lpips < 0.3 * unaligned


def test_grey_clips(shaky: list[Picture], steady: list[Picture], good: Evaluation) -> None:
    found = quick([to_grey(p) for p in shaky], steady)
    assert found.jitter_ratio is not None and good.jitter_ratio is not None
    assert found.jitter_ratio.px == pytest.approx(good.jitter_ratio.px, rel=1e-6)


@pytest.mark.parametrize("count", [1, 2])
def test_very_short_clips(steady: list[Picture], count: int) -> None:
    found = evaluate(zip(steady[:count], steady[:count], strict=True))
    assert found.frames == count
    assert found.jitter_ratio is None and found.output.stability is None
    assert found.cropping == pytest.approx(1.0, abs=1e-3)


def test_black_clip() -> None:
    black = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    found = evaluate([(black, black)] * 3)
    assert (found.cropping, found.sharpness_ratio, found.jitter_ratio) == (None, None, None)
    assert found.valid_share == 0.0


@pytest.mark.parametrize("shape", [(1, 5000, 3), (5000, 1, 3), (2, 6000)])
def test_very_thin_pictures(shape: tuple[int, ...]) -> None:
    """Nothing can be tracked, and no side vanishes where they are reduced."""
    noise = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    found = evaluate([(picture, picture) for picture in noise])
    assert (found.source.jitter, found.source.tracked_share) == (None, 0)
    assert found.valid_share == 1.0


def test_bad_pictures_are_refused(steady: list[Picture]) -> None:
    with pytest.raises(ShapeError, match="at least one pair"):
        evaluate([])
    with pytest.raises(ShapeError, match="at least one picture"):
        measure_clip([])
    with pytest.raises(ShapeError, match="uint8"):
        measure_clip([steady[0].astype(np.float32)])
    with pytest.raises(ShapeError, match="shape"):
        measure_clip([steady[0], steady[0][:-2]])


def test_every_field_is_documented() -> None:
    for cls in (Jitter, ClipMetrics, Evaluation):
        body = ast.parse(inspect.getsource(cls)).body[0]
        assert isinstance(body, ast.ClassDef)
        documented = {
            node.target.id
            for node, after in zip(body.body[:-1], body.body[1:], strict=True)
            if isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        }
        assert documented == {spec.name for spec in dataclasses.fields(cls)}

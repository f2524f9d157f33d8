"""Inpainting of what nobody saw."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from tests.render.plane_world import make_format, pose, source
from vs3r.config import RefineConfig
from vs3r.refine import fill, make_refiner
from vs3r.types import PictureFormat, RenderedFrame

FILL = make_refiner(RefineConfig())


def rendered(fmt: PictureFormat, valid: npt.NDArray[np.uint8], *, black: bool = True) -> RenderedFrame:
    """A picture with black in the cells that are not valid."""
    frame = source(fmt, pose()).frame
    if black:
        for plane in frame.planes:
            plane[
                np.kron(valid, np.ones((8, 8)))[:: fmt.height // plane.shape[0], :: fmt.width // plane.shape[1]] < 255
            ] = 0
    return RenderedFrame(frame=frame, valid=valid, own_share=1.0, valid_share=float((valid == 255).mean()))


def border(rows: int, cols: int, width: int) -> npt.NDArray[np.uint8]:
    valid = np.full((rows, cols), 255, np.uint8)
    valid[:, :width] = 0
    valid[:, width] = 120
    return valid


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "gray", "yuv422p10le", "yuva444p"])
def test_the_valid_part_stays_and_the_rest_looks_like_it(pix_fmt: str) -> None:
    fmt = make_format(pix_fmt, 320, 176)
    given = rendered(fmt, border(22, 40, 4))
    before = [p.copy() for p in given.frame.planes]
    filled = FILL(given)
    truth = source(fmt, pose()).frame
    for ours, was, true in zip(filled.planes, before, truth.planes, strict=True):
        step = fmt.width // ours.shape[1]
        hole, safe = 5 * 8 // step, 7 * 8 // step
        np.testing.assert_array_equal(ours[:, safe:], was[:, safe:])
        inside, known = ours[:, :hole].astype(float), true.astype(float)
        assert abs(inside.mean() - known.mean()) < 0.1 * known.mean()
        assert inside.min() > 0.25 * known.min()
        assert inside.std() > 0.4 * known.std(), "a flat patch is seen"
        # No streaks: it varies along the border and away from it.
        assert np.abs(np.diff(inside, axis=0)).mean() > 0.3 * np.abs(np.diff(known, axis=0)).mean()
        assert np.abs(np.diff(inside, axis=1)).mean() > 0.3 * np.abs(np.diff(known, axis=1)).mean()
        # No edge where the hole begins.
        jump = np.abs(ours[:, hole].astype(float) - ours[:, hole - 1]).mean()
        assert jump < 1.5 * np.abs(np.diff(known, axis=1)).mean()
    assert filled is given.frame, "repaired where it lies"


@pytest.mark.parametrize("slope", [-0.8, 0.0, 0.5, 1.2])
def test_slanted_lines_go_on(slope: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars that the hole cuts off at the left, against what is mirrored straight across the edge."""
    fmt = make_format("gray", 320, 176)
    x, y = np.meshgrid(np.arange(320.0), np.arange(176.0))
    truth = 130 + 80 * np.sin((y - slope * x) / np.hypot(1, slope) / 9)

    def error() -> float:
        given = rendered(fmt, border(22, 40, 2))
        shown = given.frame.planes[0] > 0
        given.frame.planes[0][:] = np.where(shown, truth, 0)
        return float(np.abs(FILL(given).planes[0][40:-40, :16] - truth[40:-40, :16]).mean())

    along = error()
    monkeypatch.setattr(fill, "FLATTEST", 2.0)
    assert along < (1.001 if slope == 0 else 0.6) * error()


def test_a_constant_picture_is_continued() -> None:
    fmt = make_format("gray", 320, 176)
    valid = border(22, 40, 6)
    valid[:5] = 0
    valid[18, 30] = 0
    given = rendered(fmt, valid)
    given.frame.planes[0][given.frame.planes[0] > 0] = 77
    np.testing.assert_array_equal(FILL(given).planes[0], 77)


def test_nothing_to_do_and_nothing_to_go_by() -> None:
    fmt = make_format("yuv420p", 320, 176)
    for value in (255, 0):
        given = rendered(fmt, np.full((22, 40), value, np.uint8), black=False)
        assert FILL(given) is given.frame


def test_it_depends_on_the_argument_alone() -> None:
    fmt = make_format("yuv420p", 320, 176)
    first = FILL(rendered(fmt, border(22, 40, 3)))
    FILL(rendered(fmt, border(22, 40, 9)))
    again = FILL(rendered(fmt, border(22, 40, 3)))
    for ours, theirs in zip(first.planes, again.planes, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("width", "height"), [(317, 183), (33, 17), (16, 16), (183, 317)])
def test_odd_and_small_sizes(width: int, height: int) -> None:
    fmt = make_format("yuv420p", width, height)
    frame = source(fmt, pose()).frame
    valid = np.full((-(-height // 4), -(-width // 4)), 255, np.uint8)
    valid[:, -1] = valid[0] = 0
    given = RenderedFrame(frame=frame, valid=valid, own_share=1, valid_share=0.9)
    assert [p.shape for p in FILL(given).planes] == [p.shape for p in frame.planes]


def test_none_leaves_the_picture_alone() -> None:
    fmt = make_format("yuv420p", 320, 176)
    given = rendered(fmt, border(22, 40, 3))
    assert make_refiner(RefineConfig(backend="none"))(given) is given.frame

"""The grids, exact sampling, and which pairs of frames the flow is asked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from tests.metrics.scenes import similarity, view
from tests.metrics.scenes import texture as some_texture
from vs3r.flow import Guesses
from vs3r.reconstruct.features import align, find_features
from vs3r.reconstruct.observe import ALIGNED_TRUST, FlowWindow, Grid, Observation, sample, texture
from vs3r.types import FloatArray

Picture = npt.NDArray[np.uint8]
SIZE = (96, 60)
STEP = np.array([0.75, -0.5], np.float32)


@pytest.mark.parametrize("size", [(480, 270), (270, 480), (481, 271), (100, 33), (16, 16)])
@pytest.mark.parametrize("fine", [False, True])
def test_cells_tile_the_picture(size: tuple[int, int], fine: bool) -> None:
    grid = Grid.of(*size)
    centres = grid.centres(fine)
    cols, rows = (grid.cols, grid.rows) if not fine else (2 * grid.cols, 2 * grid.rows)
    assert centres.shape == (rows, cols, 2) and centres.dtype == np.float32
    for axis, (length, count) in enumerate(((size[0], cols), (size[1], rows))):
        along = centres[0, :, 0] if axis == 0 else centres[:, 0, 1]
        cell = length / count
        np.testing.assert_allclose(along, cell / 2 + cell * np.arange(count), rtol=1e-6)
        assert size == (16, 16) or 8 <= cell * (2 if fine else 1) <= 16
    assert (centres[..., 0] == centres[0, :, 0]).all() and (centres[..., 1] == centres[:, :1, 1]).all()


def test_sample_on_a_ramp() -> None:
    """The first pixel's centre is (0.5, 0.5). OpenCV rounds positions to 1/32 px; on these the ramp is exact."""
    x, y = np.meshgrid(np.arange(40) + 0.5, np.arange(30) + 0.5)
    image = np.stack([2 * x - y + 7, 0.3 * x + 1.1 * y], -1).astype(np.float32)
    rng = np.random.default_rng(2)
    anywhere = rng.uniform([0.5, 0.5], [39.5, 29.5], (9, 13, 2)).astype(np.float32)
    for at, tolerance in ((np.rint(anywhere * 32) / 32, 1e-4), (anywhere, 3 / 64 + 1e-4)):
        found = sample(image, at.astype(np.float32))
        expected = np.stack([2 * at[..., 0] - at[..., 1] + 7, 0.3 * at[..., 0] + 1.1 * at[..., 1]], -1)
        assert found.shape == (9, 13, 2) and found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=tolerance)
        np.testing.assert_allclose(
            sample(image[..., 0].copy(), at.astype(np.float32)), expected[..., 0], atol=tolerance
        )


def test_sample_repeats_the_border() -> None:
    image = np.arange(12, dtype=np.float32).reshape(3, 4)
    at = np.array([[[-5.0, 1.5], [0.2, -9.0], [3.9, 99.0], [50.0, 1.5]]], np.float32)
    np.testing.assert_array_equal(sample(image, at), [[4, 0, 11, 7]])


def test_texture_tells_corners_from_edges_and_plain_walls() -> None:
    y, x = np.mgrid[:80, :80]
    corners = np.where((x // 8 + y // 8) % 2, 200, 50).astype(np.uint8)
    edges = np.where(x // 8 % 2, 200, 50).astype(np.uint8)
    noise = (128 + np.random.default_rng(0).integers(0, 2, (80, 80))).astype(np.uint8)
    inside = slice(20, 60)
    values = [texture(picture)[inside, inside] for picture in (corners, edges, noise)]
    assert values[0].min() > 0.8
    assert values[1].max() < 0.05
    assert values[2].max() < 0.3
    assert all(v.min() >= 0 and v.max() <= 1 for v in values)


class SteadyFlow:
    """A flow that grows by STEP a frame; frames are known by their first pixel. Notes what it was asked."""

    def __init__(self, wrong: Callable[[int, int], bool] = lambda _src, _dst: False) -> None:
        self.asked: list[tuple[int, int]] = []
        self.guesses: dict[tuple[int, int], FloatArray | None] = {}
        self._wrong = wrong

    def __call__(self, a: Picture, b: Picture, guesses: Guesses = (None, None)) -> tuple[FloatArray, FloatArray]:
        return self._flow(a, b, guesses[0]), self._flow(b, a, guesses[1])

    def _flow(self, src: Picture, dst: Picture, guess: FloatArray | None) -> FloatArray:
        a, b = int(src[0, 0]), int(dst[0, 0])
        self.asked.append((a, b))
        self.guesses[a, b] = None if guess is None else guess.copy()
        flow = np.broadcast_to(STEP * (b - a) + (3 if self._wrong(a, b) else 0), (*src.shape, 2))
        return flow.astype(np.float32)


def picture(index: int) -> Picture:
    out = np.asarray(some_texture(1, SIZE[0], SIZE[1])[..., 1], np.uint8).copy()
    out[0, 0] = index
    return out


def push_all(window: FlowWindow, indices: range) -> list[list[Observation]]:
    return [window.push(i, picture(i)) for i in indices]


def expected_pairs(index: int, first: int) -> list[tuple[int, int]]:
    pairs = [(index - gap, index) for gap in (1, 2, 4, 8) if index - gap >= first]
    return [pair for a, b in pairs for pair in ((a, b), (b, a))]


def test_exactly_the_pairs_1_2_4_8_both_ways() -> None:
    flow = SteadyFlow()
    found = push_all(FlowWindow(flow, Grid.of(*SIZE)), range(30))
    for index, observations in enumerate(found):
        assert [(o.src, o.dst) for o in observations] == expected_pairs(index, 0)
    assert sorted(flow.asked) == sorted((o.src, o.dst) for observations in found for o in observations)


def test_flow_is_what_the_estimator_says() -> None:
    grid = Grid.of(*SIZE)
    for observations in push_all(FlowWindow(SteadyFlow(), grid), range(12)):
        for o in observations:
            assert o.flow.shape == (grid.rows, grid.cols, 2) and o.weight.shape == (grid.rows, grid.cols)
            assert o.fine_flow.shape == (2 * grid.rows, 2 * grid.cols, 2)
            np.testing.assert_allclose(o.flow, np.broadcast_to(STEP * (o.dst - o.src), o.flow.shape), atol=1e-4)
            np.testing.assert_allclose(o.fine_flow[0, 0], STEP * (o.dst - o.src), atol=1e-4)


def test_long_flows_start_from_composed_short_ones() -> None:
    flow = SteadyFlow()
    push_all(FlowWindow(flow, Grid.of(*SIZE)), range(20))
    for (a, b), guess in flow.guesses.items():
        if abs(a - b) == 1:
            assert guess is None
        else:
            assert guess is not None
            np.testing.assert_allclose(guess, np.broadcast_to(STEP * (b - a), guess.shape), atol=1e-4)


def test_trust_needs_both_directions_to_agree_and_to_stay_inside() -> None:
    grid = Grid.of(*SIZE)
    good = push_all(FlowWindow(SteadyFlow(), grid), range(9))[8]
    bad = push_all(FlowWindow(SteadyFlow(lambda a, b: a > b), grid), range(9))[8]
    at = grid.centres(fine=True)
    for ours, theirs in zip(good, bad, strict=True):
        there = at + ours.fine_flow
        inside = ((there > 2) & (there < (SIZE[0] - 2, SIZE[1] - 2))).all(-1)
        np.testing.assert_allclose(ours.fine_weight, inside, atol=1e-3)
        assert inside.any() and 0 < ours.weight.max() <= 1 and not ours.aligned
        # What is lost between neighbours is aligned as a whole, and hardly trusted.
        assert theirs.aligned == (abs(theirs.src - theirs.dst) == 1)
        limit = ALIGNED_TRUST if theirs.aligned else 0.01
        assert theirs.fine_weight.max() <= limit and theirs.weight.max() <= limit


def test_old_frames_are_forgotten() -> None:
    window = FlowWindow(SteadyFlow(), Grid.of(*SIZE))
    sizes = []
    for index in range(40):
        window.push(index, picture(index))
        sizes.append((len(window._pictures), len(window._textures), len(window._dense)))
    assert sizes[-1] == sizes[20] and sizes[-1][0] == sizes[-1][1] == 8
    # Pairs 1, 2 and 4 apart of 8 frames, both ways.
    assert sizes[-1][2] == 2 * (7 + 6 + 4)


class LostFlow:
    """A flow that finds nothing but what it is told."""

    def __call__(self, a: Picture, b: Picture, guesses: Guesses = (None, None)) -> tuple[FloatArray, FloatArray]:
        there, back = (
            np.random.default_rng(int(src.sum()) + 1).normal(0, 20, (*src.shape, 2)).astype(np.float32)
            if guess is None
            else guess
            for src, guess in zip((a, b), guesses, strict=True)
        )
        return there, back


def leap(deg: float = 4.0, scale: float = 1.3) -> tuple[Picture, Picture, FloatArray]:
    """Two pictures of a texture, one moved by a fifth of the picture, turned and zoomed, and b_from_a, (3, 3)."""
    b_from_a = similarity(90, -40, deg, scale)
    a, b = (np.asarray(view(some_texture(3), T)[..., 1], np.uint8) for T in (np.eye(3), b_from_a))
    half_pixel = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # similarity() counts pixels from 0
    return a, b, np.asarray(half_pixel @ b_from_a @ np.linalg.inv(half_pixel), np.float32)


def test_pictures_far_apart_are_aligned() -> None:
    a, b, truth = leap()
    seen = find_features(a)
    found = align(seen, find_features(b))
    assert found is not None
    corners = np.array([[0, 0, 1], [640, 0, 1], [0, 360, 1], [640, 360, 1.0]])
    np.testing.assert_allclose(corners @ found.T, corners @ truth.T, atol=0.7)  # seen: 0.10
    another = np.asarray(some_texture(9, 640, 360)[..., 1], np.uint8)
    assert align(seen, find_features(another)) is None, "another scene"
    assert align(seen, find_features(leap(scale=2.5)[1])) is None, "further than a zoom goes between two frames"
    assert align(seen, find_features(np.full_like(a, 90))) is None


def test_features_of_a_part() -> None:
    seen = find_features(leap()[0])
    mask = np.zeros((360, 640), np.bool_)
    mask[:, 320:] = True
    part = seen.within(mask)
    assert 20 < len(part.points) < len(seen.points)
    assert (part.points[:, 0] >= 320).all()
    assert not len(seen.within(mask & ~mask).points)
    rest = seen.within(~mask)
    assert len(rest.points) + len(part.points) == len(seen.points)
    np.testing.assert_array_equal(seen.descriptors[seen.points[:, 0] >= 320], part.descriptors)


def test_lost_flow_begins_again_from_the_alignment() -> None:
    a, b, truth = leap()
    grid = Grid.of(a.shape[1], a.shape[0])
    window = FlowWindow(LostFlow(), grid)
    window.push(0, a)
    forward, back = window.push(1, b)
    assert forward.aligned and back.aligned
    at = grid.centres(fine=False)
    there = at @ truth[:2, :2].T + truth[:2, 2]
    inside = ((there > 8) & (there < (632, 352))).all(-1)
    np.testing.assert_allclose((at + forward.flow)[inside], there[inside], atol=0.7)
    assert (forward.weight[inside] > 0.5).mean() > 0.5

"""Optical flow of pictures warped by a known homography, and the pictures that analysis sees."""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from tests.metrics.scenes import texture
from vs3r.flow import DisFlow, analysis_picture, analysis_size
from vs3r.types import DoubleArray, FloatArray, Frame, PictureFormat

SIZE = (480, 270)
# Median and 95th percentile of the error in pixels. Worst seen 0.046 and 0.103.
MEDIAN_PX = 0.08
P95_PX = 0.25

Picture = npt.NDArray[np.uint8]


def turned(deg: float, zoom: float, dx: float, dy: float, tilt: float = 0.0) -> DoubleArray:
    """(3, 3) dst_from_src about the picture's centre, in pixels of cv2's grid; tilt is the perspective part."""
    c, s = zoom * np.cos(np.deg2rad(deg)), zoom * np.sin(np.deg2rad(deg))
    middle = np.array([[1, 0, (SIZE[0] - 1) / 2], [0, 1, (SIZE[1] - 1) / 2], [0, 0, 1]])
    core = np.array([[c, -s, dx], [s, c, dy], [tilt, -0.5 * tilt, 1]])
    return np.asarray(middle @ core @ np.linalg.inv(middle))


def pair(dst_from_src: DoubleArray) -> tuple[Picture, Picture, FloatArray]:
    """A picture, the same warped, and the exact flow. Both are filtered from a texture of four times the size."""
    large = cv2.cvtColor(texture(3, 2200, 1400), cv2.COLOR_RGB2GRAY)
    fine_from_src = np.array([[4, 0, 140 + 1.5], [0, 4, 160 + 1.5], [0, 0, 1]], dtype=np.float64)
    pictures = []
    for view_from_src in (np.eye(3), dst_from_src):
        # Area filtering: render at four times the size on the way, then average 4x4.
        four = np.array([[4, 0, 1.5], [0, 4, 1.5], [0, 0, 1]]) @ view_from_src @ np.linalg.inv(fine_from_src)
        fine = cv2.warpPerspective(large, four, (4 * SIZE[0], 4 * SIZE[1]), borderMode=cv2.BORDER_REFLECT)
        pictures.append(np.asarray(cv2.resize(fine, SIZE, interpolation=cv2.INTER_AREA), np.uint8))
    x, y = np.meshgrid(np.arange(SIZE[0], dtype=np.float64), np.arange(SIZE[1], dtype=np.float64))
    there = np.stack([x, y, np.ones_like(x)], -1) @ dst_from_src.T
    flow = there[..., :2] / there[..., 2:] - np.stack([x, y], -1)
    return pictures[0], pictures[1], flow.astype(np.float32)


def errors(found: FloatArray, true: FloatArray) -> DoubleArray:
    """(N,) distance in pixels, where the point stays at least 8 px inside both pictures."""
    x, y = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    here = np.stack([x, y], -1)
    there = here + true
    inside = np.ones(true.shape[:2], np.bool_)
    for at in (here, there):
        inside &= (at > 8).all(-1) & (at < (SIZE[0] - 9, SIZE[1] - 9)).all(-1)
    return np.asarray(np.linalg.norm(found - true, axis=-1)[inside], dtype=np.float64)


MOTIONS: dict[str, tuple[float, ...]] = {
    "sub-pixel": (0.0, 1.0, 0.37, -0.61),
    "small": (0.6, 1.0, 3.3, 1.7),
    "turn and zoom": (-1.5, 1.02, -6.4, 4.2),
    "tilt": (0.3, 0.99, 9.6, -5.3, 1e-5),
}


@pytest.mark.parametrize("name", MOTIONS)
def test_known_homography(name: str) -> None:
    src, dst, true = pair(turned(*MOTIONS[name]))
    error = errors(DisFlow()(src, dst)[0], true)
    assert np.median(error) < MEDIAN_PX and np.percentile(error, 95) < P95_PX
    # No motion would be as wrong as the motion is large.
    assert np.median(errors(np.zeros_like(true), true)) > 5 * MEDIAN_PX


def test_more_than_the_patches_can_follow_is_smoothed_away() -> None:
    """Of pictures as they are the flow would be off by 0.043 px; 0.034 seen."""
    pairs = [pair(turned(*motion)) for motion in MOTIONS.values()]
    assert np.mean([np.median(errors(DisFlow()(src, dst)[0], true)) for src, dst, true in pairs]) < 0.038


def test_direction() -> None:
    """From the first to the second and back, x first: swapping the pictures swaps the flows."""
    src, dst, _ = pair(turned(0, 1, 3.0, -1.5))
    flow = DisFlow()
    there, back = flow(src, dst)
    np.testing.assert_array_equal(flow(dst, src), (back, there))
    assert there.shape == (*SIZE[::-1], 2) and there.dtype == np.float32
    np.testing.assert_allclose(np.median(there, (0, 1)), (3.0, -1.5), atol=0.02)
    np.testing.assert_allclose(np.median(back, (0, 1)), (-3.0, 1.5), atol=0.02)


def test_a_guess_bridges_what_is_too_far_alone() -> None:
    src, dst, true = pair(turned(1.0, 1.0, 120.0, -30.0))
    flow = DisFlow()
    guess = np.broadcast_to(np.array([118.0, -29.0], np.float32), true.shape).copy()
    alone, helped = (errors(flow(src, dst, guesses)[0], true) for guesses in ((None, None), (guess, None)))
    assert np.percentile(helped, 90) < P95_PX
    assert np.percentile(alone, 90) > 10, "the motion must be too large without the guess"


def test_the_guess_is_not_written_to_and_nothing_is_remembered() -> None:
    src, dst, true = pair(turned(0.6, 1.0, 3.3, 1.7))
    flow = DisFlow()
    guess = (true + 0.8).astype(np.float32)
    before = guess.copy()
    first, back = flow(src, dst, (guess, None))
    assert not np.shares_memory(first, guess)
    np.testing.assert_array_equal(guess, before)
    np.testing.assert_array_equal(flow(dst, src, (None, guess)), (back, first))


@pytest.mark.parametrize("size", [(16, 16), (17, 16), (16, 90), (200, 16), (33, 19)])
def test_tiny_pictures(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    picture = np.asarray(cv2.GaussianBlur(rng.integers(0, 256, size[::-1], dtype=np.uint8), (0, 0), 1.5), np.uint8)
    found = np.stack(DisFlow()(picture, picture))
    assert found.shape == (2, *size[::-1], 2)
    np.testing.assert_allclose(found, 0, atol=0.05)


def test_pictures_without_texture_give_finite_flow() -> None:
    black, grey = np.zeros((90, 160), np.uint8), np.full((90, 160), 128, np.uint8)
    assert np.isfinite(np.stack(DisFlow()(black, grey))).all()


def make_format(width: int, height: int, *, bit_depth: int = 8, aspect: Fraction = Fraction(1)) -> PictureFormat:
    return PictureFormat(
        pix_fmt="gray" if bit_depth == 8 else f"gray{bit_depth}le",
        width=width,
        height=height,
        bit_depth=bit_depth,
        chroma_shift=(0, 0),
        num_planes=1,
        is_rgb=False,
        sample_aspect=aspect,
    )


def make_frame(plane: npt.NDArray[np.uint8] | npt.NDArray[np.uint16], bit_depth: int = 8) -> Frame:
    fmt = make_format(plane.shape[1], plane.shape[0], bit_depth=bit_depth)
    return Frame(format=fmt, planes=(plane,), pts=0, time_base=Fraction(1, 30))


@pytest.mark.parametrize(
    ("source", "aspect", "size"),
    [
        ((1920, 1080), Fraction(1), (480, 270)),
        ((1080, 1920), Fraction(1), (270, 480)),
        ((480, 270), Fraction(1), (480, 270)),
        ((320, 180), Fraction(1), (320, 180)),  # never larger
        ((1440, 1080), Fraction(4, 3), (480, 270)),  # HDV
        ((720, 576), Fraction(64, 45), (480, 270)),  # PAL 16:9
        ((720, 480), Fraction(8, 9), (416, 312)),  # NTSC 4:3
        ((2, 2), Fraction(1), (16, 16)),  # what flow needs at least
    ],
)
def test_analysis_size(source: tuple[int, int], aspect: Fraction, size: tuple[int, int]) -> None:
    assert analysis_size(make_format(*source, aspect=aspect), 480 * 270) == size


@pytest.mark.parametrize("pixels", [64 * 64, 480 * 270, 1920 * 1080])
@pytest.mark.parametrize("source", [(64, 48), (640, 480), (4096, 2160), (1000, 100)])
@pytest.mark.parametrize("aspect", [Fraction(1), Fraction(10, 11), Fraction(2)])
def test_analysis_pixels_are_square_and_no_more_than_asked(
    source: tuple[int, int], aspect: Fraction, pixels: int
) -> None:
    width, height = analysis_size(make_format(*source, aspect=aspect), pixels)
    shown = source[0] * float(aspect)
    assert height == 16 or width * height <= min(pixels, shown * source[1]) * 1.02
    assert height <= source[1] and width <= round(shown)
    # Within the rounding of both sides; below 16 rows nothing is analysed.
    assert height == 16 or width / height == pytest.approx(shown / source[1], rel=0.5 / width + 0.5 / height)


def test_ten_bits_look_like_eight() -> None:
    plane = cv2.cvtColor(texture(4), cv2.COLOR_RGB2GRAY)
    eight = analysis_picture(make_frame(np.asarray(plane, np.uint8)), (320, 180))
    for bits in (10, 12, 16):
        deep = (plane.astype(np.uint16) << (bits - 8)).astype(np.uint16)
        found = analysis_picture(make_frame(deep, bits), (320, 180))
        assert found.shape == (180, 320) and found.dtype == np.uint8 and found.flags.c_contiguous
        # Averages are rounded in one and cut off in the other.
        assert int(np.abs(found.astype(int) - eight).max()) <= 1
    exact = analysis_picture(make_frame((plane.astype(np.uint16) << 2).astype(np.uint16), 10), plane.shape[::-1])
    np.testing.assert_array_equal(exact, plane)


def test_analysis_picture_averages_without_shift() -> None:
    """A ramp keeps its values at the new pixel centres: a shift by half a source pixel would change them by 1."""
    ramp = np.broadcast_to(2 * np.arange(120, dtype=np.uint8), (80, 120)).copy()
    found = analysis_picture(make_frame(ramp), (30, 20))
    expected = 2 * (4 * (np.arange(30) + 0.5) - 0.5)
    np.testing.assert_allclose(found, np.broadcast_to(expected, (20, 30)), atol=0.51)

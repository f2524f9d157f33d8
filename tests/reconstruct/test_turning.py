"""Cameras that only turn, frame by frame: against the camera that rendered, and flow that is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from tests.reconstruct.test_flow_ba import assert_same, beginning, check, elsewhere, make_frames, pictures
from tests.scenes import HFOV_DEG
from vs3r.config import Config, FlowConfig, ReconstructConfig, SmoothConfig
from vs3r.errors import InputError
from vs3r.lens import FISHEYE, bent, straightened
from vs3r.reconstruct import delay_frames, make_reconstructor
from vs3r.reconstruct.observe import Grid, Observation, ObservedFrame
from vs3r.reconstruct.turning import TurningCamera
from vs3r.types import Frame, FrameGeometry, PictureFormat

SIZE = 160, 90
FlowField = npt.NDArray[np.float64]
"""(rows, cols, 2) in pixels."""


def config(*, hfov_deg: float | None = HFOV_DEG, lens: str = "auto", pixels: int = 480 * 270) -> Config:
    return Config(
        flow=FlowConfig(analysis_pixels=pixels),
        reconstruct=ReconstructConfig(backend="turning", hfov_deg=hfov_deg, lens=lens),
        smooth=SmoothConfig(lookahead_frames=0),
    )


def run(frames: Sequence[Frame], camera: TurningCamera) -> list[FrameGeometry]:
    """Each frame's geometry comes when it is pushed."""
    found = []
    for frame in frames:
        (geometry,) = camera.push(camera.observe(frame))
        found.append(geometry)
    assert camera.flush() == []
    return found


def step_errors_deg(found: Sequence[FrameGeometry], true: npt.NDArray[Any], which: Sequence[int]) -> list[float]:
    """How far the turns between those frames are off; true: (T, 4, 4) cam_from_world."""
    errors = []
    for a, b in itertools.pairwise(which):
        ours = found[b].cam_from_world @ np.linalg.inv(found[a].cam_from_world)
        theirs = true[b] @ np.linalg.inv(true[a])
        turn, _ = cv2.Rodrigues(ours[:3, :3] @ theirs[:3, :3].T)
        errors.append(float(np.rad2deg(np.linalg.norm(turn))))
    return errors


def true_cameras(name: str) -> npt.NDArray[Any]:
    return np.linalg.inv(beginning(name)[0].world_from_cam)


@pytest.mark.parametrize(("pixels", "bar_deg"), [(480 * 270, 0.01), (160 * 90, 0.05)])
def test_a_turning_camera(pixels: int, bar_deg: float) -> None:
    """RMS over the steps between frames; seen: 0.0036 and 0.025 degrees. The shake turns by 0.66 a frame."""
    frames = make_frames(pictures("rotation"))
    found = run(frames, TurningCamera(config(pixels=pixels), frames[0].format))
    check(found, frames)
    assert {g.segment for g in found} == {0}
    errors = step_errors_deg(found, true_cameras("rotation"), range(len(found)))
    assert float(np.sqrt(np.mean(np.square(errors)))) < bar_deg


def test_the_config_asks_for_it() -> None:
    frames = make_frames(pictures("rotation", 3))
    assert isinstance(make_reconstructor(config(), frames[0].format), TurningCamera)
    assert delay_frames(config()) == 0
    assert delay_frames(Config()) > 0


def test_it_knows_no_rolling_shutter() -> None:
    ReconstructConfig(backend="turning", readout_ms=0)
    with pytest.raises(InputError, match="readout_ms: turning knows no rolling shutter, expected none or 0, got 25"):
        ReconstructConfig(backend="turning", readout_ms=25)


def test_after_a_reset_all_begins_anew() -> None:
    frames = make_frames(pictures("rotation", 8))
    camera = TurningCamera(config(), frames[0].format)
    found = run(frames, camera)
    camera.reset()
    again = run(frames, camera)
    # Flow to the last frame before the reset is no flow of the new stream.
    assert_same(again, found)


@pytest.mark.parametrize(("level", "count"), [(255, 1), (255, 2), (16, 3), (128, 1)])
@pytest.mark.parametrize("pixels", [480 * 270, 160 * 90])
def test_a_flash_is_no_cut(level: int, count: int, pixels: int) -> None:
    """The camera goes on behind it from before it, by flow across it; seen: 0.007 degrees."""
    shown = list(pictures("rotation", 16))
    blank = range(9, 9 + count)
    for k in blank:
        shown[k] = np.full_like(shown[k], level)
    frames = make_frames(shown)
    found = run(frames, TurningCamera(config(pixels=pixels), frames[0].format))
    check(found, frames)
    assert {g.segment for g in found} == {0}
    assert [g.blank for g in found] == [k in blank for k in range(len(found))]
    seen = [k for k in range(len(found)) if k not in blank]
    assert max(step_errors_deg(found, true_cameras("rotation"), seen)) < 0.05


def test_another_shot_is_known_one_frame_later() -> None:
    """Its first frame is shown as the last was; then it has a world of its own."""
    before, after = pictures("rotation", 8), elsewhere()
    frames = make_frames([*before, *after])
    found = run(frames, TurningCamera(config(), frames[0].format))
    check(found, frames)
    assert [g.segment for g in found] == [0] * 9 + [1] * 5
    np.testing.assert_array_equal(found[8].cam_from_world, found[7].cam_from_world)
    np.testing.assert_array_equal(found[9].cam_from_world, np.eye(4))
    assert found[8].blank and not found[9].blank


def test_who_moves_is_told_from_who_stands() -> None:
    """Mean over the cells, where someone moves and elsewhere; seen: 0.56 and 0.003."""
    frames = make_frames(pictures("tripod"))
    found = run(frames, TurningCamera(config(), frames[0].format))
    truth = beginning("tripod")[1].moving
    moving, still = [], []
    for geometry, seen in list(zip(found, truth, strict=True))[4:]:
        cells = cv2.resize(seen.astype(np.float32), geometry.dynamic.shape[::-1], interpolation=cv2.INTER_AREA)
        moving.append(geometry.dynamic[cells > 0.9].mean())
        still.append(geometry.dynamic[cells < 0.01].mean())
    assert np.mean(moving) > 0.4
    assert np.mean(still) < 0.05


def flow_of(turn: npt.NDArray[Any], focal: float, distortion: float, grid: Grid) -> FlowField:
    """(rows, cols, 2) float64 flow of a world without depth, at the cells of the first of two pictures."""
    at = (grid.centres(fine=False) - np.array(SIZE) / 2).astype(np.float64) / focal
    at *= straightened(distortion, (at * at).sum(-1, keepdims=True))
    seen = np.concatenate([at, np.ones((*at.shape[:2], 1))], -1) @ turn.T
    there = seen[..., :2] / seen[..., 2:]
    there *= bent(distortion, (there * there).sum(-1, keepdims=True))
    return np.asarray(focal * there - (grid.centres(fine=False) - np.array(SIZE) / 2), np.float64)


def turned_by(turn: npt.NDArray[Any], lens: str, changed: Callable[[FlowField], None]) -> FrameGeometry:
    """What is found of a camera that turned so, by flow in which something was changed."""
    width, height = SIZE
    fmt = PictureFormat(
        pix_fmt="gray", width=width, height=height, bit_depth=8, chroma_shift=(0, 0), num_planes=1, is_rgb=False
    )
    camera = TurningCamera(config(lens=lens, pixels=width * height), fmt)
    grid, distortion = Grid.of(*SIZE), FISHEYE if lens == "fisheye" else 0.0
    edge = np.tan(np.deg2rad(HFOV_DEG) / 2)
    flow = flow_of(turn, width / 2 / (edge * float(bent(distortion, np.array(edge**2)))), distortion, grid)
    changed(flow)

    def seen(index: int, found: list[Observation]) -> ObservedFrame:
        return ObservedFrame(
            index=index,
            pts_s=index / 30,
            exposed_s=index / 30,
            first_shown=index,
            picture=np.zeros((height, width), np.uint8),
            found=found,
            agreement=1.0,
            change=0.0,
        )

    fine = np.zeros((2 * grid.rows, 2 * grid.cols, 2), np.float32)
    observation = Observation(
        src=0,
        dst=1,
        flow=flow.astype(np.float32),
        weight=np.ones(flow.shape[:2], np.float32),
        fine_flow=fine,
        fine_weight=np.ones(fine.shape[:2], np.float32),
    )
    camera.push(seen(0, []))
    (found,) = camera.push(seen(1, [observation]))
    assert found.distortion == distortion
    return found


def off_deg(found: FrameGeometry, turn: npt.NDArray[Any]) -> float:
    left, _ = cv2.Rodrigues(found.cam_from_world[:3, :3] @ turn.T)
    return float(np.rad2deg(np.linalg.norm(left)))


@pytest.mark.parametrize("lens", ["rectilinear", "fisheye"])
@pytest.mark.parametrize("share", [0.0, 0.35])
def test_flow_that_is_known(lens: str, share: float) -> None:
    """A turn about three axes by 2.5 degrees, and a share of the flow that says anything else; seen: less than 1e-6
    and 0.0035 degrees."""
    turn, _ = cv2.Rodrigues(np.deg2rad([1.0, -2.0, 1.1]))
    rng = np.random.default_rng(0)

    def spoil(flow: FlowField) -> None:
        wrong = rng.random(flow.shape[:2]) < share
        flow[wrong] += rng.normal(0, 12, (int(wrong.sum()), 2))

    assert off_deg(turned_by(turn, lens, spoil), turn) < (0.01 if share else 1e-5)


def test_whipped_past_whoever_is_followed() -> None:
    """The scene goes by 42 pixels, 38 % of the picture does not; seen: less than 1e-6 degrees, and 16 if looked for
    from no turn at all."""
    turn, _ = cv2.Rodrigues(np.deg2rad([1.0, 16.0, 1.0]))

    def hold(flow: FlowField) -> None:
        third = flow.shape[1] // 3
        flow[:, third:-third] = 0

    assert off_deg(turned_by(turn, "rectilinear", hold), turn) < 1e-4

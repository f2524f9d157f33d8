"""A whipped pan that follows somebody: the camera turns with the scene, not with him."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.metrics.scenes import texture
from tests.reconstruct.test_flow_ba import check, make_frames, maker, run, turns_deg
from vs3r.reconstruct.leap import shared_shift, turn

WIDTH, HEIGHT, FOCAL = 480, 270, 420.0
# Degrees the camera turns to the right from each frame to the next.
STEPS_DEG = np.concatenate([np.full(12, 1.0), np.linspace(1, 9, 7), np.full(6, 9.0), np.linspace(9, 1, 7), np.ones(8)])
# Exposures of a frame: it is blurred by a quarter of what the camera turns.
EXPOSURES = 9


def panorama(yaw_deg: float, wide: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """What a camera that turned by so much sees of a cylinder around it."""
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5 - WIDTH / 2, np.arange(HEIGHT) + 0.5 - HEIGHT / 2)
    around = np.arctan2(x, FOCAL) + math.radians(yaw_deg)
    up = y / np.hypot(x, FOCAL)
    at = np.stack([around * FOCAL, up * FOCAL + wide.shape[0] / 2], -1).astype(np.float32)
    seen = cv2.remap(wide, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)  # type: ignore[call-overload]
    return np.asarray(seen, np.uint8)


def followed() -> list[npt.NDArray[np.uint8]]:
    """Somebody who stays in the middle, sharp, while the camera turns with him, and the scene blurs."""
    wide, person = (texture(seed, 4096, 400)[..., 1] for seed in (1, 2))
    yaw = np.concatenate([[10.0], 10 + np.cumsum(STEPS_DEG)])
    speed = np.append(STEPS_DEG, STEPS_DEG[-1])
    shake = np.random.default_rng(0).normal(0, 1, (len(yaw), 2))
    figure = np.zeros((HEIGHT, WIDTH, 1), np.float32)
    cv2.ellipse(figure, (WIDTH // 2, HEIGHT), (90, 220), 0, 0, 360, 1.0, -1)
    frames = []
    for at, width, (dx, dy) in zip(yaw, speed, shake, strict=True):
        exposed = [panorama(at + k * width, wide) for k in np.linspace(-0.125, 0.125, EXPOSURES)]
        moved = np.array([[1, 0, dx], [0, 1, dy]])
        body = cv2.warpAffine(person[:HEIGHT, :WIDTH], moved, (WIDTH, HEIGHT))
        alpha = cv2.warpAffine(figure, moved, (WIDTH, HEIGHT))
        frames.append(np.round(alpha * body + (1 - alpha) * np.mean(exposed, 0)).astype(np.uint8))
    return frames


def test_the_scene_is_what_the_camera_turned_against() -> None:
    frames = make_frames(followed())
    hfov_deg = math.degrees(2 * math.atan(WIDTH / 2 / FOCAL))
    found = run(frames, maker(frames, hfov_deg, readout_ms=0))
    check(found, frames)
    assert {g.segment for g in found} == {0}
    error = np.abs(turns_deg(found) - STEPS_DEG)
    assert error.max() < 0.5, error.round(2)


def test_what_agrees_all_over_the_picture_beats_what_is_trusted_more() -> None:
    x, y = torch.meshgrid(torch.linspace(-230, 230, 40), torch.linspace(-125, 125, 22), indexing="xy")
    at = torch.stack([x, y]).flatten(1)
    middle = (at[0].abs() < 70) & (at[1] > -90)
    flow = torch.where(middle, torch.tensor([[3.0], [-2.0]]), torch.tensor([[61.0], [5.0]]))
    weight = torch.where(middle, 0.9, 0.2)
    assert weight[middle].sum() > weight[~middle].sum()
    before = torch.tensor([40.0, 0.0]).double()
    assert shared_shift(at, at + flow, weight, before).round().tolist() == [61, 5]
    # Alone, he is the scene; and where nothing is trusted the camera goes on.
    assert shared_shift(at, at + flow, weight * middle, before).tolist() == [3, -2]
    assert shared_shift(at, at + flow, weight * 0, before).tolist() == [40, 0]


@pytest.mark.parametrize("shift", [(60.0, -20.0), (0.0, 30.0), (0.0, 0.0)])
def test_a_turn_shifts_the_centre(shift: tuple[float, float]) -> None:
    moved = turn(torch.tensor(shift).double(), FOCAL)[:, 2]
    np.testing.assert_allclose((FOCAL * moved[:2] / moved[2]).tolist(), shift, atol=1e-9)

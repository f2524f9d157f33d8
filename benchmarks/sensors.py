"""Cameras against sensors: python -m benchmarks.sensors FOLDER

FOLDER holds two clips with what a sensor said of the camera, focal lengths given:

- kitti_turn_51f: pictures from a car in a bend (KITTI odometry), poses.txt with camera-to-world (3, 4) per frame. Told
  is the angle by which the rotation from one frame to the next is wrong.
- gyro_vehicle_phone: video.mkv of a phone behind a windscreen, gyro.csv (rad/s) and frames.csv with the frames' times
  on the gyroscope's clock. Told are, for each axis, correlation and slope of the angular velocity found against the
  gyroscope's, averaged from one frame to the next.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.demo_scene import write_clip
from vs3r.config import Config, ReconstructConfig
from vs3r.engine.files import analyze_file
from vs3r.geometry import so3_log
from vs3r.types import DoubleArray

KITTI_FX, KITTI_WIDTH = 718.856, 1241
PHONE_FX, PHONE_WIDTH = 573.85, 800
PHONE_DELAY_S = 0.013
"""From a frame's time stamp to the time of its middle row, by the best correlation."""
PHONE_AXES = {"pitch": (0, 1), "yaw": (1, 0), "roll": (2, 2)}
"""Axis of the camera (x right, y down, z ahead) and of the gyroscope."""


def turns(cam_from_world: DoubleArray) -> DoubleArray:
    """(T - 1, 3) rotation vectors from each frame to the next, radians, in camera axes."""
    R = torch.from_numpy(cam_from_world[:, :3, :3])
    return np.asarray(so3_log(R[1:] @ R[:-1].mT).numpy())


def found(clip: Path, fx: float, width: int) -> DoubleArray:
    """Turns of the camera in a clip, its focal length given."""
    hfov_deg = math.degrees(2 * math.atan(width / 2 / fx))
    track = analyze_file(clip, Config(reconstruct=ReconstructConfig(hfov_deg=hfov_deg)))
    print(f"read-out {1e3 * track.readout_s[-1]:.1f} ms")
    return turns(track.cam_from_world)


def kitti(folder: Path, scratch: Path) -> None:
    # Grey pictures, which come as three equal colours.
    pictures = [np.asarray(cv2.imread(str(path)), np.uint8) for path in sorted(folder.glob("*.png"))]
    clip = scratch / "kitti.mp4"
    # An even size, which H.264 needs; the middle stays where it was but for half a pixel.
    write_clip(clip, (np.ascontiguousarray(picture[:, :-1]) for picture in pictures), Fraction(10), crf=8)
    poses = np.loadtxt(folder / "poses.txt").reshape(-1, 3, 4)[: len(pictures)]
    world_from_cam = np.concatenate([poses, np.broadcast_to([[[0.0, 0.0, 0.0, 1.0]]], (len(poses), 1, 4))], axis=1)
    true = turns(np.linalg.inv(world_from_cam))
    wrong = np.degrees(np.linalg.norm(found(clip, KITTI_FX, KITTI_WIDTH - 1) - true, axis=1))
    print(f"kitti: rotation error, degrees a frame: median {np.median(wrong):.3f}, 90 % {np.quantile(wrong, 0.9):.3f}")


def phone(folder: Path) -> None:
    gyro = np.loadtxt(folder / "gyro.csv", delimiter=",", skiprows=1)
    times = np.loadtxt(folder / "frames.csv", delimiter=",", skiprows=1)[:, 2] + PHONE_DELAY_S
    # What the gyroscope turned by from one frame to the next: its sum, interpolated.
    angle = np.concatenate([[np.zeros(3)], np.cumsum(np.diff(gyro[:, :1], axis=0) * gyro[1:, 1:], axis=0)])
    at = np.stack([np.interp(times, gyro[:, 0], angle[:, axis]) for axis in range(3)], -1)
    step_s = np.diff(times)[:, None]
    said = np.diff(at, axis=0) / step_s
    ours = found(folder / "video.mkv", PHONE_FX, PHONE_WIDTH) / step_s
    for name, (camera, sensor) in PHONE_AXES.items():
        a, b = said[:, sensor] - said[:, sensor].mean(), ours[:, camera] - ours[:, camera].mean()
        print(f"phone, {name}: correlation {abs(np.corrcoef(a, b)[0, 1]):.3f}, slope {abs(a @ b / (a @ a)):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        kitti(options.folder / "kitti_turn_51f", Path(scratch))
    phone(options.folder / "gyro_vehicle_phone")


if __name__ == "__main__":
    main()

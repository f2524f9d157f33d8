"""A network that knows a rendered shot: it says of every window what is true, in a world and a scale of its own."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tests.scenes import Shot, View
from vs3r.config import VggtConfig
from vs3r.geometry import quat_wxyz_from_matrix
from vs3r.reconstruct.vggt.cues import normalised
from vs3r.reconstruct.vggt.model import Vggt, depth_frames
from vs3r.reconstruct.vggt.window import WindowNetwork, network_picture
from vs3r.types import Frame

FEATURES = 16


@dataclass(eq=False)
class TrueNetwork:
    """Gives the truth in place of both passes."""

    taken: Shot
    views: list[View]
    frames: list[Frame]
    size: tuple[int, int]
    """Height and width of the network's pictures."""
    noise: float = 0.0
    """Of the poses, relative to one: rotation in radians, translation in the window's unit."""

    def __post_init__(self) -> None:
        self.numbers = {network_picture(frame, self.size).tobytes(): n for n, frame in enumerate(self.frames)}
        self.windows: list[list[int]] = []
        self.kept: list[Tensor] = []

    def first(self, window: Tensor) -> tuple[Tensor, ...]:
        pictures = (window * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
        numbers = [self.numbers[picture.tobytes()] for picture in pictures]
        self.windows.append(numbers)
        scale = 2.0 + numbers[0] % 3
        depth = torch.stack([self._resized(self.views[n].depth) for n in numbers]) / scale
        rows, cols = self.size[0] // 14, self.size[1] // 14
        moving = torch.stack([_patches(self.views[n].moving.astype(np.float32), rows, cols) for n in numbers])
        texture = torch.rand(moving.shape, generator=torch.Generator().manual_seed(0))
        ids = torch.stack([_patches(self.views[n].object_id.astype(np.float32), rows, cols) for n in numbers])
        features = torch.stack([ids * (k + 1) / 7 for k in range(FEATURES)], -1).sin() + 0.1 * texture[..., None]
        # As in the network: something stands out of every frame, whether it moves or not.
        dynamic = normalised(0.7 * moving + 0.3 * texture)
        pose = self._poses(numbers, scale)
        return pose, depth, torch.full_like(depth, 2.0), dynamic, features

    def second(self, features: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        assert features.shape[:2] == keep.shape
        self.kept.append(keep)
        numbers = self.windows[-1]
        depth = torch.stack([self._resized(self.views[numbers[k]].depth) for k in depth_frames(len(numbers))])
        return self._poses(numbers, 0.7), depth / 0.7

    def _poses(self, numbers: list[int], scale: float) -> Tensor:
        cameras = torch.from_numpy(np.linalg.inv(self.taken.world_from_cam[numbers]))
        relative = cameras @ torch.from_numpy(self.taken.world_from_cam[numbers[0]])
        quat = quat_wxyz_from_matrix(relative[:, :3, :3])[:, [1, 2, 3, 0]]
        K = torch.from_numpy(self.taken.K[numbers])
        fov = [2 * torch.atan(side / 2 / K[:, k, k]) for side, k in ((self.taken.height, 1), (self.taken.width, 0))]
        pose = torch.cat([relative[:, :3, 3] / scale, 2 * quat, torch.stack(fov, -1)], -1).float()
        random = torch.Generator().manual_seed(numbers[0])
        pose[:, :7] += self.noise * torch.randn(len(pose), 7, generator=random)
        return pose

    def _resized(self, depth: npt.NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(cv2.resize(depth, self.size[::-1], interpolation=cv2.INTER_NEAREST))


def _patches(values: npt.NDArray[np.float32], rows: int, cols: int) -> Tensor:
    return torch.from_numpy(cv2.resize(values, (cols, rows), interpolation=cv2.INTER_AREA)).flatten()


def true_windows(true: TrueNetwork, config: VggtConfig, network: Vggt) -> WindowNetwork:
    """The truth in place of the network."""
    windows = WindowNetwork(config, true.frames[0].format, network)
    windows._runners = lambda window: [true.first, true.second]  # type: ignore[method-assign]  # noqa: ARG005
    return windows

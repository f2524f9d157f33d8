"""Frames of a rendered shot with their true geometry, and what the stable camera would have seen."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

import cv2
import numpy as np
import numpy.typing as npt

from tests.render.plane_world import make_format
from tests.scenes import Shot, shot
from vs3r.render import SourceFrame
from vs3r.types import Frame, FrameGeometry, PictureFormat, Plane, VirtualCamera

U8 = npt.NDArray[np.uint8]


def yuv420(rgb: U8, bit_depth: int) -> tuple[Plane, ...]:
    """BT.601, full range, chroma averaged over its four pixels."""
    r, g, b = np.moveaxis(rgb.astype(np.float64) / 255, -1, 0)
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    small = luma.shape[1] // 2, luma.shape[0] // 2
    u, v = (cv2.resize(c - luma, small, interpolation=cv2.INTER_AREA) for c in (b, r))
    peak = (1 << bit_depth) - 1
    kind = np.uint8 if bit_depth == 8 else np.uint16
    planes = luma * peak, u * peak / 1.772 + (peak + 1) / 2, v * peak / 1.402 + (peak + 1) / 2
    return tuple(np.rint(plane).clip(0, peak).astype(kind) for plane in planes)


def scene_format(taken: Shot, bit_depth: int) -> PictureFormat:
    return make_format("yuv420p" if bit_depth == 8 else "yuv420p10le", taken.width, taken.height)


def scene_sources(name: str, indices: Iterable[int], bit_depth: int = 8) -> dict[int, SourceFrame]:
    """Frames of a shot by number."""
    taken = shot(name)
    fmt = scene_format(taken, bit_depth)
    sources = {}
    for index in indices:
        view = taken.render(index)
        grid = taken.width // 8, taken.height // 8
        inv_depth = cv2.resize(1 / view.depth, grid, interpolation=cv2.INTER_NEAREST).astype(np.float32)
        dynamic = cv2.resize(view.moving.astype(np.float32), grid, interpolation=cv2.INTER_AREA)
        sources[index] = SourceFrame(
            frame=Frame(format=fmt, planes=yuv420(view.rgb, bit_depth), pts=index, time_base=Fraction(1, 30)),
            geometry=FrameGeometry(
                index=index,
                pts_s=index / 30,
                segment=0,
                K=taken.K[index],
                cam_from_world=np.asarray(np.linalg.inv(taken.world_from_cam[index])),
                inv_depth=inv_depth,
                dynamic=np.asarray(dynamic, np.float32),
            ),
        )
    return sources


def stable_camera(name: str, index: int) -> VirtualCamera:
    """The camera that was intended."""
    taken = shot(name)
    pose = np.asarray(np.linalg.inv(taken.stable_world_from_cam[index]))
    return VirtualCamera(K=taken.K[index], cam_from_world=pose)

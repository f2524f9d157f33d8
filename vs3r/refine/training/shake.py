"""A stable clip filmed again by a shaky camera, which sees a part of it that moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import torch

from vs3r.cameras import make_output_camera
from vs3r.config import RenderConfig
from vs3r.geometry import rigid_inverse, se3_retract
from vs3r.refine.training.recipe import Recipe
from vs3r.render import SourceFrame, WarpRenderer
from vs3r.render.pullpush import f32
from vs3r.render.warp import backward_map, sample_cells
from vs3r.types import DoubleArray, FloatArray, FrameGeometry, VirtualCamera

MARGIN_PX = 3.0
"""The shaky camera stays this far inside the picture of the stable one."""
_BORDER = 9
"""Points along each side at which that is checked."""


def shake_path(sources: Sequence[SourceFrame], recipe: Recipe) -> list[VirtualCamera]:
    """Cameras that shake about those of a stable clip and see nothing that they did not.

    Args:
        sources: the clip, of one scene.
        recipe: says how much they shake; less where the picture would end.
    """
    rng = np.random.default_rng([recipe.seed, 1])
    shake = _correlated(rng, len(sources), recipe.shake_frames)
    tilt, roll = np.radians([recipe.shake_deg, recipe.shake_roll_deg])
    depth = 1.0 / np.median([np.median(source.geometry.inv_depth) for source in sources])
    shake *= np.array([recipe.shake_shift * depth] * 3 + [tilt, tilt, roll])
    for share in (*0.8 ** np.arange(20), 0.0):
        cameras = [_camera(source.geometry, share * xi, recipe.zoom) for source, xi in zip(sources, shake, strict=True)]
        if all(_sees_only_picture(source, camera) for source, camera in zip(sources, cameras, strict=True)):
            break
    return cameras


def _correlated(rng: np.random.Generator, count: int, frames: float) -> DoubleArray:
    """(count, 6) noise of unit variance that forgets itself in so many frames."""
    keep = float(np.exp(-1.0 / frames))
    fresh = rng.standard_normal((count, 6))
    noise = fresh.copy()
    for i in range(1, count):
        noise[i] = keep * noise[i - 1] + np.sqrt(1.0 - keep * keep) * fresh[i]
    return noise


def _camera(geometry: FrameGeometry, xi: DoubleArray, zoom: float) -> VirtualCamera:
    K = geometry.K.copy()
    K[:2, :2] *= zoom
    moved = se3_retract(torch.from_numpy(xi), torch.from_numpy(geometry.cam_from_world))
    return VirtualCamera(K=K, cam_from_world=moved.numpy(), distortion=geometry.distortion)


def _sees_only_picture(source: SourceFrame, camera: VirtualCamera) -> bool:
    fmt = source.frame.format
    side = np.linspace(0.0, 1.0, _BORDER)
    low, high = np.zeros(_BORDER), np.ones(_BORDER)
    border = np.stack([np.concatenate([side, side, low, high]), np.concatenate([low, high, side, side])], -1)
    x, y, front = look_up(source, camera, border[None] * [fmt.width, fmt.height])
    inside = (x > MARGIN_PX) & (x < fmt.width - MARGIN_PX) & (y > MARGIN_PX) & (y < fmt.height - MARGIN_PX)
    return bool((inside & (front > 0)).all())


def look_up(
    source: SourceFrame, camera: VirtualCamera, pixels: DoubleArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Where (R, C, 2) pixels of a virtual camera lie in a source, x and y, and 1 where that is in front of it."""
    fmt = source.frame.format
    rays, _ = make_output_camera("pinhole", camera.K, camera.distortion).unproject(pixels)
    at = backward_map(rays, camera.cam_from_world, source.geometry, source.inv_depth, (fmt.width, fmt.height))
    return at.x, at.y, at.front


def film(sources: Sequence[SourceFrame], cameras: Sequence[VirtualCamera]) -> list[SourceFrame]:
    """The clip as those cameras see it, with its true depth; see shake_path."""
    renderer = WarpRenderer(sources[0].frame.format, RenderConfig(fill_window_frames=0))
    filmed = []
    for source, camera in zip(sources, cameras, strict=True):
        index = source.geometry.index
        frame = renderer.render(index, camera, {index: source}).frame
        filmed.append(SourceFrame(frame=frame, geometry=_geometry(source, camera)))
    return filmed


def _geometry(source: SourceFrame, camera: VirtualCamera) -> FrameGeometry:
    """What would be known of the filmed picture if nothing went wrong."""
    old, fmt = source.geometry, source.frame.format
    size = fmt.width, fmt.height
    rows, cols = old.inv_depth.shape
    grid = np.stack(np.meshgrid((np.arange(cols) + 0.5) / cols, (np.arange(rows) + 0.5) / rows), -1)
    x, y, _ = look_up(source, camera, grid * size)
    inv_depth = sample_cells(source.inv_depth, x, y, size).astype(np.float64)
    rays, _ = make_output_camera("pinhole", old.K, old.distortion).unproject(np.stack([x, y], -1).astype(np.float64))
    points = rays / (rays[..., 2] * inv_depth)[..., None]
    new_from_old = camera.cam_from_world @ rigid_inverse(torch.from_numpy(old.cam_from_world)).numpy()
    z = points @ new_from_old[2, :3] + new_from_old[2, 3]
    dynamic = old.dynamic
    if dynamic.any():
        moving_x, moving_y = (f32(cv2.resize(f, dynamic.shape[::-1], interpolation=cv2.INTER_LINEAR)) for f in (x, y))
        dynamic = sample_cells(f32(dynamic), moving_x, moving_y, size)
    return replace(
        old,
        K=camera.K,
        cam_from_world=camera.cam_from_world,
        inv_depth=(1.0 / np.maximum(z, 1e-3 / inv_depth)).astype(np.float32),
        dynamic=dynamic,
        readout_s=0.0,
        row_motion=np.zeros((0, 6)),
    )

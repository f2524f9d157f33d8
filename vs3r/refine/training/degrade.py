"""Degraded and clean clips from stable ones (paper, section 3.4): filmed by a shaky camera and brought back, badly.

What is wrong with the result is what goes wrong in our own rendering: the renderer is the same, its depth, poses, masks
and pictures are damaged first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from vs3r.cameras import make_output_camera
from vs3r.config import RenderConfig
from vs3r.geometry import so3_exp
from vs3r.kernels.camera import SourceCameras
from vs3r.kernels.splat import DepthPoints, splat_points
from vs3r.refine.training.damage import damage_picture, expose, exposure_path, haunt
from vs3r.refine.training.recipe import Recipe
from vs3r.refine.training.shake import film, shake_path
from vs3r.render import SourceFrame, WarpRenderer
from vs3r.render.splat import view_of
from vs3r.smooth import unsmoothed
from vs3r.types import Frame, FrameGeometry, PictureFormat, RenderedFrame, VirtualCamera

SPLAT_NEIGHBOURS = (-8, -4, -2, 2, 4, 8)
"""Frames whose points are drawn beside a frame's own."""
VALID_CELL_PX = 4
LEAST_SEEN = 0.5
"""Share of its pixels that a cell drawn by points needs to be called right."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DegradedClip:
    """A pair, as pictures."""

    rendered: list[RenderedFrame]
    """What refinement gets."""
    clean: list[Frame]
    """What it should make of it."""


def degrade_clip(sources: Sequence[SourceFrame], recipe: Recipe, check: Callable[[], None]) -> DegradedClip:
    """Make a pair of a stable clip.

    Args:
        sources: its frames, of one scene and numbered one after the other: 8-bit RGB planes ("gbrp").
        recipe: what is done to them.
        check: called before every frame; what it raises ends the work.
    Returns:
        As many frames. The clean ones have the exposure of the degraded ones, which is the source's own affair.
    """
    if recipe.identity:
        return DegradedClip(
            rendered=[_whole(source.frame) for source in sources], clean=[source.frame for source in sources]
        )
    gains = exposure_path(recipe, len(sources))
    clean = [expose(source.frame, gain) for source, gain in zip(sources, gains, strict=True)]
    cameras = shake_path(sources, recipe)
    filmed = []
    for i, shaky in enumerate(film(sources, cameras)):
        check()
        frame = damage_picture(expose(shaky.frame, gains[i]), recipe, _motion_px(cameras, i), number=i)
        filmed.append(SourceFrame(frame=frame, geometry=_damage_geometry(shaky.geometry, recipe)))
    usable = {source.geometry.index: source for source in filmed}
    draw = _draw_splat if recipe.splat else _draw_warp
    rendered = []
    for source in sources:
        check()
        rendered.append(_damage_mask(draw(source.geometry, usable, recipe), recipe))
    return DegradedClip(rendered=haunt(rendered, filmed, recipe), clean=clean)


def _valid_shape(fmt: PictureFormat) -> tuple[int, int]:
    return -(-fmt.height // VALID_CELL_PX), -(-fmt.width // VALID_CELL_PX)


def _whole(frame: Frame) -> RenderedFrame:
    valid = np.full(_valid_shape(frame.format), 255, np.uint8)
    return RenderedFrame(frame=frame, valid=valid, own_share=1.0, valid_share=1.0)


def _motion_px(cameras: Sequence[VirtualCamera], i: int) -> tuple[float, float]:
    """How far the picture moves from frame i to the next (the last: from the one before), at its centre."""
    first, second = (i, i + 1) if i + 1 < len(cameras) else (max(i - 1, 0), i)
    a, b = cameras[first], cameras[second]
    ray = b.cam_from_world[:3, :3] @ a.cam_from_world[2, :3]
    ray = ray / max(float(ray[2]), 0.1)
    return float(b.K[0, 0] * ray[0]), float(b.K[1, 1] * ray[1])


def _damage_geometry(geometry: FrameGeometry, recipe: Recipe) -> FrameGeometry:
    """Errors of depth, of its edges, of the pose and of the mask of what moves."""
    rng = np.random.default_rng([recipe.seed, 2, geometry.index])
    rho = np.ascontiguousarray(geometry.inv_depth, np.float32)
    if recipe.tear_cells:
        side = abs(recipe.tear_cells) + 1
        grow = cv2.dilate if recipe.tear_cells > 0 else cv2.erode
        rho = np.asarray(grow(rho, np.ones((side, side), np.uint8)), np.float32)
    coarse = rng.standard_normal((5, 7)).astype(np.float32)
    smooth = cv2.resize(coarse, rho.shape[::-1], interpolation=cv2.INTER_CUBIC)
    rho = np.asarray(rho * np.exp(recipe.depth_noise * smooth), np.float32)
    turn = so3_exp(torch.from_numpy(np.radians(recipe.pose_noise_deg) * rng.standard_normal(3))).numpy()
    pose = geometry.cam_from_world.copy()
    pose[:3] = turn @ pose[:3]
    dynamic = np.zeros_like(geometry.dynamic) if recipe.forget_moving else geometry.dynamic
    return replace(geometry, inv_depth=rho, cam_from_world=pose, dynamic=dynamic)


def _draw_warp(target: FrameGeometry, sources: Mapping[int, SourceFrame], recipe: Recipe) -> RenderedFrame:
    fmt = sources[target.index].frame.format
    renderer = WarpRenderer(fmt, RenderConfig(fill_window_frames=recipe.fill_frames))
    return renderer.render(target.index, unsmoothed(target), sources)


def _draw_splat(target: FrameGeometry, sources: Mapping[int, SourceFrame], recipe: Recipe) -> RenderedFrame:
    """By points, as the paper's authors draw: some are left out, and none is quite where it belongs."""
    rng = np.random.default_rng([recipe.seed, 3, target.index])
    reach = recipe.fill_frames
    near = [target.index + k for k in SPLAT_NEIGHBOURS if abs(k) <= reach and target.index + k in sources]
    used = [sources[i] for i in [target.index, *near]]
    fmt = used[0].frame.format
    size = fmt.width, fmt.height
    depth = np.stack([cv2.resize(s.inv_depth, size, interpolation=cv2.INTER_LINEAR) for s in used])
    depth *= np.exp(recipe.point_noise * rng.standard_normal(depth.shape)).astype(np.float32)
    moving = np.stack([cv2.resize(s.geometry.dynamic, size, interpolation=cv2.INTER_LINEAR) > 0.5 for s in used])
    colours = np.stack([np.stack(s.frame.planes, -1) for s in used])
    points = DepthPoints(
        inv_depth=torch.from_numpy(depth),
        cameras=SourceCameras(
            K=torch.from_numpy(np.stack([s.geometry.K for s in used])).float(),
            cam_from_world=torch.from_numpy(np.stack([s.geometry.cam_from_world for s in used])).float(),
            distortion=target.distortion,
        ),
        attributes=torch.from_numpy(colours),
        valid=torch.from_numpy(rng.random(depth.shape) < recipe.point_share),
        dynamic=torch.from_numpy(moving),
    )
    model = make_output_camera("pinhole", target.K, target.distortion)
    view = view_of(model, target.cam_from_world, fmt, torch.device("cpu"))
    drawn = splat_points(points, view)
    assert drawn.attributes is not None
    values = drawn.attributes.round().clamp(0, 255).byte().numpy()
    frame = replace(used[0].frame, planes=tuple(np.ascontiguousarray(values[..., i]) for i in range(3)))
    cells = _valid_shape(fmt)[::-1]
    seen = cv2.resize(drawn.valid.numpy().astype(np.float32), cells, interpolation=cv2.INTER_AREA)
    # Single pixels without a point are no hole to the mask.
    valid = np.where(seen >= LEAST_SEEN, 255.0, 255.0 * seen).astype(np.uint8)
    own = float((drawn.source == 0).float().mean())
    return RenderedFrame(frame=frame, valid=valid, own_share=own, valid_share=float(seen.mean()))


def _damage_mask(rendered: RenderedFrame, recipe: Recipe) -> RenderedFrame:
    """A mask that calls too little right, or too much."""
    if recipe.mask_cells == 0:
        return rendered
    side = 2 * abs(recipe.mask_cells) + 1
    change = cv2.erode if recipe.mask_cells > 0 else cv2.dilate
    return replace(rendered, valid=np.asarray(change(rendered.valid, np.ones((side, side), np.uint8)), np.uint8))

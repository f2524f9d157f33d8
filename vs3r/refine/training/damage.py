"""What goes wrong with pictures before they are rendered, and patches that do not belong there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import cv2
import numpy as np

from vs3r.refine.training.recipe import Recipe
from vs3r.render import SourceFrame
from vs3r.types import DoubleArray, FloatArray, Frame, Plane, RenderedFrame

STEP_FRAMES = 12.0
"""Mean time between two steps of exposure."""


def exposure_path(recipe: Recipe, count: int) -> DoubleArray:
    """(count,) gain of every frame: steps, as automatic exposure makes them."""
    rng = np.random.default_rng([recipe.seed, 4])
    steps = (rng.random(count) < 1.0 / STEP_FRAMES).cumsum()
    levels = 1.0 + recipe.exposure_step * rng.uniform(-1.0, 1.0, count + 1)
    return np.asarray(levels[steps], np.float64)


def expose(frame: Frame, gain: float) -> Frame:
    """An RGB frame of 8 bits, brighter by a factor."""
    if gain == 1.0:
        return frame
    table = np.clip(np.rint(np.arange(256) * gain), 0, 255).astype(np.uint8)
    return replace(frame, planes=tuple(table[plane] for plane in frame.planes))


def damage_picture(frame: Frame, recipe: Recipe, motion_px: tuple[float, float], *, number: int) -> Frame:
    """Blur by motion and by the lens, and compression.

    Args:
        frame: 8-bit RGB planes.
        recipe: how much of it.
        motion_px: how far the picture moves until the next frame.
        number: of the frame in the clip.
    """
    rng = np.random.default_rng([recipe.seed, 5, number])
    picture = np.asarray(np.stack(frame.planes, -1), np.uint8)
    if recipe.blur:
        kernel = _line(recipe.blur * motion_px[0], recipe.blur * motion_px[1])
        picture = np.asarray(cv2.filter2D(picture, -1, kernel), np.uint8)
    if recipe.soft_px:
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), recipe.soft_px), np.uint8)
    if recipe.quality:
        # Quality wavers, as that of a video's frames does.
        quality = int(np.clip(recipe.quality + rng.integers(-5, 6), 1, 100))
        # It takes blue, green and red; planes are green, blue and red.
        _, packed = cv2.imencode(".jpg", picture[..., [1, 0, 2]], [cv2.IMWRITE_JPEG_QUALITY, quality])
        picture = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.uint8)[..., [1, 0, 2]]
    planes = tuple(np.ascontiguousarray(picture[..., i], np.uint8) for i in range(3))
    return replace(frame, planes=cast("tuple[Plane, ...]", planes))


def _line(x: float, y: float) -> FloatArray:
    """The kernel of a picture that moves by (x, y) pixels while it is exposed."""
    reach = int(np.ceil(max(abs(x), abs(y)) / 2.0))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    for share in np.linspace(-0.5, 0.5, 8 * reach + 1):
        column, row = reach + share * x, reach + share * y
        left, top = int(np.floor(column)), int(np.floor(row))
        for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
            weight = (1 - abs(column - left - dx)) * (1 - abs(row - top - dy))
            if weight > 0 and top + dy < len(kernel) and left + dx < len(kernel):
                kernel[top + dy, left + dx] += weight
    return np.asarray(kernel / kernel.sum(), np.float32)


def haunt(rendered: Sequence[RenderedFrame], filmed: Sequence[SourceFrame], recipe: Recipe) -> list[RenderedFrame]:
    """Lay a patch of another time over the pictures, which drifts and stays for a part of the clip."""
    if not recipe.ghost_opacity:
        return list(rendered)
    rng = np.random.default_rng([recipe.seed, 6])
    count = len(rendered)
    start, stop = sorted(int(i) for i in rng.integers(0, count + 1, 2))
    stop = max(stop, min(start + 4, count))
    lag = int(rng.integers(3, 12))
    centre, drift = rng.uniform(0.15, 0.85, 2), rng.uniform(-0.01, 0.01, 2)
    radii = rng.uniform(0.05, 0.25, 2)
    out = list(rendered)
    for i in range(start, stop):
        given = rendered[i]
        rows, cols = given.frame.format.height, given.frame.format.width
        y, x = np.ogrid[:rows, :cols]
        at = centre + (i - start) * drift
        distance = np.hypot((x / cols - at[0]) / radii[0], (y / rows - at[1]) / radii[1])
        opacity = recipe.ghost_opacity * np.clip(4.0 * (1.0 - distance), 0.0, 1.0)
        other = filmed[(i + lag) % count].frame
        planes = tuple(
            np.rint(mine + opacity * (theirs.astype(np.float64) - mine)).astype(np.uint8)
            for mine, theirs in zip(given.frame.planes, other.planes, strict=True)
        )
        valid = given.valid
        if not recipe.ghost_known:
            covered = cv2.resize(opacity.astype(np.float32), valid.shape[::-1], interpolation=cv2.INTER_AREA)
            valid = np.where(covered > 0.0, 0, valid).astype(np.uint8)
        out[i] = replace(given, frame=replace(given.frame, planes=cast("tuple[Plane, ...]", planes)), valid=valid)
    return out

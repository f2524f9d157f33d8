"""What moves goes on beyond the border of its frame.

A neighbour placed in the scene shows people where they were at its own time, which beside the frame's own people is
wrong: who films herself and runs would be cut off at the waist, or begin once more below it. Here the neighbour is
carried: looked at where the optical flow from the frame itself leads on what moves, extended over the frame's border.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from vs3r.render.align import MIN_SIDE, find_flow, flow_trust
from vs3r.render.layers import FILL_MARGIN_PX, Layer, inside_px, smoothstep
from vs3r.render.pullpush import f32, pull_push
from vs3r.render.select import FADE_FRAMES, GRID_FRAMES, MOVES, candidates
from vs3r.render.warp import BackwardMap, SourceFrame, Target, backward_maps, sample_cells
from vs3r.types import FloatArray, Plane

REACH_FRAMES = 12
"""From farther away, what moves looks different."""
MAX_LAYERS = 2
LEAST = 2e-3
"""Share of the picture that a layer must newly show."""
SAME = 0.15
"""Colours of cells that are off by less than this, over all planes, are of the same thing; by twice this, not."""
MAX_LEVEL = 0.1
"""Exposure changes by no more than this, of the full range."""
BETTER = 1.5
"""Placed in the scene, a source must be off by so many times as much as carried, and"""
NOISE = 0.03
"""by this: else nothing moves there."""
DOUBT = 0.03
"""Weight of saying no, where the colours of what moves have at least 0.1."""
FAINT, FULL = 0.1, 0.4
"""Probability to move, at which a layer begins to show, and shows fully."""


def moving_layers(
    index: int, target: Target, base: Layer, sources: Mapping[int, SourceFrame], *, window: int
) -> list[Layer]:
    """What neighbours show of the moving things that the border of the frame itself cuts off, the best first.

    Args:
        index: the frame that is rendered.
        target: the view.
        base: the frame itself in it.
        sources: by frame number.
        window: how many frames away a source may be.
    """
    size = base.source.frame.format.width, base.source.frame.format.height
    front = base.opacity > 0.5
    inside = front & (inside_px(base.map.x, base.map.y, size) > base.margin_px)
    moves = f32(sample_cells(base.source.geometry.dynamic, base.map.x, base.map.y, size) * inside)
    goes_on = pull_push(moves, f32(inside))
    wanted = front & ~inside & (goes_on > MOVES)
    least = LEAST * wanted.size
    near = [n for n in candidates(index, sources, min(window, REACH_FRAMES)) if n % GRID_FRAMES == 0]
    if wanted.sum() < least or not near or min(base.source.small[0].shape) < MIN_SIDE:
        return []
    neighbours = [sources[number] for number in near]
    depths = np.stack([source.inv_depth for source in neighbours])
    geometries = [source.geometry for source in neighbours]
    placed = backward_maps(target.rays, target.cam_from_world, geometries, depths, size)
    colours = [sample_cells(f32(cells), base.map.x, base.map.y, size) for cells in base.source.cells]
    found = [
        _carried(base, source, placed[k], colours=colours, moves=moves, goes_on=goes_on, inside=inside)
        for k, source in enumerate(neighbours)
    ]
    shows = np.stack([(a.opacity > 0.5) & (inside_px(a.map.x, a.map.y, size) > a.margin_px) for a in found])
    preference = np.exp(-np.abs(np.array(near) - index) / FADE_FRAMES)
    layers: list[Layer] = []
    while len(layers) < MAX_LAYERS:
        gain = (shows & wanted).sum(axis=(1, 2))
        gain[gain < least] = 0
        best = int(np.argmax(gain * preference))
        if gain[best] == 0:
            break
        layers.append(found[best])
        wanted &= ~shows[best]
    return layers


def _carried(
    base: Layer,
    source: SourceFrame,
    placed: BackwardMap,
    *,
    colours: Sequence[FloatArray],
    moves: FloatArray,
    goes_on: FloatArray,
    inside: npt.NDArray[np.bool_],
) -> Layer:
    """A source along the flow of what moves; it shows where that agrees at the border nearby and placing does not."""
    fmt = source.frame.format
    size = fmt.width, fmt.height
    ours, theirs = _small(base.source), _small(source)
    flow = find_flow(ours, theirs, finest_scale=2)  # of whole people, not of their edges
    trust = flow_trust(ours, theirs, flow)
    weighted = (cv2.blur(field, (5, 5)) for field in (flow[..., 0] * trust, flow[..., 1] * trust, trust))
    right, down, weight = (sample_cells(f32(field), base.map.x, base.map.y, size) for field in weighted)
    shift = np.stack([right, down]) / np.maximum(weight, np.float32(1e-3))
    right, down = pull_push(f32(shift), weight * moves)
    x = base.map.x + right * np.float32(size[0] / ours.shape[1])
    y = base.map.y + down * np.float32(size[1] / ours.shape[0])
    both = (inside_px(x, y, size) > 0) & (inside_px(placed.x, placed.y, size) > 0)
    off_by = _difference(colours, source, x, y, moves * both)
    placed_off_by = _difference(colours, source, placed.x, placed.y, moves * both)
    same = np.clip(2.0 - off_by / np.float32(SAME), 0.0, 1.0)
    same *= placed_off_by > BETTER * off_by + NOISE
    # Where the two hardly differ, neither says much; what the frame itself shows and nothing is told of, says no.
    told = moves * both * (0.1 + np.minimum(off_by + placed_off_by, 0.9))
    belief = pull_push(f32(same * (told > 0)), f32(np.maximum(told, DOUBT * inside)))
    moving = (sample_cells(source.geometry.dynamic, x, y, size) + goes_on) * (0.5 * belief)
    opacity = smoothstep(f32((moving - FAINT) / (FULL - FAINT))) * base.opacity
    return Layer(source=source, map=replace(base.map, x=x, y=y), opacity=opacity, margin_px=FILL_MARGIN_PX)


def _difference(
    colours: Sequence[FloatArray], source: SourceFrame, x: FloatArray, y: FloatArray, weight: FloatArray
) -> FloatArray:
    """How far the colours of a source at x, y are off those given, over all planes, without exposure."""
    fmt = source.frame.format
    size = fmt.width, fmt.height
    total, peak = np.zeros(x.shape, np.float32), (1 << fmt.bit_depth) - 1
    for ours, theirs in zip(colours, source.cells, strict=True):
        off_by = sample_cells(f32(theirs), x, y, size) - ours
        known = off_by[weight > 0.5]
        level = np.clip(np.median(known), -MAX_LEVEL * peak, MAX_LEVEL * peak) if known.size else 0.0
        total += np.abs(off_by - np.float32(level))
    return f32(total / peak)


def _small(source: SourceFrame) -> Plane:
    """Its small luma, 8 bits."""
    plane, depth = source.small[0], source.frame.format.bit_depth
    return plane if depth == 8 else np.asarray(plane * (255.0 / ((1 << depth) - 1)), np.uint8)

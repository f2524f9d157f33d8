"""Which neighbours fill what the frame itself does not see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from vs3r.render.ghosts import find_ghosts, find_seams, find_strays, nearness
from vs3r.render.layers import FILL_MARGIN_PX, inside_px
from vs3r.render.pullpush import f32
from vs3r.render.warp import BackwardMap, SourceFrame, backward_maps, sample_each_cells
from vs3r.types import DoubleArray, FloatArray

GRID_FRAMES = 4
"""Farther neighbours are every so many-th frame of the clip, so that consecutive outputs draw on the same ones."""
NEAR_FRAMES = 3
"""All frames this near are candidates."""
FADE_FRAMES = 12.0
"""A source e times farther in time than this must show e times as much to be chosen."""
MAX_SOURCES = 6
WORTH = 3e-4
"""A source must show at least this share of the picture that no chosen one shows; twice as much may stay unseen."""
DYNAMIC_REACH_FRAMES = 4
"""Moving things may fill only from frames this near; from farther away they would be ghosts."""
MOVES = 0.5
"""What is more likely than this to move is taken to move, and"""
SURELY = 0.8
"""only then does it keep others from filling beside it."""
MAX_POINTS = 700
"""Of the hole."""
MAX_BORDER_POINTS = 200
"""Of what the frame itself shows around it."""


def candidates(index: int, sources: Mapping[int, SourceFrame], window: int) -> list[int]:
    """Frame numbers that may fill frame `index`, nearest first, the past before the future.

    What shows nothing of the scene, as a flash, neither fills nor is filled.
    """
    segment = sources[index].geometry.segment
    if sources[index].geometry.blank:
        return []
    near = [
        number
        for number, source in sources.items()
        if number != index
        and abs(number - index) <= window
        and source.geometry.segment == segment
        and (abs(number - index) <= NEAR_FRAMES or number % GRID_FRAMES == 0)
        and not source.geometry.blank
    ]
    return sorted(near, key=lambda number: (abs(number - index), number))


def likely_moving(sources: Sequence[SourceFrame], at: BackwardMap) -> FloatArray:
    """(S, rows, cols) how likely S sources show something that moves where their maps lead, in [0, 1]."""
    fmt = sources[0].frame.format
    dynamic = f32([source.geometry.dynamic for source in sources])
    return sample_each_cells(dynamic, at.x, at.y, (fmt.width, fmt.height))


def fill_opacity(at: BackwardMap, moving: FloatArray, distances: Sequence[int]) -> FloatArray:
    """Where neighbours so many frames away may show: in front, settled, and no moving things unless it is near.

    Args:
        at: maps of S of them, (S, rows, cols).
        moving: see likely_moving.
        distances: S of them.
    """
    opacity = at.front * at.settled
    far = np.array(distances) > DYNAMIC_REACH_FRAMES
    opacity[far] *= np.clip((0.6 - moving[far]) * 5.0, 0.0, 1.0)
    return opacity


def _colours(sources: Sequence[SourceFrame], at: BackwardMap) -> FloatArray:
    """(S, N, C) samples in [0, 1] of the small pictures of S sources at (S, 1, N) positions."""
    fmt = sources[0].frame.format
    rows, cols = sources[0].small[0].shape
    x, y = at.x * np.float32(cols / fmt.width) - 0.5, at.y * np.float32(rows / fmt.height) - 0.5
    samples = np.empty((len(sources), x.shape[2], fmt.num_planes), np.float32)
    for source, gx, gy, found in zip(sources, x, y, samples, strict=True):
        for number, plane in enumerate(source.small):
            found[:, number] = cv2.remap(plane, gx, gy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    samples /= np.float32((1 << fmt.bit_depth) - 1)
    return samples


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Aim:
    """Points of the target, evenly spread over the hole and over what the frame itself shows around it."""

    points: DoubleArray
    """(N, 2) pixel positions."""
    rays: DoubleArray
    """(N, 3) rays of the virtual camera."""
    border: npt.NDArray[np.bool_]
    """(N,) which lie outside the hole."""


class Chooser:
    """Greedy cover of the hole: each time the source that shows most new of it, nearer ones preferred.

    What moves there, and not in the frame itself nearby, is left out in a first round and comes in a last one, where no
    source shows what stands still. What a chosen source really covers is told afterwards (`filled`), because fitting
    moves it a little.
    """

    def __init__(
        self,
        index: int,
        aim: Aim,
        cam_from_world: DoubleArray,
        sources: Mapping[int, SourceFrame],
        *,
        window: int,
        worth: float,
        spare: int,
    ) -> None:
        """
        Args:
            index: the frame that is rendered.
            aim: what to look at.
            cam_from_world: (4, 4) virtual camera.
            sources: by frame number.
            window: how many frames away a source may be.
            worth: share of the hole that a source must newly show.
            spare: sources in the last round, beside those that the first one leaves; without any there is none.
        """
        fmt = sources[index].frame.format
        size = fmt.width, fmt.height
        self._numbers = candidates(index, sources, window)
        distances = [abs(number - index) for number in self._numbers]
        hole = ~aim.border
        count = int(hole.sum())
        self._shows, ghosts, strays = np.zeros((3, len(self._numbers), count), np.bool_)
        if self._numbers:
            seen = [sources[number] for number in [index, *self._numbers]]
            depths = np.stack([source.inv_depth for source in seen])
            at = backward_maps(aim.rays[None], cam_from_world, [source.geometry for source in seen], depths, size)
            inside = inside_px(at.x, at.y, size) > FILL_MARGIN_PX
            moving = likely_moving(seen, at)
            shows = (inside & (fill_opacity(at, moving, [0, *distances]) > 0.5))[:, 0]
            shows[0] &= aim.border
            duration = f32([0, *(1 if number % GRID_FRAMES else GRID_FRAMES for number in self._numbers)])
            colours, near = _colours(seen, at), nearness(aim.points, aim.border)
            wrong = find_ghosts(colours, shows, duration=duration, border=aim.border, near=near)
            wrong |= find_seams(colours, shows, moves=moving[0, 0] > SURELY, border=aim.border, near=near)
            strays = find_strays(moving[:, 0] > MOVES, border=aim.border, near=near)[1:, hole]
            self._shows, ghosts = shows[1:, hole], wrong[1:, hole]
        self._preference = np.exp(-np.array(distances) / FADE_FRAMES)
        self._missing = np.ones(count, np.bool_)
        self._least = max(1.0, worth * count)
        self._rounds = [ghosts | strays, ghosts][: 2 if spare else 1]
        self._left, self._spare = MAX_SOURCES, spare
        self._used = np.zeros((len(self._numbers), 1), np.bool_)

    def best(self) -> tuple[int, npt.NDArray[np.bool_]] | None:
        """The next source, and at which of the rays (N,) it must not show; None when no other is worth it."""
        while self._numbers and self._rounds and self._missing.sum() >= 2 * self._least:
            wrong = self._rounds[0]
            gain = (self._shows & ~wrong & ~self._used & self._missing).sum(axis=1)
            gain[gain < self._least] = 0
            row = int(np.argmax(gain * self._preference))
            if gain[row] > 0 and self._left > 0:
                self._used[row] = True
                self._left -= 1
                return self._numbers[row], wrong[row]
            self._rounds.pop(0)
            self._left += self._spare
            self._used[:] = False
        return None

    def filled(self, covered: npt.NDArray[np.bool_]) -> None:
        """(N,) which of the rays the source chosen last shows after all."""
        self._missing &= ~covered

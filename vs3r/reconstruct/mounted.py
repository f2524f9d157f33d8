"""What is fixed to the camera: a vehicle's hood, a rider's handlebar, a title.

It stays where it is in the picture while the world turns behind it. A camera that moves can explain it away, as
something near that it circles around, so it has to be known before depth is looked for. Evidence is counted for every
cell from block to block, for where nothing shakes nothing tells.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from vs3r.reconstruct.problem import Edges
from vs3r.types import FloatArray

# A camera shakes where flow changes by so many pixels from one interval to the next, alike over much of the picture.
SHAKES_PX = 3.0
# A cell goes with the world where its flow changes by that, off by less than this share of it, and
GOES = 0.5
# stays with the camera where its flow changes by less than this share of it.
STAYS = 0.25
# Of the cells whose flow is trusted so much, this share must go with the world, and more than stay.
TRUSTED = 0.1
WORLD = 0.3
# Of the evidence, sums of trust, from one block to the next.
MEMORY = 0.9
# Cells are fixed to the camera where so much says so, and this share of all that is told, there and around.
ENOUGH = 10.0
MOSTLY = 0.8
NEAR_CELLS = 1.5
# Less of the picture would not mislead the adjustment, and may be a mistake.
LEAST = 0.03


class MountedBelief:
    """Which cells are fixed to the camera, as found so far."""

    def __init__(self, rows: int, cols: int) -> None:
        self._shape = rows, cols
        self.reset()

    def reset(self) -> None:
        """Forget what was found."""
        self._stays, self._goes = np.zeros((2, *self._shape), np.float32)
        self.mounted: FloatArray = np.zeros(self._shape, np.float32)
        """(rows, cols) 1 where a cell is fixed to the camera, else 0."""

    @property
    def world(self) -> Tensor:
        """(P,) the opposite."""
        return 1.0 - torch.from_numpy(self.mounted).flatten()

    def learn(self, edges: Edges) -> None:
        """Take the flow of a block.

        What tells is how flow changes from one interval to the next: far things ahead of a vehicle stay where they are
        while it drives on, but not when it shakes.
        """
        flow, weight = (edges.target - edges.source[:, :2]).numpy(), edges.weight.numpy()
        number = {pair: e for e, pair in enumerate(zip(edges.src.tolist(), edges.dst.tolist(), strict=True))}
        pairs = [(e, number[b, 2 * b - a]) for (a, b), e in number.items() if a < b and (b, 2 * b - a) in number]
        self._stays *= MEMORY
        self._goes *= MEMORY
        for first, then in pairs:
            change = flow[then] - flow[first]
            trust = np.minimum(weight[first], weight[then])
            known = trust > TRUSTED
            shakes = known & (np.hypot(*change) > SHAKES_PX)
            if shakes.sum() <= WORLD * known.sum():
                continue
            common = np.median(change[:, shakes], axis=1)
            size = float(np.hypot(*common))
            goes = known & (np.hypot(*(change - common[:, None])) < GOES * size)
            stays = known & (np.hypot(*change) < STAYS * size)
            if size > SHAKES_PX and goes.sum() > max(WORLD * known.sum(), stays.sum()):
                self._goes += (trust * goes).reshape(self._shape)
                self._stays += (trust * stays).reshape(self._shape)
        self.mounted = self._found()

    def _found(self) -> FloatArray:
        stays, goes = (cv2.GaussianBlur(sums, (0, 0), NEAR_CELLS) for sums in (self._stays, self._goes))
        found = np.asarray((stays > ENOUGH) & (stays > MOSTLY * (stays + goes)), np.float32)
        return found if found.mean() > LEAST else np.zeros_like(found)

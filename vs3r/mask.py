"""The hybrid mask: what moves in the world (VS3R eq. 4 and 5), where the colours agree that it does."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch

from vs3r.kernels.rigid_flow import rigid_flow_residual
from vs3r.render.pullpush import pull_push
from vs3r.types import DoubleArray, FloatArray

# The authors' threshold is 0.5 px at 518 px width for flow between neighbouring frames.
TAU_PX = 0.5
TAU_PX_PER_GAP = 0.12
# Flow reaches over outlines by up to so many cells, and depth with it: within it a still world's depth is that around.
HALO_CELLS = 3
# Fewer votes than this leave a cell as it is.
SUSPECT = 0.1
# Patches of 4x4 samples, 2 px apart, are compared.
_STEPS = np.arange(-3, 4, 2).astype(np.float32)
PATCH_X, PATCH_Y = np.tile(_STEPS, 4), np.repeat(_STEPS, 4)
# By so many grey levels on average the flow must explain a patch better than a still world does, for it fits noise too.
BETTER_GREY = 0.5
# Compared at a time: cv2.remap takes less than twice as many rows.
MOST_PATCHES = 1 << 14


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OtherFrame:
    """What another frame says of the cells of a frame."""

    gap: int
    """Its distance in frames, >= 1."""
    picture: npt.NDArray[np.uint8]
    """(h, w) its analysis picture."""
    flow: FloatArray
    """(H, W, 2) where the cells are seen in it, less where they are, in analysis pixels."""
    rectified: FloatArray
    """(H, W, 2) the same had both pictures been taken with a global shutter."""
    weight: FloatArray
    """(H, W) trust in the flow, [0, 1]."""
    K: DoubleArray
    """(3, 3) intrinsics in cells."""
    dst_from_src: DoubleArray
    """(4, 4) its camera from the frame's."""


def dynamic_probability(
    inv_depth: FloatArray,
    picture: npt.NDArray[np.uint8],
    others: list[OtherFrame],
    *,
    K: DoubleArray,
    cell_px: tuple[float, float],
    distortion: float = 0.0,
) -> FloatArray:
    """Probability in [0, 1] that each cell of a frame moves.

    Each of the other frames votes where its flow is not that of a still world. The flow reaches over the outlines of
    what moves, but the pictures do not: a second vote counts only where the flow explains them better than a still
    world does, whose depth near what moves is that from around it.

    Args:
        inv_depth: (H, W) of the frame on cells that tile its picture.
        picture: (h, w) its analysis picture.
        others: at least one.
        K: (3, 3) its intrinsics in cells.
        cell_px: analysis pixels per cell, x and y.
        distortion: of the lens, see vs3r.lens.
    Returns:
        (H, W) float32.
    """
    suspected = _mean_vote(*_votes(inv_depth, others, K, distortion, cell_px)[:2])
    near = np.asarray(cv2.dilate(suspected, np.ones((2 * HALO_CELLS + 1,) * 2)), dtype=np.float32)
    if near.max() < SUSPECT:
        return suspected
    still = np.clip(1 - 1.5 * near, 1e-3, 1)
    around = still * inv_depth + (1 - still) * pull_push(inv_depth, still * still)
    vote, trust, off = _votes(around, others, K, distortion, cell_px)
    active = (near > SUSPECT) & (vote.max(0) > SUSPECT)
    if active.any():
        at = np.asarray((np.argwhere(active)[:, ::-1] + 0.5) * cell_px, dtype=np.float32)
        flow = np.stack([o.flow for o in others])[:, active]
        by_flow, by_still = differences(picture, others, at, np.stack([flow, flow + off[:, active]]))
        vote[:, active] /= 1 + np.exp(np.clip((by_flow + BETTER_GREY - by_still) / (BETTER_GREY / 2), -50, 50))
    return _mean_vote(vote, trust)


def differences(
    picture: npt.NDArray[np.uint8], others: list[OtherFrame], at: FloatArray, flows: FloatArray
) -> FloatArray:
    """Mean absolute differences, in grey levels, of patches of a picture and where they are said to be seen.

    Args:
        picture: (h, w).
        others: E frames.
        at: (N, 2) centres of the patches in pixels.
        flows: (C, E, N, 2) claims where they are seen in the others, less at.
    Returns:
        (C, E, N)
    """
    source = _patches(picture, at)
    out = np.empty(flows.shape[:3], np.float32)
    for claim, rows in zip(flows, out, strict=True):
        for other, flow, row in zip(others, claim, rows, strict=True):
            np.mean(cv2.absdiff(source, _patches(other.picture, at + flow)), axis=1, out=row)
    return out


def _votes(
    inv_depth: FloatArray, others: list[OtherFrame], K: DoubleArray, distortion: float, cell_px: tuple[float, float]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(E, H, W) votes that cells move, (E, H, W) trust in each, and (E, H, W, 2) the flow of a still world less the
    observed one in analysis pixels."""
    scale = np.array(cell_px, dtype=np.float32)
    tau = np.array([TAU_PX + TAU_PX_PER_GAP * o.gap for o in others], dtype=np.float32) / scale.mean()
    flow = np.stack([o.rectified for o in others]) / scale
    rigid = rigid_flow_residual(
        torch.from_numpy(np.repeat(inv_depth[None], len(others), 0)),
        torch.from_numpy(flow),
        K_src=torch.from_numpy(np.stack([K] * len(others)).astype(np.float32)),
        K_dst=torch.from_numpy(np.stack([o.K for o in others]).astype(np.float32)),
        dst_from_src=torch.from_numpy(np.stack([o.dst_from_src for o in others]).astype(np.float32)),
        tau=torch.from_numpy(tau),
        with_flow=True,
        distortion=distortion,
    )
    assert rigid.flow is not None
    # A vote that rises softly about the threshold instead of the mask's step.
    excess = rigid.residual.numpy() / tau[:, None, None]
    vote = 1 / (1 + np.exp(-4 * (excess - 1.5)))
    trust = np.stack([o.weight for o in others]) * rigid.ahead.numpy() + np.float32(1e-3)
    return vote, trust, (rigid.flow.numpy() - flow) * scale


def _mean_vote(vote: FloatArray, trust: FloatArray) -> FloatArray:
    # Where the flow is not trusted at all nothing is said: still.
    probability = (trust * vote).sum(0) / (trust.sum(0) + np.float32(0.1))
    probability = cv2.medianBlur(np.asarray(probability * 255, dtype=np.uint8), 3).astype(np.float32) / 255
    return np.asarray(cv2.GaussianBlur(probability, (0, 0), 0.7), dtype=np.float32)


def _patches(picture: npt.NDArray[np.uint8], at: FloatArray) -> npt.NDArray[np.uint8]:
    """(N, 16) samples of the patches around positions (N, 2)."""
    x, y = at[:, :1] + (PATCH_X - np.float32(0.5)), at[:, 1:] + (PATCH_Y - np.float32(0.5))
    parts = [
        cv2.remap(picture, x[part], y[part], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for part in (slice(i, i + MOST_PATCHES) for i in range(0, len(at), MOST_PATCHES))
    ]
    return np.concatenate(parts)

"""The hybrid mask: what moves in the world (VS3R eq. 4 and 5)."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from vs3r.kernels.rigid_flow import rigid_flow_residual
from vs3r.types import DoubleArray, FloatArray

# The authors' threshold is 0.5 px at 518 px width for flow between neighbouring frames.
TAU_PX = 0.5
TAU_PX_PER_GAP = 0.12


def dynamic_probability(
    inv_depth: FloatArray,
    flows: list[FloatArray],
    weights: list[FloatArray],
    gaps: list[int],
    K_src: DoubleArray,
    K_dst: DoubleArray,
    dst_from_src: DoubleArray,
    cell_px: tuple[float, float],
) -> FloatArray:
    """Probability in [0, 1] that each cell of a frame moves, from its flow to several other frames.

    Args:
        inv_depth: (H, W) of the frame on the cells that the flow is given for.
        flows: per other frame (H, W, 2), analysis pixels.
        weights: per other frame (H, W) trust in the flow, [0, 1].
        gaps: per other frame its distance in frames.
        K_src, K_dst: (E, 3, 3) intrinsics in cells.
        dst_from_src: (E, 4, 4).
        cell_px: analysis pixels per cell, x and y.
    Returns:
        (H, W) float32.
    """
    scale = np.array(cell_px, dtype=np.float32)
    px = float(scale.mean())
    tau = np.array([TAU_PX + TAU_PX_PER_GAP * g for g in gaps], dtype=np.float32) / px
    rigid = rigid_flow_residual(
        torch.from_numpy(np.broadcast_to(inv_depth, (len(flows), *inv_depth.shape)).copy()),
        torch.from_numpy(np.stack(flows) / scale),
        K_src=torch.from_numpy(K_src.astype(np.float32)),
        K_dst=torch.from_numpy(K_dst.astype(np.float32)),
        dst_from_src=torch.from_numpy(dst_from_src.astype(np.float32)),
        tau=torch.from_numpy(tau),
    )
    # A vote that rises softly about the threshold instead of the mask's step.
    excess = rigid.residual.numpy() / tau[:, None, None]
    vote = 1 / (1 + np.exp(-4 * (excess - 1.5)))
    trust = np.stack(weights) * rigid.ahead.numpy() + 1e-3
    # Where the flow is not trusted at all nothing is said: still.
    probability = (trust * vote).sum(0) / (trust.sum(0) + 0.1)
    probability = cv2.medianBlur(np.asarray(probability * 255, dtype=np.uint8), 3).astype(np.float32) / 255
    return np.asarray(cv2.GaussianBlur(probability, (0, 0), 0.7), dtype=np.float32)

"""How steady, whole and sharp a stabilized clip is: the paper's protocol, residual jitter and sharpness.

Pictures are uint8 arrays, (H, W, 3) in BGR order or (H, W) grey. Everything streams: a clip is never held in memory,
only two neighbouring pictures and a few numbers per frame. Every result is the same on every run.
"""

from __future__ import annotations

from vs3r.metrics.evaluate import ClipMetrics, Evaluation, evaluate, measure_clip, sharpness_ratio
from vs3r.metrics.motion import GlobalMotion, Jitter, jitter, jitter_ratio
from vs3r.metrics.picture import Picture, border_mask

__all__ = [
    "ClipMetrics",
    "Evaluation",
    "GlobalMotion",
    "Jitter",
    "Picture",
    "border_mask",
    "evaluate",
    "jitter",
    "jitter_ratio",
    "measure_clip",
    "sharpness_ratio",
]

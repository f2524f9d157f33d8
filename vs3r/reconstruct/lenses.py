"""Through which lenses a clip may have been seen, before anything is known of it."""

from __future__ import annotations

import math

import torch

from vs3r.config import ReconstructConfig
from vs3r.lens import FISHEYE, RECTILINEAR, bent

# A phone's main camera filming video; a wider or longer lens shows itself once the camera turns.
DEFAULT_HFOV_DEG = 62.0
# An action camera's.
FISHEYE_HFOV_DEG = 110.0


def log_focals(config: ReconstructConfig, size: tuple[int, int]) -> dict[float, float]:
    """Of each lens that it may be, by distortion: the log of its focal length in pixels, the usual one where it is not
    known.

    Args:
        config: what is known of the camera.
        size: width and height of the picture in pixels.
    """
    hfov = config.hfov_deg
    long_side = size[0] if hfov is not None else max(size)
    found: dict[float, float] = {}
    for name, distortion, usual in (
        ("rectilinear", RECTILINEAR, DEFAULT_HFOV_DEG),
        ("fisheye", FISHEYE, FISHEYE_HFOV_DEG),
    ):
        if config.lens in (name, "auto"):
            edge = math.tan(math.radians(hfov if hfov is not None else usual) / 2)
            edge *= bent(distortion, torch.tensor(edge**2)).item()
            found[distortion] = math.log(0.5 * long_side / edge)
    return found

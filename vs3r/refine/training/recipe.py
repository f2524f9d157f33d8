"""How one degraded clip is made: every choice drawn once, so that a pair can be told, and made again, by its recipe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

IDENTITY_SHARE = 0.1
"""Of the pairs, those in which nothing is wrong: what is right has to stay as it is."""
SPLAT_SHARE = 0.3
"""Of the others, those drawn by points instead of by a backward map."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is done to a stable clip. Strengths are 0 where that damage is left out."""

    seed: int
    """Of everything that is drawn while the clip is made."""
    identity: bool
    """Nothing is done."""
    zoom: float
    """The shaky camera sees 1 / zoom of the picture: borders that move with the shake."""
    shake_deg: float
    """Root mean square of its rotation, each way."""
    shake_roll_deg: float
    """Likewise about its axis."""
    shake_shift: float
    """Likewise of its place, in units of the scene's median depth."""
    shake_frames: float
    """Time in which the shake forgets itself."""
    splat: bool
    """Drawn by points, with holes between them."""
    point_share: float
    """Share of the points that are drawn."""
    fill_frames: int
    """Frames to each side that may fill what the frame itself does not see."""
    depth_noise: float
    """Relative error of inverse depth, smooth in space."""
    point_noise: float
    """Relative error of each point's inverse depth."""
    tear_cells: int
    """Cells by which edges of the depth lie beside those of the picture."""
    pose_noise_deg: float
    """Error of the camera's rotation."""
    forget_moving: bool
    """What moves is taken for still, and leaves ghosts."""
    mask_cells: int
    """Cells by which the mask of what was seen is too small (above 0), or too large (below)."""
    ghost_opacity: float
    """Of a patch of another time that drifts over the picture."""
    ghost_known: bool
    """Whether the mask calls that patch right."""
    blur: float
    """Exposure time, as a share of the time between frames."""
    soft_px: float
    """Width of the lens' blur."""
    exposure_step: float
    """Largest step of exposure, as a factor less one."""
    quality: int
    """Of JPEG compression, 1 to 100; 0 for none."""


def draw_recipe(seed: int) -> Recipe:
    """A recipe for a seed, equal wherever it is drawn."""
    rng = np.random.default_rng([seed, 0])

    def some(share: float, low: float, high: float) -> float:
        """Between low and high, on a logarithmic scale, in a share of the recipes; else 0."""
        strength = float(low * (high / low) ** rng.random())
        return strength if rng.random() < share else 0.0

    return Recipe(
        seed=seed,
        identity=bool(rng.random() < IDENTITY_SHARE),
        zoom=float(rng.uniform(1.06, 1.35)),
        shake_deg=float(0.3 * 10.0 ** rng.random()),
        shake_roll_deg=float(0.1 * 15.0 ** rng.random()),
        shake_shift=some(0.7, 0.001, 0.02),
        shake_frames=float(1.5 * 8.0 ** rng.random()),
        splat=bool(rng.random() < SPLAT_SHARE),
        point_share=float(rng.uniform(0.5, 1.0)),
        fill_frames=int(rng.choice([0, 2, 8, 30])),
        depth_noise=some(0.7, 0.01, 0.2),
        point_noise=some(0.7, 0.002, 0.05),
        tear_cells=int(rng.integers(-2, 3)),
        pose_noise_deg=some(0.5, 0.01, 0.1),
        forget_moving=bool(rng.random() < 0.3),
        mask_cells=int(rng.choice([-1, 0, 0, 0, 1, 2])),
        ghost_opacity=some(0.25, 0.2, 0.7),
        ghost_known=bool(rng.random() < 0.5),
        blur=some(0.4, 0.2, 0.9),
        soft_px=some(0.3, 0.4, 1.5),
        exposure_step=some(0.4, 0.03, 0.3),
        quality=int(some(0.5, 20, 90)),
    )

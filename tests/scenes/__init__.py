"""Rendered scenes with known truth: `shot(name)` tells what the camera did, `footage(name)` what it recorded."""

from __future__ import annotations

from tests.scenes.renderer import SKY_DEPTH, Quad, Scene, Texture, View
from tests.scenes.shots import HFOV_DEG, SHOTS, Footage, Shot, footage, shot

__all__ = ["HFOV_DEG", "SHOTS", "SKY_DEPTH", "Footage", "Quad", "Scene", "Shot", "Texture", "View", "footage", "shot"]

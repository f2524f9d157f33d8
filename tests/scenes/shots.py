"""Shots: a scene, a smooth intended camera path, and the shake on top of it. So the true stable view is known."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.scenes import worlds
from tests.scenes.renderer import F32, F64, I32, U8, Bools, Scene, View

HFOV_DEG = 65.0
_ROW_POSES = 9


@dataclass(frozen=True, kw_only=True, eq=False)
class Shot:
    """What the camera did, frame by frame. T frames."""

    name: str
    """Key of SHOTS."""
    scene: Scene
    """The world."""
    world_from_cam: F64
    """(T, 4, 4) the true, shaky path, in metres, at the time of the middle row."""
    stable_world_from_cam: F64
    """(T, 4, 4) the path that was intended."""
    K: F64
    """(T, 3, 3) intrinsics in pixels, of the shaky and of the stable view."""
    fps: Fraction
    """Frames per second."""
    width: int
    """Columns of the picture."""
    height: int
    """Rows of the picture."""
    readout_frames: float
    """Time from the first row to the last over that between frames; negative where the last is read first."""
    rows_world_from_cam: F64
    """(T, k, 4, 4) the shaky path while a frame is read, at k times evenly spaced from the first row to the last."""
    grain: float = 1.5
    """Standard deviation of the sensor's noise in the shaky picture, in grey levels; different in every frame."""

    def __len__(self) -> int:
        return len(self.world_from_cam)

    def time_s(self, index: int) -> float:
        """When frame `index` was taken."""
        return float(index / self.fps)

    def render(self, index: int) -> View:
        """What the shaking camera recorded in frame `index`, with its noise."""
        view = self._view(self.rows_world_from_cam[index], index)
        noise = np.random.default_rng(index).standard_normal(view.rgb.shape, np.float32) * np.float32(self.grain)
        rgb = np.clip(np.rint(view.rgb + noise), 0, 255).astype(np.uint8)
        return View(rgb=rgb, depth=view.depth, object_id=view.object_id, moving=view.moving)

    def render_stable(self, index: int) -> View:
        """What the camera would have seen at that time on the intended path, without noise."""
        return self._view(self.stable_world_from_cam[index, None], index)

    def _view(self, world_from_cam: F64, index: int) -> View:
        cam_from_world = np.asarray(np.linalg.inv(world_from_cam), np.float64)
        return self.scene.render(cam_from_world, self.K[index], self.width, self.height, self.time_s(index))


def rotation(yaw: F64, pitch: F64, roll: F64) -> F64:
    """(T, 3, 3) world_from_cam rotations from (T,) angles in degrees: yaw to the right, pitch up, roll clockwise."""
    y, x, z = (np.deg2rad(angle) for angle in (yaw, pitch, roll))
    one, zero = np.ones_like(y), np.zeros_like(y)
    about_y = np.array([[np.cos(y), zero, np.sin(y)], [zero, one, zero], [-np.sin(y), zero, np.cos(y)]])
    about_x = np.array([[one, zero, zero], [zero, np.cos(x), -np.sin(x)], [zero, np.sin(x), np.cos(x)]])
    about_z = np.array([[np.cos(z), -np.sin(z), zero], [np.sin(z), np.cos(z), zero], [zero, zero, one]])
    return np.asarray(np.einsum("ijt,jkt,klt->til", about_y, about_x, about_z))


def shake(time_s: F64, seed: int, *, low_hz: float = 1.0, high_hz: float = 8.0, slope: float = 1.2) -> F64:
    """(T,) a random motion of unit RMS: sinusoids from low_hz to high_hz whose amplitude falls as 1 / f**slope."""
    rng = np.random.default_rng(seed)
    frequency = np.geomspace(low_hz, high_hz, 24) * rng.uniform(0.96, 1.04, 24)
    amplitude = frequency**-slope
    waves = np.cos(2 * np.pi * frequency * time_s[:, None] + rng.uniform(0, 2 * np.pi, 24))
    return np.asarray(waves @ amplitude / np.sqrt(np.sum(amplitude**2) / 2))


def _ease(time_s: F64, start: float, end: float) -> F64:
    """0 before start, 1 after end, and smooth (three times differentiable) between."""
    x = np.clip((time_s - start) / (end - start), 0, 1)
    return np.asarray(x**4 * (35 - 84 * x + 70 * x**2 - 20 * x**3))


@dataclass(kw_only=True)
class _Path:
    """Angles in degrees and positions in metres over time, intended and shake apart."""

    time_s: F64
    yaw: F64 | float = 0.0
    pitch: F64 | float = 0.0
    position: tuple[F64 | float, F64 | float, F64 | float] = (0.0, -1.6, 0.0)
    shake_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """RMS of yaw, pitch and roll."""
    shake_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """RMS along x, y, z."""
    step_hz: float = 0.0
    """Steps per second; 0 when nobody walks."""
    step_m: float = 0.0
    """How far a step lifts the camera (amplitude)."""
    step_deg: float = 0.0
    """How far a step nods and a stride rolls the camera (amplitude)."""
    seed: int = 0

    def build(self) -> tuple[F64, F64]:
        """(T, 4, 4) world_from_cam shaky and stable."""
        t, count = self.time_s, len(self.time_s)
        step, stride = 2 * np.pi * self.step_hz * t, np.pi * self.step_hz * t
        yaw, pitch, roll = (rms * shake(t, self.seed + k) for k, rms in enumerate(self.shake_deg))
        dx, dy, dz = (rms * shake(t, self.seed + 3 + k) for k, rms in enumerate(self.shake_m))
        pitch = pitch + self.step_deg * (np.cos(step + 0.4) + 0.3 * np.cos(2 * step + 1.0))
        roll = roll + 0.6 * self.step_deg * np.cos(stride)
        dy = dy + self.step_m * (np.cos(step) + 0.25 * np.cos(2 * step + 0.5))
        dx = dx + 0.6 * self.step_m * np.cos(stride + 0.3)
        stable = np.tile(np.eye(4), (count, 1, 1))
        stable[:, :3, :3] = rotation(self.yaw + 0 * t, self.pitch + 0 * t, 0 * t)
        stable[:, :3, 3] = np.stack([part + 0 * t for part in self.position], axis=1)
        shaken = np.tile(np.eye(4), (count, 1, 1))
        shaken[:, :3, :3] = rotation(yaw, pitch, roll)
        shaken[:, :3, 3] = np.stack([dx, dy, dz], axis=1)
        return stable @ shaken, stable


def _shot(
    name: str, scene: Scene, path: _Path, *, size: tuple[int, int] = (480, 270), hfov_deg: F64 | float = HFOV_DEG
) -> Shot:
    shaky, stable = path.build()
    width, height = size
    K = np.tile(np.eye(3), (len(shaky), 1, 1))
    K[:, 0, 0] = K[:, 1, 1] = width / 2 / np.tan(np.deg2rad(hfov_deg) / 2)
    K[:, :2, 2] = width / 2, height / 2
    return Shot(
        name=name,
        scene=scene,
        world_from_cam=shaky,
        rows_world_from_cam=shaky[:, None],
        readout_frames=0.0,
        stable_world_from_cam=stable,
        K=K,
        fps=Fraction(30),
        width=width,
        height=height,
    )


def _times(count: int, late_s: float) -> F64:
    return np.arange(count) / 30.0 + late_s


def _rotation(late_s: float) -> Shot:
    t = _times(90, late_s)
    path = _Path(time_s=t, yaw=8 * np.sin(1.1 * t), pitch=2 * np.sin(0.8 * t), shake_deg=(1.4, 1.1, 0.8), seed=100)
    return _shot("rotation", worlds.square(), path)


def _walking(late_s: float) -> Shot:
    t = _times(90, late_s)
    path = _Path(
        time_s=t,
        yaw=4 * np.sin(0.9 * t),
        position=(0.3 * np.sin(0.6 * t), -1.6, 1.3 * t - 4.0),
        shake_deg=(1.0, 0.8, 0.6),
        shake_m=(0.01, 0.01, 0.008),
        step_hz=1.9,
        step_m=0.022,
        step_deg=0.5,
        seed=200,
    )
    return _shot("walking", worlds.square(), path)


def _running(late_s: float) -> Shot:
    t = _times(90, late_s)
    path = _Path(
        time_s=t,
        yaw=5 * np.sin(1.2 * t + 1.0),
        position=(-0.4 + 0.2 * t, -1.6, 2.9 * t - 7.5),
        shake_deg=(1.7, 1.4, 1.1),
        shake_m=(0.02, 0.02, 0.015),
        step_hz=2.7,
        step_m=0.045,
        step_deg=1.3,
        seed=300,
    )
    return _shot("running", worlds.square(), path)


def _quick_rotation(late_s: float) -> Shot:
    t = _times(100, late_s)
    yaw = -35 + 75 * _ease(t, 0.5, 1.5) - 60 * _ease(t, 1.8, 2.8)
    position = (0.1 * np.sin(t), -1.6, 0.15 * t)
    path = _Path(time_s=t, yaw=yaw, position=position, shake_deg=(1.3, 1.2, 1.2), shake_m=(0.01, 0.01, 0.01), seed=400)
    return _shot("quick_rotation", worlds.square(), path)


def _zoom(late_s: float) -> Shot:
    t = _times(90, late_s)
    hfov = HFOV_DEG - 30 * _ease(t, 0.4, 1.5) + 22 * _ease(t, 1.8, 2.7)
    path = _Path(time_s=t, yaw=3 * np.sin(0.7 * t), shake_deg=(0.9, 0.8, 0.5), shake_m=(0.008, 0.008, 0.006), seed=500)
    return _shot("zoom", worlds.square(), path, hfov_deg=hfov)


def _crowd(late_s: float) -> Shot:
    t = _times(90, late_s)
    path = _Path(
        time_s=t,
        yaw=2 * np.sin(0.8 * t),
        position=(0.0, -1.6, 0.35 * t - 0.6),
        shake_deg=(0.9, 0.8, 0.6),
        shake_m=(0.01, 0.01, 0.008),
        step_hz=1.7,
        step_m=0.015,
        step_deg=0.4,
        seed=600,
    )
    return _shot("crowd", worlds.crowd(), path)


def _still(late_s: float) -> Shot:
    return _shot("still", worlds.square(), _Path(time_s=_times(60, late_s), yaw=10.0))


def _tripod(late_s: float) -> Shot:
    return _shot("tripod", worlds.square_with_walker(), _Path(time_s=_times(90, late_s)))


def _street(late_s: float) -> Shot:
    t = _times(180, late_s)
    path = _Path(
        time_s=t,
        yaw=5 * np.sin(0.55 * t) - 2,
        pitch=1.5 + 1.0 * np.sin(0.5 * t),
        position=(0.4 * np.sin(0.4 * t), -1.62, 1.15 * t - 4.0),
        shake_deg=(1.0, 0.85, 0.7),
        shake_m=(0.012, 0.01, 0.01),
        step_hz=1.9,
        step_m=0.022,
        step_deg=0.55,
        seed=700,
    )
    return _shot("street", worlds.street(), path, size=(1280, 720))


SHOTS: dict[str, Callable[[float], Shot]] = {
    "rotation": _rotation,
    "walking": _walking,
    "running": _running,
    "quick_rotation": _quick_rotation,
    "zoom": _zoom,
    "crowd": _crowd,
    "still": _still,
    "tripod": _tripod,
    "street": _street,
}
"""Builders by name, of the seconds by which every frame is taken later: camera turning on the spot, a walk, a run, whip
pans, a zoom, a walk towards people who cross, no motion at all, a person before a standing camera, and the demo
(1280x720, the rest 480x270)."""


@functools.cache
def shot(name: str, *, readout_frames: float = 0.0) -> Shot:
    """The shot of that name, with a rolling shutter where the read-out is not 0."""
    taken = SHOTS[name](0.0)
    if readout_frames == 0:
        return taken
    late = np.linspace(-0.5, 0.5, _ROW_POSES) * readout_frames / float(taken.fps)
    rows = np.stack([SHOTS[name](float(late_s)).world_from_cam for late_s in late], axis=1)
    return dataclasses.replace(taken, readout_frames=readout_frames, rows_world_from_cam=rows)


@dataclass(frozen=True, kw_only=True, eq=False)
class Footage:
    """A rendered shot: View's fields with a leading T."""

    rgb: U8
    """(T, H, W, 3) colours."""
    depth: F32
    """(T, H, W) see View.depth."""
    object_id: I32
    """(T, H, W) see View.object_id."""
    moving: Bools
    """(T, H, W) see View.moving."""


def footage(name: str, *, stable: bool = False, readout_frames: float = 0.0) -> Footage:
    """All frames of a shot, shaky or from the intended path; rendered once and kept in a temporary folder.

    The key is the shot's name and the sources of this package, so an edited scene is rendered anew.
    """
    kind = "stable" if stable else f"shaky{readout_frames:+g}"
    path = _cache_folder() / f"{name}-{kind}-{_source_hash()}.npz"
    if not path.exists():
        taken = shot(name, readout_frames=readout_frames)
        views = [taken.render_stable(index) if stable else taken.render(index) for index in range(len(taken))]
        arrays = {part: np.stack([getattr(view, part) for view in views]) for part in View.__dataclass_fields__}
        # Another process may be rendering the same shot: whoever is last replaces an equal file.
        partial = path.with_name(f"{path.stem}-{os.getpid()}.partial.npz")
        _save(partial, arrays)
        partial.replace(path)
    with np.load(path) as stored:
        return Footage(**{part: stored[part] for part in Footage.__dataclass_fields__})


def _save(path: Path, arrays: dict[str, npt.NDArray[np.generic]]) -> None:
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _cache_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"vs3r-scenes-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to someone else; remove it or set TMPDIR to another folder")
    return folder


@functools.cache
def _source_hash() -> str:
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]

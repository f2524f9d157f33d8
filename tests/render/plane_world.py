"""A textured plane that can be seen exactly from anywhere: the truth for rendering tests.

The texture is a sum of waves, different in every plane of the picture, so a pixel's value is known in closed form and a
plane that is sampled half a pixel beside its place is noticed.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from vs3r.render import SourceFrame
from vs3r.types import Frame, FrameGeometry, PictureFormat, Plane

F64 = npt.NDArray[np.float64]

NORMAL = np.array([0.25, -0.15, 1.0])
"""The plane is NORMAL . X = 4 in world axes: slanted, so that there is parallax."""
DISTANCE = 4.0


def make_format(pix_fmt: str, width: int, height: int) -> PictureFormat:
    """Some of FFmpeg's formats."""
    shift, planes, rgb = {
        "gray": ((0, 0), 1, False),
        "ya8": ((0, 0), 2, False),
        "yuv420p": ((1, 1), 3, False),
        "yuv420p10le": ((1, 1), 3, False),
        "yuv422p10le": ((1, 0), 3, False),
        "yuv411p": ((2, 0), 3, False),
        "yuv444p": ((0, 0), 3, False),
        "yuva444p": ((0, 0), 4, False),
        "gbrp": ((0, 0), 3, True),
    }[pix_fmt]
    return PictureFormat(
        pix_fmt=pix_fmt,
        width=width,
        height=height,
        bit_depth=10 if "10" in pix_fmt else 8,
        chroma_shift=shift,
        num_planes=planes,
        is_rgb=rgb,
        sample_aspect=Fraction(1),
    )


def intrinsics(fmt: PictureFormat) -> F64:
    """A lens of about 60 degrees over the longer side."""
    focal = 0.87 * max(fmt.width, fmt.height)
    return np.array([[focal, 0, fmt.width / 2], [0, focal, fmt.height / 2], [0, 0, 1.0]])


def pose(yaw_deg: float = 0, pitch_deg: float = 0, roll_deg: float = 0, centre: tuple[float, ...] = (0, 0, 0)) -> F64:
    """cam_from_world of a camera at a place, turned."""
    y, x, z = np.deg2rad([yaw_deg, pitch_deg, roll_deg])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    world_from_cam = np.eye(4)
    world_from_cam[:3, :3] = about_y @ about_x @ about_z
    world_from_cam[:3, 3] = centre
    return np.asarray(np.linalg.inv(world_from_cam))


def depth_at(K: F64, cam_from_world: F64, x: F64, y: F64) -> tuple[F64, F64]:
    """Depth (...) and world points (..., 3) seen at pixel positions."""
    rays = np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], np.ones_like(x)], -1)
    world_from_cam = np.linalg.inv(cam_from_world)
    along = rays @ world_from_cam[:3, :3].T
    centre = world_from_cam[:3, 3]
    depth = (DISTANCE - NORMAL @ centre) / (along @ NORMAL)
    return depth, centre + along * depth[..., None]


def texture(points: F64, plane: int, pixel: float) -> F64:
    """Values in [0, 1]; `pixel` is about the size of a pixel in the world, the shortest wave is 6 of them."""
    rng = np.random.default_rng(plane)
    value = np.zeros(points.shape[:-1])
    for length in (6, 7.5, 11, 19, 33, 60):
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        along = points[..., 0] * np.cos(angle) + points[..., 1] * np.sin(angle)
        value += np.cos(2 * np.pi * along / (length * pixel) + phase)
    return 0.5 + value / 14


def picture(fmt: PictureFormat, K: F64, cam_from_world: F64) -> tuple[Plane, ...]:
    """What the camera sees, per plane, sampled at the centres of the plane's cells."""
    planes: list[Plane] = []
    for number in range(fmt.num_planes):
        rows, cols = fmt.plane_shape(number)
        chroma = number in (1, 2) and fmt.num_planes >= 3
        sx, sy = (1 << s for s in fmt.chroma_shift) if chroma else (1, 1)
        x, y = np.meshgrid((np.arange(cols) + 0.5) * sx, (np.arange(rows) + 0.5) * sy)
        _, points = depth_at(K, cam_from_world, x, y)
        value = texture(points, number, max(sx, sy) * DISTANCE / K[0, 0])
        levels = np.rint(value * ((1 << fmt.bit_depth) - 1))
        planes.append(levels.astype(np.uint8) if fmt.bit_depth == 8 else levels.astype(np.uint16))
    return tuple(planes)


def source(fmt: PictureFormat, cam_from_world: F64, index: int = 0, *, segment: int = 0) -> SourceFrame:
    """A frame of the plane with its true geometry."""
    K = intrinsics(fmt)
    rows, cols = 20, 32
    x, y = np.meshgrid((np.arange(cols) + 0.5) * fmt.width / cols, (np.arange(rows) + 0.5) * fmt.height / rows)
    depth, _ = depth_at(K, cam_from_world, x, y)
    return SourceFrame(
        frame=Frame(format=fmt, planes=picture(fmt, K, cam_from_world), pts=index * 100, time_base=Fraction(1, 3000)),
        geometry=FrameGeometry(
            index=index,
            pts_s=index / 30,
            segment=segment,
            K=K,
            cam_from_world=cam_from_world,
            inv_depth=(1 / depth).astype(np.float32),
            dynamic=np.zeros((12, 16), np.float32),
        ),
    )


def psnr(a: Plane, b: Plane, mask: npt.NDArray[np.bool_], bit_depth: int = 8) -> float:
    """Peak signal to noise ratio in dB."""
    error = np.square(a.astype(np.float64) - b)[mask].mean()
    return float(10 * np.log10(((1 << bit_depth) - 1) ** 2 / max(error, 1e-9)))

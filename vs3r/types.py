"""The data that passes between the stages. Conventions: docs/conventions.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]

ROW_MOTION_ORDER = 6
"""Highest order of FrameGeometry.row_motion."""


def read_axis(width: int, height: int) -> int:
    """The axis of a picture along which a rolling shutter reads its lines: 1, from row to row, or 0.

    Sensors are wider than high and read row by row, so a picture that is higher than wide was taken on its side.
    """
    return 0 if width < height else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureFormat:
    """Layout of a planar picture. Two pictures of equal format can be blended plane by plane."""

    pix_fmt: str
    """FFmpeg's name of the planar format, e.g. "yuv420p", "yuv422p10le", "gray", "gbrp"."""
    width: int
    """Coded width in pixels, >= 1."""
    height: int
    """Coded height in pixels, >= 1."""
    bit_depth: int
    """8 to 16. Planes are uint8 up to 8 bits and uint16 (values below 2**bit_depth) above."""
    chroma_shift: tuple[int, int]
    """log2 of the horizontal and vertical chroma subsampling: (1, 1) is 4:2:0, (0, 0) is 4:4:4, RGB and grey."""
    num_planes: int
    """1 (grey), 2 (grey, alpha), 3 (YUV; GBR) or 4 (with alpha, full size, last)."""
    is_rgb: bool
    """Planes are G, B, R instead of Y, U, V."""
    full_range: bool = False
    """Luma black is 0 instead of 16 (scaled to the bit depth)."""
    sample_aspect: Fraction = Fraction(1)
    """Width of a pixel over its height, > 0."""

    @property
    def sample_type(self) -> type[np.uint8] | type[np.uint16]:
        """Of the planes."""
        return np.uint8 if self.bit_depth <= 8 else np.uint16

    def plane_shift(self, plane: int) -> tuple[int, int]:
        """log2 of the horizontal and vertical subsampling of plane number `plane`."""
        return self.chroma_shift if plane in (1, 2) and self.num_planes >= 3 else (0, 0)

    def plane_shape(self, plane: int) -> tuple[int, int]:
        """Rows and columns of plane number `plane`."""
        sx, sy = self.plane_shift(plane)
        return -(-self.height >> sy), -(-self.width >> sx)

    def black(self, plane: int) -> int:
        """What plane number `plane` holds where the picture is black. Alpha is opaque."""
        if self.num_planes in (2, 4) and plane == self.num_planes - 1:
            return (1 << self.bit_depth) - 1
        if plane in (1, 2) and not self.is_rgb:
            return 1 << (self.bit_depth - 1)
        return 0 if self.full_range or self.is_rgb else 16 << (self.bit_depth - 8)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """One full-size picture with its time."""

    format: PictureFormat
    """Layout of the planes."""
    planes: tuple[Plane, ...]
    """One C-contiguous (rows, columns) array per plane, uint8 or uint16 as the format says."""
    pts: int
    """Presentation time in units of time_base."""
    time_base: Fraction
    """Seconds per unit of pts."""
    duration: int = 0
    """Length in units of time_base; 0 when the container does not say."""
    key_frame: bool = False
    """The source had a key frame here (writers may want one too)."""

    @property
    def pts_s(self) -> float:
        """Presentation time in seconds."""
        return float(self.pts * self.time_base)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameGeometry:
    """What reconstruction knows of one frame: one row of a CameraTrack."""

    index: int
    """Number of the frame in the stream, from 0."""
    pts_s: float
    """Presentation time in seconds."""
    segment: int
    """Frames of different segments (scene cuts) share no world; numbered from 0."""
    K: DoubleArray
    """(3, 3) intrinsics in pixels of the full-size picture; first pixel's centre at (0.5, 0.5)."""
    cam_from_world: DoubleArray
    """(4, 4) rigid transform at the time of the middle line, OpenCV axes (x right, y down, z forward); lengths up to
    scale."""
    inv_depth: FloatArray
    """(Gh, Gw) inverse depth 1/z > 0 at the centres of a Gh x Gw grid of cells that tile the picture; z in the camera
    at the time of the middle row."""
    dynamic: FloatArray
    """(Mh, Mw) probability in [0, 1] that what is seen moves in the world; cells tile the picture likewise. 1
    everywhere: see blank."""
    distortion: float = 0.0
    """Of the lens, see vs3r.lens; 0 for a pinhole, to which K and depth refer."""
    readout_s: float = 0.0
    """Rolling shutter: time from the first line to the last, see read_axis; negative where the last is read first; 0
    for a global shutter."""
    row_motion: DoubleArray = field(default_factory=lambda: np.zeros((0, 6)))
    """(N, 6) coefficients c of the camera's motion while it reads: the line at s = y / height - 1/2, or x / width - 1/2
    (read_axis), is seen by a camera moved from cam_from_world by c[0] s + c[1] s**2 + ... = (translation, rotation
    vector), which takes points of the middle line's camera to that line's. Empty for a global shutter."""

    @property
    def blank(self) -> bool:
        """Nothing that is seen is of the world, as in a flash."""
        return bool((self.dynamic == 1).all())


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True, eq=False)
class CameraTrack:
    """The camera path and coarse geometry of a clip: all that rendering needs beside the source frames.

    T frames; saved as a `.vs3r` file by vs3r.engine.track_file.
    """

    width: int
    """Width of the full-size picture in pixels."""
    height: int
    """Height of the full-size picture in pixels."""
    sample_aspect: Fraction
    """Width of a pixel over its height."""
    time_base: Fraction
    """Seconds per unit of pts."""
    pts: npt.NDArray[np.int64]
    """(T,) presentation times in units of time_base, increasing."""
    segment: npt.NDArray[np.int32]
    """(T,) see FrameGeometry.segment."""
    K: DoubleArray
    """(T, 3, 3) see FrameGeometry.K."""
    cam_from_world: DoubleArray
    """(T, 4, 4) see FrameGeometry.cam_from_world."""
    inv_depth: npt.NDArray[np.float16]
    """(T, Gh, Gw) see FrameGeometry.inv_depth."""
    dynamic: npt.NDArray[np.uint8]
    """(T, Mh, Mw) probability times 255, see FrameGeometry.dynamic."""
    distortion: DoubleArray
    """(T,) see FrameGeometry.distortion."""
    readout_s: DoubleArray
    """(T,) see FrameGeometry.readout_s."""
    row_motion: DoubleArray
    """(T, N, 6) see FrameGeometry.row_motion."""

    def __len__(self) -> int:
        return len(self.pts)

    def frame(self, index: int) -> FrameGeometry:
        """The geometry of frame `index`."""
        return FrameGeometry(
            index=index,
            pts_s=float(int(self.pts[index]) * self.time_base),
            segment=int(self.segment[index]),
            K=self.K[index],
            cam_from_world=self.cam_from_world[index],
            inv_depth=self.inv_depth[index].astype(np.float32),
            dynamic=self.dynamic[index].astype(np.float32) / 255.0,
            distortion=float(self.distortion[index]),
            readout_s=float(self.readout_s[index]),
            row_motion=self.row_motion[index],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VirtualCamera:
    """The camera that an output frame is seen from."""

    K: DoubleArray
    """(3, 3) intrinsics of the smoothed camera in pixels of the full-size picture, before the output
    camera model (RenderConfig.camera) is applied."""
    cam_from_world: DoubleArray
    """(4, 4) smoothed pose."""
    distortion: float = 0.0
    """That of the frame's lens, see FrameGeometry.distortion."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RenderedFrame:
    """One output picture and where it comes from."""

    frame: Frame
    """The picture; pixels that nobody saw are undefined until a refiner has filled them."""
    valid: npt.NDArray[np.uint8]
    """(Vh, Vw) share of each cell (255 = all) that some source frame saw; cells tile the picture. Much smaller than
    the picture."""
    own_share: float
    """Share of the output that the frame itself covers, in [0, 1]."""
    valid_share: float
    """Share of the output that any frame of the window covers, in [0, 1]."""

"""Camera tracks as files (.vs3r), and whether a track belongs to a clip.

A .vs3r file is a safetensors file: one tensor per array of CameraTrack, the rest in its text header together with
the format's name and version. Nothing in it is executed, and nothing of it is trusted: a file from a stranger either
is a sound track or a TrackError.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import stat
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vs3r.errors import InputError, OutputError, TrackError
from vs3r.types import ROW_MOTION_ORDER, CameraTrack, DoubleArray, Frame, FrameGeometry, PictureFormat

FORMAT = "vs3r-track"
VERSION = 3

_HEADER = "vs3r"
_MAX_HEADER = 1000
_MAX_BYTES = 8 << 30
_MAX_SIDE_PX = 1 << 16
_MAX_CELLS = 1 << 18
# Name to (safetensors' name of the type, trailing shape; None where it may vary).
_TENSORS: dict[str, tuple[str, tuple[int | None, ...]]] = {
    "pts": ("I64", ()),
    "segment": ("I32", ()),
    "K": ("F64", (3, 3)),
    "cam_from_world": ("F64", (4, 4)),
    "inv_depth": ("F16", (None, None)),
    "dynamic": ("U8", (None, None)),
    "distortion": ("F64", ()),
    "readout_s": ("F64", ()),
    "row_motion": ("F64", (ROW_MOTION_ORDER, 6)),
}
# What float16 can hold, without its denormal numbers.
_INV_DEPTH_RANGE = (6.2e-5, 6.5e4)
_ROTATION_TOLERANCE = 1e-3
# What no camera does, far beyond what reconstruction finds: its own tracks are never refused.
# Angle that a pinhole camera sees along the longer side. A fisheye that sees more has a longer focal length than these.
_VIEW_DEG = (0.1, 178.0)
# Of the principal point, in longer sides: pictures may be cut out of larger ones.
_MAX_SHIFT = 10.0
# In the track's unit, of which float32 resolves no part here.
_MAX_LENGTH = 1e9
_MAX_READOUT_S = 60.0
# From the middle line to the first or last.
_MAX_TURN_RAD = math.pi


class TrackBuilder:
    """Collects a clip's frames' times and geometry into a CameraTrack."""

    def __init__(self, fmt: PictureFormat, time_base: Fraction) -> None:
        self._format = fmt
        self._time_base = time_base
        self._pts: list[int] = []
        self._rows: list[FrameGeometry] = []
        self._inv_depth: list[npt.NDArray[np.float16]] = []
        self._dynamic: list[npt.NDArray[np.uint8]] = []

    def add_frame(self, frame: Frame) -> None:
        """The next frame of the clip."""
        self._pts.append(frame.pts)

    def add_geometry(self, geometries: list[FrameGeometry]) -> None:
        """The next rows of the track, in frame order."""
        for row in geometries:
            assert row.index == len(self._rows), "geometry must come in frame order"
            self._rows.append(row)
            self._inv_depth.append(np.clip(row.inv_depth, *_INV_DEPTH_RANGE).astype(np.float16))
            self._dynamic.append(np.rint(np.clip(row.dynamic, 0, 1) * 255).astype(np.uint8))

    def finish(self) -> CameraTrack:
        """The track of all frames."""
        assert len(self._rows) == len(self._pts), "every frame needs its geometry"
        return CameraTrack(
            width=self._format.width,
            height=self._format.height,
            sample_aspect=self._format.sample_aspect,
            time_base=self._time_base,
            pts=np.array(self._pts, np.int64),
            segment=np.array([row.segment for row in self._rows], np.int32),
            K=np.stack([row.K for row in self._rows]).astype(np.float64),
            cam_from_world=np.stack([row.cam_from_world for row in self._rows]).astype(np.float64),
            inv_depth=np.stack(self._inv_depth),
            dynamic=np.stack(self._dynamic),
            distortion=np.array([row.distortion for row in self._rows], np.float64),
            readout_s=np.array([row.readout_s for row in self._rows], np.float64),
            row_motion=np.stack([_padded(row.row_motion) for row in self._rows]),
        )


def _padded(row_motion: DoubleArray) -> DoubleArray:
    out = np.zeros((ROW_MOTION_ORDER, 6))
    out[: len(row_motion)] = row_motion
    return out


def save_track(track: CameraTrack, path: str | os.PathLike[str], *, private: bool = False) -> None:
    """Write a track; the file appears under its name when it is complete, and replaces one of that name.

    A link stays, and what it leads to is written.

    Args:
        private: only its owner may read it; otherwise whoever may read any new file here.
    Raises:
        OutputError: it cannot be written.
    """
    path = Path(os.path.realpath(path))
    header = {
        "format": FORMAT,
        "version": str(VERSION),
        "width": str(track.width),
        "height": str(track.height),
        "sample_aspect": str(track.sample_aspect),
        "time_base": str(track.time_base),
    }
    tensors: dict[str, npt.NDArray[Any]] = {name: np.ascontiguousarray(getattr(track, name)) for name in _TENSORS}
    if path.is_dir():
        raise OutputError(f"{path}: expected a file name for the track, got a folder")
    # A name of our own beside the target, so that the rename stays on one disk; short, so that it is never too long.
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.part")
    try:
        # safetensors makes files for their owner only; this one gets the rights of any new file here, unless private.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600 if private else 0o666))
        rights = stat.S_IMODE(os.stat(temporary).st_mode)
        # One entry: safetensors writes several in random order, and a file should depend on the track only.
        save_file(tensors, temporary, metadata={_HEADER: json.dumps(header)})
        with contextlib.suppress(PermissionError):  # some mounts have no rights to change (FUSE, CIFS)
            os.chmod(temporary, rights)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise OutputError(
            f"{path}: cannot write the track: {reason}; check that the folder exists, is writable and has room"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def load_track(path: str | os.PathLike[str]) -> CameraTrack:
    """Read a track.

    Raises:
        InputError: the file is missing or cannot be read.
        TrackError: it is cut short, no track, of another version, or its contents make no sense.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise TrackError(f"{path}: expected a .vs3r track file, got a folder or device")
        if size > _MAX_BYTES:
            raise TrackError(f"{path}: expected a .vs3r track of at most {_MAX_BYTES >> 30} GiB, got {size >> 30} GiB")
        # Opened here, too: safetensors calls every file missing that it cannot open.
        with path.open("rb"), safe_open(path, framework="np") as file:
            header = _checked_header(path, (file.metadata() or {}).get(_HEADER, ""))
            _check_layout(path, file)
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
    except OSError as error:
        raise InputError(f"{path}: cannot read the track: {error.strerror or error}; check the path") from None
    except SafetensorError:
        raise TrackError(
            f"{path}: expected a .vs3r track file, got one that is cut short or not a track; "
            "make it again with: vs3r analyze"
        ) from None
    track = CameraTrack(**header, **tensors)
    problem = _first_problem(track)
    if problem is not None:
        raise TrackError(f"{path}: the track is damaged: {problem}; make it again with: vs3r analyze")
    return track


def check_source(track: CameraTrack, fmt: PictureFormat) -> None:
    """Raise TrackError when a track was made of pictures of another size or shape."""
    if (track.width, track.height) != (fmt.width, fmt.height):
        raise _foreign(f"{track.width}x{track.height} pixels", f"{fmt.width}x{fmt.height}")
    if track.sample_aspect != fmt.sample_aspect:
        raise _foreign(f"a pixel aspect of {track.sample_aspect}", str(fmt.sample_aspect))


def check_frame(track: CameraTrack, index: int, frame: Frame, *, first_s: Fraction | None = None) -> None:
    """Raise TrackError when frame number `index` of the clip is not that of the track.

    Args:
        first_s: time of the clip's first frame in seconds, from which times are counted: in another container the same
            clip may begin at another time. None where the clip's clock is the track's.
    """
    if index >= len(track):
        raise _foreign(f"{len(track)} frames", "more")
    expected, came = int(track.pts[index]) * track.time_base, frame.pts * frame.time_base
    unit = max(track.time_base, frame.time_base)
    tolerance = unit / 2
    if first_s is not None:
        expected, came = expected - int(track.pts[0]) * track.time_base, came - first_s
        # Matroska rounds times to milliseconds, this frame's and the first one's: up to a unit in all, which is
        # the next frame's time where a frame is a unit long (AVI).
        to_next = min(np.diff(track.pts[max(0, index - 1) : index + 2]), default=0) * track.time_base
        tolerance = min(unit, max(unit, to_next) / 2)
    if abs(expected - came) > tolerance:
        raise _foreign(f"frame {index} at {float(expected):.4f} s", f"{float(came):.4f} s")


def check_length(track: CameraTrack, frames: int) -> None:
    """Raise TrackError when a clip ends before its track."""
    if frames < len(track):
        raise _foreign(f"{len(track)} frames", str(frames))


def _foreign(expected: str, came: str) -> TrackError:
    return TrackError(
        f"the track does not belong to this clip: the track has {expected}, the clip {came}; "
        "analyze this clip with: vs3r analyze"
    )


def _checked_header(path: Path, text: str) -> dict[str, Any]:
    try:
        # The length bounds the parser's work, and its recursion.
        header = json.loads(text) if len(text) <= _MAX_HEADER else None
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise TrackError(f"{path}: expected a .vs3r track file, got another safetensors file")
    header = {name: str(value) for name, value in header.items()}
    version = header.get("version", "")[:20]
    if version != str(VERSION):
        raise TrackError(
            f"{path}: expected a track of version {VERSION}, got version {version!r}; "
            "make it again with: vs3r analyze, or use the vs3r that wrote it"
        )
    fields: dict[str, Any] = {}
    for name in ("width", "height"):
        value = header.get(name, "")
        if not re.fullmatch(r"[0-9]{1,6}", value) or not 1 <= int(value) <= _MAX_SIDE_PX:
            raise TrackError(f"{path}: the track is damaged: {name} is {value[:20]!r}")
        fields[name] = int(value)
    for name in ("sample_aspect", "time_base"):
        value = header.get(name, "")
        match = re.fullmatch(r"([0-9]{1,12})(?:/([0-9]{1,12}))?", value)
        if match is None or int(match[1]) == 0 or int(match[2] or 1) == 0:
            raise TrackError(f"{path}: the track is damaged: {name} is {value[:20]!r}")
        fields[name] = Fraction(int(match[1]), int(match[2] or 1))
    return fields


def _check_layout(path: Path, file: Any) -> None:
    """Names, types and shapes, before any data is read."""
    names = set(file.keys())
    if names != set(_TENSORS):
        odd = ", ".join(sorted(str(n)[:20] for n in names ^ set(_TENSORS))[:3])
        raise TrackError(f"{path}: the track is damaged: missing or unknown arrays ({odd})")
    count = None
    for name, (dtype, tail) in _TENSORS.items():
        part = file.get_slice(name)
        shape = tuple(part.get_shape())
        fits = len(shape) == 1 + len(tail) and all(t is None or t == s for t, s in zip(tail, shape[1:], strict=True))
        if not fits or part.get_dtype() != dtype:
            raise TrackError(f"{path}: the track is damaged: {name} is {part.get_dtype()} {list(shape)}")
        count = shape[0] if count is None else count
        if shape[0] != count or 0 in shape or int(np.prod(shape[1:], dtype=np.float64)) > _MAX_CELLS:
            raise TrackError(f"{path}: the track is damaged: {name} has the shape {list(shape)}")


def _first_problem(track: CameraTrack) -> str | None:
    """What makes the numbers of a track unusable, None when nothing does."""
    K, T = track.K, track.cam_from_world
    if not (np.isfinite(K).all() and np.isfinite(T).all() and np.isfinite(track.inv_depth).all()):
        return "it holds numbers that are not finite"
    if not (np.isfinite(track.readout_s).all() and np.isfinite(track.row_motion).all()):
        return "it holds numbers that are not finite"
    if not np.all(np.abs(track.distortion + 0.5) <= 0.5):
        return "a distortion is not in [-1, 0]"
    if np.any(track.pts[1:] <= track.pts[:-1]):
        return "its times do not increase"
    if track.segment[0] < 0 or np.any(track.segment[1:] < track.segment[:-1]):
        return "its segments are out of order"
    if np.any(K[:, [0, 1], [0, 1]] <= 0) or np.any(K[:, 2] != (0, 0, 1)) or np.any(K[:, 1, 0] != 0):
        return "a camera matrix is none"
    # No entry of a rotation is larger than 1, and products of huge ones may be anything.
    R = np.clip(T[:, :3, :3], -2, 2)
    skewed = np.abs(R @ R.transpose(0, 2, 1) - np.eye(3)).max() > _ROTATION_TOLERANCE
    if skewed or np.any(np.linalg.det(R) < 0) or np.any(T[:, 3] != (0, 0, 0, 1)):
        return "a pose is not a rigid motion"
    if np.any(track.inv_depth <= 0):
        return "an inverse depth is not positive"
    return _first_impossible(track)


def _first_impossible(track: CameraTrack) -> str | None:
    """The first finite number that no camera has, None when there is none."""
    K, side = track.K, max(track.width, track.height)
    longest, shortest = (0.5 * side / math.tan(math.radians(deg) / 2) for deg in _VIEW_DEG)
    # By the triangle inequality: how far the first and the last line's camera is moved and turned, at most.
    moved = np.einsum("n,tnc->tc", 0.5 ** np.arange(1, ROW_MOTION_ORDER + 1), np.abs(track.row_motion))
    # Name, one or more values a frame, their range and unit.
    bounds = (
        ("a focal length", K[:, [0, 1], [0, 1]], shortest, longest, "px"),
        ("a skew", K[:, :1, 1], -longest, longest, "px"),
        ("a principal point", K[:, :2, 2], -_MAX_SHIFT * side, _MAX_SHIFT * side, "px"),
        ("a translation", track.cam_from_world[:, :3, 3], -_MAX_LENGTH, _MAX_LENGTH, "units"),
        ("a read-out time", track.readout_s[:, None], -_MAX_READOUT_S, _MAX_READOUT_S, "s"),
        ("a translation between lines", moved[:, :3], 0.0, _MAX_LENGTH, "units"),
        ("a turn between lines", moved[:, 3:], 0.0, _MAX_TURN_RAD, "rad"),
    )
    for name, values, low, high, unit in bounds:
        wrong = np.argwhere((values < low) | (values > high))
        if len(wrong):
            frame, which = wrong[0]
            return f"frame {frame}: expected {name} of {low:.4g} to {high:.4g} {unit}, got {values[frame, which]:.4g}"
    return None

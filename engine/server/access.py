"""Random access: single frames and warps of a session that has a track."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from vs3r.cameras import make_output_camera
from vs3r.engine.media.formats import picture_format
from vs3r.engine.pipeline import Rendering, SourceWindow, StabilizedFrame
from vs3r.engine.proto.layout import FieldViolation, Layout
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.server.guard import Models, guarded_drawing
from vs3r.engine.server.memory import FrameMemory
from vs3r.engine.server.problems import Problem
from vs3r.engine.server.sessions import Session
from vs3r.engine.track_file import check_frame, check_source
from vs3r.render import SourceFrame
from vs3r.render.layers import feather_px, inside_px
from vs3r.render.nodes import make_grid, tiles
from vs3r.render.warp import backward_map, calm_inv_depth
from vs3r.smooth import SmoothedFrame
from vs3r.types import CameraTrack, Frame, PictureFormat, Plane, VirtualCamera

Mask = npt.NDArray[np.bool_]
Path = tuple[CameraTrack, list[VirtualCamera]]
"""As Session.path gives it."""

PATCH_CELLS = 4
"""Height of a patch in nodes; also the step of its width."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """A picture drawn for random access."""

    picture: StabilizedFrame
    """The picture."""
    layout: Layout
    """Of its bytes."""
    passed_through: bool
    """The model failed: it is the source."""


def frame_index(session: Session, request: pb.GetFrameRequest | pb.GetWarpRequest) -> int:
    """The frame that a request names.

    Raises:
        Problem: it names none, or one that the clip does not have.
    """
    track, _ = session.path()
    match request.WhichOneof("position"):
        case "index":
            index = request.index
        case "pts":
            index = int(np.searchsorted(track.pts, request.pts, side="right")) - 1
        case _:
            raise Problem(
                "INVALID_ARGUMENT",
                "INVALID_FIELDS",
                "expected index or pts, got neither",
                violations=[FieldViolation(field="index", description="set index or pts")],
            )
    _check_index(track, index)
    return index


def draw(
    session: Session, path: Path, memory: FrameMemory, models: Models, index: int, check: Callable[[], object]
) -> Drawn:
    """One picture, with the same bytes as rendering the whole clip along the track gives.

    Args:
        session: of the clip.
        path: of the session; it may have another by now.
        memory: holds frames.
        models: makes the renderer.
        index: number of the frame.
        check: called now and then; raises where nobody wants the picture any more.
    Raises:
        Problem: source frames are missing, or a shorter track has come that lacks this one.
        TrackError: the track is not of the session's frames.
    """
    track, cameras = path
    _check_index(track, index)
    config, layout = session.config, session.layout
    if layout is not None:
        check_source(track, layout.format)
    window = SourceWindow.of_track(config.render)
    sources = _sources(session, memory, track, index, window, None if layout is None else layout.format, check)
    assert layout is not None, "frames that are held have a layout"
    failed = set(session.failed)
    rendering = Rendering(*guarded_drawing(models, config, layout.format, failed), window)
    for number, frame in sources.items():
        rendering.push(SourceFrame(frame=frame, geometry=track.frame(number)))
    (picture,) = rendering.push(SmoothedFrame(geometry=track.frame(index), camera=cameras[index])) or rendering.flush()
    return Drawn(picture=picture, layout=layout, passed_through=index in failed)


def warp_grid(session: Session, path: Path, index: int) -> tuple[pb.WarpGrid, Mask]:
    """Where the target's nodes lie in the source, and at which nodes the source alone is seen.

    Raises:
        Problem: a shorter track has come that lacks this frame.
    """
    track, cameras = path
    _check_index(track, index)
    # Only the size counts.
    grid = make_grid(picture_format("gray", track.width, track.height))
    camera = cameras[index]
    rays, visible = make_output_camera(session.config.render.camera, camera.K, camera.distortion).unproject(
        grid.points()
    )
    geometry = track.frame(index)
    size = track.width, track.height
    at = backward_map(rays, camera.cam_from_world, geometry, calm_inv_depth(geometry), size)
    # As far from the border as the renderer blends, and a bit.
    margin = 2 * feather_px(size) + 2 * grid.cell_px
    inside = (inside_px(at.x, at.y, size) > margin) & visible & (at.front > 0)
    rows, columns = at.x.shape
    message = pb.WarpGrid(
        rows=rows,
        columns=columns,
        origin_px=-0.5 * grid.cell_px,
        step_px=grid.cell_px,
        x=np.ascontiguousarray(at.x, np.float32).tobytes(),
        y=np.ascontiguousarray(at.y, np.float32).tobytes(),
    )
    return message, inside


def patches(drawn: Drawn, inside: Mask) -> list[pb.Patch]:
    """The parts of a picture where the source alone is not what is seen."""
    fmt = drawn.layout.format
    grid = make_grid(fmt)
    out = []
    for rect in tiles(~inside[1:-1, 1:-1], PATCH_CELLS):
        rows, columns = rect.pixels(grid.cell_px, grid.cell_px, (fmt.height, fmt.width))
        out.append(_patch(drawn, rows, columns))
    return out


def _check_index(track: CameraTrack, index: int) -> None:
    if not 0 <= index < len(track):
        raise Problem("OUT_OF_RANGE", "NO_SUCH_FRAME", f"expected one of the clip's {len(track)} frames")


def _patch(drawn: Drawn, rows: slice, columns: slice) -> pb.Patch:
    layout, fmt = drawn.layout, drawn.layout.format
    width, height = columns.stop - columns.start, rows.stop - rows.start
    part = layout.of_size(width, height)
    planes = []
    for number, plane in enumerate(drawn.picture.frame.planes):
        high, wide = part.format.plane_shape(number)
        sx, sy = fmt.plane_shift(number)
        top, left = rows.start >> sy, columns.start >> sx
        planes.append(cast("Plane", np.ascontiguousarray(plane[top : top + high, left : left + wide])))
    data = b"".join(part.pack(planes))
    return pb.Patch(left=columns.start, top=rows.start, width=width, height=height, data=data)


def _sources(
    session: Session,
    memory: FrameMemory,
    track: CameraTrack,
    index: int,
    window: SourceWindow,
    fmt: PictureFormat | None,
    check: Callable[[], object],
) -> dict[int, Frame]:
    first, last = max(0, index - window.before), min(len(track) - 1, index + window.after)
    needed = [i for i in range(first, last + 1) if track.segment[i] == track.segment[index]]
    frames: dict[int, Frame] = {}

    def take(i: int, frame: Frame) -> None:
        # Held at once, not when all have come: the next call starts behind it even if this one is given up.
        if frame.format == fmt:
            frames[i] = frame
            memory.hold(session, i, frame)

    def find() -> list[int]:
        """What is in memory, and the numbers of the rest."""
        for i in needed:
            frame = memory.find(session, i)
            # Those of another format are left from before the client sent this one.
            if frame is not None and frame.format == fmt:
                frames[i] = frame
        return [i for i in needed if i not in frames]

    file = session.file
    if find() and file is not None:
        file.read(find, take, check)
    missing = [i for i in needed if i not in frames]
    if missing:
        raise Problem(
            "FAILED_PRECONDITION",
            "FRAMES_MISSING",
            f"{len(missing)} source frames are needed; send them with UploadFrames (MissingFrames names them)",
            missing=list(_ranges(missing)),
        )
    for i, frame in frames.items():
        check_frame(track, i, frame)
    return {i: frames[i] for i in needed}


def _ranges(numbers: Iterable[int]) -> Iterable[tuple[int, int]]:
    first = last = -1
    for number in numbers:
        if first >= 0 and number == last + 1:
            last = number
            continue
        if first >= 0:
            yield first, last
        first = last = number
    if first >= 0:
        yield first, last

"""Making a session's track: of the frames of a stream on their way, or in a call of its own."""

from __future__ import annotations

from fractions import Fraction

from vs3r.config import Config
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.server.guard import GuardedReconstructor, Models, equal_grids
from vs3r.engine.server.memory import FrameMemory
from vs3r.engine.server.problems import Problem
from vs3r.engine.server.sessions import Session
from vs3r.engine.server.store import TrackStore
from vs3r.engine.track_file import TrackBuilder
from vs3r.types import CameraTrack, Frame, FrameGeometry, PictureFormat


class TrackRecorder:
    """Collects what becomes a session's track, and holds its frames for random access."""

    def __init__(self, session: Session, memory: FrameMemory, fmt: PictureFormat, time_base: Fraction) -> None:
        self.session = session
        """That gets the track."""
        self._memory = memory
        self._builder = TrackBuilder(fmt, time_base)
        self._rows: list[FrameGeometry] = []
        self._frames = 0
        self._gapless = True

    def add_frame(self, sequence: int, frame: Frame) -> None:
        """The next frame."""
        self._gapless = self._gapless and sequence == self._frames
        self._frames += 1
        self._builder.add_frame(frame)
        self._memory.hold(self.session, sequence, frame)

    def add_geometry(self, geometry: FrameGeometry) -> None:
        """The next row."""
        self._rows.append(geometry)

    def finish(self, failed: set[int], store: TrackStore) -> tuple[CameraTrack, bool] | None:
        """Give the session its track; None where frames are missing, and numbers would not fit.

        Returns:
            The track, and whether it is on disk.
        """
        if not self._gapless or not self._rows:
            self.session.has_gaps = not self._gapless
            return None
        self._builder.add_geometry(equal_grids(self._rows, failed))
        track = self._builder.finish()
        self.session.set_track(track, set(failed))
        # What a failed model left is for this session only: another time it may do better.
        stored = not failed and store.save(self.session.track_id, track)
        return track, stored


class ClipAnalysis:
    """Analyses frames into a recorder, in the caller's thread."""

    def __init__(self, recorder: TrackRecorder, models: Models, config: Config, fmt: PictureFormat) -> None:
        self._recorder = recorder
        self._failed: set[int] = set()
        self._reconstructor = GuardedReconstructor(models.reconstructor(config, fmt), fmt, self._failed)
        self.frames = 0
        """Frames taken."""

    def push(self, sequence: int, frame: Frame) -> None:
        """Take the next frame."""
        self._recorder.add_frame(sequence, frame)
        for geometry in self._reconstructor.push(self._reconstructor.observe(frame)):
            self._recorder.add_geometry(geometry)
        self.frames += 1

    def finish(self, store: TrackStore) -> pb.Analysis:
        """End of the clip: the session has its track.

        Raises:
            Problem: there was no frame, or one was missing.
        """
        for geometry in self._reconstructor.flush():
            self._recorder.add_geometry(geometry)
        made = self._recorder.finish(self._failed, store)
        if made is None:
            raise Problem(
                "FAILED_PRECONDITION",
                "FRAMES_MISSING",
                f"expected every frame of the clip from number 0 on, got {self.frames} with gaps; analyse it again",
            )
        return analysis_message(self._recorder.session, made[0], stored=made[1], failed=len(self._failed))


def analysis_message(
    session: Session, track: CameraTrack, *, stored: bool, failed: int = 0, reused: bool = False
) -> pb.Analysis:
    """What the client gets to know of a track."""
    return pb.Analysis(
        track=f"tracks/{session.track_id}",
        frame_count=len(track),
        scene_count=int(track.segment[-1]) + 1,
        reused=reused,
        stored=stored,
        failed_frames=failed,
    )

"""Calls that take or give tracks as files."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.server.intake import first_config
from vs3r.engine.server.problems import RETRY_S, Malformed, Problem, malformed
from vs3r.engine.server.sessions import Session
from vs3r.engine.server.state import State
from vs3r.engine.server.track_run import analysis_message
from vs3r.engine.track_file import check_source, load_track, save_track
from vs3r.errors import InputError, OutputError, TrackError
from vs3r.types import CameraTrack

if TYPE_CHECKING:
    import grpc

log = logging.getLogger(__name__)

_CHUNK = 1 << 20


class TrackCalls:
    """One function per call of the proto, named as it in lower case."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._sessions = state.sessions

    def download_track(
        self, request: pb.DownloadTrackRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.DownloadTrackResponse]:
        session = self._sessions.get(request.session)
        with self._state.slot(), self._sessions.call(session, context.cancel):
            yield from self._state.taken(self._chunks(session), context)

    def _chunks(self, session: Session) -> Generator[pb.DownloadTrackResponse]:
        track = session.made_track()
        # Written anew: the one in the cache may be gone or going.
        with _scratch() as path:
            save_track(track, path)
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    yield pb.DownloadTrackResponse(chunk=chunk)

    def upload_track(
        self, requests: Iterator[pb.UploadTrackRequest | Malformed], context: grpc.ServicerContext
    ) -> pb.UploadTrackResponse:
        requests = self._state.watched(requests, context)
        config: pb.UploadTrackConfig = first_config(requests)
        session = self._sessions.get(config.session)
        with self._state.slot(), self._sessions.call(session, context.cancel):
            track = self._receive(requests)
            if session.layout is not None:
                check_source(track, session.layout.format)
            session.set_track(track, set())
            stored = self._state.store.save(session.track_id, track)
        return pb.UploadTrackResponse(analysis=analysis_message(session, track, stored=stored))

    def _receive(self, requests: Iterator[pb.UploadTrackRequest | Malformed]) -> CameraTrack:
        left = self._state.config.max_message_mb << 20
        with _scratch() as path:
            with path.open("wb") as file:
                for request in requests:
                    if isinstance(request, Malformed):
                        raise malformed()
                    if request.WhichOneof("message") != "chunk":
                        raise Problem("INVALID_ARGUMENT", "MESSAGE_ORDER", "expected one config, then only chunks")
                    left -= file.write(request.chunk)
                    if left < 0:
                        raise Problem(
                            "RESOURCE_EXHAUSTED",
                            "TRACK_TOO_LARGE",
                            f"expected a track of at most {self._state.config.max_message_mb} MB, got more; "
                            "start the server with a larger --max-message-mb",
                        )
            try:
                return load_track(path)
            except InputError as error:
                # Where the server put it is no client's business.
                raise TrackError(str(error).replace(f"{path}: ", "")) from None


@contextmanager
def _scratch() -> Iterator[Path]:
    """A place for a track on its way, as there are only files of them.

    Raises:
        Problem: the folder for temporary files is gone, full, or may not be written.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / "track.vs3r"
    except (OSError, OutputError) as error:
        log.warning("a track cannot be written to the folder for temporary files: %s", type(error).__name__)
        log.debug("its origin", exc_info=error)
        text = "the server has no room for the track in its folder for temporary files; try again later"
        raise Problem("RESOURCE_EXHAUSTED", "CANNOT_WRITE", text, retry_s=RETRY_S) from None

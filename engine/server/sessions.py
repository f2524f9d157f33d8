"""Sessions: what the server knows of a clip between calls."""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from vs3r.config import Config, SmoothConfig
from vs3r.engine.proto.convert import config_message
from vs3r.engine.proto.layout import Layout, field_error
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.server.file_frames import FileFrames
from vs3r.engine.server.memory import FrameMemory
from vs3r.engine.server.problems import Problem
from vs3r.engine.server.settings import ServeConfig
from vs3r.engine.server.shm import Regions
from vs3r.engine.server.store import TrackStore
from vs3r.engine.track_file import VERSION
from vs3r.smooth import smooth_track
from vs3r.types import CameraTrack, VirtualCamera

log = logging.getLogger(__name__)

_MAX_KEY = 1024
_RETRY_S = 10.0


@dataclass(slots=True, kw_only=True, eq=False)
class Session:
    """A clip's worth of state. Changed only with `lock` held."""

    name: str
    """"sessions/..."."""
    media_key: str
    """The client's name for the clip."""
    config: Config
    """Its settings; `smooth` may change. It is found by those that it has now."""
    peer: str
    """Host of the client that made it."""
    create_time_s: float
    """Unix time."""
    used_s: float
    """Monotonic time of the last call."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    """Held while the session is read or changed."""
    regions: Regions = field(default_factory=Regions)
    """Shared memory."""
    track: CameraTrack | None = None
    """The camera path, once the clip is analysed."""
    has_gaps: bool = False
    """A stream that should have made the track lacked frames."""
    failed: set[int] = field(default_factory=set)
    """Frames that pass through because the model failed."""
    cameras: list[VirtualCamera] | None = None
    """The smoothed path; made when it is first needed."""
    layout: Layout | None = None
    """Layout of the frames that the client sent."""
    file: FileFrames | None = None
    """The file that was analysed, when the server reads it."""
    calls: dict[object, Callable[[], object]] = field(default_factory=dict)
    """Running calls, and how to end them."""
    ended: threading.Event = field(default_factory=threading.Event)
    """It was deleted or has expired; calls that still run are about to end."""

    @property
    def track_id(self) -> str:
        """Equal for equal clips and settings of analysis."""
        parts = [f"{VERSION}", self.media_key, repr(self.config.flow), repr(self.config.reconstruct)]
        if self.config.reconstruct.backend == "vggt4d":
            parts.append(repr(self.config.vggt))
        return _digest(*parts)

    def made_track(self) -> CameraTrack:
        """The track.

        Raises:
            Problem: the clip is not analysed.
        """
        track = self.track
        if track is None:
            text = "the session has no track yet; call Analyze or Stream first"
            if self.has_gaps:
                text = (
                    "the session has no track: the stream that was to make it lacked frames, which were refused, or "
                    "sent before it broke off; call Analyze"
                )
            raise Problem("FAILED_PRECONDITION", "TRACK_MISSING", text)
        return track

    def path(self) -> tuple[CameraTrack, list[VirtualCamera]]:
        """Track and smoothed cameras.

        Raises:
            Problem: the clip is not analysed.
        """
        with self.lock:
            track = self.made_track()
            if self.cameras is None:
                self.cameras = smooth_track(track, self.config.smooth)
            return track, self.cameras

    def set_track(self, track: CameraTrack, failed: set[int]) -> None:
        """Put a track in the place of the one there was."""
        with self.lock:
            self.track, self.failed, self.cameras = track, failed, None

    def set_smoothing(self, change: Callable[[SmoothConfig], SmoothConfig]) -> float:
        """Smooth again, with the settings made of those that there are now; returns the seconds it took."""
        with self.lock:
            smooth = change(self.config.smooth)
            self.config, self.cameras = replace(self.config, smooth=smooth), None
            start = time.perf_counter()
            if self.track is not None:
                self.path()
            return time.perf_counter() - start


class Sessions:
    """All sessions of a server. Safe to use from several threads."""

    def __init__(self, config: ServeConfig, memory: FrameMemory, store: TrackStore) -> None:
        self._config = config
        self._memory = memory
        self._store = store
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def create(self, media_key: str, config: Config, peer: str) -> Session:
        """The session of this key that has these settings now, a new one where there is none.

        Of several, which SetSmoothing made equal, the one used last.

        Raises:
            FieldError: the key is empty or too long.
            Problem: there are too many sessions.
        """
        if not 1 <= len(media_key.encode()) <= _MAX_KEY:
            raise field_error("media_key", f"expected 1 to {_MAX_KEY} bytes, got {len(media_key.encode())}")
        with ExitStack() as loading:
            with self._lock:
                equal = [s for s in self._sessions.values() if s.media_key == media_key and s.config == config]
                if equal:
                    session = max(equal, key=lambda s: s.used_s)
                    session.used_s = time.monotonic()
                    return session
                self._check_room(peer)
                session = Session(
                    name=f"sessions/{secrets.token_hex(16)}",
                    media_key=media_key,
                    config=config,
                    peer=peer,
                    create_time_s=time.time(),
                    used_s=time.monotonic(),
                )
                # Whoever finds it from now on waits in message() for its track.
                loading.enter_context(session.lock)
                self._sessions[session.name] = session
            log.info("%s created", session.name)
            track = self._store.load(session.track_id)
            if track is not None:
                session.set_track(track, set())
        return session

    def get(self, name: str) -> Session:
        """A session by its name.

        Raises:
            Problem: there is none.
        """
        with self._lock:
            session = self._sessions.get(name)
            if session is None:
                raise _unknown()
            session.used_s = time.monotonic()
            return session

    def page(self, after: str, count: int) -> list[Session]:
        """Up to `count` sessions whose names come after one."""
        with self._lock:
            return [self._sessions[name] for name in sorted(n for n in self._sessions if n > after)[:count]]

    def delete(self, name: str) -> None:
        """Drop a session and end its calls.

        Raises:
            Problem: there is none.
        """
        session = self.get(name)
        with self._lock:
            self._sessions.pop(name, None)
        self._release(session)
        log.info("%s deleted", name)

    def expire(self) -> None:
        """Drop the sessions that nobody has used for long."""
        now = time.monotonic()
        with self._lock:
            idle = [s for s in self._sessions.values() if not s.calls and now - s.used_s > self._config.session_idle_s]
            for session in idle:
                del self._sessions[session.name]
        for session in idle:
            self._release(session)
            log.info("%s expired", session.name)

    @contextmanager
    def call(self, session: Session, end: Callable[[], object]) -> Iterator[None]:
        """Keep a session while a call uses it; `end` is called if it is deleted meanwhile.

        Raises:
            Problem: it is no more.
        """
        token = object()
        with session.lock:
            if session.ended.is_set():
                raise _unknown()
            session.calls[token] = end
        try:
            yield
        finally:
            with session.lock:
                session.calls.pop(token, None)
                session.used_s = time.monotonic()
                last = session.ended.is_set() and not session.calls
            if last:  # what it has taken since the session's end
                self._clear(session)

    def regions(self) -> int:
        """Number of shared-memory regions."""
        with self._lock:
            return sum(len(s.regions) for s in self._sessions.values())

    def message(self, session: Session) -> pb.Session:
        """A session as the client sees it."""
        with session.lock:
            track = session.track
            message = pb.Session(
                name=session.name,
                media_key=session.media_key,
                config=config_message(session.config),
                track="" if track is None else f"tracks/{session.track_id}",
                frame_count=0 if track is None else len(track),
                held_frames=self._memory.count(session),
            )
            left_s = self._config.session_idle_s - (time.monotonic() - session.used_s)
            message.create_time.FromNanoseconds(int(session.create_time_s * 1e9))
            message.expire_time.FromNanoseconds(int((time.time() + left_s) * 1e9))
            return message

    def _check_room(self, peer: str) -> None:
        limits = (
            (len(self._sessions), self._config.max_sessions, "the server"),
            (sum(s.peer == peer for s in self._sessions.values()), self._config.max_sessions_per_peer, "one host"),
        )
        for count, most, whose in limits:
            if count >= most:
                raise Problem(
                    "RESOURCE_EXHAUSTED",
                    "SESSIONS",
                    f"{whose} may have {most} sessions; delete one, or wait until one expires",
                    retry_s=_RETRY_S,
                )

    def _release(self, session: Session) -> None:
        with session.lock:
            session.ended.set()
            ends = list(session.calls.values())
        for end in ends:
            end()
        self._clear(session)

    def _clear(self, session: Session) -> None:
        with session.lock:
            file, session.file = session.file, None
        session.regions.close()
        self._memory.forget(session)
        if file is not None:
            file.close()


def _unknown() -> Problem:
    return Problem(
        "NOT_FOUND",
        "SESSION_UNKNOWN",
        "no such session: it was deleted, has expired, or the server was started anew; call CreateSession",
    )


def _digest(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part.encode())
    return digest.hexdigest()[:32]

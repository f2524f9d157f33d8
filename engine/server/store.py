"""Tracks on disk: bounded, least recently used first out, and never believed without a look."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from pathlib import Path

from vs3r.engine.track_file import load_track, save_track
from vs3r.errors import InputError, OutputError, TrackError
from vs3r.types import CameraTrack

log = logging.getLogger(__name__)

_SUFFIX = ".vs3r"
_LEFT_OVER_S = 3600.0


def default_folder() -> Path:
    """Where tracks lie unless the settings say otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vs3r" / "tracks"


class TrackStore:
    """A folder of tracks by their ids (letters and digits). Safe to use from several threads."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """
        Raises:
            OutputError: the folder cannot be made.
        """
        self._folder = folder
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        # Of each id that is read or written now: under the one lock above a large track would keep all others waiting.
        self._busy = weakref.WeakValueDictionary[str, threading.Lock]()
        self._in_use = weakref.WeakValueDictionary[str, CameraTrack]()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the cache folder {folder}: {error.strerror}; choose another") from None
        for left_over in folder.glob(".*.part"):  # of a server that was killed; another may be writing its own now
            with contextlib.suppress(OSError):
                if time.time() - left_over.stat().st_mtime > _LEFT_OVER_S:
                    left_over.unlink()

    def load(self, track_id: str) -> CameraTrack | None:
        """A track, None where there is none, or none that can be read now. A damaged file is removed.

        As long as somebody has it, it is in memory once.
        """
        with self._lock_of(track_id):
            return self._load(track_id)

    def save(self, track_id: str, track: CameraTrack) -> bool:
        """Keep a track; False where the disk does not take it."""
        with self._lock_of(track_id):
            try:
                save_track(track, self.path(track_id), private=True)
            except OutputError:
                log.warning("track %s cannot be written to the cache folder", track_id)
                return False
            with self._lock:
                self._in_use[track_id] = track
                self._shrink(keep=track_id)
        return True

    def keep(self, track_id: str, track: CameraTrack) -> bool:
        """Have a track on disk, also where it was not taken before or has made room for others; False as save()."""
        return self.path(track_id).exists() or self.save(track_id, track)

    def path(self, track_id: str) -> Path:
        """The file of a track."""
        return self._folder / f"{track_id}{_SUFFIX}"

    @property
    def bytes(self) -> int:
        """Size of all tracks."""
        return sum(size for _, size, _ in self._files())

    def _lock_of(self, track_id: str) -> threading.Lock:
        with self._lock:
            return self._busy.setdefault(track_id, threading.Lock())

    def _load(self, track_id: str) -> CameraTrack | None:
        path = self.path(track_id)
        try:
            os.utime(path)
            with self._lock:
                track = self._in_use.get(track_id)
            if track is None:
                track = load_track(path)
        except TrackError:
            log.warning("track %s is damaged and was removed", track_id)
            _remove(path)
            return None
        except (InputError, OSError, MemoryError) as error:
            if path.exists():
                log.warning("track %s cannot be read", track_id)
                log.debug("its origin", exc_info=error)
            return None
        with self._lock:
            self._in_use[track_id] = track
        return track

    def _shrink(self, *, keep: str) -> None:
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= self._max_bytes:
                return
            if path != self.path(keep):
                _remove(path)
                total -= size

    def _files(self) -> list[tuple[float, int, Path]]:
        found = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            with contextlib.suppress(OSError):  # removed meanwhile
                state = path.stat()
                found.append((state.st_mtime, state.st_size, path))
        return found


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()

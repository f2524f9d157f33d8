"""Frames of a file in any order: one reader that goes on from where it is, or starts again."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

from vs3r.engine.media import VideoReader
from vs3r.engine.server.problems import Problem
from vs3r.types import Frame


def resolve(root: str | None, name: str) -> Path:
    """The file that a client names, relative to the media root.

    Raises:
        Problem: clients may name no files, or not this one. Whether it exists is not told apart.
    """
    if root is None:
        raise Problem(
            "PERMISSION_DENIED",
            "NO_MEDIA_ROOT",
            "this server reads no files (--media-root); send frames",
        )
    base = Path(os.path.realpath(root))
    # Links are followed first, so one that leads out of the root is seen.
    path = Path(os.path.realpath(base / name)) if "\0" not in name else base
    if not path.is_relative_to(base) or not os.path.isfile(path):
        raise Problem("NOT_FOUND", "FILE_UNKNOWN", "no such file below the server's media root")
    return path


class FileFrames:
    """Reads a file's frames by their numbers. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._reader: VideoReader | None = None
        self._frames: Iterator[tuple[int, Frame]] = iter(())
        self._next = 0

    def read(self, first: int, last: int) -> list[tuple[int, Frame]]:
        """Frames number first to last with their numbers; fewer where the file ends.

        Frames before the first are decoded and dropped where the reader stands elsewhere.
        """
        found = []
        with self._lock:
            if self._reader is None or self._next > first:
                self._close()
                self._reader = VideoReader(self._path, threads=1)
                self._frames = enumerate(self._reader)
            while self._next <= last:
                index, frame = next(self._frames, (-1, None))
                if frame is None:
                    self._close()
                    break
                self._next = index + 1
                if index >= first:
                    found.append((index, frame))
        return found

    def close(self) -> None:
        """Close the file; reading opens it again."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader, self._frames, self._next = None, iter(()), 0

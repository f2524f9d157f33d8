"""Frames of a file in any order: one reader that goes on from where it is, or starts again."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vs3r.engine.media import VideoReader
from vs3r.engine.server.problems import Problem
from vs3r.errors import InputError
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


@contextmanager
def media_problems(path: Path, name: str, code: str) -> Iterator[None]:
    """A file that cannot be used is told of by the client's name for it: where the root lies is no client's business.

    Raises:
        Problem: with this code, instead of an InputError.
    """
    try:
        yield
    except InputError as error:
        raise Problem(code, "MEDIA_UNUSABLE", str(error).replace(str(path), name)) from None


class OpenFiles:
    """Which files stay open between reads: those read last. Safe to use from several threads.

    An open file takes a descriptor and a decoder's memory, tens of megabytes, which nothing else counts.
    """

    def __init__(self, most: int = 8) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._files: OrderedDict[FileFrames, None] = OrderedDict()

    def keep(self, file: FileFrames) -> None:
        """A file has been read; those read longest ago are closed."""
        with self._lock:
            self._files[file] = None
            self._files.move_to_end(file)
            surplus = [self._files.popitem(last=False)[0] for _ in range(len(self._files) - self._most)]
        for old in surplus:
            old.close()

    def forget(self, file: FileFrames) -> None:
        """A file is closed."""
        with self._lock:
            self._files.pop(file, None)


class FileFrames:
    """Reads a file's frames by their numbers. Safe to use from several threads."""

    def __init__(self, path: Path, name: str, opened: OpenFiles) -> None:
        """
        Args:
            path: the file.
            name: the client's name for it.
            opened: the files that stay open.
        """
        self._path = path
        self._name = name
        self._opened = opened
        self._lock = threading.Lock()
        self._reader: VideoReader | None = None
        self._frames: Iterator[tuple[int, Frame]] = iter(())
        self._next = 0

    def read(self, first: int, last: int, check: Callable[[], object]) -> list[tuple[int, Frame]]:
        """Frames number first to last with their numbers; fewer where the file ends.

        Frames before the first are decoded and dropped where the reader stands elsewhere. `check` is called before each
        frame; where it raises, the next read goes on from there.

        Raises:
            Problem: the file is gone, or cannot be used any more.
        """
        try:
            with self._lock, media_problems(self._path, self._name, "FAILED_PRECONDITION"):
                return self._read(first, last, check)
        finally:
            self._opened.keep(self)

    def close(self) -> None:
        """Close the file; reading opens it again."""
        self._opened.forget(self)
        with self._lock:
            self._close()

    def _read(self, first: int, last: int, check: Callable[[], object]) -> list[tuple[int, Frame]]:
        found = []
        check()  # it may have waited long
        if self._reader is None or self._next > first:
            self._close()
            self._reader = VideoReader(self._path, threads=1)
            self._frames = enumerate(self._reader)
        while self._next <= last:
            check()
            index, frame = next(self._frames, (-1, None))
            if frame is None:
                self._close()
                break
            self._next = index + 1
            if index >= first:
                found.append((index, frame))
        return found

    def _close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader, self._frames, self._next = None, iter(()), 0

"""Frames of a file in any order: one reader that goes on from where it is, or starts again."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
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


def open_media(path: Path, *, threads: int = 2) -> VideoReader:
    """Open a file that was resolved.

    Raises:
        InputError: it cannot be read, or a link has come in its place, which may lead out of the root.
    """
    reader = VideoReader(path, threads=threads)
    if os.path.realpath(path) != str(path):
        reader.close()
        raise InputError(f"cannot read {path}: it is a link by now; analyse it again")
    return reader


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
        self._lock = threading.RLock()  # closing a file takes it off the list
        self._files: OrderedDict[FileFrames, None] = OrderedDict()

    def keep(self, file: FileFrames) -> None:
        """An open file is being read."""
        with self._lock:
            self._files[file] = None
            self._files.move_to_end(file)

    def forget(self, file: FileFrames) -> None:
        """A file is closed."""
        with self._lock:
            self._files.pop(file, None)

    def close_surplus(self) -> None:
        """Close the files read longest ago; not those being read, which would have to be waited for."""
        with self._lock:
            for file in list(self._files):
                if len(self._files) <= self._most:
                    return
                file.close_unless_read()


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

    def read(
        self,
        wanted: Callable[[], Sequence[int]],
        take: Callable[[int, Frame], object],
        check: Callable[[], object],
    ) -> None:
        """Decode frames; fewer where the file ends.

        Those before the first one wanted are decoded and dropped where the reader stands elsewhere.

        Args:
            wanted: their numbers, increasing; asked when it is this read's turn, as the one before may have taken some.
            take: gets each of them as soon as it is decoded.
            check: called before each frame; where it raises, the frames so far are taken, and the reader stays there.
        Raises:
            Problem: the file is gone, or cannot be used any more.
        """
        try:
            with self._lock, media_problems(self._path, self._name, "FAILED_PRECONDITION"):
                check()  # it may have waited long
                numbers = wanted()
                if numbers:
                    self._read(numbers, take, check)
        finally:
            self._opened.close_surplus()

    def close(self) -> None:
        """Close the file; reading opens it again."""
        with self._lock:
            self._close()

    def close_unless_read(self) -> None:
        """Close the file, but not in the middle of a read."""
        if self._lock.acquire(blocking=False):
            try:
                self._close()
            finally:
                self._lock.release()

    def _read(self, numbers: Sequence[int], take: Callable[[int, Frame], object], check: Callable[[], object]) -> None:
        if self._reader is None or self._next > numbers[0]:
            self._close()
            self._reader = open_media(self._path, threads=1)
            self._frames = enumerate(self._reader)
        self._opened.keep(self)
        while self._next <= numbers[-1]:
            check()
            index, frame = next(self._frames, (-1, None))
            if frame is None:
                self._close()
                break
            self._next = index + 1
            if index in numbers:
                take(index, frame)

    def _close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader, self._frames, self._next = None, iter(()), 0
        self._opened.forget(self)

"""Tracks on disk: when they are read, kept and removed."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.engine.test_track_file import make_track
from vs3r.engine.server.store import TrackStore
from vs3r.engine.track_file import load_track
from vs3r.errors import InputError, TrackError


@contextmanager
def no_descriptors() -> Iterator[None]:
    """The process has as many files open as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    # No lower than what is open already.
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 8, hard))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for number in taken:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_track_that_cannot_be_read_now_stays(tmp_path: Path) -> None:
    """It is good, and there when descriptors are."""
    store = TrackStore(tmp_path, 1 << 30)
    assert store.save("a", make_track())
    with no_descriptors():
        found = store.load("a")
        with pytest.raises(InputError, match="cannot read the track: Too many open files") as caught:
            load_track(store.path("a"))
    assert found is None
    assert not isinstance(caught.value, TrackError)
    again = store.load("a")
    assert again is not None and len(again) == len(make_track())

"""Tracks on disk: when they are read, kept and removed."""

from __future__ import annotations

import gc
import os
import resource
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine.test_track_file import make_track
from tests.server.conftest import CONFIG, FRAMES, Serve, connected
from vs3r.engine.server.store import TrackStore
from vs3r.engine.track_file import load_track
from vs3r.errors import InputError, TrackError
from vs3r.types import CameraTrack


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


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_tracks_are_for_their_owner_alone(tmp_path: Path, umask: int) -> None:
    """In a folder that was there before, whose rights stay, as well."""
    tmp_path.chmod(0o755)
    store, old = TrackStore(tmp_path, 1 << 30), os.umask(umask)
    try:
        assert store.save("a", make_track())
    finally:
        os.umask(old)
    assert stat.S_IMODE(store.path("a").stat().st_mode) == 0o600


def test_a_track_in_use_is_in_memory_once(tmp_path: Path) -> None:
    """For all sessions of its clip, whose smoothing differs; not when nobody has it, nor when it is on disk no more."""
    store, made = TrackStore(tmp_path, 1 << 30), make_track()
    assert store.save("a", made)
    assert store.load("a") is made
    del made
    gc.collect()
    first = store.load("a")
    assert first is not None and store.load("a") is first
    newer = make_track(7)
    assert store.save("a", newer)
    assert store.load("a") is newer
    store.path("a").unlink()
    assert store.load("a") is None


def test_a_track_that_is_being_read_keeps_no_other_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it read twice, by another session of its clip."""
    store, read = TrackStore(tmp_path, 1 << 30), list[str]()
    for name in ("long", "short"):
        assert store.save(name, make_track())
    reading, go_on = threading.Event(), threading.Event()

    def slow(path: Path) -> CameraTrack:
        read.append(path.stem)
        if path == store.path("long"):
            reading.set()
            assert go_on.wait(60)
        return load_track(path)

    monkeypatch.setattr("vs3r.engine.server.store.load_track", slow)
    with ThreadPoolExecutor() as beside:
        try:
            first = beside.submit(store.load, "long")
            assert reading.wait(30)
            second = beside.submit(store.load, "long")
            assert beside.submit(store.load, "short").result(10) is not None
        finally:
            go_on.set()
        found = first.result(30)
        assert found is not None and second.result(30) is found
    assert read == ["long", "short"]


def test_sessions_of_a_clip_share_its_track(serve: Serve) -> None:
    server = serve()
    with connected(server) as client:
        client.analyze_frames(client.create_session("clip", CONFIG).name, FRAMES)
        for smoothness in (0.1, 0.2):
            client.create_session("clip", replace(CONFIG, smooth=replace(CONFIG.smooth, smoothness=smoothness)))
        tracks = {id(server.state.sessions.get(session.name).track) for session in client.list_sessions()}
    assert len(tracks) == 1

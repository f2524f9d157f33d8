"""Frames that the server reads from files: how many stay open, and for whom they are read."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.engine.clips import Clip, write_clip
from tests.server.conftest import CONFIG, FRAMES, Serve, connected, refusal, shaky_models, wait_until
from vs3r.engine.media import VideoReader
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.server import access
from vs3r.engine.server.file_frames import FileFrames, OpenFiles
from vs3r.engine.server.frame_calls import FrameCalls
from vs3r.engine.server.problems import Problem, client_gone
from vs3r.engine.server.serve import Server
from vs3r.types import Frame

CLIP = Clip(frames=24, width=64, height=48, codec="ffv1")


def times_open(path: Path) -> int:
    """How often this process, which is the server's, has a file open."""
    links = (Path("/proc/self/fd") / number for number in os.listdir("/proc/self/fd"))
    return sum(os.readlink(link) == str(path) for link in links if link.is_symlink())


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One entry each time that frames are read from a file's beginning."""
    opened = list[object]()

    def noted(*arguments: Any, **named: Any) -> VideoReader:
        opened.append(arguments)
        return VideoReader(*arguments, **named)

    monkeypatch.setattr("vs3r.engine.server.file_frames.VideoReader", noted)
    return opened


@contextmanager
def no_turns(server: Server) -> Iterator[None]:
    """Frames that are asked for wait."""
    turns, drawing = 0, server.state.drawing
    while drawing.acquire(blocking=False):
        turns += 1
    try:
        yield
    finally:
        drawing.release(turns)


def test_few_files_stay_open(serve: Serve, tmp_path: Path) -> None:
    """However many sessions there are: each open one takes a descriptor, and a decoder's memory."""
    path = write_clip(tmp_path / "in.mkv", CLIP)
    with connected(serve(media_root=str(tmp_path))) as client:
        sessions = []
        for i in range(12):
            smooth = replace(CONFIG.smooth, smoothness=0.1 + i / 100)
            sessions.append(client.create_session("clip", replace(CONFIG, smooth=smooth)).name)
            # The first one's frames are in memory; the others have its track, and read theirs.
            assert client.analyze_file(sessions[-1], "in.mkv").reused == (i > 0)
            assert client.get_frame(sessions[-1], 8).sequence == 8
        assert times_open(path) == 8
        # One that was closed is opened again.
        assert client.get_frame(sessions[1], 20).sequence == 20
        assert times_open(path) == 8
        for session in sessions:
            client.delete_session(session)
        assert times_open(path) == 0


def test_a_file_that_is_being_read_stays_open(tmp_path: Path, opened: list[object]) -> None:
    """Its reader keeps its place, and nobody who reads another file waits for it."""
    path, files = write_clip(tmp_path / "in.mkv", CLIP), OpenFiles()
    reading, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        reading.set()
        assert go_on.wait(60)

    def read(file: FileFrames, number: int, check: Callable[[], object] = lambda: None) -> None:
        file.read(lambda: [number], lambda *_: None, check)

    long, others = FileFrames(path, "in.mkv", files), [FileFrames(path, "in.mkv", files) for _ in range(9)]
    read(long, 0)
    with ThreadPoolExecutor() as beside:
        try:
            slowly = beside.submit(read, long, 9, slow)
            assert reading.wait(30)
            for file in others:
                beside.submit(read, file, 0).result(10)
        finally:
            go_on.set()
        slowly.result(30)
    assert times_open(path) == 8
    opened.clear()
    read(long, 10)
    assert opened == []
    for file in (long, *others):
        file.close()
    assert times_open(path) == 0


def test_a_closed_file_takes_no_place(tmp_path: Path) -> None:
    """One that was read to its end closes itself: it does not count among those that stay open."""
    path = write_clip(tmp_path / "in.mkv", CLIP)
    files = OpenFiles(most=1)
    open_one, ended = FileFrames(path, "in.mkv", files), FileFrames(path, "in.mkv", files)
    open_one.read(lambda: [0], lambda *_: None, lambda: None)
    ended.read(lambda: [CLIP.frames], lambda *_: None, lambda: None)
    assert times_open(path) == 1
    open_one.close()


def test_nothing_is_drawn_for_who_has_gone(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that were cancelled while they waited for their turn cost nothing but that."""
    contexts, drawn, get_frame = list[grpc.ServicerContext](), list[object](), FrameCalls.get_frame

    def noted(calls: FrameCalls, request: pb.GetFrameRequest, context: grpc.ServicerContext) -> Any:
        contexts.append(context)
        return get_frame(calls, request, context)

    def renderer(*arguments: Any) -> Any:
        drawn.append(arguments)
        return shaky_models().renderer(*arguments)

    monkeypatch.setattr(FrameCalls, "get_frame", noted)
    server = serve(replace(shaky_models(), renderer=renderer))
    with connected(server) as client:
        session = client.create_session("clip", CONFIG).name
        client.analyze_frames(session, FRAMES)
        with no_turns(server):
            calls = [client._stubs["GetFrame"].future(pb.GetFrameRequest(session=session, index=i)) for i in range(8)]
            wait_until(lambda: len(contexts) == 8)
            for call in calls:
                call.cancel()
            wait_until(lambda: not any(context.is_active() for context in contexts))
        wait_until(lambda: 'method="GetFrame",code="CANCELLED"} 8' in server.state.page())
        assert drawn == []
        assert client.get_frame(session, 8).sequence == 8


def gives_up(after: int) -> Callable[[], None]:
    """A client that goes away when so many frames have been decoded."""
    left = [after + 1]  # asked before the first one, too

    def check() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise client_gone()

    return check


def test_reading_ends_when_nobody_waits_for_it(tmp_path: Path) -> None:
    """In the middle of a file. What was decoded is taken, and the next read goes on from there."""
    file = FileFrames(write_clip(tmp_path / "in.mkv", CLIP), "in.mkv", OpenFiles())
    taken, decoded = dict[int, Frame](), list[int]()

    def missing(first: int) -> Callable[[], list[int]]:
        return lambda: [i for i in range(first, first + 8) if i not in taken]

    for first in (8, 9, 10):  # windows that overlap, as those of a client that scrubs
        with pytest.raises(Problem, match="the call has ended"):
            file.read(missing(first), taken.__setitem__, gives_up(3 if first > 8 else 11))
    assert sorted(taken) == list(range(8, 17))
    file.read(missing(11), taken.__setitem__, lambda: decoded.append(0))
    assert sorted(taken) == list(range(8, 19))
    assert len(decoded) == 1 + 2  # frames 17 and 18, and nothing before them again
    file.close()


def test_frames_of_a_call_that_was_given_up_are_kept(serve: Serve, tmp_path: Path, opened: list[object]) -> None:
    """The next one waits for it, and goes on where it stood."""
    write_clip(tmp_path / "in.mkv", CLIP)
    server = serve(media_root=str(tmp_path))
    with connected(server) as client:
        session = server.state.sessions.get(client.create_session("clip", CONFIG).name)
        client.analyze_file(session.name, "in.mkv")
        path, memory, models = session.path(), server.state.memory, server.state.models
        memory.forget(session)
        opened.clear()
        with ThreadPoolExecutor() as beside:
            waiting = list[Future[access.Drawn]]()
            leave = gives_up(12)

            def check() -> None:
                if not waiting:  # nothing is decoded yet: it finds none of its frames held, and waits
                    waiting.append(beside.submit(access.draw, session, path, memory, models, 11, lambda: None))
                leave()

            with pytest.raises(Problem, match="the call has ended"):
                access.draw(session, path, memory, models, 10, check)
            assert waiting[0].result(30).picture.index == 11
    assert len(opened) == 1


def test_deleting_a_session_ends_the_reading_of_its_file(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame far into a long file takes minutes."""
    write_clip(tmp_path / "in.mkv", CLIP)
    server = serve(media_root=str(tmp_path))
    reading, go_on, decoded = threading.Event(), threading.Event(), list[Frame]()

    class Slow(VideoReader):
        def __iter__(self) -> Iterator[Frame]:
            for frame in super().__iter__():
                reading.set()
                assert go_on.wait(30)
                decoded.append(frame)
                yield frame

    with connected(server) as client, ThreadPoolExecutor() as beside:
        session = client.create_session("clip", CONFIG).name
        client.analyze_file(session, "in.mkv")
        monkeypatch.setattr("vs3r.engine.server.file_frames.VideoReader", Slow)
        found = server.state.sessions.get(session)
        server.state.memory.forget(found)
        request = pb.GetFrameRequest(session=session, index=len(FRAMES) - 1)
        asked = beside.submit(refusal, client, "GetFrame", request)
        assert reading.wait(30)
        deleted = beside.submit(client.delete_session, session)
        assert found.ended.wait(30)
        go_on.set()
        deleted.result(30)
        assert asked.result(30).reason == "SESSION_DELETED"
        assert len(decoded) == 1


@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_a_file_that_was_analysed_and_is_none_any_more(serve: Serve, tmp_path: Path, how: str) -> None:
    """It is called what the client calls it: where it lies is not for clients."""
    path = write_clip(tmp_path / "in.mkv", CLIP)
    server = serve(media_root=str(tmp_path))
    with connected(server) as client:
        session = client.create_session("clip", CONFIG).name
        client.analyze_file(session, "in.mkv")
        server.state.memory.forget(server.state.sessions.get(session))
        if how == "gone":
            path.unlink()
        else:
            path.write_bytes(b"\0" * 4096)
        error = refusal(client, "GetFrame", pb.GetFrameRequest(session=session, index=3))
        assert (error.code, error.reason) == ("FAILED_PRECONDITION", "MEDIA_UNUSABLE")
        assert ": in.mkv; check" in str(error)
        assert str(tmp_path) not in str(error)
        write_clip(path, CLIP)
        assert client.get_frame(session, 3).sequence == 3


def test_a_link_that_comes_in_the_place_of_a_file_is_not_followed(serve: Serve, tmp_path: Path) -> None:
    """It may lead out of the root."""
    (tmp_path / "root").mkdir()
    path, outside = write_clip(tmp_path / "root" / "in.mkv", CLIP), tmp_path / "outside.mkv"
    server = serve(media_root=str(tmp_path / "root"))
    with connected(server) as client:
        session = client.create_session("clip", CONFIG).name
        client.analyze_file(session, "in.mkv")
        server.state.memory.forget(server.state.sessions.get(session))
        path.rename(outside)
        path.symlink_to(outside)
        error = refusal(client, "GetFrame", pb.GetFrameRequest(session=session, index=3))
        assert (error.code, error.reason) == ("FAILED_PRECONDITION", "MEDIA_UNUSABLE")
        assert "cannot read in.mkv: it is a link by now" in str(error)


def test_a_shorter_track_comes_while_a_frame_waits_for_its_turn(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server, found, frame_index = serve(), threading.Event(), access.frame_index

    def noted(*arguments: Any) -> int:
        index = frame_index(*arguments)
        found.set()
        return index

    monkeypatch.setattr(access, "frame_index", noted)
    with connected(server) as client, ThreadPoolExecutor() as beside:
        long, short = (client.create_session(name, CONFIG).name for name in ("long", "short"))
        client.analyze_frames(long, FRAMES)
        client.analyze_frames(short, FRAMES[:8])
        with no_turns(server):
            waiting = beside.submit(refusal, client, "GetFrame", pb.GetFrameRequest(session=long, index=20))
            assert found.wait(30)
            client.upload_track(long, client.download_track(short))
        error = waiting.result()
    assert (error.code, error.reason) == ("OUT_OF_RANGE", "NO_SUCH_FRAME")

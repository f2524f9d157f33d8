"""Calls that end before their clip does."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.engine.fakes import CopyingRenderer
from tests.engine.test_track_file import make_track
from tests.server.conftest import CONFIG, FRAMES, Serve, connected, message, opening, still_models, wait_until
from tests.server.relay import BreakingRelay
from vs3r.engine.client.errors import ServerError
from vs3r.engine.client.sync import Client
from vs3r.engine.proto import wire
from vs3r.engine.proto.layout import layout_message, planar_layout, rational
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.server.intake import Arrival, Intake
from vs3r.engine.track_file import save_track
from vs3r.types import Frame, RenderedFrame

Request = pb.StreamRequest | pb.AnalyzeRequest


def clip(call: str, session: str, *, explicit_end: bool) -> list[Request]:
    """A whole clip, few enough frames to be sent at once, without its end."""
    frames = [message(i, frame) for i, frame in enumerate(FRAMES[:8])]
    config = opening(session=session, explicit_end=explicit_end).config
    if call == "Stream":
        return [pb.StreamRequest(config=config), *frames]
    source = pb.FrameSource(format=config.format, time_base=config.time_base)
    first = pb.AnalyzeConfig(session=session, frames=source, explicit_end=explicit_end)
    return [pb.AnalyzeRequest(config=first), *(pb.AnalyzeRequest(frame=request.frame) for request in frames)]


def end(call: str) -> Request:
    """The last message."""
    kind = pb.StreamRequest if call == "Stream" else pb.AnalyzeRequest
    return kind(end=pb.EndOfClip())


@pytest.mark.parametrize("call", ["Stream", "Analyze"])
def test_only_a_clip_that_was_ended_becomes_a_track(serve: Serve, call: str) -> None:
    """All frames have come and the connection stands, yet nobody said that these are all."""
    with connected(serve(still_models(batch=1))) as client:
        session = client.create_session("clip", CONFIG).name
        requests = clip(call, session, explicit_end=True)
        with pytest.raises(ServerError, match="expected the clip's end") as caught:
            exchanged(client, call, requests)
        assert (caught.value.code, caught.value.reason) == ("CANCELLED", "CLIENT_GONE")
        assert client.get_session(session).frame_count == 0
        exchanged(client, call, [*requests, end(call)])
        assert client.get_session(session).frame_count == 8


def test_a_frame_that_comes_as_the_server_ends_is_not_lost(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not taken, the end behind it does not end the clip."""
    take = Intake.take

    class Slow(CopyingRenderer):
        def render(self, *arguments: Any) -> RenderedFrame:
            wait_until(lambda: all(thread.name != "vs3r-stream-read" for thread in threading.enumerate()))
            return super().render(*arguments)

    server = serve(replace(still_models(), renderer=lambda _config, _fmt: Slow()))

    def last_is_late(intake: Intake, sent: wire.Pictured) -> Arrival:
        arrival = take(intake, sent)
        if arrival.sequence == 7:
            server.state.drain()
            (run,) = server.state._runs
            # The stages have seen that no more frames come.
            wait_until(lambda: run._observed._ended)
        return arrival

    monkeypatch.setattr(Intake, "take", last_is_late)
    requests = [*clip("Stream", "", explicit_end=True), end("Stream")]
    with connected(server) as client, pytest.raises(ServerError) as caught:
        exchanged(client, "Stream", requests)
    assert caught.value.reason == "DRAINING"


def test_a_clip_whose_end_has_come_is_finished_by_a_server_that_ends(serve: Serve) -> None:
    """Nothing is left that another server could go on with."""
    drawing, go_on = threading.Event(), threading.Event()

    class Slow(CopyingRenderer):
        def render(self, *arguments: Any) -> RenderedFrame:
            drawing.set()
            assert go_on.wait(30)
            return super().render(*arguments)

    server = serve(replace(still_models(), renderer=lambda _config, _fmt: Slow()))
    with connected(server) as client, ThreadPoolExecutor() as beside:
        session = client.create_session("clip", CONFIG).name
        stream = beside.submit(lambda: list(client.stabilize(FRAMES, session=session, patience_s=0)))
        assert drawing.wait(30)
        (run,) = server.state._runs
        wait_until(lambda: run._frames._ended)
        server.state.drain()
        go_on.set()
        assert [result.sequence for result in stream.result(30)] == list(range(len(FRAMES)))
        track = server.state.sessions.get(session).track
        assert track is not None
        assert len(track) == len(FRAMES)


@pytest.mark.parametrize("call", ["Stream", "Analyze"])
def test_older_clients_just_end(serve: Serve, call: str) -> None:
    with connected(serve(still_models(batch=1))) as client:
        session = client.create_session("clip", CONFIG).name
        exchanged(client, call, clip(call, session, explicit_end=False))
        assert client.get_session(session).frame_count == 8


def exchanged(client: Client, call: str, requests: list[Request]) -> None:
    with client.open_call(call, iter(requests)) as responses:
        list(responses)


@pytest.mark.parametrize("call", ["Stream", "Analyze"])
def test_nothing_comes_behind_the_end(serve: Serve, call: str) -> None:
    """The call is over by it: the client need not close its side."""
    waiting = threading.Event()
    with connected(serve(still_models(batch=1))) as client:
        session = client.create_session("clip", CONFIG).name

        def requests() -> Iterator[Request]:
            yield from [*clip(call, session, explicit_end=True), end(call)]
            waiting.wait(30)

        with client.open_call(call, requests()) as responses:
            list(responses)
        assert not waiting.is_set()
        waiting.set()
        assert client.get_session(session).frame_count == 8


@pytest.mark.parametrize("call", ["Stream", "Analyze"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_connection_that_breaks_at_the_end(serve: Serve, call: str, when: str) -> None:
    """Before the end is sent there is never a track, however whole the clip looks; behind it there is one or none."""
    server = serve(still_models(batch=1))
    with connected(server) as watcher:
        for number in range(8):
            session = watcher.create_session(f"{call} {number}", CONFIG).name
            taken = threading.Semaphore(0)
            with BreakingRelay(server.address, []) as relay, Client(relay.address) as client:

                def requests(session: str = session, taken: threading.Semaphore = taken) -> Iterator[Request]:
                    yield from clip(call, session, explicit_end=True)
                    for _ in range(8):
                        taken.acquire()
                    if when == "after":
                        yield end(call)
                    relay.reset()

                with suppress(ServerError), client.open_call(call, requests()) as responses:
                    for response in responses:
                        if wire.kind_of(response) == "credit" and response.credit.HasField("acknowledged_sequence"):
                            taken.release()
            wait_until(lambda: watcher.status().streams == 0)
            assert watcher.get_session(session).frame_count in ((0,) if when == "before" else (0, 8))


@pytest.mark.parametrize("call", ["stream", "analyze"])
@pytest.mark.parametrize("how", ["vanish", "raise"])
def test_half_a_clip_does_not_become_its_track(serve: Serve, tmp_path: Path, call: str, how: str) -> None:
    """Neither where the client vanishes nor where it cannot read on; the error reaches the caller."""
    server = serve(still_models(batch=1))
    with connected(server) as watcher:
        session = watcher.create_session("clip", CONFIG).name
        client = Client(server.address)

        def frames() -> Iterator[Frame]:
            yield from FRAMES[:12]
            wait_until(lambda: watcher.status().frames_received >= 12 or call == "analyze")
            if how == "vanish":
                client.close()
            raise OSError("the disk is gone")

        def run() -> object:
            if call == "stream":
                return list(client.stabilize(frames(), session=session, patience_s=0))
            return client.analyze_frames(session, frames())

        # A client that is closed may hear of that first.
        with pytest.raises(OSError if how == "raise" else (OSError, ServerError)):
            run()
        client.close()
        wait_until(lambda: watcher.status().streams == 0)
        assert watcher.get_session(session).frame_count == 0
    assert not list((tmp_path / "cache").iterdir())


def test_frames_that_cannot_be_read_end_an_upload(client: Client) -> None:
    def frames() -> Iterator[tuple[int, Frame]]:
        yield 0, FRAMES[0]
        raise OSError("the disk is gone")

    session = client.create_session("clip", CONFIG).name
    with pytest.raises(OSError, match="the disk is gone"):
        client.upload_frames(session, frames())
    assert client.get_session(session).held_frames == 1


@pytest.mark.parametrize("name", ["Stream", "Analyze", "UploadFrames", "UploadTrack"])
def test_clients_that_never_begin_are_cut_off(serve: Serve, name: str) -> None:
    server, waiting = serve(stream_idle_s=1), threading.Event()

    def nothing() -> Iterator[bytes]:
        waiting.wait(60)
        yield from ()

    with grpc.insecure_channel(server.address) as channel:
        call: Any = channel.stream_stream(f"/vs3r.v1.EngineService/{name}")
        silent = call(nothing())
        wait_until(silent.done)
        waiting.set()
        assert silent.code() == grpc.StatusCode.CANCELLED


def test_a_client_that_vanishes_before_its_config_is_no_bug(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    server, waiting = serve(), threading.Event()

    def nothing() -> Iterator[bytes]:
        waiting.wait(60)
        yield from ()

    with grpc.insecure_channel(server.address) as channel:
        call: Any = channel.stream_stream("/vs3r.v1.EngineService/Stream")
        silent = call(nothing())
        wait_until(lambda: server.state._waiting)
        silent.cancel()
        waiting.set()
    wait_until(lambda: 'method="Stream"' in server.state.page())
    # gRPC tells the end of the requests first, or that the call was cancelled.
    codes = [f'vs3r_calls_total{{method="Stream",code="{code}"}} 1' for code in ("CANCELLED", "INVALID_ARGUMENT")]
    assert any(line in server.state.page() for line in codes)
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR and r.name.startswith("vs3r")]


@pytest.mark.parametrize("name", ["Analyze", "UploadFrames", "UploadTrack"])
def test_clients_that_send_nothing_are_cut_off(serve: Serve, name: str) -> None:
    server = serve(stream_idle_s=1)
    waiting = threading.Event()
    with connected(server) as client:
        session = client.create_session("clip", CONFIG).name
        source = pb.FrameSource(
            format=layout_message(planar_layout(FRAMES[0].format)), time_base=rational(FRAMES[0].time_base)
        )
        first = {
            "Analyze": pb.AnalyzeRequest(config=pb.AnalyzeConfig(session=session, frames=source)),
            "UploadFrames": pb.UploadFramesRequest(config=pb.UploadConfig(session=session, frames=source)),
            "UploadTrack": pb.UploadTrackRequest(config=pb.UploadTrackConfig(session=session)),
        }[name]

        def requests() -> Iterator[object]:
            yield first
            waiting.wait(30)

        def run() -> object:
            if name != "Analyze":
                return client.call(name, requests(), timeout_s=None)
            with client.open_call(name, requests()) as responses:
                return list(responses)

        with pytest.raises(ServerError) as caught:
            run()
        waiting.set()
        assert caught.value.code == "CANCELLED"
        wait_until(lambda: client.status().streams == 0)
        assert client.get_session(session).frame_count == 0


def test_clients_that_take_nothing_are_cut_off(serve: Serve, tmp_path: Path) -> None:
    """Their downloads are bounded as streams are, so that others are still served."""
    server = serve(max_streams=2, stream_idle_s=1)
    save_track(make_track(20_000), tmp_path / "long.vs3r")  # more than gRPC sends to who does not read
    with connected(server) as client:
        session = client.create_session("clip", CONFIG).name
        client.upload_track(session, (tmp_path / "long.vs3r").read_bytes())
        silent = [client._stubs["DownloadTrack"](pb.DownloadTrackRequest(session=session)) for _ in range(2)]
        wait_until(lambda: client.status().streams == 2)
        with pytest.raises(ServerError) as caught:
            client.download_track(session)
        assert (caught.value.reason, caught.value.retry_s is not None) == ("STREAMS", True)
        wait_until(lambda: client.status().streams == 0)
        wait_until(lambda: 'method="DownloadTrack",code="CANCELLED"} 2' in server.state.page())
        for call in silent:
            call.cancel()
        assert len(client.download_track(session)) > 1 << 20


def test_slow_models_are_not_taken_for_a_client_that_sends_nothing(serve: Serve) -> None:
    """It has used its credit, and can only wait. A model of a large network takes minutes without a GPU."""
    go_on, still = threading.Event(), still_models()

    class Slow:
        def __init__(self, inner: Any) -> None:
            self.reset, self.push, self.flush = inner.reset, inner.push, inner.flush

        def observe(self, frame: Frame) -> Frame:
            assert go_on.wait(30)
            return frame

    server = serve(replace(still, reconstructor=lambda config, fmt: Slow(still.reconstructor(config, fmt))))
    with connected(server) as client, ThreadPoolExecutor() as beside:
        stream = beside.submit(lambda: list(client.stabilize(FRAMES, CONFIG, patience_s=0)))
        wait_until(lambda: [run for run in server.state._runs if run._credits == 0])
        (run,) = server.state._runs
        run.active_s -= 2 * server.state.config.stream_idle_s
        server.state.sweep()
        go_on.set()
        assert len(stream.result(30)) == len(FRAMES)


def test_a_server_that_ends_waits_for_no_client(serve: Serve) -> None:
    """What it has taken is finished, however long that takes."""
    drawing, go_on, over = threading.Event(), threading.Event(), threading.Event()

    class Slow(CopyingRenderer):
        def render(self, *arguments: Any) -> RenderedFrame:
            drawing.set()
            assert go_on.wait(30)
            return super().render(*arguments)

    def frames() -> Iterator[Frame]:
        yield from FRAMES[:12]
        over.wait(30)

    server = serve(replace(still_models(), renderer=lambda _config, _fmt: Slow()))
    with connected(server) as client, ThreadPoolExecutor() as beside:
        stream = beside.submit(lambda: list(client.stabilize(frames(), CONFIG, patience_s=0)))
        assert drawing.wait(30)
        (run,) = server.state._runs
        server.state.drain()
        time.sleep(0.3)  # credit for frames that are taken may be on its way
        wait_until(lambda: not run.waits_for_client())
        run.active_s -= 2 * server.state.config.stream_idle_s
        server.state.sweep()
        go_on.set()
        with pytest.raises(ServerError) as caught:
            stream.result(20)
        over.set()
        assert caught.value.reason == "DRAINING"

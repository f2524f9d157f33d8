"""How sessions are found, told apart, listed and limited."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.server.conftest import CONFIG, FRAMES, Serve, connected, refusal
from vs3r.config import ReconstructConfig, SmoothConfig, VggtConfig
from vs3r.engine.client.sync import Client
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.types import CameraTrack


def test_a_session_is_found_again(client: Client) -> None:
    first = client.create_session("clip", CONFIG)
    assert client.create_session("clip", CONFIG).name == first.name
    other = replace(CONFIG, smooth=SmoothConfig(smoothness=0.1))
    assert len({first.name, client.create_session("clip", other).name, client.create_session("b", CONFIG).name}) == 3
    assert client.get_session(first.name).media_key == "clip"
    client.delete_session(first.name)
    error = refusal(client, "GetSession", pb.GetSessionRequest(name=first.name))
    assert (error.code, error.reason) == ("NOT_FOUND", "SESSION_UNKNOWN")


def test_who_comes_while_a_track_is_loaded_gets_it_too(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    with connected(serve()) as client:
        track = client.analyze_frames(client.create_session("clip", CONFIG).name, FRAMES).track
    server, loading, found = serve(), threading.Event(), threading.Event()
    load = server.state.store.load

    def slow(track_id: str) -> CameraTrack | None:
        loading.set()
        found.wait(0.5)  # until the other has its answer, which it must not have yet
        return load(track_id)

    monkeypatch.setattr(server.state.store, "load", slow)
    with connected(server) as client, ThreadPoolExecutor() as beside:
        first = beside.submit(client.create_session, "clip", CONFIG)
        assert loading.wait(30)
        second = client.create_session("clip", CONFIG)
        found.set()
        assert (second.name, second.track) == (first.result().name, track)


def test_tracks_are_told_apart_by_what_made_them(serve: Serve) -> None:
    """VGGT's settings count where VGGT is used, smoothing never."""
    sessions = serve().state.sessions
    vggt = VggtConfig(vggt_window_frames=16)
    network = replace(CONFIG, reconstruct=ReconstructConfig(backend="vggt4d"))
    first, same, *others = (
        sessions.create("clip", config, "here").track_id
        for config in (CONFIG, replace(CONFIG, vggt=vggt, smooth=SmoothConfig()), network, replace(network, vggt=vggt))
    )
    assert first == same
    assert len({first, *others}) == 3


def test_pages_of_sessions(client: Client) -> None:
    made = {client.create_session(str(i), CONFIG).name for i in range(5)}
    page = client.call("ListSessions", pb.ListSessionsRequest(page_size=2))
    assert len(page.sessions) == 2
    assert page.next_page_token
    assert [s.name for s in client.list_sessions()] == sorted(made)
    assert refusal(client, "ListSessions", pb.ListSessionsRequest(page_size=-1)).code == "INVALID_ARGUMENT"


@pytest.mark.parametrize("key", ["", "x" * 1025])
def test_media_keys_are_checked(client: Client, key: str) -> None:
    error = refusal(client, "CreateSession", pb.CreateSessionRequest(media_key=key))
    assert [v.field for v in error.violations] == ["media_key"]


def test_limits_on_sessions(serve: Serve) -> None:
    with connected(serve(max_sessions_per_peer=2)) as client:
        names = [client.create_session(str(i), CONFIG).name for i in range(2)]
        error = refusal(client, "CreateSession", pb.CreateSessionRequest(media_key="3"))
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "SESSIONS")
        assert error.retry_s is not None
        client.delete_session(names[0])
        client.create_session("3", CONFIG)


def test_idle_sessions_expire(serve: Serve) -> None:
    server = serve(session_idle_s=1)
    with connected(server) as client:
        session = client.create_session("clip", CONFIG).name
        held = server.state.sessions.get(session)
        held.used_s -= 2
        server.state.sweep()
        assert refusal(client, "GetSession", pb.GetSessionRequest(name=session)).reason == "SESSION_UNKNOWN"


def test_smoothing_changes_for_all_who_have_the_session_and_nobody_else(serve: Serve) -> None:
    server, smooth = serve(), SmoothConfig(smoothness=0.9, lookahead_frames=2)
    with connected(server) as one, connected(server) as other, connected(server) as third:
        session = one.create_session("clip", CONFIG).name
        assert other.create_session("clip", CONFIG).name == session
        beside = third.create_session("clip", replace(CONFIG, smooth=replace(smooth, smoothness=0.1))).name
        one.set_smoothing(session, pb.SmoothConfig(smoothness=0.9))
        assert other.get_session(session).config.smooth.smoothness == 0.9
        assert third.get_session(beside).config.smooth.smoothness == 0.1

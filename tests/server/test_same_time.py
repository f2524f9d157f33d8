"""Calls on one session that come at the same time."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import pytest

from tests.server.conftest import CONFIG, FRAMES, Serve, connected
from vs3r.config import SmoothConfig
from vs3r.engine.proto.convert import settings_from
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.server import access


def test_a_warp_is_of_one_smoothing(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its grid and its patches, also where SetSmoothing comes while it waits for its turn."""
    server, warp_grid = serve(), access.warp_grid
    with connected(server) as client:
        session = client.create_session("clip", CONFIG).name
        client.analyze_frames(session, FRAMES)
        want = client.get_warp(session, 8)

        def made_before_another(*arguments: Any) -> Any:
            made = warp_grid(*arguments)
            client.set_smoothing(session, pb.SmoothConfig(smoothness=0.0))
            return made

        with monkeypatch.context() as patch:
            patch.setattr(access, "warp_grid", made_before_another)
            got = client.get_warp(session, 8)
        assert got == want
        assert client.get_warp(session, 8) != want


def test_settings_of_smoothing_that_come_at_a_time_are_all_kept(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of two sliders."""
    first = threading.Event()
    with connected(serve()) as client, ThreadPoolExecutor() as beside:
        session = client.create_session("clip", CONFIG).name
        other = list[Future[pb.SetSmoothingResponse]]()

        def overtaken(now: SmoothConfig, message: pb.SmoothConfig, *, field: str) -> SmoothConfig:
            made = settings_from(now, message, field=field)
            if not first.is_set():
                first.set()
                other.append(beside.submit(client.set_smoothing, session, pb.SmoothConfig(min_own_share=0.5)))
                wait(other, timeout=0.5)  # it may have to wait for this one
            return made

        monkeypatch.setattr("vs3r.engine.server.frame_calls.settings_from", overtaken)
        client.set_smoothing(session, pb.SmoothConfig(smoothness=0.9))
        other[0].result(30)
        smooth = client.get_session(session).config.smooth
        assert (smooth.smoothness, smooth.min_own_share) == (0.9, 0.5)

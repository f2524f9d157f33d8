"""What could make a server stand still, or keep one from starting."""

from __future__ import annotations

import http.client
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from tests.server.conftest import Serve, connected
from vs3r.engine.client.connection import Access
from vs3r.engine.server.metrics import serve_page
from vs3r.errors import InputError

TOKEN = "0123456789abcdef-of-a-test"


def test_a_watcher_that_goes_away_while_health_is_told_does_not_stop_the_server(serve: Serve) -> None:
    """A send waits for gRPC's thread of events, in which the watcher's end is told."""
    health, closing, told = serve()._health, list[Callable[[], None]](), threading.Event()

    def send(response: health_pb2.HealthCheckResponse | None) -> None:
        if response is not None and response.status == health_pb2.HealthCheckResponse.NOT_SERVING:
            events = threading.Thread(target=closing[0], daemon=True)
            events.start()
            events.join(5)
            if not events.is_alive():
                told.set()

    class Context:
        def add_callback(self, callback: Callable[[], None]) -> bool:
            closing.append(callback)
            return True

    health.Watch(health_pb2.HealthCheckRequest(), Context(), send)
    health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert told.wait(10)


@pytest.mark.parametrize("method", ["vs3r.v1.EngineService/GetStatus", "grpc.health.v1.Health/Check"])
def test_a_call_that_never_sends_its_request_is_cut_off(serve: Serve, tmp_path: Path, method: str) -> None:
    """It holds a thread; without the token it is refused at once, but for health, which needs none."""
    (tmp_path / "token").write_text(TOKEN)
    server, waiting = serve(token_file=str(tmp_path / "token"), stream_idle_s=1), threading.Event()

    def nothing() -> Iterator[bytes]:
        waiting.wait(60)
        yield from ()

    with grpc.insecure_channel(server.address) as channel:
        stub: Any = channel.stream_unary(f"/{method}", request_serializer=None, response_deserializer=None)
        call = stub.future(nothing(), metadata=Access(token=TOKEN).metadata, timeout=30)
        assert call.code() == grpc.StatusCode.CANCELLED
        refused = stub.future(nothing(), timeout=30)
        needs = grpc.StatusCode.UNAUTHENTICATED if "Engine" in method else grpc.StatusCode.CANCELLED
        assert refused.code() == needs
        waiting.set()


def test_a_server_that_could_not_start_lets_go_of_its_address(serve: Serve) -> None:
    with socket.socket() as taken, socket.socket() as free:
        for one in (taken, free):
            one.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{free.getsockname()[1]}"
        free.close()
        with pytest.raises(InputError, match="choose another metrics port"):
            serve(listen=address, metrics_port=taken.getsockname()[1])
        with connected(serve(listen=address)) as client:
            client.capabilities()


def test_a_failed_request_for_metrics_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """No trace with the places of files."""

    def failing() -> str:
        raise OSError(24, "Too many open files", "/secret/cache")

    page = serve_page(0, failing)
    try:
        with pytest.raises(http.client.RemoteDisconnected):
            urllib.request.urlopen(f"http://127.0.0.1:{page.server_address[1]}/metrics")
    finally:
        page.shutdown()
        page.server_close()
    assert capfd.readouterr().err == ""

"""Around the calls: who may come in, health, reflection, metrics, and how a server ends or is killed."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.engine.clips import Clip, make_frames
from tests.server.conftest import CONFIG, FRAMES, Serve, connected, pixels, still_models, wait_until
from tests.server.relay import BreakingRelay
from vs3r.engine.cli import run
from vs3r.engine.client.connection import Access, read_access
from vs3r.engine.client.errors import ServerError
from vs3r.engine.client.shared import SharedFrames
from vs3r.engine.client.sync import Client
from vs3r.engine.client.unfinished import Steady
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.server.settings import ServeConfig
from vs3r.errors import InputError
from vs3r.types import Frame

TOKEN = "correct-horse-battery-staple"
SERVICE = "vs3r.v1.EngineService"


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.168.1.5:50777"])
def test_no_open_server_without_a_token(listen: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--listen", listen]) == 1
    assert "--token-file" in capsys.readouterr().err


@pytest.mark.parametrize("listen", ["127.0.0.1", "nowhere", "50777", ":50777", "127.0.0.1:x", "127.0.0.1:65536"])
def test_odd_addresses_are_named(listen: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--listen", listen, "--cache-dir", str(tmp_path)]) == 1
    assert f"expected HOST:PORT (up to 65535) or unix:PATH to listen on, got '{listen}'" in capsys.readouterr().err


def test_a_media_root_that_is_no_folder_is_named(serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a folder as --media-root"):
        serve(media_root=str(tmp_path / "missing"))


def test_a_taken_port_is_named(serve: Serve) -> None:
    first = serve()
    with pytest.raises(InputError, match="taken"):
        serve(listen=first.address)


@pytest.mark.parametrize("token", ["", "short", "with spaces in it, and long"])
def test_weak_tokens_are_refused(serve: Serve, tmp_path: Path, token: str) -> None:
    (tmp_path / "token").write_text(token)
    with pytest.raises(InputError, match="openssl rand"):
        serve(token_file=str(tmp_path / "token"))


def test_settings_that_belong_together() -> None:
    with pytest.raises(InputError, match="--tls-key"):
        ServeConfig(tls_cert="a.pem")
    with pytest.raises(InputError, match="--tls-client-ca"):
        ServeConfig(tls_client_ca="a.pem")


@pytest.mark.parametrize("given", [None, "wrong", TOKEN + "x", TOKEN[:-1], "ünïcode"])
def test_the_token(serve: Serve, tmp_path: Path, given: str | None) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    server = serve(token_file=str(tmp_path / "token"))
    with Client(server.address, Access(token=TOKEN)) as client:
        client.capabilities()
        assert len(list(client.stabilize(FRAMES, CONFIG))) == len(FRAMES)
    # Metadata is ASCII.
    with Client(server.address, Access(token=given if given is None or given.isascii() else "u")) as client:
        for call in (client.capabilities, lambda: list(client.stabilize(FRAMES, CONFIG))):
            with pytest.raises(ServerError) as caught:
                call()
            assert caught.value.code == "UNAUTHENTICATED"


@pytest.mark.parametrize("token", ["", "two\nlines of it", "tökens are ASCII"])
def test_odd_access_is_named(tmp_path: Path, token: str) -> None:
    path = tmp_path / "access"
    path.write_text(token)
    with pytest.raises(InputError, match=r"expected one line of printable characters in .*access"):
        read_access(str(path), None)
    with pytest.raises(InputError, match=r"expected a certificate \(PEM\) in .*access"):
        read_access(None, str(path))


def make_certificates(folder: Path) -> dict[str, str]:
    """An authority, and certificates of it for a server and a client."""
    ca, key = folder / "ca.pem", folder / "ca.key"
    new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]

    def openssl(*arguments: str) -> None:
        subprocess.run(arguments, check=True, capture_output=True, cwd=folder)

    openssl(*new, "-x509", "-subj", "/CN=test", "-keyout", str(key), "-out", str(ca))
    for name in ("server", "client"):
        (folder / "ext").write_text("subjectAltName=IP:127.0.0.1")
        openssl(*new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        openssl("openssl", "x509", "-req", "-in", f"{name}.csr", "-CA", str(ca), "-CAkey", str(key), "-CAcreateserial",
                "-days", "2", "-extfile", "ext", "-out", f"{name}.pem")  # fmt: skip
    return {p.name: str(p) for p in folder.iterdir()}


def test_tls_and_mutual_tls(serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "certificates"
    folder.mkdir()
    files = make_certificates(folder)
    tls = {"tls_cert": files["server.pem"], "tls_key": files["server.key"]}
    ca = Path(files["ca.pem"]).read_bytes()
    plain, known = Access(ca=ca), read_access(None, files["ca.pem"], files["client.pem"], files["client.key"])
    with pytest.raises(InputError, match=r"and its key, without a password, in .*server\.key"):
        read_access(None, files["ca.pem"], files["client.pem"], files["server.key"])
    address = serve(**tls).address
    with Client(address, plain) as client:
        client.capabilities()
    with Client(address) as client, pytest.raises(ServerError):
        client.capabilities()
    for wrong, complaint in (
        (tls | {"tls_cert": files["ext"]}, "expected a certificate in .*ext"),
        (tls | {"tls_key": files["client.key"]}, "expected a certificate in .* and its key"),
        (tls | {"tls_client_ca": files["ext"]}, r"expected a certificate \(PEM\) in .*ext"),
    ):
        with pytest.raises(InputError, match=complaint):
            serve(**wrong)
    address = serve(**tls, tls_client_ca=files["ca.pem"]).address
    with Client(address, known) as client:
        client.capabilities()
    with Client(address, plain) as client, pytest.raises(ServerError):
        client.capabilities()


def test_unix_sockets(serve: Serve, tmp_path: Path) -> None:
    server = serve(still_models(), listen=f"unix:{tmp_path}/socket", allow_shm=True)
    with connected(server) as client:
        assert client.capabilities().shared_memory
        assert len(list(client.stabilize(FRAMES, CONFIG, shared_memory=SharedFrames(FRAMES[0].format)))) == len(FRAMES)


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_a_socket_is_for_its_owner_alone(serve: Serve, tmp_path: Path, umask: int) -> None:
    """Whoever may connect to it needs no token."""
    old = os.umask(umask)
    try:
        serve(listen=f"unix:{tmp_path}/socket")
        assert (tmp_path / "socket").stat().st_mode & 0o077 == 0
        assert os.umask(umask) == umask
    finally:
        os.umask(old)


def test_health_and_reflection(serve: Serve) -> None:
    server = serve()
    with grpc.insecure_channel(server.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            assert health.Check(health_pb2.HealthCheckRequest(service=name)).status == 1
        asked = reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE)
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = reflection.ServerReflectionInfo(iter([asked]))
        file = descriptor_pb2.FileDescriptorProto.FromString(answer.file_descriptor_response.file_descriptor_proto[0])
        assert "GetWarp" in {m.name for m in file.service[0].method}


def test_reflection_asks_for_the_token_and_cuts_off_who_asks_nothing(serve: Serve, tmp_path: Path) -> None:
    """Such a call holds a thread: a server's few could all be taken by anybody."""
    (tmp_path / "token").write_text(TOKEN)
    server, waiting = serve(token_file=str(tmp_path / "token"), stream_idle_s=1), threading.Event()

    def nothing() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        waiting.wait(60)
        yield from ()

    with grpc.insecure_channel(server.address) as channel:
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = reflection.ServerReflectionInfo(nothing())
        assert (call.code(), "expected the server's token" in call.details()) == (grpc.StatusCode.UNAUTHENTICATED, True)
        known = Access(token=TOKEN).metadata
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = reflection.ServerReflectionInfo(iter([asked]), metadata=known)
        assert SERVICE in {service.name for service in answer.list_services_response.service}
        silent = reflection.ServerReflectionInfo(nothing(), metadata=known)
        wait_until(silent.done)
        waiting.set()
        assert silent.code() == grpc.StatusCode.CANCELLED


def test_metrics(serve: Serve) -> None:
    server = serve(still_models(), metrics_port=0)
    with connected(server) as client:
        list(client.stabilize(FRAMES, CONFIG))
        client.create_session("clip")
        with pytest.raises(ServerError):
            client.get_session("sessions/none")
    url = f"http://127.0.0.1:{server.metrics_port}"
    page = urllib.request.urlopen(f"{url}/metrics").read().decode()
    assert f"vs3r_frames_received_total {len(FRAMES)}\n" in page
    assert "vs3r_sessions 1\n" in page
    assert 'vs3r_calls_total{method="GetSession",code="NOT_FOUND"} 1\n' in page
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{url}/other")
    caught.value.close()


def test_limits_on_streams_memory_and_sizes(serve: Serve) -> None:
    server = serve(still_models(), max_streams=1, memory_mb=64, max_frame_pixels=10_000, max_message_mb=1)
    with connected(server) as client:
        first = client.stabilize(FRAMES, CONFIG)
        next(first)
        with pytest.raises(ServerError) as caught:
            list(client.stabilize(FRAMES, CONFIG))
        assert (caught.value.reason, caught.value.retry_s is not None) == ("STREAMS", True)
        list(first)
        with pytest.raises(ServerError) as caught:
            list(client.stabilize(make_frames(Clip(frames=1, width=400)), CONFIG))
        assert [v.field for v in caught.value.violations] == ["config.format.width"]
    with connected(serve(still_models(), memory_mb=64)) as client:
        big = make_frames(Clip(frames=1, width=1920, height=1080))
        with pytest.raises(ServerError) as caught:
            list(client.stabilize(big, CONFIG))
        assert caught.value.reason == "MEMORY"
    with connected(serve(still_models(), max_message_mb=1)) as client:
        with pytest.raises(ServerError) as caught:
            list(client.stabilize(big, CONFIG))
        assert caught.value.code == "RESOURCE_EXHAUSTED"
        assert len(list(client.stabilize(FRAMES, CONFIG))) == len(FRAMES)


def test_a_stalled_stream_is_ended(serve: Serve) -> None:
    server = serve(still_models(), stream_idle_s=1)
    stalled = threading.Event()

    def frames() -> Iterator[Frame]:
        yield from FRAMES[:3]
        stalled.wait(30)

    with connected(server) as client, pytest.raises(ServerError) as caught:
        list(client.stabilize(frames(), CONFIG))
    stalled.set()
    assert (caught.value.code, caught.value.reason) == ("DEADLINE_EXCEEDED", "IDLE")


def test_deleting_a_session_ends_its_stream(serve: Serve) -> None:
    with connected(serve(still_models())) as client:
        session = client.create_session("clip", CONFIG).name
        results = client.stabilize(FRAMES, session=session)
        next(results)
        client.delete_session(session)
        with pytest.raises(ServerError) as caught:
            list(results)
        assert caught.value.reason in ("SESSION_DELETED", "SESSION_UNKNOWN")


def test_logs_keep_paths_and_tokens_to_themselves(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "token").write_text(TOKEN)
    server = serve(token_file=str(tmp_path / "token"), media_root=str(tmp_path))
    with Client(server.address, Access(token=TOKEN)) as client:
        session = client.create_session("secret-clip", CONFIG).name
        for name in ("secret.mkv", "token"):
            with pytest.raises(ServerError):
                client.analyze_file(session, name)
        client.delete_session(session)
    text = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("vs3r"))
    assert session in text
    for secret in (TOKEN, "secret", str(tmp_path)):
        assert secret not in text


def test_connections_that_break_in_the_middle_of_a_frame(serve: Serve) -> None:
    """Reset again and again without a goodbye: the stream goes on until all frames are there, once and in order."""
    server = serve()
    # In the config, in a frame, later, and where the frames sent again end.
    limits = [300, 3_000, 43_000, 70_000, 101_000]
    with BreakingRelay(server.address, limits) as relay, Client(relay.address) as client:
        got = list(client.stabilize(FRAMES, CONFIG))
    assert relay.broken == len(limits)
    assert [r.sequence for r in got] == list(range(len(FRAMES)))
    with connected(server) as client:
        wait_until(lambda: client.status().streams == 0 and client.status().reserved_bytes == 0)


def test_a_taken_socket_is_named_and_one_left_behind_is_used(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    first = serve(still_models(), listen=f"unix:{path}")
    with pytest.raises(InputError, match="taken"):
        serve(listen=f"unix:{path}")
    with connected(first) as client:
        client.capabilities()


def test_the_end_is_told_and_waits_for_nobody_who_only_watches(serve: Serve) -> None:
    """Health goes NOT_SERVING, calls that come now are told so, one that runs is finished, a watcher is cut off."""
    drawing, go_on = threading.Event(), threading.Event()

    class Slow:
        def __init__(self) -> None:
            self._inner = still_models().renderer(CONFIG, FRAMES[0].format)

        def render(self, index: int, camera: object, sources: object, out: object, /) -> object:
            drawing.set()
            go_on.wait(30)
            return self._inner.render(index, camera, sources, out)  # type: ignore[arg-type]

    models = replace(still_models(), renderer=lambda _config, _fmt: Slow())  # type: ignore[return-value, arg-type]
    server = serve(models, grace_s=60.0)
    with connected(server) as client, grpc.insecure_channel(server.address) as channel, ThreadPoolExecutor() as pool:
        health: Any = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        session = client.create_session("clip", CONFIG).name
        client.analyze_frames(session, FRAMES)
        asked = pool.submit(client.get_frame, session, 3)
        assert drawing.wait(30)
        start = time.monotonic()
        ended = pool.submit(server.stop)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        wait_until(lambda: server.state.draining)
        with pytest.raises(ServerError) as caught:
            client.call("CreateSession", pb.CreateSessionRequest(media_key="late"), timeout_s=None)
        assert caught.value.is_passing
        go_on.set()
        assert asked.result(30).sequence == 3
        ended.result(30)
        assert time.monotonic() - start < 30, "the grace period is for those who work"


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        ("unix:", True),
        ("unix:/run/vs3r", True),
        ("ipv4:127.0.0.1:5", True),
        ("ipv6:[::1]:5", True),
        ("ipv6:%5B::1%5D:5", True),
        ("ipv4:10.0.0.7:5", False),
        ("ipv6:[fe80::1]:5", False),
        ("ipv4:192.127.0.1:5", False),
    ],
)
def test_shared_memory_is_for_peers_on_this_machine(serve: Serve, peer: str, local: bool) -> None:
    """Another machine's client cannot reach what a local one has registered, though it may use the session."""
    server = serve(allow_shm=True)
    session = server.state.sessions.create("clip", CONFIG, "here")

    class Context:
        def peer(self) -> str:
            return peer

    context: Any = Context()
    assert server.state.shares(context) == local
    assert (server.state.regions(session, context) is session.regions) == local


def test_tokens_and_keys_are_not_printed() -> None:
    assert TOKEN not in repr(Access(token=TOKEN, ca=b"", cert=b"", key=TOKEN.encode()))


def test_the_wall_clock_may_go_back(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """By two hours: no session is dropped, nor kept for longer."""
    state = serve(session_idle_s=100).state
    session = state.sessions.create("clip", CONFIG, "here")
    earlier = time.time() - 7200
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: earlier)
        state.sweep()
        left_s = state.sessions.message(session).expire_time.ToSeconds() - earlier
    assert 90 < left_s <= 100
    assert state.sessions.get(session.name) is session


# ---- servers in a process of their own

SERVER = """
import sys
from tests.server.conftest import shaky_models
from vs3r.engine.server.serve import Server
from vs3r.engine.server.settings import ServeConfig
with Server(ServeConfig(listen=sys.argv[1], cache_dir=sys.argv[2], allow_shm=True), models=shaky_models()) as server:
    print(server.address, flush=True)
    server.wait()
print("ended", flush=True)
"""


class Process:
    """A server that can be killed."""

    def __init__(self, folder: Path, listen: str = "127.0.0.1:0") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, listen, str(folder)], stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip
        self.address = self.line()

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> int:
        code = self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return code

    def kill(self) -> None:
        if self._process.poll() is None:
            self.send(signal.SIGKILL)
        self.end()


@pytest.mark.parametrize("with_session", [False, True])
def test_a_killed_server_costs_no_frame(tmp_path: Path, with_session: bool) -> None:
    """Killed in the middle of a stream and started anew: every frame comes once, in order; tracks are whole."""
    server = Process(tmp_path)
    port = server.address.rpartition(":")[2]
    got: list[Any] = []
    with Client(server.address) as client:
        client.analyze_frames(client.create_session("before", CONFIG).name, FRAMES)
        session = client.create_session("clip", CONFIG).name if with_session else None
        results = client.stabilize(FRAMES, None if session else CONFIG, session=session)
        for result in results:
            got.append(result)
            if len(got) == 9:
                server.kill()
                server = Process(tmp_path, f"127.0.0.1:{port}")
        try:
            assert client.create_session("before", CONFIG).frame_count == len(FRAMES)
        finally:
            server.kill()
    assert [r.sequence for r in got] == list(range(len(FRAMES)))
    assert [r.frame.pts for r in got] == [f.pts for f in FRAMES]
    assert not any(pixels(r.frame) == pixels(FRAMES[r.sequence]) for r in got if isinstance(r, Steady))
    assert not [name for name in os.listdir(tmp_path) if not re.fullmatch(r"[0-9a-f]{32}\.vs3r", name)]


def test_sigterm_finishes_what_was_taken(tmp_path: Path) -> None:
    """Frames taken before the signal come back, the call ends with UNAVAILABLE, the server with 0."""
    server = Process(tmp_path)
    waiting = threading.Event()

    def frames() -> Iterator[Frame]:
        yield from FRAMES[:14]
        server.send(signal.SIGTERM)
        waiting.wait(30)

    got: list[int] = []
    with Client(server.address) as client, pytest.raises(ServerError) as caught:
        # Those before the error count.
        deque(map(got.append, (r.sequence for r in client.stabilize(frames(), CONFIG, patience_s=0))), maxlen=0)
    waiting.set()
    assert caught.value.is_passing
    assert server.line() == "ended"
    assert server.end() == 0
    # Fourteen were sent; the last ones may have been under way still, and are then not acknowledged.
    assert got == list(range(len(got)))
    assert 6 <= len(got) <= 14


def test_unreachable_servers_are_named() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(ServerError, match=r"cannot reach the server 127\.0\.0\.1:1"):
        client.capabilities()

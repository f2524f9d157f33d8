"""The gRPC server: listening, keepalive, TLS, health, reflection, and an orderly end."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager, nullcontext
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import cv2
import torch

from vs3r.engine.certificates import check_authority, check_pair
from vs3r.engine.proto import wire
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.server.frame_calls import FrameCalls
from vs3r.engine.server.guard import Models
from vs3r.engine.server.health import add_health
from vs3r.engine.server.metrics import serve_page
from vs3r.engine.server.problems import Call, Malformed, edge
from vs3r.engine.server.session_calls import SessionCalls
from vs3r.engine.server.settings import ServeConfig
from vs3r.engine.server.state import State
from vs3r.engine.server.track_calls import TrackCalls
from vs3r.errors import BackendError, InputError

if TYPE_CHECKING:
    import grpc

log = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["EngineService"]
_SWEEP_S = 1.0
# Beside streams: short calls, and health watches.
_SPARE_THREADS = 16
# For a thread, as where a client asks for all frames of a page at once; gRPC refuses more, and gives no reason.
_WAITING_CALLS = 256
_MIN_TOKEN = 16
# For the last answers to be sent.
_GOODBYE_S = 1.0


class Server:
    """A running server.

    with Server(ServeConfig(listen="127.0.0.1:0")) as server:
        print(server.address)
        server.wait()
    """

    def __init__(self, config: ServeConfig, *, models: Models | None = None) -> None:
        """Start to listen.

        Raises:
            InputError: the address is taken, a file of the settings cannot be read, or the media root is no folder.
            OutputError: the cache folder cannot be made.
            BackendError: gRPC is not installed.
        """
        self._config = config
        if config.media_root is not None and not os.path.isdir(config.media_root):
            raise InputError(f"expected a folder as --media-root, got {config.media_root!r}; check the path")
        self.state = State(config, token=_token(config), models=models)
        # One thread a stage, as on the command line: the same bytes, and no fight for the cores. For the whole process.
        cv2.setNumThreads(1)
        torch.set_num_threads(1)
        self._ended = threading.Event()
        self._grpc, self._health = _make_server(config, self.state)
        self._metrics: ThreadingHTTPServer | None = None
        with ExitStack() as undone:
            # Before gRPC, which does not let go of an address on which it was never started.
            if config.metrics_port is not None:
                self._metrics = serve_page(config.metrics_port, self.state.page)
                undone.callback(_end_page, self._metrics)
            self.address = self._listen()
            """Where clients reach it: HOST:PORT, or unix:PATH."""
            undone.pop_all()
        self._grpc.start()
        self._sweeper = threading.Thread(target=self._sweep, name="vs3r-sweep", daemon=True)
        self._sweeper.start()
        self._set_health(serving=True)

    @property
    def metrics_port(self) -> int | None:
        """Port of the metrics page, None where it is off."""
        return None if self._metrics is None else int(self._metrics.server_address[1])

    def wait(self) -> None:
        """Until a signal asks to end (SIGTERM, SIGINT), then end in order. In the main thread only."""
        asked = threading.Event()
        old = {n: signal.signal(n, lambda *_: asked.set()) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            # A wait without limit would keep Python from running the handler on some systems.
            while not asked.wait(1.0):
                pass
            log.info("ending; frames in flight have %g s", self._config.grace_s)
            self.stop()
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """Health goes NOT_SERVING, nothing new is taken, frames in flight are finished within the grace period."""
        if self._ended.is_set():
            return
        end_s = time.monotonic() + self._config.grace_s
        self._set_health(serving=False)
        self.state.drain()
        # Who watches the server's health would hold it up.
        self.state.wait_until_quiet(self._config.grace_s)
        self._grpc.stop(min(_GOODBYE_S, max(0.0, end_s - time.monotonic()))).wait()
        self._ended.set()
        self._sweeper.join()
        if self._metrics is not None:
            _end_page(self._metrics)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _sweep(self) -> None:
        while not self._ended.wait(_SWEEP_S):
            self.state.sweep()

    def _set_health(self, *, serving: bool) -> None:
        from grpc_health.v1 import health_pb2

        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", SERVICE.full_name):
            self._health.set(name, status)

    def _listen(self) -> str:
        address = self._config.listen
        on_file = address.startswith("unix:")
        if on_file and _is_taken(address.removeprefix("unix:")):
            raise InputError(f"cannot listen on {address}: taken; choose another")
        try:
            with _private_files() if on_file else nullcontext():
                if self._config.tls_cert is None:
                    port = self._grpc.add_insecure_port(address)
                else:
                    port = self._grpc.add_secure_port(address, _tls_credentials(self._config))
        except RuntimeError:
            raise InputError(f"cannot listen on {address}: taken, or not of this machine; choose another") from None
        return address if on_file else f"{address.rpartition(':')[0]}:{port}"


def _end_page(page: ThreadingHTTPServer) -> None:
    page.shutdown()
    page.server_close()


def _tls_credentials(config: ServeConfig) -> Any:
    """What gRPC listens with; it only says that it cannot, so the files are tried first.

    Raises:
        InputError: a file cannot be read or used.
    """
    import grpc

    cert, key, authority = config.tls_cert or "", config.tls_key or "", config.tls_client_ca
    pair, root = (_read(key), _read(cert)), None if authority is None else _read(authority)
    check_pair(cert, key)
    if authority is not None:
        check_authority(authority)
    return grpc.ssl_server_credentials([pair], root_certificates=root, require_client_auth=root is not None)


def _make_server(config: ServeConfig, state: State) -> tuple[grpc.Server, Any]:
    try:
        import grpc
        from grpc_health.v1 import health
        from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
    except ImportError:
        raise BackendError("the server needs gRPC: pip install 'vs3r[server]'") from None
    workers = config.max_streams + _SPARE_THREADS
    server = grpc.server(
        futures.ThreadPoolExecutor(workers, thread_name_prefix="vs3r-call"),
        maximum_concurrent_rpcs=workers + _WAITING_CALLS,
        options=[
            ("grpc.max_receive_message_length", config.max_message_mb << 20),
            ("grpc.max_send_message_length", -1),
            # A second server on the same port would share its calls silently.
            ("grpc.so_reuseport", 0),
            # Routers forget idle connections after minutes, and laptops sleep: ask every minute, wait long for the
            # answer, and let clients ask as often.
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.http2.max_ping_strikes", 5),
        ],
    )
    server.add_generic_rpc_handlers((_handlers(state),))
    checks = add_health(server, state, _parser)
    names = (SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)

    class Reflection(reflection.ReflectionServicer):
        """Asks for the token as other calls do, and cuts off who asks nothing: each holds a thread."""

        def ServerReflectionInfo(self, requests: Any, context: Any) -> Any:
            answers = super().ServerReflectionInfo
            call = edge(
                lambda asked, context: answers(state.watched(asked, context), context),
                admit=state.check_token,
                told=lambda _code: None,
                streams=True,
            )
            return call(requests, context)

    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(Reflection(names), server)  # type: ignore[no-untyped-call]
    return server, checks


def _handlers(state: State) -> grpc.GenericRpcHandler:
    """Every call of the proto, from its descriptor."""
    import grpc

    # On the wire a call of one request is one of several.
    makers = {False: grpc.stream_unary_rpc_method_handler, True: grpc.stream_stream_rpc_method_handler}
    groups = SessionCalls(state), TrackCalls(state), FrameCalls(state)
    handlers = {}
    for method in SERVICE.methods:
        snake = re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower()
        call = next(getattr(group, snake) for group in groups if hasattr(group, snake))
        kind = getattr(pb, method.input_type.name)
        streams = bool(method.server_streaming)
        if not method.client_streaming:
            call = _of_one(call, state)
        handlers[method.name] = makers[streams](
            edge(call, admit=state.admit, told=_teller(state, method.name), streams=streams),
            request_deserializer=_parser(kind),
            response_serializer=wire.encode,
        )
    return grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)


def _of_one(call: Call, state: State) -> Call:
    return lambda requests, context: call(state.only(requests, context), context)


def _teller(state: State, method: str) -> Callable[[str], None]:
    return lambda code: state.told(method, code)


def _parser(kind: Any) -> Callable[[bytes], Any]:
    """Bytes to a message, or Malformed: the call then says so, instead of gRPC's INTERNAL."""
    from google.protobuf.message import DecodeError

    def parse(data: bytes) -> Any:
        try:
            return wire.decode(kind, data) if kind in wire.WITH_PICTURE else kind.FromString(data)
        except DecodeError:
            return Malformed()

    return parse


@contextmanager
def _private_files() -> Iterator[None]:
    """What is made is for its owner alone, from the first moment on: a socket needs no token.

    By the umask, which all threads of the process share: files that others make meanwhile are so, too.
    """
    old = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(old)


def _is_taken(path: str) -> bool:
    """Somebody answers at a socket; gRPC would take it away from them. One that a killed server left is free."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _token(config: ServeConfig) -> str | None:
    if config.token_file is None:
        return None
    token = _read(config.token_file).decode(errors="replace").strip()
    if len(token) < _MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(
            f"expected a token of at least {_MIN_TOKEN} printable characters in {config.token_file}; "
            "make one with: openssl rand -hex 32"
        )
    return token


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check the path") from None

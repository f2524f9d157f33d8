"""Counters, and their page for Prometheus."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from vs3r.errors import InputError

log = logging.getLogger(__name__)


class Metrics:
    """Counts since the start. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._calls: Counter[tuple[str, str]] = Counter()
        self._start_s = time.monotonic()

    @property
    def uptime_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start_s

    def add(self, name: str) -> None:
        """Count one of `name`."""
        with self._lock:
            self._counts[name] += 1

    def call(self, method: str, code: str) -> None:
        """Count a finished call."""
        with self._lock:
            self._calls[method, code] += 1

    def count(self, name: str) -> int:
        """How many of `name`."""
        with self._lock:
            return self._counts[name]

    def page(self, gauges: Mapping[str, float]) -> str:
        """All counters and the given gauges in Prometheus' text format."""
        lines = []
        for name, value in gauges.items():
            lines += [f"# TYPE vs3r_{name} gauge", f"vs3r_{name} {value:g}"]
        with self._lock:
            for name in sorted(self._counts):
                lines += [f"# TYPE vs3r_{name}_total counter", f"vs3r_{name}_total {self._counts[name]}"]
            lines.append("# TYPE vs3r_calls_total counter")
            for (method, code), count in sorted(self._calls.items()):
                lines.append(f'vs3r_calls_total{{method="{method}",code="{code}"}} {count}')
        return "\n".join(lines) + "\n"


def serve_page(port: int, page: Callable[[], str]) -> ThreadingHTTPServer:
    """Answer http://127.0.0.1:port/metrics in a thread, until shutdown() and server_close().

    Raises:
        InputError: the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == "/metrics"
            body = page().encode() if known else b"see /metrics\n"
            self.send_response(200 if known else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            """Nothing of a request is logged."""

    class Page(ThreadingHTTPServer):
        def handle_error(self, _request: object, _client_address: object) -> None:
            """The base class prints where it came from, paths included, as for every client that goes away."""
            log.debug("a request for the metrics failed", exc_info=True)

    try:
        server = Page(("127.0.0.1", port), Handler)
    except OSError as error:
        raise InputError(f"cannot listen on 127.0.0.1:{port}: {error.strerror}; choose another metrics port") from None
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="vs3r-metrics", daemon=True).start()
    return server

"""A way to a server that breaks in the middle of a message, without a goodbye."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Self


class BreakingRelay:
    """Passes bytes between clients and a server; each connection is reset after as many bytes from the client as
    the next of `limits` says, those after the last not at all."""

    def __init__(self, target: str, limits: Iterable[int]) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._limits = iter(limits)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._near: list[socket.socket] = []
        self.broken = 0
        """Connections broken so far."""
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        """Where clients connect to."""
        self._start(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Closing alone does not wake accept().
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset()
        for thread in self._threads:
            thread.join(10)

    def reset(self) -> None:
        """Break all connections now."""
        for end in self._near:
            _break(end)

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._near.append(near)
                far = socket.create_connection(self._target)
                self._start(self._pass, near, far, next(self._limits, None))
                self._start(self._pass, far, near, None)

    def _pass(self, source: socket.socket, target: socket.socket, limit: int | None) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if limit is not None and passed + len(data) >= limit:
                    target.sendall(data[: limit - passed])
                    self.broken += 1
                    break
                target.sendall(data)
                passed += len(data)
        for end in (source, target):
            _break(end)
            end.close()


def _break(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # No FIN, no GOAWAY: the connection is just gone.
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RDWR)

"""The engine that the plugins start: shared, missed when it dies, ended when nobody uses it."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bridge.conftest import BUILD, engines

_PATIENCE_S = 20


@contextmanager
def bridge(environment: dict[str, str]) -> Iterator[socket.socket]:
    """A bridge, as a plugin starts it."""
    ours, theirs = socket.socketpair()
    with ours, subprocess.Popen([BUILD / "vs3r-bridge", ""], stdin=theirs.fileno(), env=environment) as process:
        theirs.close()
        ours.settimeout(_PATIENCE_S)
        try:
            yield ours
        finally:
            process.kill()


def opening_of(clip: Path, *, analyse: bool = False, smoothness: float = 0.5) -> tuple[str, ...]:
    """The request that opens a file without a saved track."""
    return "open", str(int(analyse)), str(clip), str(smoothness), "0.7", "pinhole", "fill", *[""] * 4, "0"


def ask(line: socket.socket, *fields: str) -> str:
    """One request's answer."""
    line.sendall("\t".join(fields).encode() + b"\n")
    answer = b""
    while not answer.endswith(b"\n"):
        answer += line.recv(4096)
    return answer.decode()


def test_one_engine_serves_all_and_ends_after_the_last(
    engine_environment: dict[str, str], clip: Path, tmp_path: Path
) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    environment = engine_environment | {"XDG_RUNTIME_DIR": str(runtime), "VS3R_ENGINE_IDLE_S": "1"}
    opening = opening_of(clip)
    with bridge(environment) as first, bridge(environment) as second:
        first.sendall(("\t".join(opening) + "\n").encode())
        assert ask(second, *opening) == "unanalysed\n"
        assert first.recv(4096) == b"unanalysed\n"
        (engine,) = engines(runtime)
        ended = os.pidfd_open(engine)
        os.kill(engine, signal.SIGKILL)
        wait_for(ended)
        assert "has gone" in ask(first, *opening)
        # Another bridge starts a new one.
        with bridge(environment) as third:
            assert ask(third, *opening) == "unanalysed\n"
        ended = os.pidfd_open(engines(runtime)[0])
    wait_for(ended)
    assert not engines(runtime)


def test_requests_that_make_no_sense_are_answered(engine_environment: dict[str, str], tmp_path: Path) -> None:
    with bridge(engine_environment) as line:
        assert "makes no sense" in ask(line, "frame", "1", "2", "2", "1", "0")
        assert "makes no sense" in ask(line, "\xff", "open")
        missing = ask(line, *opening_of(tmp_path / "none.mp4"))
        assert missing.startswith("error\tcannot read the clip")


def wait_for(process: int) -> None:
    """Until a process has ended."""
    ready, _, _ = select.select([process], [], [], _PATIENCE_S)
    os.close(process)
    assert ready, "the process has not ended"

"""The engine that the plugins start: shared, missed when it dies, ended when nobody uses it."""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from tests.bridge.conftest import BUILD, engines, make_clip
from vs3r.engine.client.sync import Client
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb

_PATIENCE_S = 100


@contextmanager
def bridge(environment: dict[str, str], address: str = "", files: Sequence[int] = ()) -> Iterator[socket.socket]:
    """A bridge, as a plugin starts it; files: open in it besides."""
    ours, theirs = socket.socketpair()
    command = [str(BUILD / "vs3r-bridge"), address]
    with ours, subprocess.Popen(command, stdin=theirs.fileno(), env=environment, pass_fds=files) as process:
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
    return read_line(line)


def read_line(line: socket.socket) -> str:
    """The next line of answers; bytes behind it stay."""
    answer = b""
    while not answer.endswith(b"\n"):
        answer += line.recv(1)
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
        assert "makes no sense" in ask(line, "frame", "1", "2", "2", "1", "0", "0", "0")
        assert "makes no sense" in ask(line, "\xff", "open")
        missing = ask(line, *opening_of(tmp_path / "none.mp4"))
        assert missing.startswith("error\tcannot read the clip")


def wait_for(process: int) -> None:
    """Until a process has ended."""
    ready, _, _ = select.select([process], [], [], _PATIENCE_S)
    os.close(process)
    assert ready, "the process has not ended"


def test_a_slider_that_is_drawn_finds_the_engine_at_every_step(engine_environment: dict[str, str], clip: Path) -> None:
    with bridge(engine_environment) as line:
        # More than the 64 sessions that the server gives one host by itself.
        for step in range(80):
            assert ask(line, *opening_of(clip, smoothness=step / 100)) == "unanalysed\n"


@pytest.mark.parametrize("where", ["setting", "config", "path"])
def test_an_engine_that_cannot_run_is_found_and_told_at_once(
    engine_environment: dict[str, str], clip: Path, tmp_path: Path, where: str
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "vs3r"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o700)
    environment = engine_environment | {"XDG_RUNTIME_DIR": str(tmp_path / "run"), "XDG_CONFIG_HOME": str(tmp_path)}
    (tmp_path / "run").mkdir(mode=0o700)
    del environment["VS3R_COMMAND"]
    environment["PATH"] = f"/nonexistent:{folder}" if where == "path" else "/nonexistent"
    if where == "setting":
        environment["VS3R_COMMAND"] = str(program)
    if where == "config":
        (tmp_path / "vs3r").mkdir()
        (tmp_path / "vs3r" / "command").write_text(f"{program}\n")
    with bridge(environment) as line:
        assert f"ended at once; run `{program} serve`" in ask(line, *opening_of(clip))


def test_what_a_killed_host_has_asked_for_is_left(
    engine_environment: dict[str, str], clip: Path, tmp_path: Path
) -> None:
    """Also while the engine gives no answer."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    with bridge(engine_environment | {"XDG_RUNTIME_DIR": str(runtime)}) as line:
        assert ask(line, *opening_of(clip)) == "unanalysed\n"
        (engine,) = engines(runtime)
        ended = os.pidfd_open(bridge_process())
        os.kill(engine, signal.SIGSTOP)
        try:
            line.sendall(("\t".join(opening_of(clip, analyse=True)) + "\n").encode())
            line.close()
            wait_for(ended)
        finally:
            os.kill(engine, signal.SIGKILL)


def bridge_process() -> int:
    """The bridge among the children, which may be anything."""
    children = Path("/proc/thread-self/children").read_text().split()
    (found,) = (pid for pid in children if b"vs3r-bridge" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return int(found)


def test_a_bridge_opens_its_mark_as_a_user_once(engine_environment: dict[str, str], clip: Path) -> None:
    with bridge(engine_environment) as line:
        for _ in range(3):
            assert ask(line, *opening_of(clip)) == "unanalysed\n"
        opened = [os.readlink(file) for file in Path(f"/proc/{bridge_process()}/fd").iterdir()]
    assert sum(name.endswith("engine.sock.users") for name in opened) == 1


def test_the_engine_gets_no_python_of_the_host(engine_environment: dict[str, str], clip: Path, tmp_path: Path) -> None:
    own = {"PYTHONHOME": "/nonexistent", "PYTHONPATH": "/nonexistent", "LD_LIBRARY_PATH": "/nonexistent"}
    (tmp_path / "run").mkdir(mode=0o700)
    with bridge(engine_environment | own | {"XDG_RUNTIME_DIR": str(tmp_path / "run")}) as line:
        try:
            assert ask(line, *opening_of(clip)) == "unanalysed\n"
            (engine,) = engines(tmp_path)
            assert not own.keys() & {
                entry.partition("=")[0] for entry in Path(f"/proc/{engine}/environ").read_text().split("\0")
            }
        finally:
            for process in engines(tmp_path):
                os.kill(process, signal.SIGKILL)


def test_the_engine_gets_no_file_of_the_host(engine_environment: dict[str, str], clip: Path, tmp_path: Path) -> None:
    runtime, program, listed = tmp_path / "run", tmp_path / "vs3r", tmp_path / "files"
    runtime.mkdir(mode=0o700)
    program.write_text(f"#!/bin/sh\nls -l /proc/$$/fd > {listed}\nexit 3\n")
    program.chmod(0o700)
    environment = engine_environment | {"XDG_RUNTIME_DIR": str(runtime), "VS3R_COMMAND": str(program)}
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit, 2048), most))
    host_file, far = os.open(program, os.O_RDONLY), 1500
    os.dup2(host_file, far)
    try:
        with bridge(environment, files=(host_file, far)) as line:
            assert "ended at once" in ask(line, *opening_of(clip))
    finally:
        os.close(host_file)
        os.close(far)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
    opened = listed.read_text()
    # The shell itself reads the program, at a number of its own.
    assert opened.count(str(program)) <= 1 and f"{far} ->" not in opened
    assert ".users" not in opened and ".keeper" not in opened


class OldEngine(grpc.GenericRpcHandler):
    """Says that it is older than the plugins, or does not know the question."""

    def __init__(self, version: str | None) -> None:
        """version: None to know no call at all."""
        self._version = version

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        """Answers GetCapabilities only."""
        if self._version is None or not handler_call_details.method.endswith("/GetCapabilities"):
            return None
        answer = pb.GetCapabilitiesResponse(version=self._version, file_paths=True).SerializeToString()
        return grpc.unary_unary_rpc_method_handler(lambda _request, _context: answer)


@pytest.mark.parametrize(("version", "words"), [("0.0.9", "got '0.0.9'"), ("", "got ''"), (None, "too old")])
def test_an_engine_that_is_too_old_is_told_in_words(
    engine_environment: dict[str, str], clip: Path, tmp_path: Path, version: str | None, words: str
) -> None:
    address = f"unix:{tmp_path}/old.sock"
    server = grpc.server(ThreadPoolExecutor(1), handlers=[OldEngine(version)])
    assert server.add_insecure_port(address)
    server.start()
    with bridge(engine_environment, address) as line:
        answer = ask(line, *opening_of(clip))
    server.stop(None)
    assert answer.startswith("error\t") and words in answer and "install a newer vs3r" in answer


def test_a_session_that_has_expired_is_opened_again(engine_environment: dict[str, str], tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "expired.mp4", seed=33)
    with bridge(engine_environment) as line:
        line.sendall(("\t".join(opening_of(clip, analyse=True)) + "\n").encode())
        while not (answer := read_line(line)).startswith("ready"):
            assert answer.startswith("progress")
        with Client(f"unix:{engine_environment['XDG_RUNTIME_DIR']}/vs3r/engine.sock") as client:
            for session in client.list_sessions():
                client.delete_session(session.name)
        assert ask(line, "frame", "3", "4", "2", "1", "0", "0", "0") == "frame\t4\t2\t32\n"


def test_analyses_at_once_do_not_mix(engine_environment: dict[str, str], tmp_path: Path) -> None:
    clips = [make_clip(tmp_path / f"{seed}.mp4", seed=seed) for seed in (30, 31, 32)]

    def tracks(together: bool, folder: str) -> list[bytes]:
        cache = engine_environment | {
            "XDG_RUNTIME_DIR": str(tmp_path / folder),
            "XDG_CACHE_HOME": str(tmp_path / folder),
        }
        (tmp_path / folder).mkdir(mode=0o700)
        with ThreadPoolExecutor(len(clips) if together else 1) as pool:
            return list(pool.map(lambda clip: track_of(cache, clip), clips))

    try:
        assert tracks(True, "together") == tracks(False, "alone")
    finally:
        for engine in engines(tmp_path):
            os.kill(engine, signal.SIGKILL)


def track_of(environment: dict[str, str], clip: Path) -> bytes:
    """What an analysis makes of a clip."""
    with bridge(environment) as line:
        line.sendall(("\t".join(opening_of(clip, analyse=True)) + "\n").encode())
        while not (answer := read_line(line)).startswith("ready"):
            assert answer.startswith("progress")
        count = int(ask(line, "track").split("\t")[1])
        data = b""
        while len(data) < count:
            data += line.recv(count - len(data))
        return data

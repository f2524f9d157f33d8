"""What the server adds to the pipeline, and whether it leaks: python -m benchmarks.serve all CLIP

Each part by itself: overhead, sessions, soak [SECONDS]; latency CLIP, throughput CLIP.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import queue
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np

from benchmarks.process import run
from tests.server.conftest import still_models
from tests.server.relay import BreakingRelay
from vs3r.config import Config, FlowConfig, ReconstructConfig, RenderConfig, SmoothConfig
from vs3r.engine.allocator import keep_freed_memory
from vs3r.engine.client.errors import ServerError
from vs3r.engine.client.shared import SharedFrames
from vs3r.engine.client.sync import Client
from vs3r.engine.client.unfinished import Steady
from vs3r.engine.media import VideoReader
from vs3r.engine.media.formats import picture_format
from vs3r.engine.server.guard import Models
from vs3r.engine.server.serve import Server
from vs3r.engine.server.settings import ServeConfig
from vs3r.types import Frame, Plane

# What docs/server.md names for live pictures: analysis of a smaller picture, and nothing filled from neighbours.
LIVE = Config(
    reconstruct=ReconstructConfig(backend="turning"),
    flow=FlowConfig(analysis_pixels=160 * 90),
    smooth=SmoothConfig(lookahead_frames=0),
    render=RenderConfig(fill_window_frames=0),
)
# Nothing to wait for and nothing to compute: what is left is the server.
AT_ONCE = Config(smooth=SmoothConfig(lookahead_frames=0), render=RenderConfig(fill_window_frames=0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a process holds."""

    rss_mib: float
    """Resident memory."""
    threads: int
    """Threads."""
    descriptors: int
    """Open files and sockets."""
    segments: int
    """Shared-memory segments of clients that it has mapped."""

    @staticmethod
    def of(pid: int) -> Usage:
        """The process `pid` now."""
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return Usage(
            rss_mib=int(status["VmRSS"].split()[0]) / 1024,
            threads=int(status["Threads"]),
            descriptors=len(os.listdir(f"/proc/{pid}/fd")),
            segments=Path(f"/proc/{pid}/maps").read_text().count("/memfd:vs3r-"),
        )

    def __str__(self) -> str:
        return (
            f"{self.rss_mib:.0f} MiB, {self.threads} threads, {self.descriptors} descriptors, {self.segments} segments"
        )


def serve(models: str) -> None:
    """A server as a process of its own, until its standard input ends."""
    keep_freed_memory()
    if models == "echo":
        _serve_echo()
        return
    made = still_models(batch=1) if models == "still" else Models()
    with tempfile.TemporaryDirectory() as folder:
        # Sessions whose clients vanish stay until they expire.
        config = ServeConfig(
            listen="127.0.0.1:0", cache_dir=folder, allow_shm=True, max_sessions=10_000, max_sessions_per_peer=10_000
        )
        with Server(config, models=made) as server:
            print(server.address, flush=True)
            sys.stdin.read()


def _serve_echo() -> None:
    """Nothing but gRPC: every message comes back."""
    handler: Any = grpc.stream_stream_rpc_method_handler(lambda requests, _context: requests)
    made = grpc.server(ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", -1)])
    made.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo", {"Echo": handler}),))
    print(f"127.0.0.1:{made.add_insecure_port('127.0.0.1:0')}", flush=True)
    made.start()
    sys.stdin.read()


@contextmanager
def echo() -> Iterator[Callable[[bytes], float]]:
    """Gives the seconds in which gRPC alone brings a message to another process and back."""
    waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def there_and_back(message: bytes) -> float:
        start = time.perf_counter()
        waiting.put(message)
        next(answers)
        return time.perf_counter() - start

    options = [("grpc.max_receive_message_length", -1)]
    with server("echo") as (address, _), grpc.insecure_channel(address, options=options) as channel:
        call: Any = channel.stream_stream("/echo/Echo")
        answers = call(iter(waiting.get, None))
        yield there_and_back
        waiting.put(None)


@contextmanager
def server(models: str) -> Iterator[tuple[str, int]]:
    """A server's address and process."""
    command = [sys.executable, "-m", "benchmarks.serve", "serve", models]
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # as the program has it
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process.pid
        process.communicate()


def noise(width: int, height: int, count: int) -> list[Frame]:
    """4:2:0 frames at 30 per second."""
    fmt, rng = picture_format("yuv420p", width, height), np.random.default_rng(0)
    planes = tuple(rng.integers(0, 256, fmt.plane_shape(i), dtype=np.uint8) for i in range(3))
    return [Frame(format=fmt, planes=planes, pts=i, time_base=Fraction(1, 30), duration=1) for i in range(count)]


def percentiles(values: Sequence[float]) -> str:
    """In milliseconds."""
    return ", ".join(f"p{q} {np.percentile(values, q) * 1e3:.2f} ms" for q in (10, 50, 99))


def overhead(frames: int = 300, warm_up: int = 30) -> None:
    """Time of a 1080p frame outside the pipeline: one frame at a time, from the client's hands to its hands. In turn
    with it, what gRPC alone needs for messages of the same size.

    Over shared memory, frames that the client has made there, and frames that are copied to it.
    """
    pictures = noise(1920, 1080, frames)
    pixels = b"".join(plane.tobytes() for plane in pictures[0].planes)
    for transport, message in (("gRPC bytes", pixels), ("shared memory", bytes(60)), ("copied to it", bytes(60))):
        memory = None if transport == "gRPC bytes" else SharedFrames(pictures[0].format)
        made_there = memory if transport == "shared memory" else None
        with server("still") as (address, _), Client(address) as client, echo() as floor:
            turn, sent, outside, alone = threading.Semaphore(1), [0.0] * frames, [], []

            def source(
                turn: threading.Semaphore = turn, sent: list[float] = sent, made_there: SharedFrames | None = made_there
            ) -> Iterator[Frame]:
                for i, frame in enumerate(pictures):
                    turn.acquire()
                    given = frame
                    if made_there is not None:
                        given = replace(frame, planes=made_there.planes())
                        for plane, drawn in zip(given.planes, frame.planes, strict=True):
                            np.copyto(plane, drawn)
                    sent[i] = time.perf_counter()
                    yield given

            for result in client.stabilize(source(), AT_ONCE, shared_memory=memory):
                now = time.perf_counter()
                assert isinstance(result, Steady)
                outside.append(now - sent[result.sequence] - result.timings.pipeline_us / 1e6)
                alone.append(floor(message))
                turn.release()
        print(f"overhead, 1080p 4:2:0, {transport}: {percentiles(outside[warm_up:])} of {frames - warm_up} frames")
        print(f"  gRPC alone, messages of {len(message)} bytes there and back: {percentiles(alone[warm_up:])}")


def latency(clip: str, frames: int = 150) -> None:
    """From sending a frame to its result, frames at 30 per second, nothing looked ahead; by default, and for live."""
    with VideoReader(clip) as reader:
        pictures = [
            replace(frame, pts=i, time_base=Fraction(1, 30)) for i, frame in enumerate(itertools.islice(reader, frames))
        ]
    size = f"{pictures[0].format.width}x{pictures[0].format.height}"
    for name, config in (("default", Config(smooth=SmoothConfig(lookahead_frames=0))), ("live", LIVE)):
        with server("real") as (address, _), Client(address) as client:
            list(client.stabilize(pictures[:24], config))  # the first use of a library costs seconds
            took, held, late = _at_30_per_second(client, pictures, config)
        print(f"latency, {name}, lookahead 0, {len(pictures)} frames of {size} at 30 per second: {percentiles(took)}")
        print(f"  at most {held} frames on their way; the last was taken {late:.2f} s late", flush=True)


def _at_30_per_second(client: Client, pictures: Sequence[Frame], config: Config) -> tuple[list[float], int, float]:
    """Each frame's seconds from sending to result, how many were on their way at most, how late the last was taken."""
    sent: list[float] = []
    took: list[float] = []
    held = 0

    def source() -> Iterator[Frame]:
        nonlocal held
        start = time.perf_counter()
        for i, frame in enumerate(pictures):
            time.sleep(max(0.0, start + i / 30 - time.perf_counter()))
            sent.append(time.perf_counter())
            held = max(held, len(sent) - len(took))
            yield frame

    took.extend(time.perf_counter() - sent[result.sequence] for result in client.stabilize(source(), config))
    return took, held, sent[-1] - sent[0] - (len(sent) - 1) / 30


def throughput(clip: str) -> None:
    """Whole commands on a clip: alone, at a server, and two at a time at a server."""
    with tempfile.TemporaryDirectory() as folder, server("real") as (address, _):

        def command(name: str, *more: str) -> list[str]:
            start = [sys.executable, "-m", "vs3r", "stabilize", clip]
            return [*start, f"{folder}/{name}.mkv", "--quiet", *more]

        # In turn, the better of two each: other work on the machine comes and goes.
        pairs = [
            (run(command("alone", "-y")).wall_s, run(command("remote", "-y", "--server", address)).wall_s)
            for _ in range(2)
        ]
        alone, remote = (min(times) for times in zip(*pairs, strict=True))
        same = Path(f"{folder}/alone.mkv").read_bytes() == Path(f"{folder}/remote.mkv").read_bytes()
        start = time.perf_counter()
        both = [subprocess.Popen(command(f"both{i}", "--server", address)) for i in range(2)]
        assert [process.wait() for process in both] == [0, 0]
        two = time.perf_counter() - start
    print(
        f"throughput, {Path(clip).name}: command line {alone:.1f} s, server {remote:.1f} s ({alone / remote:.2f} of it"
    )
    print(f"  and the same bytes: {same}); two at once {two:.1f} s ({2 * remote / two:.2f} of one)")


def sessions(count: int = 1000) -> None:
    """Sessions with a stream, over bytes and over shared memory in turn. Of four, one's connection is reset in the
    middle of a frame, another one's while its slots are lent."""
    pictures = noise(160, 120, 12)
    lengths = 150_000, 3_000  # bytes sent until then

    def one(address: str, memory: SharedFrames | None) -> None:
        with Client(address) as client:
            session = client.create_session(str(uuid.uuid4()), AT_ONCE).name
            list(client.stabilize(pictures, session=session, shared_memory=memory, patience_s=0))
            client.delete_session(session)

    with (
        server("still") as (address, pid),
        Client(address) as client,
        BreakingRelay(address, itertools.repeat(lengths[0])) as bytes_relay,
        BreakingRelay(address, itertools.repeat(lengths[1])) as shared_relay,
    ):

        def round_(number: int) -> None:
            for i in range(number):
                shared = i % 4 >= 2
                relay = shared_relay if shared else bytes_relay
                with suppress(ServerError):
                    one(relay.address if i % 2 else address, SharedFrames(pictures[0].format) if shared else None)

        round_(50)
        before = _settled(client, pid)
        start = time.perf_counter()
        round_(count)
        seconds, broken = time.perf_counter() - start, (bytes_relay.broken, shared_relay.broken)
        after = _settled(client, pid)
    print(f"sessions, {count} in {seconds:.0f} s; connections reset (with 50 to warm up), bytes and shared: {broken}")
    print(f"  before: {before}\n  after:  {after}")


def _settled(client: Client, pid: int) -> Usage:
    """Once the server has noticed that its clients are gone, and their sessions are dropped, as time would."""
    while client.status().streams:
        time.sleep(0.1)
    for session in list(client.list_sessions()):
        client.delete_session(session.name)
    time.sleep(1.0)
    return Usage.of(pid)


def soak(seconds: float = 90.0) -> None:
    """Endless streams of small frames as fast as they go: the memory after a third of the time, and at the end.

    Half of the time nothing is computed, half of it the pipeline runs on pictures that move.
    """
    for models, config in (("still", AT_ONCE), ("real", Config(smooth=SmoothConfig(lookahead_frames=4)))):
        _soak(models, config, seconds / 2)


def _soak(models: str, config: Config, seconds: float) -> None:
    big = noise(800, 600, 1)[0]
    fmt, marks = picture_format("yuv420p", 320, 180), list[Usage]()
    with server(models) as (address, pid), Client(address) as client:
        start = time.perf_counter()

        def source() -> Iterator[Frame]:
            for i in itertools.takewhile(lambda _: time.perf_counter() - start < seconds, itertools.count()):
                x, y = (60 + 2 * round(20 * np.sin(i / step)) for step in (9, 7))
                corners = (y, x), (y // 2, x // 2), (y // 2, x // 2)
                planes = tuple(
                    cast("Plane", np.ascontiguousarray(plane[top : top + rows, left : left + columns]))
                    for plane, (top, left), (rows, columns) in zip(
                        big.planes, corners, map(fmt.plane_shape, range(3)), strict=True
                    )
                )
                yield replace(big, format=fmt, planes=planes, pts=i)

        count = 0
        for _ in client.stabilize(source(), config):
            count += 1
            if not marks and time.perf_counter() - start > seconds / 3:
                marks.append(Usage.of(pid))
        marks.append(Usage.of(pid))
    print(
        f"soak, {models} models, {count} frames of 320x180 in {seconds:.0f} s, "
        f"as many as {count / 30 / 60:.1f} minutes at 30 per second"
    )
    print(f"  a third: {marks[0]}\n  the end: {marks[-1]}", flush=True)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["all", "overhead", "latency", "throughput", "sessions", "soak", "serve"])
    parser.add_argument("argument", nargs="?", help="a clip, for latency, throughput and all; seconds, for soak")
    given = parser.parse_args()
    if given.part == "serve":
        serve(given.argument)
        return
    if given.part in ("all", "latency", "throughput") and given.argument is None:
        parser.error(f"{given.part} needs a clip")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    seconds = float(given.argument) if given.part == "soak" and given.argument else 90.0
    parts: dict[str, Callable[[], None]] = {
        "overhead": overhead,
        "sessions": sessions,
        "soak": lambda: soak(seconds),
    }
    keep_freed_memory()
    for name, part in parts.items():
        if given.part in ("all", name):
            part()
    for name, measure in {"latency": latency, "throughput": throughput}.items():
        if given.part in ("all", name):
            measure(given.argument)


if __name__ == "__main__":
    main()

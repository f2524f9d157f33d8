"""A server in this process with quick stand-ins for the models, and a client."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.engine.clips import Clip, make_frames
from tests.engine.fakes import BatchReconstructor, CopyingRenderer
from vs3r.config import Config, RenderConfig, SmoothConfig
from vs3r.engine.client.errors import ServerError
from vs3r.engine.client.sync import Client
from vs3r.engine.proto.layout import layout_message, planar_layout, rational
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.server.guard import Models
from vs3r.engine.server.serve import Server
from vs3r.engine.server.settings import ServeConfig
from vs3r.types import Frame, FrameGeometry, PictureFormat

CONFIG = Config(smooth=SmoothConfig(lookahead_frames=2), render=RenderConfig(fill_window_frames=3))
CLIP = Clip(frames=24, width=64, height=48)
FRAMES = make_frames(CLIP)

Serve = Callable[..., Server]


class ShakyReconstructor(BatchReconstructor):
    """A camera that nods by a degree a frame, in batches of 4; throws on the frames in `bad` and `unseen`."""

    def __init__(self, fmt: PictureFormat, bad: tuple[int, ...] = (), unseen: tuple[int, ...] = ()) -> None:
        super().__init__(4)
        self._format = fmt
        self._bad, self._unseen = bad, unseen
        self._observed = self._seen = 0

    def observe(self, frame: Frame, /) -> Frame:
        self._observed += 1
        if self._observed - 1 in self._unseen:
            raise RuntimeError("the model sees nothing")
        return frame

    def push(self, frame: Frame, /) -> list[FrameGeometry]:
        self._seen += 1
        if self._seen - 1 in self._bad:
            raise RuntimeError("the model is out of order")
        return [self._moved(g) for g in super().push(frame)]

    def flush(self) -> list[FrameGeometry]:
        return [self._moved(g) for g in super().flush()]

    def _moved(self, geometry: FrameGeometry) -> FrameGeometry:
        angle = np.deg2rad(1.0 if geometry.index % 2 else -1.0)
        pose = np.eye(4)
        pose[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        w, h = self._format.width, self._format.height
        K = np.array([[w, 0, w / 2], [0, w, h / 2], [0, 0, 1.0]])
        return replace(geometry, K=K, cam_from_world=pose)


def shaky_models(bad: tuple[int, ...] = (), unseen: tuple[int, ...] = ()) -> Models:
    """The real smoother and renderer behind a quick reconstructor."""
    return Models(reconstructor=lambda _config, fmt: ShakyReconstructor(fmt, bad, unseen))


def still_models(batch: int = 4) -> Models:
    """Nothing but delay: every frame comes back as it went in."""
    return Models(
        reconstructor=lambda _config, _fmt: BatchReconstructor(batch),
        renderer=lambda _config, _fmt: CopyingRenderer(),
    )


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Makes servers; they end with the test, and leave no thread behind."""
    before = set(threading.enumerate())
    with ExitStack() as held:

        def start(models: Models | None = None, **settings: object) -> Server:
            given = {"listen": "127.0.0.1:0", "cache_dir": str(tmp_path / "cache"), "grace_s": 5.0} | settings
            return held.enter_context(Server(ServeConfig(**given), models=models or shaky_models()))  # type: ignore[arg-type]

        yield start
    left = [t for t in threading.enumerate() if t not in before and t.name.startswith("vs3r-stream")]
    for thread in left:
        thread.join(10)
    assert not [t for t in left if t.is_alive()]


@pytest.fixture
def client(serve: Serve) -> Iterator[Client]:
    """A client of a server with the shaky models."""
    with Client(serve().address) as found:
        yield found


@contextmanager
def connected(server: Server) -> Iterator[Client]:
    """A client of a server."""
    with Client(server.address) as found:
        yield found


def opening(frame: Frame = FRAMES[0], session: str = "", **fields: object) -> pb.StreamRequest:
    """The first message of a stream of frames like one."""
    config = pb.StreamConfig(
        session=session,
        format=layout_message(planar_layout(frame.format)),
        time_base=rational(frame.time_base),
        **fields,  # type: ignore[arg-type]
    )
    return pb.StreamRequest(config=config)


def message(sequence: int, frame: Frame) -> pb.StreamRequest:
    """A frame of a stream."""
    return pb.StreamRequest(
        frame=pb.Frame(sequence=sequence, pts=frame.pts, duration=frame.duration, data=pixels(frame))
    )


def pixels(frame: Frame) -> bytes:
    """All planes of a frame."""
    return b"".join(plane.tobytes() for plane in frame.planes)


def refusal(client: Client, name: str, request: object) -> ServerError:
    """How a call is refused."""
    with pytest.raises(ServerError) as caught:
        client.call(name, request)
    return caught.value


def wait_until(condition: object, limit: int = 600) -> None:
    """For what the server does on its own time after a connection broke."""
    pause = threading.Event()
    for _ in range(limit):
        if condition():  # type: ignore[operator]
            return
        pause.wait(0.05)
    raise AssertionError("it did not come about")

"""Streams: the same bytes as the pipeline, credit, bad frames, failing models, clients that misbehave."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.engine.clips import Clip, barred, make_frames, write_clip
from tests.server.conftest import (
    CONFIG,
    FRAMES,
    Serve,
    ShakyReconstructor,
    connected,
    message,
    opening,
    pixels,
    shaky_models,
    still_models,
    wait_until,
)
from vs3r.config import Config, EncodeConfig, ReconstructConfig, RenderConfig, SmoothConfig, VggtConfig
from vs3r.engine.cli import run
from vs3r.engine.client.errors import ServerError
from vs3r.engine.client.shared import SharedFrames
from vs3r.engine.client.sync import Client
from vs3r.engine.client.unfinished import Refused, Steady
from vs3r.engine.files import stabilize_file
from vs3r.engine.media.bars import Bars
from vs3r.engine.pipeline import Analysis, Rendering, SourceWindow, StabilizedFrame, Stabilizer
from vs3r.engine.proto import wire
from vs3r.engine.proto.convert import config_message
from vs3r.engine.proto.layout import PIXEL_FORMATS, layout_of
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.server.guard import Models
from vs3r.engine.server.stream_run import CREDITS
from vs3r.refine import make_refiner
from vs3r.render.planes import empty_planes
from vs3r.smooth import PathSmoother
from vs3r.types import Frame, PictureFormat


def expected(frames: list[Frame], models: Models | None = None) -> list[StabilizedFrame]:
    """What the pipeline makes of frames, without the server's guards."""
    models, fmt = models or shaky_models(), frames[0].format
    analysis = Analysis(models.reconstructor(CONFIG, fmt), PathSmoother(CONFIG.smooth, fmt))
    rendering = Rendering(models.renderer(CONFIG, fmt), make_refiner(CONFIG.refine), SourceWindow.of_stream(CONFIG))
    items = [item for frame in frames for item in analysis.push(analysis.observe(frame))] + analysis.flush()
    return [done for item in items for done in rendering.push(item)] + rendering.flush()


def steady(results: Iterator[Steady | Refused]) -> list[Steady]:
    found = list(results)
    assert all(isinstance(r, Steady) for r in found), found
    return [r for r in found if isinstance(r, Steady)]


@pytest.mark.parametrize("shared_memory", [False, True])
def test_same_bytes_as_the_pipeline(serve: Serve, shared_memory: bool) -> None:
    want = expected(FRAMES)
    assert pixels(want[5].frame) != pixels(FRAMES[5]), "the models must change something"
    with connected(serve(allow_shm=True)) as client:
        memory = SharedFrames(FRAMES[0].format) if shared_memory else None
        got = steady(client.stabilize(FRAMES, CONFIG, shared_memory=memory))
        assert client.status().shared_memory_regions == 0
        assert client.status().sessions == 0
    assert [r.sequence for r in got] == list(range(len(FRAMES)))
    for mine, theirs in zip(want, got, strict=True):
        assert pixels(mine.frame) == pixels(theirs.frame)
        assert (mine.frame.pts, mine.frame.duration) == (theirs.frame.pts, theirs.frame.duration)
        assert mine.valid_share == pytest.approx(theirs.valid_share, abs=1e-6)
        assert not theirs.passed_through
        assert theirs.timings.pipeline_us > 0


@pytest.mark.parametrize("transient", [False, True])
def test_a_transient_stream_leaves_nothing_in_its_session(client: Client, transient: bool) -> None:
    session = client.create_session("clip", CONFIG).name
    requests = [message(i, frame) for i, frame in enumerate(FRAMES)]
    _, frames = exchange(client, requests, config=None, session=session, transient=transient)
    assert [f.data for f in frames] == [pixels(w.frame) for w in expected(FRAMES)]
    found = client.get_session(session)
    assert (found.frame_count, found.held_frames) == ((0, 0) if transient else (len(FRAMES), len(FRAMES)))


def test_the_command_line_writes_the_same_file(serve: Serve, tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mkv", Clip(frames=20, codec="ffv1", pix_fmt="yuv422p10le", audio="pcm_s16le"))
    options = ["--lookahead-frames", "2", "--fill-window-frames", "3", "--codec", "ffv1", "--quiet"]
    server = serve(Models())
    assert run(["stabilize", str(source), str(tmp_path / "a.mkv"), "--server", server.address, *options]) == 0
    stabilize_file(source, tmp_path / "b.mkv", replace(CONFIG, encode=EncodeConfig(codec="ffv1")))
    assert (tmp_path / "a.mkv").read_bytes() == (tmp_path / "b.mkv").read_bytes()


def test_black_bars_stay_at_the_client(serve: Serve, tmp_path: Path) -> None:
    clip = Clip(frames=20, width=128, height=96, codec="ffv1")
    frames = [barred(frame, Bars(top=16, bottom=16)) for frame in make_frames(clip)]
    source = write_clip(tmp_path / "in.mkv", clip, frames=frames)
    options = ["--lookahead-frames", "2", "--fill-window-frames", "3", "--codec", "ffv1", "--quiet"]
    assert run(["stabilize", str(source), str(tmp_path / "a.mkv"), "--server", serve(Models()).address, *options]) == 0
    report = stabilize_file(source, tmp_path / "b.mkv", replace(CONFIG, encode=EncodeConfig(codec="ffv1")))
    assert any("black bars" in note for note in report.notes)
    assert (tmp_path / "a.mkv").read_bytes() == (tmp_path / "b.mkv").read_bytes()


def test_settings_of_networks_reach_the_server(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of VGGT are used there; Wan, which a server cannot run, is refused in a line, and nothing is written."""
    source = write_clip(tmp_path / "in.mkv", Clip(frames=6, codec="ffv1"))
    seen: list[Config] = []

    def reconstructor(config: Config, fmt: PictureFormat) -> ShakyReconstructor:
        seen.append(config)
        return ShakyReconstructor(fmt)

    def stabilized(*options: str) -> int:
        target = str(tmp_path / "out.mkv")
        return run(["stabilize", str(source), target, "--server", server.address, "--quiet", *options])

    server = serve(replace(shaky_models(), reconstructor=reconstructor, refiner=lambda c: make_refiner(c.refine)))
    assert stabilized("--refine", "wan", "--wan-steps", "4") == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out.mkv").exists()
    assert stabilized("--vggt-window-frames", "16", "--vggt-precision", "fp32") == 0
    assert seen[-1].vggt == VggtConfig(vggt_window_frames=16, vggt_precision="fp32")


def test_the_command_line_without_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_clip(tmp_path / "in.mkv", Clip(frames=2, codec="ffv1"))
    assert run(["stabilize", str(source), str(tmp_path / "a.mkv"), "--server", "127.0.0.1:1"]) == 1
    assert "cannot reach the server 127.0.0.1:1" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]


def test_results_come_while_frames_are_sent(client: Client) -> None:
    seen: queue.Queue[int] = queue.Queue()

    def endless() -> Iterator[Frame]:
        for i, frame in enumerate(FRAMES):
            if i == len(FRAMES) - 1:
                seen.get(timeout=30)  # a result, long before the end
            yield frame

    for result in client.stabilize(endless(), CONFIG):
        seen.put(result.sequence)


def test_a_camera_that_only_turns_keeps_no_frame_waiting(serve: Serve) -> None:
    """Live: each frame is sent when the result of the one before has come; the same pictures as all at once."""
    config = Config(
        reconstruct=ReconstructConfig(backend="turning"),
        smooth=SmoothConfig(lookahead_frames=0),
        render=RenderConfig(fill_window_frames=0),
    )
    came = threading.Semaphore(1)

    def one_by_one() -> Iterator[Frame]:
        for frame in FRAMES:
            assert came.acquire(timeout=30), "the frame before has no result yet"
            yield frame

    got: list[Steady] = []
    with Client(serve(Models()).address) as client:
        for result in client.stabilize(one_by_one(), config):
            assert isinstance(result, Steady)
            got.append(result)
            came.release()
    stabilizer = Stabilizer(config, FRAMES[0].format)
    want = [done for frame in FRAMES for done in stabilizer.push(frame)]
    assert [pixels(w.frame) for w in want] == [pixels(g.frame) for g in got]
    assert stabilizer.flush() == []


def test_bad_frames_cost_only_themselves(client: Client) -> None:
    """Wrong size, no pixels, time standing still or going backwards, a frame twice, one too late."""
    good = [message(i, frame) for i, frame in enumerate(FRAMES)]

    def changed(i: int, **fields: object) -> pb.StreamRequest:
        request = pb.StreamRequest()
        request.CopyFrom(good[i])
        request.frame.MergeFrom(pb.Frame(**fields))  # type: ignore[arg-type]
        return request

    empty = pb.StreamRequest(frame=pb.Frame(sequence=6, pts=FRAMES[6].pts))
    requests = [*good[:4], changed(4, data=b"short"), changed(5, pts=FRAMES[2].pts), empty]
    requests += [good[7], good[7], good[3], *good[8:]]
    errors, frames = exchange(client, requests, config=CONFIG)
    assert [(e.sequence, e.reason) for e in errors] == [
        (4, "INPUT_UNUSABLE"), (5, "PTS"), (6, "PIXELS"), (7, "SEQUENCE"), (3, "SEQUENCE"),
    ]  # fmt: skip
    used = [i for i in range(len(FRAMES)) if i not in (4, 5, 6)]
    assert [f.sequence for f in frames] == used
    want = expected([FRAMES[i] for i in used])
    assert [f.data for f in frames] == [pixels(w.frame) for w in want]


def exchange(
    client: Client, requests: list[pb.StreamRequest], *, config: Config | None = CONFIG, **fields: object
) -> tuple[list[pb.FrameError], list[pb.StabilizedFrame]]:
    """Send by credit, collect all."""
    credit = threading.Semaphore(0)

    def sending() -> Iterator[pb.StreamRequest]:
        yield opening(config=config_message(config) if config is not None else None, **fields)  # type: ignore[arg-type]
        for request in requests:
            credit.acquire()
            yield request

    errors, frames = [], []
    with client.open_call("Stream", sending()) as responses:
        for response in responses:
            match wire.kind_of(response):
                case "started":
                    credit.release(response.started.credits)
                case "credit":
                    credit.release(response.credit.frames)
                case "frame":
                    frames.append(wire.whole(response).frame)
                case "frame_error":
                    errors.append(response.frame_error)
    return errors, frames


@pytest.mark.parametrize(
    ("models", "held"),
    [
        (shaky_models(bad=(9,)), {8, 9}),
        (shaky_models(bad=(0,)), {0}),
        (shaky_models(bad=(5, 6, 17)), {4, 5, 6, 15, 16, 17}),
        (shaky_models(unseen=(9, 10)), {8, 9, 10}),
    ],
    ids=["middle", "first", "several", "unseen"],
)
def test_a_failing_model_passes_its_window_through(serve: Serve, models: Models, held: set[int]) -> None:
    with connected(serve(models)) as client:
        got = steady(client.stabilize(FRAMES, CONFIG))
        assert client.status().frames_passed_through == len(held)
    assert [r.sequence for r in got] == list(range(len(FRAMES)))
    assert {r.sequence for r in got if r.passed_through} == held
    for result in got:
        same = pixels(result.frame) == pixels(FRAMES[result.sequence])
        assert same == result.passed_through, result.sequence


def test_a_failing_renderer_passes_its_frame_through(serve: Serve) -> None:
    class Failing:
        def __init__(self) -> None:
            self._inner = still_models().renderer(CONFIG, FRAMES[0].format)

        def render(self, index: int, camera: object, sources: object, out: object, /) -> object:
            if index == 11:
                raise ValueError
            return self._inner.render(index, camera, sources, out)  # type: ignore[arg-type]

    models = replace(still_models(), renderer=lambda _config, _fmt: Failing())  # type: ignore[return-value, arg-type]
    with connected(serve(models)) as client:
        got = steady(client.stabilize(FRAMES, CONFIG))
    assert [r.sequence for r in got if r.passed_through] == [11]
    assert pixels(got[11].frame) == pixels(FRAMES[11])


def test_frames_without_credit_end_the_call(serve: Serve) -> None:
    """A client that writes more than it may: told so, not blocked."""

    class Busy(ShakyReconstructor):
        def observe(self, frame: Frame, /) -> Frame:
            threading.Event().wait(1.0)  # meanwhile credit runs out
            return frame

    models = replace(shaky_models(), reconstructor=lambda _config, fmt: Busy(fmt))
    requests = [opening(), *(message(i, f) for i, f in enumerate(FRAMES * 3))]
    with (
        connected(serve(models)) as client,
        pytest.raises(ServerError, match="credit") as caught,
        client.open_call("Stream", iter(requests)) as responses,
    ):
        list(responses)
    assert (caught.value.code, caught.value.reason) == ("RESOURCE_EXHAUSTED", "CREDIT")


def test_a_slow_reader_gets_everything(serve: Serve) -> None:
    """Nothing is read until the server can do no more: memory stays that of the credit, and nothing is lost."""
    with connected(serve(still_models())) as client:
        results = client.stabilize(FRAMES, CONFIG)
        first = next(results)
        assert client.status().frames_received <= CREDITS + 24
        rest = list(results)
    assert [r.sequence for r in [first, *rest]] == list(range(len(FRAMES)))


@pytest.mark.parametrize("requests", [[], [message(0, FRAMES[0])], [pb.StreamRequest()]])
def test_a_stream_begins_with_its_config(client: Client, requests: list[pb.StreamRequest]) -> None:
    with pytest.raises(ServerError) as caught, client.open_call("Stream", iter(requests)) as responses:
        list(responses)
    assert caught.value.code == "INVALID_ARGUMENT"


def test_a_wrong_opening_names_its_fields(client: Client) -> None:
    request = opening()
    request.config.format.height = 0
    with pytest.raises(ServerError) as caught, client.open_call("Stream", iter([request])) as responses:
        list(responses)
    assert caught.value.reason == "INVALID_FIELDS"
    assert [v.field for v in caught.value.violations] == ["config.format.height"]


def test_a_client_that_vanishes_leaves_nothing(serve: Serve) -> None:
    server = serve(still_models())
    for _ in range(5):
        with connected(server) as client:
            results = client.stabilize(FRAMES, CONFIG)
            next(results)
            client.close()  # with frames on their way
    with connected(server) as client:
        wait_until(lambda: client.status().streams == 0 and client.status().reserved_bytes == 0)


def test_fuzzed_bytes_are_refused(serve: Serve) -> None:
    """Random bytes, and valid messages with bytes changed: a status each, and the server lives."""
    rng = np.random.default_rng(5)
    valid = opening().SerializeToString() + message(0, FRAMES[0]).SerializeToString()[:200]
    server = serve(still_models())
    names = [m.name for m in pb.DESCRIPTOR.services_by_name["EngineService"].methods]
    ends: set[str] = set()
    with grpc.insecure_channel(server.address) as channel:
        for round_ in range(8):
            noise = bytearray(valid if round_ % 2 else rng.bytes(200))
            for at in rng.integers(0, len(noise), 10):
                noise[at] = rng.integers(256)
            for name in names:
                call: Any = channel.stream_stream(f"/vs3r.v1.EngineService/{name}")
                responses = call(iter([bytes(noise)]), timeout=20)
                with suppress(grpc.RpcError):
                    list(responses)
                ends.add(responses.code().name)
    assert ends <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED", "OUT_OF_RANGE"}
    assert "INVALID_ARGUMENT" in ends
    with connected(server) as client:
        assert len(steady(client.stabilize(FRAMES[:4], CONFIG))) == 4


def test_fuzzed_frames_in_a_stream_cost_themselves_or_the_call(serve: Serve) -> None:
    """Frames whose bytes are changed behind a valid opening: an error each, never a hang; nothing stays behind."""
    rng = np.random.default_rng(6)
    server = serve(shaky_models())
    ends: set[str] = set()
    with grpc.insecure_channel(server.address) as channel, connected(server) as client:
        session = client.create_session("clip", CONFIG).name
        source = pb.FrameSource(format=opening().config.format, time_base=opening().config.time_base)
        starts = {
            "Stream": opening(),
            "Analyze": pb.AnalyzeRequest(config=pb.AnalyzeConfig(session=session, frames=source)),
            "UploadFrames": pb.UploadFramesRequest(config=pb.UploadConfig(session=session, frames=source)),
        }
        for round_ in range(24):
            for name, start in starts.items():
                sent = [start.SerializeToString()]
                for i, frame in enumerate(FRAMES[:6]):
                    data = bytearray(message(i, frame).SerializeToString())
                    for at in rng.integers(0, 40, round_ % 4):
                        data[at] = rng.integers(256)
                    sent.append(bytes(data[: rng.integers(len(data)) if round_ % 5 == 4 else len(data)]))
                call: Any = channel.stream_stream(f"/vs3r.v1.EngineService/{name}")
                responses = call(iter(sent), timeout=20)
                with suppress(grpc.RpcError):
                    list(responses)
                ends.add(responses.code().name)
        assert ends <= {"OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION"}
        assert {"OK", "INVALID_ARGUMENT"} <= ends
        wait_until(lambda: client.status().streams == 0 and client.status().reserved_bytes == 0)
        assert len(steady(client.stabilize(FRAMES[:4], CONFIG))) == 4


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"pts": (1 << 63) - 1}, "PTS"),
        ({"pts": -(1 << 63)}, "PTS"),
        ({"duration": -1}, "PTS"),
        ({"duration": (1 << 63) - 1}, "PTS"),
        ({"data": b""}, "INPUT_UNUSABLE"),
        ({"slot": pb.SharedMemorySlot(region="r", offset=(1 << 64) - 1, byte_size=(1 << 64) - 1)}, "REGION_UNKNOWN"),
        ({"output_slot": pb.SharedMemorySlot(region="r", byte_size=1)}, "REGION_UNKNOWN"),
    ],
)
def test_absurd_numbers_cost_a_frame(client: Client, fields: dict[str, object], reason: str) -> None:
    wrong = message(1, FRAMES[1])
    wrong.frame.MergeFrom(pb.Frame(**fields))  # type: ignore[arg-type]
    if fields.get("data") == b"":
        wrong.frame.data = b""
    last = message(0, FRAMES[2])
    last.frame.sequence = (1 << 64) - 1
    errors, frames = exchange(client, [message(0, FRAMES[0]), wrong, last])
    assert [(e.sequence, e.reason) for e in errors] == [(1, reason)]
    assert [f.sequence for f in frames] == [0, (1 << 64) - 1]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"width": 1 << 31}, "config.format.width"),
        ({"width": 65536, "height": 65536}, "config.format.width"),
        ({"row_strides": [(1 << 32) - 1] * 3}, "config.format.row_strides"),
        ({"row_strides": [1] * 3}, "config.format.row_strides"),
        ({"row_strides": [64] * 5000}, "config.format.row_strides"),
    ],
)
def test_absurd_sizes_and_strides_are_refused(client: Client, changes: dict[str, Any], field: str) -> None:
    request = opening()
    for name, value in changes.items():
        if isinstance(value, list):
            del request.config.format.row_strides[:]
            request.config.format.row_strides.extend(value)
        else:
            setattr(request.config.format, name, value)
    with pytest.raises(ServerError) as caught, client.open_call("Stream", iter([request])) as responses:
        list(responses)
    assert [v.field for v in caught.value.violations] == [field]
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("pixel_format", PIXEL_FORMATS)
@pytest.mark.parametrize("padding", [0, 16])
def test_any_client_gets_frames_back_in_their_format(serve: Serve, pixel_format: pb.PixelFormat, padding: int) -> None:
    """Through the wire's own formats, with protobuf alone at this end: a still camera gives the same bytes back."""
    name = "yuv422p10le" if pixel_format == pb.PIXEL_FORMAT_PLANAR else ""
    shape = pb.FrameFormat(pixel_format=pixel_format, planar_name=name, width=20, height=10)
    shape.row_strides.extend(stride + padding for stride in layout_of(shape).strides)
    layout = layout_of(shape)
    rng = np.random.default_rng(1)
    data = []
    for _ in range(3):
        planes = [rng.integers(0, 1 << layout.format.bit_depth, p.shape, p.dtype) for p in empty_planes(layout.format)]
        data.append(b"".join(layout.pack(planes)))
    start = pb.StreamRequest(config=pb.StreamConfig(format=shape, time_base=pb.Rational(numerator=1, denominator=25)))
    frames = [pb.StreamRequest(frame=pb.Frame(sequence=1 + i, pts=i, data=d)) for i, d in enumerate(data)]
    with grpc.insecure_channel(serve(still_models()).address) as channel:
        call: Any = channel.stream_stream(
            "/vs3r.v1.EngineService/Stream",
            request_serializer=pb.StreamRequest.SerializeToString,
            response_deserializer=pb.StreamResponse.FromString,
        )
        got = [r.frame for r in call(iter([start, *frames])) if r.HasField("frame")]
    assert [(f.sequence, f.pts, f.data) for f in got] == [(1 + i, i, d) for i, d in enumerate(data)]
    assert all(f.timings.pipeline_us > 0 and f.valid_share == 1 for f in got)


def test_errors_of_the_source_reach_the_caller(client: Client) -> None:
    def broken() -> Iterator[Frame]:
        yield from FRAMES[:10]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(client.stabilize(broken(), CONFIG))


def test_frames_match_the_stabilizer() -> None:
    """The reference above is the pipeline that the documents show."""
    frames = make_frames(Clip(frames=6, width=64, height=48))
    stabilizer = Stabilizer(CONFIG, frames[0].format)
    done = [d for f in frames for d in stabilizer.push(f)] + stabilizer.flush()
    assert [pixels(d.frame) for d in done] == [pixels(e.frame) for e in expected(frames, Models())]

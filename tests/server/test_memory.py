"""The limit on memory for frames: every call that takes frames keeps it, and gives back what it had."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from tests.server.conftest import CONFIG, FRAMES, Serve, connected, pixels, still_models, wait_until
from vs3r.engine.client.errors import ServerError
from vs3r.engine.client.sync import Client
from vs3r.engine.proto.layout import layout_message, layout_of, planar_layout, rational
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.types import PictureFormat

LIMIT_MB = 64
FRAME_BYTES = sum(plane.nbytes for plane in FRAMES[0].planes)
AT_ONCE = {"Analyze": 8, "UploadFrames": 2}
"""Frames that a call may have beside those held."""

Request = pb.AnalyzeRequest | pb.UploadFramesRequest

calls = pytest.mark.parametrize("call", sorted(AT_ONCE))


def opening(call: str, session: str, fmt: PictureFormat = FRAMES[0].format) -> Request:
    """The first message of a call that sends frames."""
    source = pb.FrameSource(format=layout_message(planar_layout(fmt)), time_base=rational(FRAMES[0].time_base))
    if call == "Analyze":
        return pb.AnalyzeRequest(config=pb.AnalyzeConfig(session=session, frames=source, explicit_end=True))
    return pb.UploadFramesRequest(config=pb.UploadConfig(session=session, frames=source))


def frame(call: str, sequence: int) -> Request:
    """A frame of it."""
    source = FRAMES[sequence]
    message = pb.Frame(sequence=sequence, pts=source.pts, data=pixels(source))
    return pb.AnalyzeRequest(frame=message) if call == "Analyze" else pb.UploadFramesRequest(frame=message)


def talk(client: Client, call: str, requests: Iterator[Request]) -> None:
    """Send requests to the end of the call."""
    if call == "Analyze":
        with client.open_call(call, requests) as responses:
            list(responses)
    else:
        client.call(call, requests, timeout_s=None)


def works(client: Client, call: str, session: str) -> None:
    """A call within the limit succeeds, and leaves its frames."""
    if call == "Analyze":
        assert client.analyze_frames(session, FRAMES).frame_count == len(FRAMES)
    else:
        assert client.upload_frames(session, enumerate(FRAMES)).frames == len(FRAMES)
    assert client.get_session(session).held_frames == len(FRAMES)


@calls
def test_frames_too_large_for_the_server(serve: Serve, call: str) -> None:
    """They are refused before any is sent, and what the session has stays."""
    with connected(serve(still_models(), memory_mb=LIMIT_MB)) as client:
        session = client.create_session("clip", CONFIG).name
        client.upload_frames(session, [(0, FRAMES[0])])
        huge = replace(FRAMES[0].format, width=8192, height=4320)
        with pytest.raises(ServerError, match=r"64 MB \(--memory-mb\) and 0 MB in use; try smaller frames") as caught:
            talk(client, call, iter([opening(call, session, huge)]))
        assert (caught.value.code, caught.value.reason, caught.value.retry_s) == ("RESOURCE_EXHAUSTED", "MEMORY", None)
        status = client.status()
        assert (status.reserved_bytes, status.streams, status.held_frame_bytes) == (0, 0, FRAME_BYTES)
        works(client, call, session)


@calls
def test_memory_that_other_calls_have(serve: Serve, call: str) -> None:
    server = serve(still_models(), memory_mb=LIMIT_MB)
    with connected(server) as client:
        session = client.create_session("clip", CONFIG).name
        with server.state.memory.reserve(LIMIT_MB << 20), pytest.raises(ServerError, match="again later") as caught:
            talk(client, call, iter([opening(call, session)]))
        assert (caught.value.code, caught.value.reason) == ("RESOURCE_EXHAUSTED", "MEMORY")
        assert caught.value.retry_s is not None
        works(client, call, session)


@calls
@pytest.mark.parametrize("how", ["end", "error", "cancel", "raise"])
def test_memory_comes_back_however_a_call_ends(serve: Serve, call: str, how: str) -> None:
    with connected(serve(still_models(), memory_mb=LIMIT_MB)) as client:
        session = client.create_session("clip", CONFIG).name
        seen: list[int] = []

        def requests() -> Iterator[Request]:
            yield opening(call, session)
            yield frame(call, 0)
            wait_until(lambda: client.get_session(session).held_frames == 1)
            seen.append(client.status().reserved_bytes)
            match how:
                case "error":
                    yield opening(call, session)
                case "cancel":
                    client.delete_session(session)
                case "raise":
                    raise OSError("the disk is gone")
                case "end" if call == "Analyze":
                    yield pb.AnalyzeRequest(end=pb.EndOfClip())

        with suppress(ServerError, OSError):
            talk(client, call, requests())
        assert seen == [AT_ONCE[call] * FRAME_BYTES]
        wait_until(lambda: client.status().reserved_bytes == 0)
        works(client, call, client.create_session("next", CONFIG).name)


def test_an_upload_whose_frames_cannot_be_held_is_told_so(serve: Serve) -> None:
    """It would be asked for the same frames again and again."""
    server = serve(still_models(), memory_mb=LIMIT_MB)
    with connected(server) as client:
        session = client.create_session("clip", CONFIG).name
        others = (LIMIT_MB << 20) - AT_ONCE["UploadFrames"] * FRAME_BYTES
        with server.state.memory.reserve(others), pytest.raises(ServerError, match="again later") as caught:
            client.upload_frames(session, enumerate(FRAMES))
        assert (caught.value.reason, caught.value.retry_s is not None) == ("MEMORY", True)
        works(client, "UploadFrames", session)


def test_a_track_that_is_there_needs_no_memory(serve: Serve) -> None:
    server = serve(still_models(), memory_mb=LIMIT_MB)
    with connected(server) as client:
        session = client.create_session("clip", CONFIG).name
        client.analyze_frames(session, FRAMES)
        with server.state.memory.reserve(LIMIT_MB << 20):
            assert client.analyze_frames(session, FRAMES[:1]).reused


def test_gaps_between_rows_are_memory_too(serve: Serve) -> None:
    """A small picture may be large on the wire, and so is its result."""
    fmt = pb.FrameFormat(pixel_format=pb.PIXEL_FORMAT_RGBA8, width=64, height=48, row_strides=[1 << 16])
    config = pb.StreamConfig(format=fmt, time_base=rational(FRAMES[0].time_base))
    with connected(serve(still_models(), memory_mb=LIMIT_MB)) as client:
        with (
            pytest.raises(ServerError) as caught,
            client.open_call("Stream", iter([pb.StreamRequest(config=config)])) as got,
        ):
            list(got)
        assert (caught.value.code, caught.value.reason) == ("RESOURCE_EXHAUSTED", "MEMORY")


def test_floating_point_is_kept_as_integers(serve: Serve) -> None:
    """Only what is on its way counts as it comes: full HD in 32 bits fits the default limit, with default settings."""
    fmt = pb.FrameFormat(pixel_format=pb.PIXEL_FORMAT_RGBA_F32, width=1920, height=1080)
    config = pb.StreamConfig(format=fmt, time_base=rational(FRAMES[0].time_base), explicit_end=True)
    requests = [pb.StreamRequest(config=config), pb.StreamRequest(end=pb.EndOfClip())]
    with connected(serve(still_models())) as client, client.open_call("Stream", iter(requests)) as got:
        assert [response.WhichOneof("message") for response in got] == ["started"]


def test_planes_beside_gaps_keep_no_message() -> None:
    """A plane without gaps is a part of the message, where another has gaps of any size."""
    message = pb.FrameFormat(pixel_format=pb.PIXEL_FORMAT_I420, width=64, height=48, row_strides=[64, 1 << 16, 32])
    layout = layout_of(message)
    data = np.zeros(layout.byte_size, np.uint8)
    assert not any(np.shares_memory(plane, data) for plane in layout.unpack(data.data))

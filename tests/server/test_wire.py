"""Pictures on the wire without copies: what protobuf would write and read, whatever the bytes; memory used again."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError

from vs3r.engine.proto import wire
from vs3r.engine.proto.layout import layout_of
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb


def frame_of(kind: Any, **fields: object) -> Any:
    """The message of a kind's field `frame`."""
    return getattr(pb, kind.DESCRIPTOR.fields_by_name["frame"].message_type.name)(**fields)


def shuffled(kind: Any, frame: Any, rng: random.Random) -> bytes:
    """A message with a frame whose fields come in any order."""
    parts = []
    for field, value in frame.ListFields():
        part = type(frame)()
        if field.message_type is None:
            setattr(part, field.name, value)
        else:
            getattr(part, field.name).CopyFrom(value)
        parts.append(part.SerializeToString())
    rng.shuffle(parts)
    # The outer field's head is that of a frame of unknown fields of the same length.
    inner = b"".join(parts)
    outer = kind()
    outer.frame.MergeFromString(inner)
    whole: bytes = outer.SerializeToString()
    return whole[: len(whole) - len(inner)] + inner


def read(kind: Any, data: bytes) -> Any:
    """By wire, as one message; None where the bytes are no message."""
    try:
        return wire.whole(wire.decode(kind, data))
    except DecodeError:
        return None


def read_by_protobuf(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError:
        return None


@pytest.mark.parametrize("kind", wire.WITH_PICTURE)
@pytest.mark.parametrize("size", [0, 1, 127, 128, 70_000])
def test_the_bytes_are_those_of_protobuf(kind: Any, size: int) -> None:
    pixels = random.Random(size).randbytes(size)
    frame = frame_of(kind, sequence=1 << 40, pts=-3, duration=2)
    pieces = [memoryview(pixels[: size // 3]), memoryview(pixels[size // 3 :])]
    data = wire.encode(wire.Pictured(rest=kind(), frame=frame, pixels=pieces))
    frame.data = pixels
    assert data == kind(frame=frame).SerializeToString()
    got = wire.decode(kind, data)
    assert isinstance(got, wire.Pictured)
    assert bytes(got.pixels[0]) == pixels
    assert np.shares_memory(np.frombuffer(got.pixels[0], np.uint8), np.frombuffer(data, np.uint8)) == (size > 0)
    assert wire.whole(got) == kind(frame=frame)


def test_fields_behind_the_pixels_are_kept() -> None:
    frame = pb.StabilizedFrame(sequence=3, data=b"abc", valid_share=0.5, timings=pb.FrameTimings(queue_us=7))
    for message in (pb.StreamResponse(frame=frame), pb.GetFrameResponse(frame=frame, format=pb.FrameFormat(width=9))):
        got = wire.decode(type(message), message.SerializeToString())
        assert isinstance(got, wire.Pictured)
        assert wire.whole(got) == message


@pytest.mark.parametrize("size", [0, 1, 113, 114, 127, 128, 16_000, 70_000])
@pytest.mark.parametrize("most", [False, True])
def test_pixels_written_in_place_are_what_protobuf_reads(size: int, most: bool) -> None:
    """Without the other fields, and with each of them as long as it gets."""
    frame = pb.StabilizedFrame()
    if most:
        u64 = (1 << 64) - 1
        timings = pb.FrameTimings(decode_us=u64, queue_us=u64, pipeline_us=u64, output_us=u64, encode_us=u64)
        frame = pb.StabilizedFrame(sequence=u64, pts=-1, duration=-1, own_share=0.5, valid_share=1, timings=timings)
        frame.passed_through = True
    blank = wire.Blank(pb.StreamResponse, size)
    pixels = random.Random(size).randbytes(size)
    blank.pixels[:] = np.frombuffer(pixels, np.uint8)
    data = wire.encode(blank.finish(frame))
    read_back = pb.StreamResponse.FromString(data)
    frame.data = pixels
    assert read_back == pb.StreamResponse(frame=frame)
    got = wire.decode(pb.StreamResponse, data)
    assert isinstance(got, wire.Pictured)
    assert wire.whole(got) == read_back


def test_a_view_of_the_pixels_outlives_their_message() -> None:
    blank = wire.Blank(pb.StreamResponse, 1 << 20)
    view = blank.pixels[1:].reshape(-1)[1:].view()
    view[:] = 7
    del blank
    others = [bytes([i]) * (1 << 20) for i in range(8)]
    assert (view == 7).all()
    assert len(others) == 8


@pytest.mark.parametrize("kind", wire.WITH_PICTURE)
@pytest.mark.parametrize("order", [1, -1])
def test_of_data_and_a_slot_the_last_one_counts(kind: Any, order: int) -> None:
    parts = [frame_of(kind, sequence=1, data=b"abc"), frame_of(kind, slot=pb.SharedMemorySlot(region="r"))]
    inner = b"".join(part.SerializeToString() for part in parts[::order])
    data = bytes([kind.DESCRIPTOR.fields_by_name["frame"].number << 3 | 2, len(inner)]) + inner
    assert read(kind, data) == kind.FromString(data)
    assert read(kind, data).frame.WhichOneof("pixels") == ("slot" if order == 1 else "data")


def test_whatever_the_bytes_protobuf_reads_the_same() -> None:
    """Frames with data, slots or both, fields twice and in any order, bytes changed, put in and cut off."""
    rng = random.Random(7)
    cut = refused = 0
    for _ in range(20_000):
        kind = rng.choice(wire.WITH_PICTURE)
        frame = frame_of(kind, sequence=rng.randrange(1 << rng.randrange(1, 60)), pts=rng.randrange(-5, 1 << 40))
        if rng.random() < 0.8:
            frame.data = rng.randbytes(rng.choice([0, 3, 200]))
        if rng.random() < 0.2:
            frame.slot.region = "r"
        if rng.random() < 0.3:
            data = bytearray(shuffled(kind, frame, rng))
        else:
            data = bytearray(kind(frame=frame).SerializeToString())
        if rng.random() < 0.2:
            data += kind(frame=frame).SerializeToString()
        for _ in range(rng.choice([0, 0, 1, 2, 5])):
            data[rng.randrange(min(len(data), 30))] = rng.randrange(256)
        if rng.random() < 0.1:
            at = rng.randrange(len(data))
            data[at:at] = rng.randbytes(3)
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        raw = bytes(data)
        want = read_by_protobuf(kind, raw)
        assert read(kind, raw) == want, raw.hex()
        refused += want is None
        cut += want is not None and isinstance(wire.decode(kind, raw), wire.Pictured)
    assert cut > 2_000
    assert refused > 2_000


def test_samples_anywhere_in_a_message() -> None:
    """16 bits at an odd address."""
    shape = pb.FrameFormat(
        pixel_format=pb.PIXEL_FORMAT_PLANAR, planar_name="yuv420p10le", width=6, height=4, row_strides=[16, 10, 10]
    )
    layout = layout_of(shape)
    data = np.random.default_rng(0).integers(0, 4, layout.byte_size, dtype=np.uint8).tobytes()
    for shift in (0, 1):
        planes = layout.unpack(memoryview(bytes(shift) + data)[shift:])
        assert all(plane.flags.aligned for plane in planes)
        assert [p.tolist() for p in planes] == [p.tolist() for p in layout.unpack(data)]

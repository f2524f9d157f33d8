"""Messages with a picture, without protobuf's copies of the pixels.

Protobuf copies a field of bytes when it is set, serialized, parsed and read. A frame is megabytes, so here its pixels
are put among the bytes of the other fields, or drawn there, and what comes is cut up where they lie. On the wire is
what protobuf reads, and whatever does not look like it is left to protobuf.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb

Buffer = bytes | memoryview
Bytes = npt.NDArray[np.uint8]

WITH_PICTURE = (
    pb.StreamRequest,
    pb.AnalyzeRequest,
    pb.UploadFramesRequest,
    pb.StreamResponse,
    pb.GetFrameResponse,
)
"""Messages whose field `frame` has a field `data`."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_TAG = 1 << 32
_MAX_LENGTH = 1 << 31
# Behind the pixels of a Blank; a frame's other fields take 102 bytes at most, and the padding itself 2.
_ROOM = 128
# Python's C interface for bytes that are written once they exist: with no text to copy they come as memory is.
_NEW_BYTES: Any = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_char_p, ctypes.c_ssize_t)(
    ("PyBytes_FromStringAndSize", ctypes.pythonapi)
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pictured:
    """A message with a picture as bytes."""

    rest: Any
    """The message without its `frame`."""
    frame: Any
    """Its `frame` without `data`."""
    pixels: Sequence[Buffer]
    """`data`, in pieces that follow each other; one piece in what was decoded."""


class Blank:
    """A message under way, with memory for the pixels of its `frame`: what is drawn there is copied by gRPC alone.

    The frame's other fields, which are known last, follow: their order is free. Their length must stand before the
    pixels, so padding makes it always the same.
    """

    def __init__(self, kind: Any, size: int) -> None:
        """
        Args:
            kind: whose `frame` has fields `data` and `padding`.
            size: bytes of the pixels.
        """
        outer, inner = _numbers(kind)
        field = _varint(inner << 3 | _BYTES) + _varint(size)
        head = _varint(outer << 3 | _BYTES) + _varint(len(field) + size + _ROOM) + field
        self._whole: bytes = _NEW_BYTES(None, len(head) + size + _ROOM)
        memory = np.asarray(_Writable(self._whole))
        memory[: len(head)] = np.frombuffer(head, np.uint8)
        self._rest = memory[-_ROOM:]
        self.pixels: Bytes = memory[len(head) : -_ROOM]
        """To be written, also through views of it, until `finish`."""

    def finish(self, frame: Any) -> bytes:
        """The bytes of the message; `frame` has all but the pixels, and gets the padding."""
        frame.padding = bytes(_ROOM - 2 - frame.ByteSize())
        self._rest[:] = np.frombuffer(frame.SerializeToString(), np.uint8)
        return self._whole


class _Writable:
    """The memory of bytes that nobody has seen yet, for numpy; whatever looks at it keeps them."""

    def __init__(self, made: bytes) -> None:
        self._made = made
        there = np.frombuffer(made, np.uint8).__array_interface__
        self.__array_interface__ = there | {"data": (there["data"][0], False)}


def pictured(message: Any) -> Pictured:
    """A message whose `frame` is set as a Pictured, however it was decoded; without pixels where it has a slot."""
    if isinstance(message, Pictured):
        return message
    frame = message.frame
    return Pictured(rest=message, frame=frame, pixels=[frame.data] if frame.HasField("data") else [])


def kind_of(message: Any) -> str | None:
    """Which field of the oneof `message` is set, also where that is a Pictured."""
    return "frame" if isinstance(message, Pictured) else message.WhichOneof("message")


def whole(message: Any) -> Any:
    """A Pictured as one message; any other message as it is."""
    if not isinstance(message, Pictured):
        return message
    joined = type(message.rest)()
    joined.CopyFrom(message.rest)
    joined.frame.CopyFrom(message.frame)
    joined.frame.data = b"".join(message.pixels)
    return joined


def encode(message: Any) -> bytes:
    """The bytes of a message, or of a Pictured, whose pixels are copied once; what a Blank gave is bytes already."""
    if isinstance(message, bytes):
        return message
    if not isinstance(message, Pictured):
        return bytes(message.SerializeToString())
    outer, inner = _numbers(type(message.rest))
    head = message.frame.SerializeToString()
    size = sum(map(len, message.pixels))
    head += _varint(inner << 3 | _BYTES) + _varint(size)
    start = message.rest.SerializeToString() + _varint(outer << 3 | _BYTES) + _varint(len(head) + size)
    return b"".join([start, head, *message.pixels])


def decode(kind: Any, data: bytes) -> Any:
    """A message of a kind: a Pictured whose pixels lie in `data` where it is one, otherwise the message itself.

    Raises:
        google.protobuf.message.DecodeError: the bytes are no such message.
    """
    outer, inner = _numbers(kind)
    frame = _cut(data, 0, len(data), outer)
    if frame is None:
        return kind.FromString(data)
    pixels = _cut(data, frame.start, frame.stop, inner)
    # Where two fields of a oneof come, the last one counts: protobuf knows the rules.
    picture = kind.DESCRIPTOR.fields_by_name["frame"]
    alone = picture.containing_oneof is None or (frame.head == 0 and frame.stop == len(data))
    if pixels is None or not alone:
        return kind.FromString(data)
    rest = kind.FromString(data[: frame.head] + data[frame.stop :])
    described = getattr(pb, picture.message_type.name)
    found = described.FromString(data[frame.start : pixels.head] + data[pixels.stop : frame.stop])
    if found.WhichOneof("pixels") is not None:
        return kind.FromString(data)
    return Pictured(rest=rest, frame=found, pixels=[memoryview(data)[pixels.start : pixels.stop]])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    """Where a field lies."""

    head: int
    """Its first byte."""
    start: int
    """The first byte of its content."""
    stop: int
    """Behind its last byte."""


def _cut(data: bytes, at: int, end: int, number: int) -> _Field | None:
    """The one field of that number, of bytes, among those from `at` to `end`; None where that is not what is there."""
    found = None
    while at < end:
        head = at
        tag, at = _read_varint(data, at, end)
        kind = tag & 7
        if not 8 <= tag < _MAX_TAG or kind not in (_VARINT, _FIXED64, _BYTES, _FIXED32):
            return None
        length = {_FIXED64: 8, _FIXED32: 4}.get(kind, 0)
        if kind in (_VARINT, _BYTES):
            value, at = _read_varint(data, at, end)
            if value < 0 or (kind == _BYTES and value >= _MAX_LENGTH):
                return None
            length = value if kind == _BYTES else 0
        if tag >> 3 == number:
            if found is not None or kind != _BYTES:
                return None
            found = _Field(head=head, start=at, stop=at + length)
        at += length
    return found if at == end else None


def _read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A number and where the next one begins; -1 where it is cut short or too long."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    return -1, end


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _numbers(kind: Any) -> tuple[int, int]:
    """The numbers of a message's `frame` and of that one's `data`."""
    frame = kind.DESCRIPTOR.fields_by_name["frame"]
    return frame.number, frame.message_type.fields_by_name["data"].number

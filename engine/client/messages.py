"""Requests that both clients make alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vs3r.engine.proto.layout import Layout, layout_message, planar_layout, rational
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.proto.wire import Pictured
from vs3r.types import Frame

_CHUNK = 1 << 18


class Messages:
    """Frames of one clip as messages."""

    def __init__(self) -> None:
        self._layout: Layout | None = None

    def source(self, frame: Frame) -> pb.FrameSource:
        """What the clip's frames are; to be asked with the first of them."""
        self._layout = planar_layout(frame.format)
        return pb.FrameSource(format=layout_message(self._layout), time_base=rational(frame.time_base))

    def request(self, rest: Any, number: int, frame: Frame) -> Pictured:
        """A frame as the `frame` of a message that is empty but for it."""
        assert self._layout is not None, "source() comes first"
        message = pb.Frame(sequence=number, pts=frame.pts, duration=frame.duration)
        return Pictured(rest=rest, frame=message, pixels=self._layout.pack(frame.planes))


def track_requests(session: str, track: bytes) -> Iterator[pb.UploadTrackRequest]:
    """A track in chunks."""
    yield pb.UploadTrackRequest(config=pb.UploadTrackConfig(session=session))
    for at in range(0, len(track), _CHUNK):
        yield pb.UploadTrackRequest(chunk=track[at : at + _CHUNK])

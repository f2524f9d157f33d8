"""Which frames of a stream a client must keep, to go on after the connection broke, and for how long it tries to."""

from __future__ import annotations

import time
from dataclasses import dataclass
from fractions import Fraction

from vs3r.config import Config
from vs3r.engine.proto.convert import config_message
from vs3r.engine.proto.layout import Layout, layout_message, layout_of, rational, time_base_of
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.proto.wire import Pictured, pictured
from vs3r.types import Frame

CONTEXT_FRAMES = 30
"""Frames before the break that the server is shown again, so that the path goes on without a jolt."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Steady:
    """A stabilized frame from a server."""

    sequence: int
    """Number of the frame in the clip."""
    frame: Frame
    """The picture, with the time of its source."""
    own_share: float
    """Share of the picture that its own source frame covers, in [0, 1]."""
    valid_share: float
    """Share that any source frame covers; the rest was repaired."""
    passed_through: bool
    """The model failed here: this is the source frame."""
    timings: pb.FrameTimings
    """Where the frame spent its time on the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A frame that the server could not use."""

    sequence: int
    """Number of the frame in the clip."""
    reason: str
    """What happened, for programs."""
    message: str
    """What was expected, what came, what to do."""


class Unfinished:
    """Frames sent, or to be sent, whose results have not come, and a few before them."""

    def __init__(self) -> None:
        self._kept: dict[int, Frame] = {}  # in the order of the numbers
        self._next = 0
        self.returned_below = 0
        """All frames before this one are done."""

    def add(self, frame: Frame) -> int:
        """A new frame of the clip; returns its number."""
        self._kept[self._next] = frame
        self._next += 1
        return self._next - 1

    def after(self, sequence: int) -> tuple[int, Frame] | None:
        """The first frame kept beyond a number."""
        if sequence >= self._next - 1:
            return None
        return next((item for item in self._kept.items() if item[0] > sequence), None)

    def find(self, sequence: int) -> Frame | None:
        """A frame that is kept."""
        return self._kept.get(sequence)

    def done(self, sequence: int) -> None:
        """A frame's result has come; so have those of all before it."""
        self.returned_below = max(self.returned_below, sequence + 1)
        while self._kept and self.first < self.returned_below - CONTEXT_FRAMES:
            del self._kept[self.first]

    def drop(self, sequence: int) -> None:
        """A frame was refused."""
        self._kept.pop(sequence, None)

    @property
    def first(self) -> int:
        """Number of the first frame that a new call sends."""
        return next(iter(self._kept), self._next)


class Patience:
    """How long a stream tries to go on: from the first call that failed since the last result came."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._broken_s: float | None = None

    def result_came(self) -> None:
        """The stream goes on."""
        self._broken_s = None

    def ends(self) -> bool:
        """A call has failed, and no other is to be tried."""
        now = time.monotonic()
        if self._broken_s is None:
            self._broken_s = now
        return now - self._broken_s >= self._limit_s


def stream_opening(
    config: Config, layout: Layout, unfinished: Unfinished, time_base: Fraction, session: str | None, *, transient: bool
) -> pb.StreamRequest:
    """The first request of a call, which goes on where the last one broke; of a session its own config counts."""
    opening = pb.StreamConfig(
        session=session or "",
        config=None if session else config_message(config),
        format=layout_message(layout),
        time_base=rational(time_base),
        first_sequence=unfinished.first,
        output_from_sequence=unfinished.returned_below,
        transient=transient,
        explicit_end=True,
    )
    return pb.StreamRequest(config=opening)


def steady(
    message: pb.StabilizedFrame,
    data: bytes | memoryview,
    layout: Layout,
    *,
    time_base: Fraction,
    key_frame: bool = False,
) -> Steady:
    """A result and its pixels."""
    frame = Frame(
        format=layout.format,
        planes=layout.unpack(data),
        pts=message.pts,
        time_base=time_base,
        duration=message.duration,
        key_frame=key_frame,
    )
    return Steady(
        sequence=message.sequence,
        frame=frame,
        own_share=message.own_share,
        valid_share=message.valid_share,
        passed_through=message.passed_through,
        timings=message.timings,
    )


def steady_of(response: pb.GetFrameResponse | Pictured) -> Steady:
    """The result of a GetFrame that gave no slot."""
    got = pictured(response)
    layout, time_base = layout_of(got.rest.format), time_base_of(got.rest.time_base)
    return steady(got.frame, got.pixels[0], layout, time_base=time_base)


def refused(message: pb.FrameError) -> Refused:
    """A refusal."""
    return Refused(sequence=message.sequence, reason=message.reason, message=message.message)

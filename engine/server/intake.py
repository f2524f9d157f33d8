"""Frames from the wire: checked one by one, so that a bad one costs that frame only."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from vs3r.engine.proto.layout import Layout
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.proto.wire import Blank, Bytes, Pictured, kind_of, pictured
from vs3r.engine.server.problems import Malformed, Problem, client_gone, code_number, malformed, problem_of
from vs3r.engine.server.shm import Lending, Regions
from vs3r.types import Frame, Plane

_MAX_PTS = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Output:
    """Where the result of a frame goes: a slot, or the message that brings it."""

    goal: pb.SharedMemorySlot | Blank
    """The slot as the client names it, or the message."""
    memory: Bytes
    """The bytes there."""
    planes: tuple[Plane, ...] | None
    """The planes of the result as they lie there; None where they lie otherwise than the pipeline's."""

    @classmethod
    def message(cls, layout: Layout) -> Output:
        """A message for a result."""
        blank = Blank(pb.StreamResponse, layout.byte_size)
        return cls(goal=blank, memory=blank.pixels, planes=layout.planes_in(blank.pixels))

    def write(self, planes: tuple[Plane, ...], layout: Layout) -> None:
        """Copy a result there, but for planes that lie there."""
        if self.planes is not None:
            for target, plane in zip(self.planes, planes, strict=True):
                if target is not plane:
                    np.copyto(target, plane)
        else:
            layout.write(self.memory, planes)

    def response(self, frame: pb.StabilizedFrame) -> pb.StreamResponse | bytes:
        """The response with a result that has been written; `frame` is the rest of it."""
        if isinstance(self.goal, Blank):
            return self.goal.finish(frame)
        frame.slot.CopyFrom(self.goal)
        return pb.StreamResponse(frame=frame)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arrival:
    """A frame that can be used."""

    sequence: int
    """The client's number."""
    frame: Frame
    """The picture."""
    output: Output | None
    """The slot where its result goes; None for bytes."""
    arrived_s: float
    """When it was ready, by time.perf_counter."""
    decode_s: float
    """Time from bytes to planes."""


class Intake:
    """Takes the frames of one call."""

    def __init__(
        self, layout: Layout, time_base: Fraction, regions: Regions, *, first_sequence: int = 0, keeps: bool = False
    ) -> None:
        """
        Args:
            layout: of the frames.
            time_base: of their times.
            regions: what the call may name slots of.
            first_sequence: the least number of a frame.
            keeps: frames stay when the call has ended, so those in slots are copied.
        """
        self.lending = Lending(regions)
        """Slots that the client has lent."""
        self._layout = layout
        self._time_base = time_base
        self._keeps = keeps
        self._least_sequence = first_sequence
        self._last_pts: int | None = None

    def take(self, sent: Pictured) -> Arrival:
        """Check a frame and make its planes.

        Raises:
            Vs3rError: why it cannot be used. The frames after it can.
        """
        start, message = time.perf_counter(), sent.frame
        if message.sequence < self._least_sequence:
            raise Problem(
                "ALREADY_EXISTS",
                "SEQUENCE",
                f"expected a sequence of at least {self._least_sequence}, got {message.sequence}: "
                "a frame comes once, and in order",
            )
        self._least_sequence = message.sequence + 1
        self._check_time(message)
        output = self._output(message.output_slot) if message.HasField("output_slot") else None
        # A frame that is refused must not have been lent: so this comes last.
        planes = self._layout.unpack(self._bytes(sent))
        self._last_pts = message.pts
        now = time.perf_counter()
        frame = Frame(
            format=self._layout.format,
            planes=planes,
            pts=message.pts,
            time_base=self._time_base,
            duration=message.duration,
        )
        return Arrival(sequence=message.sequence, frame=frame, output=output, arrived_s=now, decode_s=now - start)

    def refuse(self, message: pb.Frame) -> None:
        """Give back the slots of a frame that take() raised for."""
        for name in ("slot", "output_slot"):
            if message.HasField(name):
                self.lending.give_back(getattr(message, name))

    def _output(self, slot: pb.SharedMemorySlot) -> Output:
        memory = self.lending.memory(slot, self._layout.byte_size)
        return Output(goal=slot, memory=memory, planes=self._layout.planes_in(memory))

    def _check_time(self, message: pb.Frame) -> None:
        last = self._last_pts
        if not abs(message.pts) < _MAX_PTS or not 0 <= message.duration < _MAX_PTS:
            raise Problem("INVALID_ARGUMENT", "PTS", f"expected a time below 2**62, got {message.pts}")
        if last is not None and message.pts <= last:
            raise Problem("INVALID_ARGUMENT", "PTS", f"expected a time later than {last}, got {message.pts}")

    def _bytes(self, sent: Pictured) -> bytes | memoryview:
        if sent.pixels:
            return sent.pixels[0]
        if sent.frame.HasField("slot"):
            data = self.lending.borrow(sent.frame.slot, self._layout.byte_size)
            return data.tobytes() if self._keeps else data
        raise Problem("INVALID_ARGUMENT", "PIXELS", "expected data or a slot, got a frame without pixels")


def first_config(requests: Iterator[Any]) -> Any:
    """The config that a call of several messages begins with.

    Raises:
        Problem: it begins with something else.
    """
    first = next(requests, None)
    if isinstance(first, Malformed):
        raise malformed()
    if first is None or kind_of(first) != "config":
        raise Problem("INVALID_ARGUMENT", "MESSAGE_ORDER", "expected the config first, then frames")
    return first.config


def clip_frames(requests: Iterator[Any], *, explicit_end: bool) -> Iterator[Pictured]:
    """The frames of the messages after the first, up to the clip's end.

    Args:
        requests: what the client sends.
        explicit_end: it says where the clip ends; otherwise the end of the requests is taken for it.
    Raises:
        Problem: a message is none of a frame, or the requests end where the clip does not.
    """
    for request in requests:
        if isinstance(request, Malformed):
            raise malformed()
        match kind_of(request):
            case "frame":
                yield pictured(request)
            case "end":
                return
            case _:
                raise Problem("INVALID_ARGUMENT", "MESSAGE_ORDER", "expected one config, then frames, then the end")
    if explicit_end:
        raise client_gone("expected the clip's end before the end of the call")


def frame_error(sequence: int, error: Exception) -> pb.FrameError:
    """What the client gets instead of a frame's result."""
    problem = problem_of(error)
    return pb.FrameError(sequence=sequence, code=code_number(problem.code), reason=problem.reason, message=str(problem))

"""What is sent to a client when something goes wrong: a status code, a reason, and details that a program can act on.

`edge` wraps every call: nothing leaves a call but a Problem's status, and nobody else decides about codes.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from vs3r.engine.proto.layout import FieldError, FieldViolation
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.errors import BackendError, InputError, OutputError, TrackError, Vs3rError

if TYPE_CHECKING:
    import grpc

log = logging.getLogger(__name__)

DOMAIN = "vs3r"
RETRY_S = 1.0


class Problem(Vs3rError):
    """An error with the code and the details that the client gets."""

    def __init__(
        self,
        code: str,
        reason: str,
        message: str,
        *,
        retry_s: float | None = None,
        violations: Sequence[FieldViolation] = (),
        missing: Sequence[tuple[int, int]] = (),
    ) -> None:
        """
        Args:
            code: name of a gRPC status code.
            reason: what happened, in capitals, for programs.
            message: what was expected, what came, what to do.
            retry_s: when the same call may succeed; None when it will not.
            violations: fields that are wrong.
            missing: first and last frames of ranges that the server needs.
        """
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.retry_s = retry_s
        self.violations = tuple(violations)
        self.missing = tuple(missing)


# The first that fits counts.
_CODES: tuple[tuple[type[BaseException], str, str], ...] = (
    (TrackError, "FAILED_PRECONDITION", "TRACK_UNUSABLE"),
    (InputError, "INVALID_ARGUMENT", "INPUT_UNUSABLE"),
    (BackendError, "FAILED_PRECONDITION", "BACKEND_MISSING"),
    (OutputError, "RESOURCE_EXHAUSTED", "CANNOT_WRITE"),
    (MemoryError, "RESOURCE_EXHAUSTED", "OUT_OF_MEMORY"),
)

# gRPC makes an error of its own of a status beyond 8 KB; a text is sent twice, in base 64 and with three bytes for one.
_LONGEST_TEXT, _LONGEST_FIELD, _MOST_FIELDS = 1000, 250, 8
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
"""What the system says where the server has no room left."""


def problem_of(error: BaseException) -> Problem:
    """What the client gets to know about an error."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, FieldError):
        return Problem("INVALID_ARGUMENT", "INVALID_FIELDS", str(error), violations=error.violations)
    for kind, code, reason in _CODES:
        if isinstance(error, kind):
            again = RETRY_S if code == "RESOURCE_EXHAUSTED" else None
            return Problem(code, reason, str(error) or reason, retry_s=again)
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        text = f"the server has no room left: {os.strerror(error.errno)}"
        return Problem("RESOURCE_EXHAUSTED", "CANNOT_WRITE", text, retry_s=RETRY_S)
    # The text of an unknown error may hold anything: it stays here.
    log.error("a call failed: %s", type(error).__name__)
    log.debug("its origin", exc_info=error)
    return Problem("INTERNAL", "BUG", f"this is a bug in vs3r ({type(error).__name__}); the server's log tells more")


def code_number(name: str) -> int:
    """The number of a status code, as in google.rpc.Code."""
    import grpc

    return int(grpc.StatusCode[name].value[0])


def abort(context: grpc.ServicerContext, problem: Problem) -> NoReturn:
    """End a call with a problem's status."""
    from google.protobuf import any_pb2, duration_pb2
    from google.rpc import error_details_pb2, status_pb2
    from grpc_status import rpc_status

    details: list[Any] = [error_details_pb2.ErrorInfo(reason=problem.reason, domain=DOMAIN)]
    if problem.violations:
        fields = [
            error_details_pb2.BadRequest.FieldViolation(field=v.field, description=_cut(v.description, _LONGEST_FIELD))
            for v in problem.violations[:_MOST_FIELDS]
        ]
        details.append(error_details_pb2.BadRequest(field_violations=fields))
    if problem.retry_s is not None:
        delay = duration_pb2.Duration(nanos=round(problem.retry_s % 1 * 1e9), seconds=int(problem.retry_s))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if problem.missing:
        ranges = [pb.FrameRange(first=first, last=last) for first, last in problem.missing]
        details.append(pb.MissingFrames(ranges=ranges))
    packed = []
    for detail in details:
        box = any_pb2.Any()
        box.Pack(detail)
        packed.append(box)
    text = _cut(" ".join(str(problem).split()), _LONGEST_TEXT)
    status = status_pb2.Status(code=code_number(problem.code), message=text, details=packed)
    context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort_with_status raises")


def _cut(text: str, most: int) -> str:
    """A text of at most so many bytes."""
    raw = text.encode()
    return text if len(raw) <= most else raw[: most - 3].decode(errors="ignore") + "..."


class Malformed:
    """In the place of a request: bytes that are no message."""


Call = Callable[[Any, Any], Any]


def edge(call: Call, *, admit: Callable[[Any], None], told: Callable[[str], None], streams: bool) -> Call:
    """A call as gRPC sees it.

    Args:
        call: takes an iterator of requests and the context; gives the response (or an iterator of them).
        admit: takes the context; raises a Problem where the caller may not come in.
        told: gets the name of the status code that the call ended with.
        streams: the call gives an iterator.
    """

    def answer(requests: Any, context: Any) -> Any:
        try:
            admit(context)
            response = call(requests, context)
        except Exception as error:  # the server's edge
            problem = problem_of(error)
            forget_origin(problem)
        else:
            told("OK")
            return response
        told(problem.code)
        abort(context, problem)

    def answers(requests: Any, context: Any) -> Iterator[Any]:
        problem = None
        try:
            admit(context)
            yield from call(requests, context)
        except GeneratorExit:
            told("CANCELLED")
            raise
        except Exception as error:  # the server's edge
            problem = problem_of(error)
            forget_origin(problem)
        told(problem.code if problem else "OK")
        if problem is not None and context.is_active():
            abort(context, problem)

    return answers if streams else answer


def forget_origin(error: Exception) -> None:
    """Drop the traceback of an error that one of its frames refers to.

    A circle: the frames, and with them a client's memory, would live until Python happens to look for such.
    """
    error.__traceback__ = error.__context__ = None


def client_gone(how: str = "it broke off") -> Problem:
    """For calls that end before the client has ended them."""
    return Problem("CANCELLED", "CLIENT_GONE", f"the call has ended: {how}")


def session_deleted() -> Problem:
    """For calls whose session is deleted meanwhile."""
    return Problem("ABORTED", "SESSION_DELETED", "the session was deleted")


def draining() -> Problem:
    """For calls while the server ends."""
    return Problem("UNAVAILABLE", "DRAINING", "the server is ending; go on with another or a new one", retry_s=1.0)


def malformed() -> Problem:
    """For bytes that are no message."""
    return Problem("INVALID_ARGUMENT", "MALFORMED", "expected a message of engine.proto, got bytes that are none")

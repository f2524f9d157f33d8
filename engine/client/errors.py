"""What a server says when it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vs3r.engine.proto.layout import FieldViolation
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.errors import Vs3rError

if TYPE_CHECKING:
    import grpc


# What gRPC's asyncio makes of a message that cannot be sent as the connection has broken: INTERNAL, with this text.
_NOT_SENT = "Internal error from Core"


class ServerError(Vs3rError):
    """A call that the server, or the way to it, has ended with an error."""

    def __init__(self, message: str, *, code: str, reason: str = "") -> None:
        super().__init__(message)
        self.code = code
        """Name of the gRPC status code, e.g. "NOT_FOUND"."""
        self.reason = reason
        """What happened, for programs, e.g. "SESSION_UNKNOWN"; empty where the server did not say."""
        self.retry_s: float | None = None
        """When to try again, None where the server did not say."""
        self.violations: tuple[FieldViolation, ...] = ()
        """Fields that are wrong."""
        self.missing: tuple[range, ...] = ()
        """Frames that the server needs."""

    @property
    def is_passing(self) -> bool:
        """The server was not reached, or is ending: the same call may succeed later."""
        return self.code == "UNAVAILABLE"


def server_error(error: grpc.RpcError, target: str) -> ServerError:
    """What a failed call says, its details unpacked."""
    call: Any = error
    code, text = call.code().name, call.details() or ""
    if (code == "UNAVAILABLE" or text == _NOT_SENT) and not _details(call):
        text = f"cannot reach the server {target}: {text}; check that vs3r serve runs there"
        return ServerError(text, code="UNAVAILABLE")
    result = ServerError(f"the server {target} refused: {text or code}", code=code)
    _unpack(result, _details(call))
    return result


def client_closed(target: str) -> ServerError:
    """For calls of a client that is closed, before or meanwhile."""
    return ServerError(f"the client of the server {target} is closed; make another", code="CANCELLED")


def _details(call: Any) -> list[Any]:
    from google.protobuf.message import DecodeError
    from google.rpc import status_pb2

    for key, value in call.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            try:
                return list(status_pb2.Status.FromString(value).details)
            except DecodeError:
                break
    return []


def _unpack(result: ServerError, details: list[Any]) -> None:
    from google.rpc import error_details_pb2

    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    bad, missing = error_details_pb2.BadRequest(), pb.MissingFrames()
    for detail in details:
        if detail.Unpack(info):
            result.reason = info.reason
        elif detail.Unpack(retry):
            result.retry_s = retry.retry_delay.ToNanoseconds() / 1e9
        elif detail.Unpack(bad):
            result.violations = tuple(
                FieldViolation(field=v.field, description=v.description) for v in bad.field_violations
            )
        elif detail.Unpack(missing):
            result.missing = tuple(range(r.first, r.last + 1) for r in missing.ranges)

"""How a client reaches a server, sync and asyncio alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vs3r.engine.certificates import check_authority, check_pair
from vs3r.engine.proto import wire
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.errors import BackendError, InputError

SERVICE = pb.DESCRIPTOR.services_by_name["EngineService"]
# Calls that change nothing when repeated. Frames are sent again by the streams themselves, which know which.
_REPEATABLE = (
    "CreateSession", "GetSession", "ListSessions", "SetSmoothing", "GetFrame", "GetWarp",
    "GetCapabilities", "GetStatus",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What opens a server."""

    token: str | None = field(default=None, repr=False)
    """The server's token."""
    ca: bytes | None = None
    """Certificate (PEM) of the authority that signed the server's; given, TLS is used."""
    cert: bytes | None = None
    """The client's own certificate chain (PEM), for servers that ask for one."""
    key: bytes | None = field(default=None, repr=False)
    """Its private key (PEM)."""

    def __post_init__(self) -> None:
        """Look for what gRPC ends the process for, or ignores.

        Raises:
            InputError: a part lacks another, or the token cannot be sent.
        """
        if self.token is not None and not _can_be_sent(self.token):
            raise InputError("expected a token of one line of printable characters, got another")
        if (self.cert is None) != (self.key is None):
            raise InputError("expected both the client's certificate and its key, got one")
        if self.cert is not None and self.ca is None:
            raise InputError("expected ca beside the client's certificate: without it the connection has no TLS")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Sent with every call."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)


def read_access(
    token_file: str | None, ca_file: str | None, cert_file: str | None = None, key_file: str | None = None
) -> Access:
    """Access by the files that hold it.

    Raises:
        InputError: one cannot be read, or does not hold what it should.
    """
    try:
        token = None if token_file is None else Path(token_file).read_text().strip()
        ca, cert, key = (None if f is None else Path(f).read_bytes() for f in (ca_file, cert_file, key_file))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the token, a certificate or its key: {error}; check the path") from None
    if token is not None and not _can_be_sent(token):
        raise InputError(f"expected one line of printable characters in {token_file}: the token that the server has")
    if ca_file is not None:
        check_authority(ca_file)
    access = Access(token=token, ca=ca, cert=cert, key=key)
    if cert_file is not None:
        check_pair(cert_file, key_file)
    return access


def _can_be_sent(token: str) -> bool:
    return bool(token) and token.isascii() and token.isprintable()


def open_channel(target: str, access: Access, *, asyncio: bool) -> Any:
    """A gRPC channel; it connects when it is first used.

    Raises:
        BackendError: gRPC is not installed.
    """
    try:
        import grpc
        import grpc.aio
    except ImportError:
        raise BackendError("talking to a server needs gRPC: pip install 'vs3r[server]'") from None
    module: Any = grpc.aio if asyncio else grpc
    options = _options()
    if access.ca is None:
        return module.insecure_channel(target, options=options)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=access.ca, private_key=access.key, certificate_chain=access.cert
    )
    return module.secure_channel(target, credentials, options=options)


def stubs(channel: Any) -> dict[str, Any]:
    """One callable per call of the proto, by its name. Messages with a picture may go in, and come out, as Pictured."""
    found = {}
    for method in SERVICE.methods:
        kind = ("stream" if method.client_streaming else "unary") + "_"
        kind += "stream" if method.server_streaming else "unary"
        found[method.name] = getattr(channel, kind)(
            f"/{SERVICE.full_name}/{method.name}",
            request_serializer=wire.encode,
            response_deserializer=_parser(getattr(pb, method.output_type.name)),
        )
    return found


def _parser(kind: Any) -> Callable[[bytes], Any]:
    if kind not in wire.WITH_PICTURE:
        parse: Callable[[bytes], Any] = kind.FromString
        return parse
    return lambda data: wire.decode(kind, data)


def _options() -> list[tuple[str, Any]]:
    retry = {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "2s",
        "backoffMultiplier": 3,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    names = [{"service": SERVICE.full_name, "method": method} for method in _REPEATABLE]
    return [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.service_config", json.dumps({"methodConfig": [{"name": names, "retryPolicy": retry}]})),
        # After a server was started anew, do not wait for a minute.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # Each client its own connection: one that is closed takes none of the others with it.
        ("grpc.use_local_subchannel_pool", 1),
    ]

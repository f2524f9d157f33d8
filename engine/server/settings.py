"""Settings of `vs3r serve`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vs3r.config import check, option
from vs3r.errors import InputError

_ADDRESS = re.compile(r"unix:.+|(?:\[[0-9a-fA-F:]+\]|[^\[\]:]+):([0-9]{1,5})")
_LAST_PORT = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Where the server listens, what it may use, and what it lets in."""

    listen: str = option("127.0.0.1:50777", "HOST:PORT, or unix:PATH; port 0 takes a free one")
    token_file: str | None = option(
        None, "file with the token that every call must bring; needed as soon as others can reach the server"
    )
    tls_cert: str | None = option(None, "file with the server's certificate chain (PEM)")
    tls_key: str | None = option(None, "file with its private key (PEM)")
    tls_client_ca: str | None = option(None, "file with the authority that clients' certificates must come from (PEM)")
    media_root: str | None = option(None, "folder below which clients may name files; without it they may name none")
    cache_dir: str | None = option(None, "folder for tracks (vs3r/tracks in the user's cache folder when not given)")
    cache_mb: int = option(1024, "size of that folder; the tracks not used for longest go first", low=1, high=1 << 24)
    memory_mb: int = option(4096, "memory for frames in flight and frames held, in all", low=64, high=1 << 24)
    max_sessions: int = option(256, "sessions in all", low=1, high=100_000)
    max_sessions_per_peer: int = option(64, "sessions that one host may have", low=1, high=100_000)
    max_streams: int = option(16, "calls that stream frames or tracks at once", low=1, high=1000)
    max_frame_pixels: int = option(8192 * 4320, "width times height of a frame", low=64 * 64, high=1 << 28)
    max_message_mb: int = option(256, "size of one message", low=1, high=2047)
    session_idle_s: float = option(1800.0, "seconds without a call after which a session is dropped", low=1, high=1e7)
    stream_idle_s: float = option(
        300.0, "seconds without a frame sent or taken after which a stream is ended", low=1, high=1e7
    )
    allow_shm: bool = option(False, "let programs on this machine hand over frames in shared memory")
    grace_s: float = option(20.0, "seconds that frames in flight have to finish when the server is told to end", low=0)
    metrics_port: int | None = option(None, "port on 127.0.0.1 for Prometheus metrics", low=0, high=65535)

    def __post_init__(self) -> None:
        check(self)
        # gRPC would take a port that is too large modulo 65536.
        address = _ADDRESS.fullmatch(self.listen)
        if address is None or int(address[1] or 0) > _LAST_PORT:
            raise InputError(
                f"expected HOST:PORT (up to {_LAST_PORT}) or unix:PATH to listen on, got {self.listen!r}; "
                "for example 127.0.0.1:50777"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("expected both --tls-cert and --tls-key, got one")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise InputError("--tls-client-ca needs --tls-cert and --tls-key")
        if not self.is_local and self.token_file is None:
            raise InputError(
                f"others can reach {self.listen}: expected --token-file with a secret that clients must bring; "
                "or listen on 127.0.0.1"
            )

    @property
    def is_local(self) -> bool:
        """Only programs on this machine can reach the server."""
        return self.listen.startswith("unix:") or self.listen.rpartition(":")[0] in ("127.0.0.1", "localhost", "[::1]")

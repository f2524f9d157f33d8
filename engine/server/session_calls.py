"""Calls on sessions, and on the server itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vs3r import __version__
from vs3r.config import Config
from vs3r.engine.proto.convert import config_from, config_message
from vs3r.engine.proto.layout import PIXEL_FORMATS, field_error
from vs3r.engine.proto.vs3r.v1 import engine_pb2 as pb
from vs3r.engine.server.problems import Problem
from vs3r.engine.server.state import State, host_of

if TYPE_CHECKING:
    import grpc

_PAGE, _MAX_PAGE = 100, 1000


class SessionCalls:
    """One function per call of the proto, named as it in lower case."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._sessions = state.sessions

    def create_session(
        self, request: pb.CreateSessionRequest, context: grpc.ServicerContext
    ) -> pb.CreateSessionResponse:
        session = self._sessions.create(request.media_key, config_from(request.config), host_of(context))
        return pb.CreateSessionResponse(session=self._sessions.message(session))

    def get_session(self, request: pb.GetSessionRequest, _context: grpc.ServicerContext) -> pb.GetSessionResponse:
        return pb.GetSessionResponse(session=self._sessions.message(self._sessions.get(request.name)))

    def list_sessions(self, request: pb.ListSessionsRequest, _context: grpc.ServicerContext) -> pb.ListSessionsResponse:
        if request.page_size < 0:
            raise field_error("page_size", f"expected 0 or more, got {request.page_size}")
        size = min(request.page_size or _PAGE, _MAX_PAGE)
        page = self._sessions.page(request.page_token, size + 1)
        return pb.ListSessionsResponse(
            sessions=[self._sessions.message(s) for s in page[:size]],
            next_page_token=page[size - 1].name if len(page) > size else "",
        )

    def delete_session(
        self, request: pb.DeleteSessionRequest, _context: grpc.ServicerContext
    ) -> pb.DeleteSessionResponse:
        self._sessions.delete(request.name)
        return pb.DeleteSessionResponse()

    def register_shared_memory(
        self, request: pb.RegisterSharedMemoryRequest, context: grpc.ServicerContext
    ) -> pb.RegisterSharedMemoryResponse:
        if not self._state.shares(context):
            raise Problem(
                "PERMISSION_DENIED",
                "SHARED_MEMORY_OFF",
                "shared memory is for clients on the server's machine, and needs --allow-shm there; send bytes",
            )
        regions = self._sessions.get(request.session).regions
        regions.add(request)
        return pb.RegisterSharedMemoryResponse()

    def unregister_shared_memory(
        self, request: pb.UnregisterSharedMemoryRequest, _context: grpc.ServicerContext
    ) -> pb.UnregisterSharedMemoryResponse:
        self._sessions.get(request.session).regions.remove(request.region)
        return pb.UnregisterSharedMemoryResponse()

    def get_capabilities(
        self, _request: pb.GetCapabilitiesRequest, context: grpc.ServicerContext
    ) -> pb.GetCapabilitiesResponse:
        config = self._state.config
        message = pb.GetCapabilitiesResponse(
            version=__version__,
            pixel_formats=PIXEL_FORMATS,
            shared_memory=self._state.shares(context),
            file_paths=config.media_root is not None,
            max_frame_pixels=config.max_frame_pixels,
            max_message_bytes=config.max_message_mb << 20,
            max_sessions=config.max_sessions,
            max_sessions_per_peer=config.max_sessions_per_peer,
            default_config=config_message(Config()),
        )
        message.session_idle_time.FromNanoseconds(int(config.session_idle_s * 1e9))
        return message

    def get_status(self, _request: pb.GetStatusRequest, _context: grpc.ServicerContext) -> pb.GetStatusResponse:
        return self._state.status()

"""grpc.health.v1, so that nobody who asks, or goes away, makes the server stand still. It asks for no token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from vs3r.engine.server.problems import Malformed, Problem, abort, edge
from vs3r.engine.server.state import State

if TYPE_CHECKING:
    import grpc

NAME = "grpc.health.v1.Health"
Send = Callable[[Any], object]


def add_health(server: grpc.Server, state: State, parser: Callable[[Any], Any]) -> Any:
    """Offer health. As the engine's, its calls read their request themselves, and cut off who sends none.

    Args:
        server: that gets the calls.
        state: of the server.
        parser: makes what turns bytes into a message, or Malformed.
    Returns:
        Its `set(service, status)` tells who watches.
    """
    import grpc
    from grpc_health.v1 import health, health_pb2

    class Health(health.HealthServicer):
        """Watchers are told by a thread of its own.

        The package tells them with its lock held and waits until it is done. gRPC's one thread for events, which does
        it, may itself be waiting for that lock, as another watcher goes away: then no call would ever go on.
        """

        def __init__(self) -> None:
            super().__init__()
            self._telling = ThreadPoolExecutor(1, "vs3r-health")

        def Watch(self, request: Any, context: Any, send_response_callback: Send | None = None) -> Any:
            assert send_response_callback is not None, "this gRPC has calls that hold no thread"
            send = send_response_callback
            return super().Watch(request, context, lambda response: self._telling.submit(send, response))

    checks = Health()
    check: Any = edge(
        lambda requests, context: checks.Check(state.only(requests, context), context),
        admit=lambda _context: None,
        told=lambda _code: None,
        streams=False,
    )

    def watch(requests: Iterator[Any | Malformed], context: Any, send: Send) -> None:
        try:
            request = state.only(requests, context)
        except Problem as problem:
            abort(context, problem)
        checks.Watch(request, context, send)

    watching: Any = watch
    watching.experimental_non_blocking = True
    form = {
        "request_deserializer": parser(health_pb2.HealthCheckRequest),
        "response_serializer": health_pb2.HealthCheckResponse.SerializeToString,
    }
    handlers = {
        "Check": grpc.stream_unary_rpc_method_handler(check, **form),
        "Watch": grpc.stream_stream_rpc_method_handler(watching, **form),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))
    return checks

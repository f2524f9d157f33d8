"""Requests made of what a caller gives, whose errors must reach the caller and not look like an end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any


class Guarded:
    """An iterator for gRPC, which runs it in a thread of its own."""

    def __init__(self, requests: Iterator[Any]) -> None:
        self._requests = requests
        self._stopped = threading.Event()
        self._cancel: Callable[[], object] = lambda: None
        self.error: BaseException | None = None
        """What the requests raised."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._requests)
        except StopIteration:
            raise
        except BaseException as error:  # raised again in the caller's thread
            self.error = error
        self._cancel()
        # Ending now would tell the server that this was all.
        self._stopped.wait()
        raise StopIteration

    def when_failing(self, cancel: Callable[[], object]) -> None:
        """What to call where the requests raise, or have."""
        self._cancel = cancel
        if self.error is not None:
            cancel()

    def stop(self) -> None:
        """The call is over, or may end early."""
        self._stopped.set()

"""Stages of a pipeline in threads of their own, joined by bounded queues.

The first error of any stage stops all of them and is raised in the caller's thread; so does an exception of the caller
itself, a KeyboardInterrupt for one. No thread outlives its `Stages`.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

Item = TypeVar("Item")

# One frame is analysed after the other, and a picture takes two to three times as long to draw. On two cores, too: when
# the last frame has been analysed, a lookahead of pictures is still to be drawn.
_SMALLEST_CREW, _LARGEST_CREW = 2, 4


class Stopped(Exception):
    """The pipeline has been stopped: the stage that gets this just ends."""


class Channel(Generic[Item]):
    """A bounded queue between two threads that can end (no more items come) and stop (everything is dropped)."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._stopped = False

    def put(self, item: Item) -> None:
        """Add an item, waiting for room. Raises Stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or len(self._items) < self._size)
            if self._stopped:
                raise Stopped
            self._items.append(item)
            self._changed.notify_all()

    def end(self) -> None:
        """No more items will come; those in the queue are still delivered."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Drop all items; both sides get Stopped."""
        with self._changed:
            self._stopped = True
            self._items.clear()
            self._changed.notify_all()

    def check(self) -> None:
        """Raises Stopped where the pipeline has been; for long work between two items."""
        with self._changed:
            if self._stopped:
                raise Stopped

    def __iter__(self) -> Iterator[Item]:
        """Items until the end. Raises Stopped."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._ended or bool(self._items))
                if self._stopped:
                    raise Stopped
                if not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item


class Stages:
    """Runs functions in threads and joins them on leaving.

    numbers = Channel[int](4)
    with Stages([numbers]) as stages:
        stages.start("count", lambda: count_into(numbers))
        for number in numbers:
            ...
    """

    def __init__(self, channels: list[Channel[Any]]) -> None:
        self._channels = channels
        self._threads: list[threading.Thread] = []
        self._first_error: list[BaseException] = []

    def start(self, name: str, work: Callable[[], None]) -> None:
        """Run work() in a thread."""
        thread = threading.Thread(target=self._run, args=(work,), name=f"vs3r-{name}")
        self._threads.append(thread)
        thread.start()

    def stop(self) -> None:
        """Let every stage end at its next use of a channel. May be called from any thread."""
        for channel in self._channels:
            channel.stop()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Stopped:
            return
        except BaseException as error:  # raised again in the caller's thread
            self._first_error.append(error)
            self.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.stop()
        for thread in self._threads:
            thread.join()
        # The caller's own error goes first; Stopped is only the echo of a stage's error.
        if self._first_error and (error is None or isinstance(error, Stopped)):
            raise self._first_error[0] from None


class Cancellation:
    """A switch that another thread may press to end a long run early."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._stop: Callable[[], None] | None = None

    def cancel(self) -> None:
        """End the run, now or as soon as it starts; it raises Stopped."""
        with self._lock:
            self._cancelled = True
            if self._stop is not None:
                self._stop()

    def attach(self, stop: Callable[[], None]) -> None:
        """Tell what to call on cancel()."""
        with self._lock:
            self._stop = stop
            if self._cancelled:
                stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """Threads that share the work of one stage, whose items do not depend on each other."""

    pool: Executor
    """The threads."""
    ahead: int
    """Items that are begun before the oldest is waited for, >= 1."""


@contextmanager
def crew_of_cores() -> Iterator[Crew]:
    """A crew for half of the cores; the other stages take the rest."""
    count = min(max(usable_cores() // 2, _SMALLEST_CREW), _LARGEST_CREW)
    pool = ThreadPoolExecutor(count, "vs3r-crew")
    try:
        yield Crew(pool=pool, ahead=2 * (count - 1))
    finally:
        pool.shutdown(cancel_futures=True)


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

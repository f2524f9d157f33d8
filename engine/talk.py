"""How a command tells what it does: progress, remarks and results, for people, logs and programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import click

if TYPE_CHECKING:
    from vs3r.engine.progress import Progress, ProgressCallback
    from vs3r.engine.weights import ByteProgress

_LINE_EVERY_S = 10.0
_JSON_EVERY_S = 1.0


def talk_options(command: Any) -> Any:
    """Adds --json and --quiet."""
    command = click.option("--quiet", "-q", is_flag=True, help="print nothing but errors")(command)
    return click.option("--json", "as_json", is_flag=True, help="print one JSON object a line, for programs")(command)


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """How a command tells what it does."""

    as_json: bool
    """One JSON object a line on standard output instead of text."""
    quiet: bool
    """Nothing but errors; with as_json also the result."""

    def event(self, kind: str, text: str, **data: Any) -> None:
        """A result or a remark."""
        if self.as_json:
            click.echo(json.dumps({"event": kind, **data}))
        elif not self.quiet:
            click.echo(_printable(text))

    def note(self, text: str) -> None:
        """A remark that is no result."""
        if self.quiet:
            return
        if self.as_json:
            click.echo(json.dumps({"event": "note", "text": text}))
        else:
            click.echo(_printable(f"note: {text}"), err=True)

    @contextmanager
    def progress(self) -> Iterator[ProgressCallback | None]:
        """Show the progress of what runs inside: a bar on a terminal, a line now and then elsewhere."""
        if self.quiet:
            yield None
        elif self.as_json:
            yield _seldom(_JSON_EVERY_S, lambda now: click.echo(json.dumps(_as_data(now))))
        elif sys.stderr.isatty():
            with _Bar() as bar:
                yield bar.show
        else:
            yield _seldom(_LINE_EVERY_S, lambda now: click.echo(_as_line(now), err=True))

    @contextmanager
    def bytes_progress(self) -> Iterator[ByteProgress | None]:
        """Show how much of a file has come, as a bar, on a terminal."""
        if self.quiet or self.as_json or not sys.stderr.isatty():
            yield None
            return
        from tqdm import tqdm

        with tqdm(unit="B", unit_scale=True, dynamic_ncols=True, leave=False, file=sys.stderr) as bar:

            def show(name: str, done: int, total: int | None) -> None:
                bar.set_description(name, refresh=False)
                bar.total = total
                bar.update(done - bar.n)

            yield show


def _printable(text: str) -> str:
    """File names may hold bytes that are no text."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


def _seldom(every_s: float, show: ProgressCallback) -> ProgressCallback:
    """Let through the first report and then one every so often."""
    last_s = -every_s

    def callback(now: Progress) -> None:
        nonlocal last_s
        if now.elapsed_s - last_s >= every_s:
            last_s = now.elapsed_s
            show(now)

    return callback


def _as_data(now: Progress) -> dict[str, object]:
    left_s = None if now.left_s is None else round(now.left_s, 1)
    return {
        "event": "progress",
        "frames": now.frames,
        "total": now.total,
        "fps": round(now.fps, 2),
        "left_s": left_s,
    }


def _as_line(now: Progress) -> str:
    left = "" if now.left_s is None else f", {now.left_s:.0f} s left"
    return f"{now.frames}/{now.total or '?'} frames, {now.fps:.1f} fps{left}"


class _Bar:
    """A tqdm bar that appears with the first frame."""

    def __init__(self) -> None:
        self._bar: Any = None

    def show(self, now: Progress) -> None:
        if self._bar is None:
            from tqdm import tqdm

            # Started by the first frame, so that the time left does not count the start-up.
            self._bar = tqdm(total=now.total, unit=" frames", dynamic_ncols=True, leave=False, file=sys.stderr)
        if now.total is not None:
            self._bar.total = now.total
        self._bar.update(now.frames - self._bar.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

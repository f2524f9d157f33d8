"""Run a command and see what it cost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# A forked process starts with its parent's peak memory on its account. This small parent in between keeps the
# benchmark's own memory out of the numbers.
_PARENT = """
import json, os, sys, time
start = time.perf_counter()
pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
wall_s = time.perf_counter() - start
with open(sys.argv[1], "w") as report:
    json.dump({"code": os.waitstatus_to_exitcode(status), "wall_s": wall_s,
               "cpu_s": usage.ru_utime + usage.ru_stime, "peak_mib": usage.ru_maxrss / 1024}, report)
"""


class CommandFailed(Exception):
    """A command ended with an error; the message holds its last line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Resources that commands took."""

    wall_s: float
    """Seconds from start to end."""
    cpu_s: float
    """Seconds of processor time, user and system, all threads and child processes."""
    peak_mib: float
    """Largest resident memory of a process, MiB."""
    said: str = ""
    """The last line that it printed."""

    def then(self, after: Cost) -> Cost:
        """The cost of two commands one after the other."""
        return Cost(
            wall_s=self.wall_s + after.wall_s,
            cpu_s=self.cpu_s + after.cpu_s,
            peak_mib=max(self.peak_mib, after.peak_mib),
            said=after.said,
        )


def run(command: Sequence[str], *, cwd: Path | None = None) -> Cost:
    """Run a command to its end; of its output only the last line is kept.

    Raises:
        CommandFailed: it cannot be started or ends with another code than 0.
    """
    if shutil.which(command[0]) is None:
        raise CommandFailed(f"{command[0]}: command not found")
    with tempfile.TemporaryFile() as log, tempfile.NamedTemporaryFile("r") as report:
        start = [sys.executable, "-I", "-S", "-c", _PARENT, report.name, *command]
        subprocess.run(start, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True)
        found = json.load(report)
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
        last = lines[-1] if lines else ""
        if found["code"] != 0:
            raise CommandFailed(f"{Path(command[0]).name} ended with code {found['code']}: {last or 'no output'}")
    return Cost(wall_s=found["wall_s"], cpu_s=found["cpu_s"], peak_mib=found["peak_mib"], said=last)


def median_cost(costs: Sequence[Cost]) -> Cost:
    """Medians of time, the largest memory, what the last one said."""
    walls, cpus = sorted(c.wall_s for c in costs), sorted(c.cpu_s for c in costs)
    middle = len(costs) // 2
    even = len(costs) % 2 == 0
    return Cost(
        wall_s=(walls[middle - 1] + walls[middle]) / 2 if even else walls[middle],
        cpu_s=(cpus[middle - 1] + cpus[middle]) / 2 if even else cpus[middle],
        peak_mib=max(c.peak_mib for c in costs),
        said=costs[-1].said,
    )

"""What commands ask of the process: freed memory is used again, numpy works in one thread."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from vs3r.engine.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def messages():
    return [bytearray(3 << 20) for _ in range(8)]
messages()
before = faults()
for _ in range(20):
    messages()
print(faults() - before)
"""

THREADS = """
import os, sys
from contextlib import suppress
from vs3r.engine.cli import main
sys.argv = ["vs3r", "--version"]
with suppress(SystemExit):
    main()
import numpy as np
np.linalg.solve(np.eye(1000), np.eye(1000))
print(len(os.listdir("/proc/self/task")))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc of glibc only")
def test_pages_are_touched_once() -> None:
    taken, kept = (
        int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("leave", "keep")
    )
    assert kept < 1000 < 10_000 < taken


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_numpy_works_in_one_thread() -> None:
    env = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.splitlines()[-1] == "1"

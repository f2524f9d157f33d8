"""Every kernel compiles for every architecture that is aimed at; whether it runs, only a GPU tells."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

from tests.kernels.compile_kernels import CAPABILITIES

ROOT = Path(__file__).parent.parent.parent


def written_kernels() -> set[str]:
    """The kernels in the sources: what is decorated and is not a helper of another kernel."""
    return {
        node.name
        for path in (ROOT / "kernels").glob("*/triton_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
    }


def test_every_kernel_compiles_for_every_architecture() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_kernels"],
        capture_output=True, text=True, cwd=ROOT, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert all(int(size) > 1000 for _, _, size in lines)
    assert len(written_kernels()) >= 8
    assert {(name, arch) for name, arch, _ in lines} == {
        (name, f"sm_{capability}") for name in written_kernels() for capability in CAPABILITIES
    }

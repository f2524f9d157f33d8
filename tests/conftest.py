"""Switches and limits that hold for every test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from vs3r import networks

if not torch.cuda.is_available():
    # Triton's interpreter runs the kernels; Triton decides when it is first imported, by whichever test.
    os.environ["TRITON_INTERPRET"] = "1"

# A shell starts its background jobs with Ctrl-C ignored, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-cuda", action="store_true", help="fail, instead of skip, tests that need a GPU without one"
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The one place that decides whether a test marked needs_cuda runs."""
    if item.get_closest_marker("needs_cuda") is None:
        return
    if torch.cuda.is_available():
        return
    if item.config.getoption("--require-cuda"):
        pytest.fail("needs an NVIDIA GPU, and --require-cuda was given", pytrace=False)
    pytest.skip("needs an NVIDIA GPU")


@pytest.fixture
def compiled_graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What parts of networks are compiled to; graphs then run as they are."""
    graphs: list[Any] = []

    def backend(graph: Any, _inputs: object) -> Any:
        graphs.append(graph)
        return graph.forward

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **given: compiler(function, backend=backend, **given))
    networks._compiled.cache_clear()
    yield graphs
    networks._compiled.cache_clear()
    torch._dynamo.reset()

"""TensorRT's builder against a stand-in with the part of its interface that is used; the real one needs a GPU."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.export.nets import tiny_task
from vs3r.errors import BackendError
from vs3r.export import build, onnx_file, tensorrt_engine


class Logger:
    """As TensorRT's."""

    WARNING = 1

    def __init__(self, level: int) -> None:
        assert level == self.WARNING


class Stub(ModuleType):
    """Notes what it is asked for; `refuses` names the step that fails."""

    __version__ = "11.0"

    def __init__(self) -> None:
        super().__init__("tensorrt")
        self.refuses = ""
        self.flags = 0
        self.parsed = b""
        self.caches: list[bytes] = []
        self.Logger = Logger
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
        self.TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
        self.DataType = SimpleNamespace(**{name: name for name in ("FLOAT", "HALF", "BF16", "INT32", "INT64", "BOOL")})
        self.plans: dict[bytes, StubEngine] = {}

    def Runtime(self, _logger: object) -> Stub:
        return self

    def deserialize_cuda_engine(self, plan: bytes) -> StubEngine | None:
        return self.plans.get(plan)

    def Builder(self, _logger: object) -> Stub:
        return self

    def create_network(self, flags: int) -> str:
        self.flags = flags
        return "network"

    def OnnxParser(self, network: str, _logger: object) -> Stub:
        assert network == "network"
        return self

    def parse_from_file(self, path: str) -> bool:
        self.parsed = Path(path).read_bytes()
        return self.refuses != "parse"

    num_errors = 3

    def get_error(self, number: int) -> Any:
        return SimpleNamespace(desc=lambda: f"problem {number}")

    def create_builder_config(self) -> Stub:
        return self

    def create_timing_cache(self, data: bytes) -> Any:
        self.caches.append(data)
        return SimpleNamespace(serialize=lambda: b"timings", data=data)

    def set_timing_cache(self, cache: Any, *, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        return not (self.refuses == "timings" and cache.data)

    def build_serialized_network(self, network: str, config: object) -> bytes | None:
        assert network == "network" and config is self
        return None if self.refuses == "build" else b"plan"


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    """In place of TensorRT, and of the ONNX file that it is given."""

    def graph(_network: nn.Module, _example: tuple[Tensor, ...], folder: Path) -> str:
        (folder / "model.onnx").write_bytes(b"graph")
        (folder / "model.onnx.data").write_bytes(b"weights")
        return "model.onnx"

    stub = Stub()
    monkeypatch.setattr(onnx_file, "build", graph)
    monkeypatch.setitem(sys.modules, "tensorrt", stub)
    return stub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "engine"
    folder.mkdir()
    return folder


def test_builds_from_a_strongly_typed_graph(stub: Stub, folder: Path) -> None:
    task = tiny_task()
    for _ in range(2):
        assert tensorrt_engine.build(task.network, task.example, folder) == "engine.plan"
    assert stub.flags == 1 << stub.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    assert stub.parsed == b"graph"
    assert [path.name for path in folder.iterdir()] == ["engine.plan"], "the graph was left"
    assert (folder / "engine.plan").read_bytes() == b"plan"
    assert stub.caches == [b"", b"timings"], "timings are not used again"
    assert tensorrt_engine.toolchain().startswith("TensorRT 11.0, torch ")


def test_timings_of_another_gpu_are_begun_anew(stub: Stub, folder: Path) -> None:
    task = tiny_task()
    (folder.parent / "tensorrt_timings.bin").write_bytes(b"foreign")
    stub.refuses = "timings"
    tensorrt_engine.build(task.network, task.example, folder)
    assert stub.caches == [b"foreign", b""]
    assert (folder.parent / "tensorrt_timings.bin").read_bytes() == b"timings"


class StubEngine:
    """As an engine and its context: a - b, through the addresses it is given."""

    num_io_tensors = 3
    names = ("difference", "b", "a")

    def __init__(self) -> None:
        self.addresses: dict[str, int] = {}
        self.runs = True

    def get_tensor_name(self, number: int) -> str:
        return self.names[number]

    def get_tensor_mode(self, name: str) -> str:
        return "output" if name == "difference" else "input"

    def get_tensor_shape(self, name: str) -> list[int]:
        assert name == "difference"
        return [2, 3]

    def get_tensor_dtype(self, name: str) -> str:
        assert name == "difference"
        return "FLOAT"

    def create_execution_context(self) -> StubEngine:
        return self

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        a, b, out = (self._array(name) for name in ("a", "b", "difference"))
        out[:] = [x - y for x, y in zip(a, b, strict=True)]
        return self.runs

    def _array(self, name: str) -> Any:
        return (ctypes.c_float * 6).from_address(self.addresses[name])


def test_runs_in_place_on_the_current_stream(monkeypatch: pytest.MonkeyPatch, stub: Stub, tmp_path: Path) -> None:
    engine = StubEngine()
    stub.plans[b"good"] = engine
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=7))
    path = tmp_path / "engine.plan"
    path.write_bytes(b"good")
    run = tensorrt_engine.load(path, torch.device("cpu"))
    b, a = torch.arange(6.0).view(2, 3), 10 * torch.arange(6.0).view(3, 2).T
    # Inputs come in the engine's order, b before a; a does not lie in one piece.
    torch.testing.assert_close(run(b, a), a - b)
    engine.runs = False
    with pytest.raises(BackendError, match="could not run the engine"):
        run(b, a)
    path.write_bytes(b"foreign")
    with pytest.raises(BackendError, match=r"does not load .*engine\.plan; delete its folder"):
        tensorrt_engine.load(path, torch.device("cpu"))


@pytest.mark.parametrize(
    ("refuses", "message"),
    [("parse", "does not take the network: problem 0; problem 1; run"), ("build", "found no engine")],
)
def test_refusals_are_one_line(stub: Stub, folder: Path, refuses: str, message: str) -> None:
    task, stub.refuses = tiny_task(), refuses
    with pytest.raises(BackendError, match=message):
        tensorrt_engine.build(task.network, task.example, folder)


def test_obstacles(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "expected an NVIDIA GPU" in (tensorrt_engine.obstacle(torch.device("cpu")) or "")
    if importlib.util.find_spec("tensorrt") is None:
        assert "pip install tensorrt" in (tensorrt_engine.obstacle(torch.device("cuda")) or "")
        assert tensorrt_engine.toolchain() == "no TensorRT"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "expected the package onnx" in (tensorrt_engine.obstacle(torch.device("cuda")) or "")


@pytest.mark.needs_cuda
@pytest.mark.parametrize("format_name", ["aoti", "tensorrt"])
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, format_name: str) -> None:
    device = torch.device("cuda")
    reason = build.FORMATS[format_name].obstacle(device)
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tiny = tiny_task()
    task = build.Task(model="tiny", network=tiny.network.to(device), example=tuple(e.to(device) for e in tiny.example))
    engine = build.build(task, task.key(format_name))
    run = build.FORMATS[format_name].load(engine.path, device)
    picture, shift = torch.rand(1, 3, 8, 12, device=device), torch.rand(1, 4, 1, 1, device=device)
    with torch.inference_mode():
        torch.testing.assert_close(run(picture, shift), task.network(picture, shift), atol=1e-3, rtol=0)

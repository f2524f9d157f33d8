"""Building, the self-test, the cache's keys, and what can go wrong."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from tests.export.nets import EagerFormat, Tiny, tiny_task
from vs3r.config import NetworkConfig
from vs3r.errors import BackendError, OutputError
from vs3r.export import aoti, build, cache, onnx_file
from vs3r.export.cache import EngineKey, engines_folder, find
from vs3r.export.runtime import prepare_with
from vs3r.networks import DTYPES, Network
from vs3r.weights import weights_folder

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> EagerFormat:
    """A format in AOTInductor's place."""
    fake = EagerFormat()
    monkeypatch.setitem(build.FORMATS, "aoti", fake)
    return fake


def inputs(height: int = 8, width: int = 12) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(1, 3, height, width, generator=generator), torch.rand(1, 4, 1, 1, generator=generator)


def prepared(runtime: str, network: nn.Module, *, cached_only: bool = False) -> Network:
    config = NetworkConfig(runtime=runtime, cached_engines_only=cached_only)
    return prepare_with(config)("tiny", network, tuple(torch.zeros_like(value) for value in inputs()))


@pytest.mark.parametrize("precision", DTYPES)
def test_a_good_engine_is_kept(fake: EagerFormat, precision: str) -> None:
    task = tiny_task(dtype=DTYPES[precision])
    key = task.key("aoti")
    assert find(key) is None
    engine = build.build(task, key)
    assert find(key) == engine
    assert engine.path.read_text() == "1.0"
    assert (engine.error < 1e-7) == (precision == "fp32")
    assert [path.name for path in engines_folder().iterdir()] == [key.folder.name]
    assert fake.builds == 1


@pytest.mark.parametrize(("precision", "factor"), [("fp32", 1.001), ("bf16", 1.05), ("fp32", float("nan"))])
def test_an_engine_that_computes_something_else_is_not_kept(fake: EagerFormat, precision: str, factor: float) -> None:
    fake.factor = factor
    task = tiny_task(dtype=DTYPES[precision])
    with pytest.raises(BackendError, match=r"aoti engine of tiny failed its self-test.*thrown away"):
        build.build(task, task.key("aoti"))
    assert list(engines_folder().iterdir()) == []


def test_low_precision_may_err_as_pytorch_does(fake: EagerFormat) -> None:
    """An error that is refused in float32 is less than bfloat16's own."""
    fake.factor = 1.001
    task = tiny_task(dtype=torch.bfloat16)
    assert build.build(task, task.key("aoti")).error > build.TOLERANCE


def test_everything_an_engine_depends_on_is_in_its_key(monkeypatch: pytest.MonkeyPatch, fake: EagerFormat) -> None:
    def changed(task: build.Task) -> set[str]:
        key = task.key("aoti")
        return {spec.name for spec in fields(EngineKey) if getattr(key, spec.name) != getattr(base, spec.name)}

    base = tiny_task().key("aoti")
    assert tiny_task().key("aoti") == base
    assert base.inputs == ("float32[1,3,8,12]", "float32[1,4,1,1]")
    assert changed(tiny_task(16)) == {"inputs"}
    assert changed(tiny_task(gain=2.0)) == {"network_sha256"}
    assert changed(tiny_task(dtype=torch.float16)) == {"network_sha256"}
    other = tiny_task()
    with torch.no_grad():
        other.network.get_parameter("conv.bias")[0] += 1e-6
    assert changed(other) == {"network_sha256"}
    fake.version = "2"
    assert changed(tiny_task()) == {"toolchain"}
    fake.version = "1"
    with monkeypatch.context() as patch:
        patch.setattr(build, "device_name", lambda _: "another GPU")
        assert changed(tiny_task()) == {"device"}
    assert tiny_task().key("onnx").format == "onnx"
    folders = {key.folder for key in (base, tiny_task(16).key("aoti"), other.key("aoti"), base)}
    assert len(folders) == 3


def test_the_networks_code_is_in_its_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = cache.network_sha256(Tiny())
    (tmp_path / "code.py").write_text("changed")
    monkeypatch.setattr(inspect, "getfile", lambda _: str(tmp_path / "code.py"))
    assert cache.network_sha256(Tiny()) != before


def test_by_name_builds_once_and_runs(fake: EagerFormat, caplog: pytest.LogCaptureFixture) -> None:
    network = Tiny().eval()
    want = network(*inputs())
    for _ in range(2):
        torch.testing.assert_close(prepared("aoti", network)(*inputs()), want)
    assert fake.builds == 1
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert "no aoti engine of tiny for float32[1,3,8,12]" in record.getMessage()


def test_of_another_version_is_rebuilt_or_refused(fake: EagerFormat, caplog: pytest.LogCaptureFixture) -> None:
    network = Tiny().eval()
    prepared("aoti", network)
    fake.version = "2"
    with pytest.raises(BackendError, match=r"there is one for toolchain eager 1\); build it with vs3r export"):
        prepared("aoti", network, cached_only=True)
    prepared("aoti", network)
    assert "there is one for toolchain eager 1" in caplog.records[-1].getMessage()
    assert fake.builds == 2
    prepared("aoti", network, cached_only=True)
    with pytest.raises(BackendError, match="there is one for other weights or settings"):
        prepared("aoti", Tiny(gain=2.0).eval(), cached_only=True)


def test_auto_takes_what_is_built_and_never_builds(fake: EagerFormat) -> None:
    network = Tiny().eval()
    assert prepared("auto", network) is network
    fake.factor = 1 + 1e-5
    prepared("aoti", network)
    found = prepared("auto", network)
    assert found is not network
    torch.testing.assert_close(found(*inputs()), fake.factor * network(*inputs()), atol=0, rtol=0)
    assert prepared("torch", network) is network
    assert prepared("auto", Tiny(gain=2.0).eval()) is not found
    assert fake.builds == 1


def test_engines_that_others_could_write_are_refused(fake: EagerFormat) -> None:
    task = tiny_task()
    engine = build.build(task, task.key("aoti"))
    assert fake.builds == 1
    engine.key.folder.chmod(0o777)
    with pytest.raises(BackendError, match="engines are code"):
        find(engine.key)
    engine.key.folder.chmod(0o700)
    engines_folder().chmod(0o770)
    with pytest.raises(BackendError, match="chmod go-w"):
        find(engine.key)


@pytest.mark.usefixtures("fake")
def test_an_engine_is_found_where_groups_may_write_by_default() -> None:
    task = tiny_task()
    before = os.umask(0o002)
    try:
        weights_folder("raft-large").mkdir(parents=True)
        engine = build.build(task, task.key("aoti"))
    finally:
        os.umask(before)
    assert find(engine.key) == engine


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("manifest", ["{", "{}", "[]", "3", '"engine"', '{"key": {"model": 1}}', "no file"])
def test_a_damaged_manifest_is_no_engine(manifest: str) -> None:
    task = tiny_task()
    engine = build.build(task, task.key("aoti"))
    path = engine.key.folder / cache.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"file": None}) if manifest == "no file" else manifest)
    assert find(engine.key) is None and not cache.has_any("tiny", "aoti") and cache.others(engine.key) == []
    build.build(task, engine.key)
    assert find(engine.key) == engine


def test_a_moved_manifest_is_no_engine(fake: EagerFormat) -> None:
    """A folder under another key's name is not trusted: what it was made for is compared in full."""
    task, other = tiny_task(), tiny_task(16)
    engine = build.build(task, task.key("aoti"))
    engine.key.folder.rename(other.key("aoti").folder)
    assert find(other.key("aoti")) is None
    assert fake.builds == 1


def test_every_output_is_tested() -> None:
    """A small output that is wrong does not hide behind a large one."""
    large, small = 1e3 * torch.ones(9), torch.ones(2)
    assert build.errors_of([large, 1.5 * small], (large, small)) == [0, pytest.approx(0.5)]
    assert build.errors_of(large, large) == [0]


def test_no_room_is_one_line(monkeypatch: pytest.MonkeyPatch, fake: EagerFormat) -> None:
    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fake, "build", full)
    task = tiny_task()
    with pytest.raises(OutputError, match="No space left"):
        build.build(task, task.key("aoti"))


@pytest.mark.parametrize("where", ["build", "load", "reference"])
def test_a_full_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch, fake: EagerFormat, where: str) -> None:
    """While it is built, while the engine is tried, or by the copy in float32 that it is compared with."""

    def full(*_: object) -> NoReturn:
        raise torch.OutOfMemoryError("CUDA out of memory")

    if where == "reference":
        monkeypatch.setattr(build, "reference_of", full)
    else:
        monkeypatch.setattr(fake, where, full)
    task = tiny_task()
    with pytest.raises(BackendError, match=r"^not enough GPU memory to build tiny for .*compare it with float32; end"):
        build.build(task, task.key("aoti"))
    assert list(engines_folder().iterdir()) == []


def test_a_compiler_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch, fake: EagerFormat) -> None:
    def fail(*_: object) -> str:
        raise RuntimeError("bad graph\nand a page of it")

    monkeypatch.setattr(fake, "build", fail)
    task = tiny_task()
    with pytest.raises(
        BackendError, match=r"^aoti of tiny cannot be built \(RuntimeError: bad graph\); run it"
    ) as caught:
        build.build(task, task.key("aoti"))
    assert "page" not in str(caught.value)


def test_an_engine_that_does_not_run_is_one_line(monkeypatch: pytest.MonkeyPatch, fake: EagerFormat) -> None:
    """ONNX Runtime has no matrices in bfloat16 on a CPU, for one."""

    def load(*_: object) -> Network:
        raise RuntimeError("not implemented: MatMul(13)\nand a page of it")

    monkeypatch.setattr(fake, "load", load)
    task = tiny_task()
    with pytest.raises(BackendError, match=r"^the aoti engine of tiny does not run here .*MatMul.13.*--precision fp32"):
        build.build(task, task.key("aoti"))
    assert list(engines_folder().iterdir()) == []


@pytest.mark.parametrize("runtime", ["aoti", "auto"])
def test_a_kept_engine_that_does_not_load_is_one_line(
    monkeypatch: pytest.MonkeyPatch, fake: EagerFormat, runtime: str
) -> None:
    def load(*_: object) -> Network:
        raise RuntimeError("no archive\nand a page of it")

    network = Tiny().eval()
    prepared("aoti", network)
    monkeypatch.setattr(fake, "load", load)
    with pytest.raises(BackendError, match=r"^the aoti engine .*engine.txt cannot be loaded .*archive\); delete its"):
        prepared(runtime, network)


def test_a_compiler_that_fails_at_the_first_call_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As without Python's headers; what else goes wrong in a network stays what it is."""
    network = Tiny().eval()

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(network, "forward", fail)
    run = prepared("torch-compile", network)
    error: RuntimeError = TorchDynamoException("InvalidCxxCompiler: No working C++ compiler found\nand a page of it")
    with pytest.raises(BackendError, match=r"^torch-compile: .*No working C.. compiler found\); install .*torch"):
        run(*tiny_task().example)
    error = RuntimeError("shapes do not fit")
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run(*tiny_task().example)


def test_obstacles_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"^tensorrt: expected an NVIDIA GPU"):
        prepared("tensorrt", Tiny().eval())
    monkeypatch.setenv("CXX", "no-such-compiler")
    for runtime in ("aoti", "torch-compile"):
        with pytest.raises(BackendError, match=f"^{runtime}: expected a C.. compiler, no-such-compiler"):
            prepared(runtime, Tiny().eval())
    assert onnx_file.obstacle(torch.device("cpu")) is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "expected the package onnx" in (onnx_file.obstacle(torch.device("cpu")) or "")


@pytest.mark.skipif(aoti.obstacle(torch.device("cpu")) is not None, reason="needs a C++ compiler")
def test_aoti_from_build_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real compiler: build, self-test, cache, and a second start that only loads."""
    network = Tiny().eval()
    first = prepared("aoti", network)
    (engine,) = [path for path in engines_folder().iterdir() if path.is_dir()]
    manifest: dict[str, Any] = json.loads((engine / cache.MANIFEST).read_text())
    assert manifest["error"] < 1e-6
    assert manifest["key"]["toolchain"] == f"torch {torch.__version__}"

    def no_build(*_: object) -> str:
        raise AssertionError("built again")

    monkeypatch.setattr(aoti, "build", no_build)
    second = prepared("auto", network, cached_only=True)
    assert second is not network
    with torch.inference_mode():
        want = network(*inputs())
        # Compiling at the start goes the same way.
        for run in (first, second, prepared("torch-compile", network)):
            torch.testing.assert_close(run(*inputs()), want, atol=1e-6, rtol=0)

"""ONNX files: the numbers of PyTorch, and only what TensorRT takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

from tests.export.nets import tiny_task
from tests.flow.raft_weights import some_pictures, some_weights
from tests.reconstruct.vggt.common import SMALL, pictures, seeded_state
from vs3r.export import build, onnx_file
from vs3r.export.build import Task
from vs3r.flow.learned import example_inputs
from vs3r.flow.raft import Raft
from vs3r.reconstruct.vggt.cues import CueLayers
from vs3r.reconstruct.vggt.model import FirstPass, SecondPass, Vggt, load_state

REDUCED = replace(
    SMALL,
    encoder_depth=1,
    pairs=4,
    kept=(0, 1, 2, 3),
    camera_depth=1,
    dropping=1,
    cues=CueLayers(shallow=(0,), middle=(1,), deep=(2,), deep_spread=(2, 3)),
)
SIZES = [(160, 128), (136, 144)]
# From the table published with TensorRT's parser: docs/operators.md of onnx-tensorrt for TensorRT 10.0.
SUPPORTED = set((Path(__file__).parent / "tensorrt_operators.txt").read_text().split())
OPSETS = range(9, 21)


def problems(model: onnx.ModelProto) -> list[str]:
    """What TensorRT would not take, by its published table of operators."""
    inferred = onnx.shape_inference.infer_shapes(model)
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
    found = [f"opset {o.domain} {o.version}" for o in model.opset_import if o.domain or o.version not in OPSETS]
    found += [f"function {function.name}" for function in model.functions]
    for node in inferred.graph.node:
        if node.domain or node.op_type not in SUPPORTED:
            found.append(f"operator {node.domain}.{node.op_type}")
        if node.op_type == "GridSample" and ranks[node.input[0]] != 4:
            found.append(f"GridSample of rank {ranks[node.input[0]]}")
    dynamic = [v.name for v in values if any(dim.HasField("dim_param") for dim in v.type.tensor_type.shape.dim)]
    return found + [f"dynamic shape of {name}" for name in dynamic]


@pytest.mark.parametrize("size", SIZES)
def test_raft(tmp_path: Path, size: tuple[int, int]) -> None:
    """The whole network, one iteration of it: each further one adds the same nodes again."""
    network = Raft(iterations=1).eval()
    network.load_state_dict(some_weights(network))
    example = example_inputs(*size, torch.device("cpu"))
    path = tmp_path / onnx_file.build(network, example, tmp_path)
    model = onnx.load(path)
    assert problems(model) == []
    assert [(o.domain, o.version) for o in model.opset_import] == [("", onnx_file.OPSET)]
    assert [value.name for value in model.graph.input] == ["src", "dst", "start"]
    src, dst = (torch.nn.functional.interpolate(p, size[::-1]) for p in some_pictures())
    src, dst = torch.cat([src, dst]), torch.cat([dst, src])
    start = torch.full_like(example[2], 0.5)
    with torch.inference_mode():
        want = network(src, dst, start)
    found = onnx_file.load(path, torch.device("cpu"))(src, dst, start)
    assert float(want.abs().max()) > 1
    # Worst difference seen: 1.2e-5 px (1.0e-4 px after twelve iterations, of flows up to 60 px).
    torch.testing.assert_close(found, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(3, 56, 84), (4, 70, 42)], ids=str)
def test_vggt4d(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    """Both passes at reduced width; blocks and heads repeat."""
    frames, height, width = shape
    network = Vggt(REDUCED).eval()
    load_state(network, seeded_state(network))
    first, second = FirstPass(network, height, width, cues=True).eval(), SecondPass(network, height, width).eval()
    window = pictures(frames, height, width)
    with torch.inference_mode():
        features = first(window)[4]
    keep = torch.rand(features.shape[:2], generator=torch.Generator().manual_seed(0))
    for name, network_pass, inputs in (("first", first, (window,)), ("second", second, (features.clone(), keep))):
        folder = tmp_path / name
        folder.mkdir()
        path = folder / onnx_file.build(network_pass, inputs, folder)
        assert problems(onnx.load(path)) == []
        with torch.inference_mode():
            want = network_pass(*inputs)
        found = onnx_file.load(path, torch.device("cpu"))(*inputs)
        assert len(found) == len(want)
        for got, expected in zip(found, want, strict=True):
            # Worst difference seen: 1e-5, of poses of up to 11.
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
            assert float(expected.std()) > 0.01


def test_the_table_refuses(tmp_path: Path) -> None:

    class Volume(torch.nn.Module):
        def forward(self, volume: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.grid_sample(volume, grid, align_corners=True).det()

    inputs = torch.rand(1, 1, 2, 4, 4), torch.rand(1, 2, 4, 4, 3)
    model = onnx.load(tmp_path / onnx_file.build(Volume().eval(), inputs, tmp_path))
    assert {"GridSample of rank 5", "operator .Det"} <= set(problems(model))
    model.opset_import[0].version = 25
    assert "opset  25" in problems(model)


def test_build_with_self_test(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for dtype in (torch.float32, torch.float16):
        task: Task = tiny_task(dtype=dtype)
        engine = build.build(task, task.key("onnx"))
        assert engine.path.name == "model.onnx"
        assert engine.error < (1e-6 if dtype == torch.float32 else 1e-2)


def test_large_networks_keep_their_weights_beside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(onnx_file, "_EXTERNAL_ABOVE", 100)
    task = tiny_task()
    path = tmp_path / onnx_file.build(task.network, task.example, tmp_path)
    assert any(other != path for other in tmp_path.iterdir())
    found = onnx_file.load(path, torch.device("cpu"))(*task.example)
    torch.testing.assert_close(found, task.network(*task.example).detach(), atol=1e-6, rtol=0)

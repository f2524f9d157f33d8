"""ONNX: what TensorRT is built from and other programs read. The self-test runs it with onnxruntime, on the CPU."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from vs3r.networks import Network

OPSET = 18
"""GridSample of opset 20 gives wrong values in TensorRT 10.13."""
_FILE = "model.onnx"
# A protobuf holds 2 GB.
_EXTERNAL_ABOVE = 1_900_000_000


def obstacle(_device: torch.device) -> str | None:
    """See build.Format."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            return f"expected the package {package}; it is not installed: pip install 'vs3r[export]' onnxruntime"
    return None


def toolchain() -> str:
    """See build.Format."""
    return f"torch {torch.__version__}, opset {OPSET}"


def build(network: nn.Module, example: tuple[Tensor, ...], folder: Path) -> str:
    """See build.Format."""
    names = list(inspect.signature(network.forward).parameters)
    size = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    with _quiet():
        program = torch.onnx.export(
            network, example, dynamo=True, opset_version=OPSET, input_names=names, verbose=False, optimize=True
        )
        assert program is not None
        program.save(str(folder / _FILE), external_data=size > _EXTERNAL_ABOVE)
    return _FILE


def load(path: Path, device: torch.device) -> Network:
    """See build.Format. On the CPU, whatever the device: it is for tests."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor | list[Tensor]:
        feed = {name: value.cpu().numpy() for name, value in zip(names, inputs, strict=True)}
        outputs = [torch.from_numpy(value).to(device) for value in session.run(None, feed)]
        return outputs[0] if len(outputs) == 1 else outputs

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks about itself."""
    chatter = logging.getLogger("torch.onnx")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        chatter.setLevel(level)

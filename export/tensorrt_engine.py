"""TensorRT 10 and 11, strongly typed: the graph's own dtypes count. Written after its documented interface."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vs3r.errors import BackendError
from vs3r.export import onnx_file
from vs3r.networks import Network

_FILE = "engine.plan"
_TIMINGS = "tensorrt_timings.bin"


def obstacle(device: torch.device, /) -> str | None:
    """See build.Format."""
    if device.type != "cuda":
        return "expected an NVIDIA GPU, PyTorch sees none; run it with torch or aoti instead"
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            return f"expected the package {package}; it is not installed: pip install 'vs3r[export]'"
    try:
        importlib.import_module("tensorrt")
    except ImportError:
        return "expected NVIDIA TensorRT 10 or newer; install it with: pip install tensorrt"
    return None


def toolchain() -> str:
    """See build.Format."""
    try:
        import tensorrt
    except ImportError:
        return "no TensorRT"
    return f"TensorRT {tensorrt.__version__}, torch {torch.__version__}, opset {onnx_file.OPSET}"


def build(network: nn.Module, example: tuple[Tensor, ...], folder: Path) -> str:
    """See build.Format. What tactics were timed is kept beside the engines, and makes the next build faster."""
    import tensorrt as trt

    source = folder / onnx_file.build(network, example, folder)
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    # TensorRT 11 knows nothing else, and ignores the flag.
    definition = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(definition, logger)
    if not parser.parse_from_file(str(source)):
        reasons = "; ".join(parser.get_error(k).desc() for k in range(min(2, parser.num_errors)))
        raise BackendError(
            f"TensorRT {trt.__version__} does not take the network: {reasons}; run it with torch or aoti"
        )
    config = builder.create_builder_config()
    timings = folder.parent / _TIMINGS
    cache = config.create_timing_cache(timings.read_bytes() if timings.exists() else b"")
    # Timings of another GPU or version are refused here, and begun anew.
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    plan = builder.build_serialized_network(definition, config)
    if plan is None:
        raise BackendError(f"TensorRT {trt.__version__} found no engine, see its messages; run it with torch or aoti")
    timings.write_bytes(bytes(cache.serialize()))
    (folder / _FILE).write_bytes(bytes(plan))
    for leftover in folder.glob(f"{source.name}*"):
        leftover.unlink()
    return _FILE


def load(path: Path, device: torch.device) -> Network:
    """See build.Format. PyTorch's tensors are read and written in place, on PyTorch's current stream."""
    import tensorrt as trt

    engine = trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise BackendError(f"TensorRT {trt.__version__} does not load {path}; delete its folder and build it again")
    return _Runner(trt, engine, device)


class _Runner:
    """An engine that is called with tensors."""

    def __init__(self, trt: Any, engine: Any, device: torch.device) -> None:
        self._engine = engine  # keeps the context alive
        self._context = engine.create_execution_context()
        self._device = device
        names = [engine.get_tensor_name(k) for k in range(engine.num_io_tensors)]
        is_input = {name: engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        self._inputs = [name for name in names if is_input[name]]
        dtypes = {
            trt.DataType.FLOAT: torch.float32,
            trt.DataType.HALF: torch.float16,
            trt.DataType.BF16: torch.bfloat16,
            trt.DataType.INT32: torch.int32,
            trt.DataType.INT64: torch.int64,
            trt.DataType.BOOL: torch.bool,
        }
        self._outputs = [
            (name, tuple(engine.get_tensor_shape(name)), dtypes[engine.get_tensor_dtype(name)])
            for name in names
            if not is_input[name]
        ]

    def __call__(self, *inputs: Tensor) -> Tensor | list[Tensor]:
        kept = [value.contiguous() for value in inputs]
        outputs = [torch.empty(shape, dtype=dtype, device=self._device) for _, shape, dtype in self._outputs]
        for name, value in zip([*self._inputs, *(name for name, _, _ in self._outputs)], kept + outputs, strict=True):
            self._context.set_tensor_address(name, value.data_ptr())
        if not self._context.execute_async_v3(torch.cuda.current_stream(self._device).cuda_stream):
            raise BackendError("TensorRT could not run the engine, see its messages; run it with torch or aoti")
        # PyTorch gives their memory away only after what is queued on this stream.
        return outputs[0] if len(outputs) == 1 else outputs

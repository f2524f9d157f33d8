"""How the method runs a learned network: it hands it over with example inputs, and calls what it gets back.

Who gives the way (`Prepare`) decides how: the engine compiles it or takes a built one (export/runtime.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from vs3r.errors import BackendError

Network: TypeAlias = Callable[..., Any]
"""A network that is called with tensors of the shapes, dtypes and device of its example inputs."""

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Prepare(Protocol):
    """Makes a network ready to run."""

    def __call__(self, name: str, network: nn.Module, example: tuple[Tensor, ...], /) -> Network:
        """
        Args:
            name: what the network is called in messages and file names.
            network: in eval mode, on its device.
            example: inputs of the shapes, dtypes and device that it will be called with.
        Returns:
            What computes the same.
        Raises:
            BackendError: the way asked for cannot be gone here.
        """
        ...


_COMPILING: ContextVar[bool] = ContextVar("compiling", default=False)


@contextmanager
def compiled_parts() -> Iterator[None]:
    """Within it a `part` of a network runs through torch.compile."""
    token = _COMPILING.set(True)
    try:
        yield
    finally:
        _COMPILING.reset(token)


def part(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that many blocks of a network have in common: within `compiled_parts` compiled once for all that are
    alike, which takes seconds where compiling the network as a whole takes minutes; else as it is."""
    return _compiled(function) if _COMPILING.get() else function


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False)


@contextmanager
def compile_errors(option: str, advice: str) -> Iterator[None]:
    """Turns a failure of PyTorch's compiler, which needs one for C++ and Python's headers, into a BackendError."""
    try:
        yield
    except RuntimeError as error:
        from torch._dynamo.exc import TorchDynamoException

        if not isinstance(error, TorchDynamoException):
            raise
        reason = str(error).strip().split("\n")[0]
        raise BackendError(
            f"{option}: PyTorch cannot compile here ({reason}); install g++ and Python's headers, or {advice}"
        ) from error


def eager(_name: str, network: nn.Module, _example: tuple[Tensor, ...], /) -> Network:
    """As it is. A Prepare."""
    return network


def replayed(network: Network, example: tuple[Tensor, ...]) -> Network:
    """A network of many small kernels, on a GPU recorded once as a CUDA graph and replayed: the processor needs longer
    to ask for its kernels one by one than the GPU to run them. On a CPU the network itself.

    Args:
        network: always does the same with its inputs, without reading a value back.
        example: inputs of the shapes, dtypes and device that it will be called with.
    Returns:
        What computes the same; a result holds until the next call.
    """
    if example[0].device.type != "cuda":
        return network
    inputs = tuple(torch.empty_like(value).copy_(value) for value in example)
    beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    beside.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), torch.cuda.stream(beside):
        for _ in range(2):  # libraries choose and allocate
            network(*inputs)
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    # Other threads use the GPU meanwhile.
    with torch.inference_mode(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        found = network(*inputs)

    def replay(*values: Tensor) -> Any:
        for here, value in zip(inputs, values, strict=True):
            here.copy_(value)
        graph.replay()
        return found

    return replay


def queue_of_its_own(device: torch.device, *, ahead: bool = False) -> Callable[[], AbstractContextManager[object]]:
    """What to enter around work on a device that must not wait for that of other threads.

    Args:
        device: on a CPU nothing is done.
        ahead: short work, which a GPU begins before the rest of what it was asked for.
    """
    if device.type != "cuda":
        return nullcontext

    @functools.cache
    def stream() -> torch.cuda.Stream:
        return torch.cuda.Stream(device, priority=-1 if ahead else 0)  # type: ignore[no-untyped-call]

    return lambda: torch.cuda.stream(stream())


def default_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def chosen_device(asked: str, option: str) -> torch.device:
    """The device of an option that takes auto, cpu and cuda; auto is the GPU where there is one.

    Raises:
        BackendError: cuda was asked for and there is no GPU.
    """
    if asked == "cuda" and not torch.cuda.is_available():
        raise BackendError(f"{option} cuda: expected an NVIDIA GPU; PyTorch finds none; or ask for auto or cpu")
    return default_device() if asked == "auto" else torch.device(asked)

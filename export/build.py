"""Building an engine, testing it against PyTorch, keeping it."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from vs3r.errors import BackendError, OutputError, Vs3rError
from vs3r.export import aoti, onnx_file, tensorrt_engine
from vs3r.export.cache import Engine, EngineKey, described, device_name, engines_folder, keep, network_sha256
from vs3r.networks import Network

log = logging.getLogger(__name__)

# The engine's RMS error against float32, over the RMS of the output: this much, and twice what PyTorch itself errs by
# in the network's own precision (TF32 on a GPU, for float32). Engines of RAFT in float32 were seen to err by 1.4e-6.
TOLERANCE = 1e-4
PRECISION_FACTOR = 2.0

Outputs: TypeAlias = Tensor | tuple[Tensor, ...] | list[Tensor]
"""Of a network."""


class Format(Protocol):
    """A kind of engine file; the modules aoti, onnx_file and tensorrt_engine are such."""

    def obstacle(self, device: torch.device, /) -> str | None:
        """Why it can be neither built nor run for a device: what was expected, and what to do; None when it can."""
        ...

    def toolchain(self) -> str:
        """Versions of what builds and runs it."""
        ...

    def build(self, network: nn.Module, example: tuple[Tensor, ...], folder: Path) -> str:
        """Write the engine into a folder; returns the file's name."""
        ...

    def load(self, path: Path, device: torch.device) -> Network:
        """Make it callable."""
        ...


FORMATS: dict[str, Format] = {"aoti": aoti, "onnx": onnx_file, "tensorrt": tensorrt_engine}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """A network, and for which inputs it is to be built."""

    model: str
    """What it is called."""
    network: nn.Module
    """In eval mode, on its device."""
    example: tuple[Tensor, ...]
    """Inputs of the shapes, dtypes and device in question."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.example[0].device

    def key(self, format_name: str) -> EngineKey:
        """What its engine of a format depends on."""
        return EngineKey(
            model=self.model,
            format=format_name,
            network_sha256=network_sha256(self.network),
            inputs=tuple(map(described, self.example)),
            toolchain=FORMATS[format_name].toolchain(),
            device=device_name(self.device),
        )


def check_format(format_name: str, device: torch.device) -> None:
    """Raise BackendError, saying what to do, where a format cannot be built or run."""
    obstacle = FORMATS[format_name].obstacle(device)
    if obstacle is not None:
        raise BackendError(f"{format_name}: {obstacle}")


def build(task: Task, key: EngineKey) -> Engine:
    """Build an engine, test it, keep it.

    Raises:
        BackendError: it cannot be built here, or what was built computes something else; nothing is kept.
        OutputError: the cache cannot be written.
    """
    check_format(key.format, task.device)
    unfinished = key.folder.with_name(f"unfinished-{key.folder.name}-{os.getpid()}")
    try:
        engines_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        ours = engines_folder().parent
        # Under many a umask the group may write to what was made before, and engines there would not be taken.
        ours.chmod(stat.S_IMODE(ours.stat().st_mode) & ~(stat.S_IWGRP | stat.S_IWOTH))
        unfinished.mkdir(mode=0o700)
        log.info("building %s of %s for %s", key.format, key.model, key.device)
        file = _built(task, key, unfinished)
        engine = Engine(key=key, file=file, error=self_test(task, key.format, unfinished / file))
        keep(engine, unfinished)
        return engine
    except torch.cuda.OutOfMemoryError:
        raise BackendError(
            f"not enough GPU memory to build {key.model} for {', '.join(key.inputs)} and to compare it with float32; "
            "end what else uses the GPU, or run it with torch instead"
        ) from None
    except OSError as error:
        raise OutputError(f"cannot write the engine to {engines_folder()}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _built(task: Task, key: EngineKey, folder: Path) -> str:
    try:
        with torch.no_grad():
            return FORMATS[key.format].build(task.network, task.example, folder)
    except (Vs3rError, OSError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # compilers raise what they like
        reason = str(error).strip().split("\n")[0]
        raise BackendError(
            f"{key.format} of {key.model} cannot be built ({type(error).__name__}: {reason}); run it with torch instead"
        ) from error


def self_test(task: Task, format_name: str, path: Path) -> float:
    """Compare an engine with PyTorch on random input.

    Returns:
        RMS of the difference over RMS of the output, the largest of all outputs; PyTorch in float32.
    Raises:
        BackendError: it does not run, or the difference is larger than the network's precision explains.
    """
    inputs = random_like(task.example)
    reference = reference_of(task.network, inputs)
    with torch.inference_mode():
        own = errors_of(task.network(*inputs), reference)
        found = errors_of(_outputs(task, format_name, path, inputs), reference)
    for got, pytorch in zip(found, own, strict=True):
        limit = TOLERANCE + PRECISION_FACTOR * pytorch
        # `not <=` also refuses NaN.
        if not got <= limit:
            raise BackendError(
                f"the {format_name} engine of {task.model} failed its self-test: it differs from PyTorch by {got:.1e}, "
                f"expected at most {limit:.1e}; it was thrown away: run it with torch instead"
            )
    return max(found)


def _outputs(task: Task, format_name: str, path: Path, inputs: tuple[Tensor, ...]) -> Outputs:
    """Of the engine."""
    try:
        found: Outputs = FORMATS[format_name].load(path, task.device)(*inputs)
    except (Vs3rError, OSError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # what runs engines raises what it likes
        reason = str(error).strip().split("\n")[0]
        raise BackendError(
            f"the {format_name} engine of {task.model} does not run here ({type(error).__name__}: {reason}); it was "
            "thrown away: try --precision fp32, or run it with torch instead"
        ) from error
    return found


def reference_of(network: nn.Module, inputs: tuple[Tensor, ...]) -> Outputs:
    """What PyTorch computes in float32, without the short cut of TF32 that GPUs take in convolutions."""
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found: Outputs = copy.deepcopy(network).float()(*inputs)
    return found


def random_like(example: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Inputs of the same shapes: floats uniform in [-1, 1], the same every time; anything else as it is."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        (2 * torch.rand(value.shape, generator=generator) - 1).to(value) if value.is_floating_point() else value
        for value in example
    )


def errors_of(found: Outputs, reference: Outputs) -> list[float]:
    """Of every output: RMS of the difference over RMS of the reference."""
    return [
        float((got.detach().double() - want.double()).square().mean().sqrt() / _rms(want))
        for got, want in zip(_listed(found), _listed(reference), strict=True)
    ]


def _rms(values: Tensor) -> Tensor:
    return values.double().square().mean().sqrt().clamp_min(1e-12)


def _listed(outputs: Outputs) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)

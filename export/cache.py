"""Where engines lie, and for what each was made. They are code: only those in the user's own cache are loaded."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vs3r.errors import BackendError
from vs3r.weights import cache_folder

MANIFEST = "engine.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKey:
    """What an engine depends on: with anything else changed, it is another engine."""

    model: str
    """What the network is called."""
    format: str
    """Of the file: aoti, onnx or tensorrt."""
    network_sha256: str
    """Of the weights, with names, shapes and dtypes, and of all source files in the folders of the network's code."""
    inputs: tuple[str, ...]
    """Dtype and shape of every input, e.g. "float32[1,3,272,480]"."""
    toolchain: str
    """Versions of what builds and runs it."""
    device: str
    """What it was built for: the GPU's name and compute capability, or the processor's instruction set."""

    @property
    def folder(self) -> Path:
        """Where the engine lies, or would."""
        text = json.dumps(asdict(self), sort_keys=True)
        return engines_folder() / f"{self.model}-{self.format}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """An engine in the cache."""

    key: EngineKey
    """What it was made for."""
    file: str
    """Name of the file in the key's folder."""
    error: float
    """What the self-test found: RMS of the difference from PyTorch over RMS of the output."""

    @property
    def path(self) -> Path:
        """The file."""
        return self.key.folder / self.file


def engines_folder() -> Path:
    """The cache of engines; it need not exist."""
    return cache_folder("engines")


def network_sha256(network: nn.Module) -> str:
    """Of weights and code."""
    # PyTorch's own code is in the toolchain's version.
    own = [type(part) for part in network.modules() if not type(part).__module__.startswith("torch.")]
    folders = {Path(inspect.getfile(kind)).parent for kind in own}
    digest = hashlib.sha256()
    for file in sorted(file for folder in folders for file in folder.glob("*.py")):
        digest.update(file.read_bytes())
    # What a network does beside its weights: iterations, say.
    settings = {k: v for k, v in vars(network).items() if isinstance(v, bool | int | float | str) and k[0] != "_"}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for name, value in network.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def described(value: Tensor) -> str:
    """Dtype and shape of an input."""
    return f"{str(value.dtype).removeprefix('torch.')}[{','.join(map(str, value.shape))}]"


def device_name(device: torch.device) -> str:
    """What an engine is built for."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, compute capability {properties.major}.{properties.minor}"
    return f"CPU, {torch.backends.cpu.get_cpu_capability()}"


def find(key: EngineKey) -> Engine | None:
    """The engine of a key, where it was built.

    Raises:
        BackendError: someone else could have written it.
    """
    engine = _read(key.folder)
    if engine is None or engine.key != key or not engine.path.is_file():
        return None
    for folder in (engines_folder().parent, engines_folder(), key.folder):
        _check_owner(folder)
    return engine


def others(key: EngineKey) -> list[str]:
    """Of engines of the same model, format and inputs: in what they differ from a key."""
    found = []
    for engine in _all(f"{key.model}-{key.format}-*"):
        if engine.key.inputs == key.inputs and engine.key != key:
            differing = [n for n in ("toolchain", "device") if getattr(engine.key, n) != getattr(key, n)]
            named = [f"{name} {getattr(engine.key, name)}" for name in differing]
            changed = engine.key.network_sha256 != key.network_sha256
            found.append(", ".join(named + ["other weights or settings"] * changed))
    return found


def has_any(model: str, format_name: str) -> bool:
    """Whether there is any engine of a model, without reading weights."""
    return any(_all(f"{model}-{format_name}-*"))


def keep(engine: Engine, unfinished: Path) -> None:
    """Move an engine that passed its test from a folder beside it to where it is found."""
    (unfinished / MANIFEST).write_text(json.dumps(asdict(engine), indent=1))
    shutil.rmtree(engine.key.folder, ignore_errors=True)
    os.replace(unfinished, engine.key.folder)


def _all(pattern: str) -> Iterator[Engine]:
    for folder in sorted(engines_folder().glob(pattern)):
        engine = _read(folder)
        if engine is not None:
            yield engine


def _read(folder: Path) -> Engine | None:
    try:
        data: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        key = data.pop("key")
        engine = Engine(key=EngineKey(**{**key, "inputs": tuple(key["inputs"])}), **data)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return engine if isinstance(engine.file, str) else None


def _check_owner(folder: Path) -> None:
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BackendError(
            f"expected {folder} to be yours, and writable by you alone, because engines are code; "
            f"delete it, or: chmod go-w {folder}"
        )

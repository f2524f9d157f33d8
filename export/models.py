"""What can be exported: by name, a network with the user's weights, and inputs of the shapes it is built for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from vs3r.config import FlowConfig
from vs3r.errors import InputError
from vs3r.export.build import Task, build, check_format
from vs3r.export.cache import Engine, find
from vs3r.flow.learned import example_inputs, load_network
from vs3r.networks import default_device


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What `vs3r export` is asked for."""

    width: int
    """Of the analysis picture, in pixels."""
    height: int
    """Of the analysis picture, in pixels."""
    flow: FlowConfig
    """Iterations and precision."""


def _raft(request: Request, device: torch.device) -> Task:
    config = replace(request.flow, analysis_pixels=request.width * request.height)
    example = example_inputs(request.width, request.height, device)
    return Task(model="raft", network=load_network(config, device), example=example)


MODELS: dict[str, Callable[[Request, torch.device], Task]] = {"raft": _raft}
"""Makes the task of a model, for a device."""


def export_model(model: str, format_name: str, request: Request, *, rebuild: bool) -> Engine:
    """The engine of a model, built unless it is there.

    Raises:
        InputError: there is no such model, or its weights are missing or wrong.
        BackendError: the engine cannot be built here.
        OutputError: the cache cannot be written.
    """
    if model not in MODELS:
        raise InputError(f"expected a model: {', '.join(MODELS)}; got {model!r}")
    device = default_device()
    check_format(format_name, device)
    task = MODELS[model](request, device)
    key = task.key(format_name)
    engine = None if rebuild else find(key)
    return build(task, key) if engine is None else engine

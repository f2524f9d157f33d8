"""What can be exported: by name, a network with the user's weights, and inputs of the shapes it is built for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from vs3r.config import FlowConfig, VggtConfig
from vs3r.errors import InputError
from vs3r.export.build import Task, build, check_format
from vs3r.export.cache import Engine, find
from vs3r.flow.learned import example_inputs, load_network
from vs3r.networks import default_device
from vs3r.reconstruct.vggt.model import FirstPass, SecondPass
from vs3r.reconstruct.vggt.window import example_inputs as window_inputs
from vs3r.reconstruct.vggt.window import load_network as load_vggt
from vs3r.reconstruct.vggt.window import size_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What `vs3r export` is asked for."""

    width: int
    """Of the analysis picture, in pixels."""
    height: int
    """Of the analysis picture, in pixels."""
    flow: FlowConfig
    """Iterations and precision of RAFT."""
    vggt: VggtConfig
    """Window and precision of VGGT."""


def _raft(request: Request, device: torch.device) -> list[Task]:
    config = replace(request.flow, analysis_pixels=request.width * request.height)
    example = example_inputs(request.width, request.height, device)
    return [Task(model="raft", network=load_network(config, device), example=example)]


def _vggt4d(request: Request, device: torch.device) -> list[Task]:
    """Both passes, for full windows of pictures of the shape that is asked for."""
    config = replace(request.vggt, vggt_device="cpu" if device.type == "cpu" else "auto")
    network = load_vggt(config)
    size = size_of(request.width, request.height, config.vggt_long_side, network.size.patch)
    first, second = window_inputs(network, config.vggt_window_frames, size)
    return [
        Task(model="vggt4d", network=FirstPass(network, *size, cues=True).eval(), example=first),
        Task(model="vggt4d-second", network=SecondPass(network, *size).eval(), example=second),
    ]


MODELS: dict[str, Callable[[Request, torch.device], list[Task]]] = {"raft": _raft, "vggt4d": _vggt4d}
"""Makes the tasks of a model, one for each network it runs, for a device."""


def export_model(model: str, format_name: str, request: Request, *, rebuild: bool) -> list[Engine]:
    """The engines of a model, built unless they are there.

    Raises:
        InputError: there is no such model, or its weights are missing or wrong.
        BackendError: the engine cannot be built here.
        OutputError: the cache cannot be written.
    """
    if model not in MODELS:
        raise InputError(f"expected a model: {', '.join(MODELS)}; got {model!r}")
    device = default_device()
    check_format(format_name, device)
    engines = []
    for task in MODELS[model](request, device):
        key = task.key(format_name)
        engine = None if rebuild else find(key)
        engines.append(build(task, key) if engine is None else engine)
    return engines

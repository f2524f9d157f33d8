"""How a network runs: as PyTorch has it, compiled at the start, or as an engine from the cache."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor, nn

from vs3r.config import NetworkConfig
from vs3r.errors import BackendError, Vs3rError
from vs3r.export.aoti import obstacle as no_compiler
from vs3r.export.build import FORMATS, Task, build, check_format
from vs3r.export.cache import Engine, find, has_any, others
from vs3r.networks import Network, Prepare, compile_errors, compiled_parts, eager

log = logging.getLogger(__name__)

# Those that `auto` takes where they were built, the fastest first.
_PREFERRED = ("tensorrt", "aoti")


def prepare_with(config: NetworkConfig) -> Prepare:
    """The way that the config names."""

    def prepare(name: str, network: nn.Module, example: tuple[Tensor, ...], /) -> Network:
        task = Task(model=name, network=network, example=example)
        if config.runtime == "auto":
            return _built_before(task)
        if config.runtime == "torch-compile":
            return _compiled(task)
        if config.runtime == "torch":
            return eager(name, network, example)
        return _engine(task, config.runtime, build_missing=not config.cached_engines_only)

    return prepare


def _built_before(task: Task) -> Network:
    """An engine if there is one, else PyTorch; never builds."""
    for format_name in _PREFERRED:
        # The weights are read only where an engine may come of it.
        if has_any(task.model, format_name) and FORMATS[format_name].obstacle(task.device) is None:
            engine = find(task.key(format_name))
            if engine is not None:
                log.info("%s runs as the %s engine %s", task.model, format_name, engine.path)
                return _loaded(task, engine)
    return task.network


def _engine(task: Task, format_name: str, *, build_missing: bool) -> Network:
    """An engine, built where there is none."""
    check_format(format_name, task.device)
    key = task.key(format_name)
    engine = find(key)
    if engine is None:
        known = "; ".join(f"there is one for {difference}" for difference in others(key))
        missing = f"no {format_name} engine of {task.model} for {', '.join(key.inputs)} on {key.device}"
        missing += f" ({known})" if known else ""
        if not build_missing:
            raise BackendError(f"{missing}; build it with vs3r export, or leave out --cached-engines-only")
        log.warning("%s: building it, which takes minutes", missing)
        engine = build(task, key)
    return _loaded(task, engine)


def _loaded(task: Task, engine: Engine) -> Network:
    try:
        return FORMATS[engine.key.format].load(engine.path, task.device)
    except Vs3rError:
        raise
    except Exception as error:  # what loads engines raises what it likes
        reason = str(error).strip().split("\n")[0]
        raise BackendError(
            f"the {engine.key.format} engine {engine.path} cannot be loaded ({type(error).__name__}: {reason}); delete "
            "its folder, and it is built again, or run it with torch instead"
        ) from error


def _compiled(task: Task) -> Network:
    reason = no_compiler(task.device)
    if reason is not None:
        raise BackendError(f"torch-compile: {reason}")

    def run(*inputs: Tensor) -> Any:
        with compiled_parts(), compile_errors("torch-compile", "run it with torch instead"):
            return task.network(*inputs)

    return run

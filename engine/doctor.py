"""What can run on this machine, and why something cannot: `vs3r doctor`."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from vs3r import __version__
from vs3r.config import EncodeConfig
from vs3r.engine.threads import usable_cores

_REFINEMENT = "diffusion refinement; install with: pip install 'vs3r[refine]'"
_OPTIONAL = {
    "matplotlib": "plots: vs3r evaluate --plot; install with: pip install matplotlib",
    "grpcio": "vs3r serve, and --server; install with: pip install 'vs3r[server]'",
    "triton": "GPU kernels; install with: pip install 'vs3r[gpu]'",
    "diffusers": _REFINEMENT,
    "transformers": _REFINEMENT,
    "accelerate": _REFINEMENT,
    "peft": _REFINEMENT,
    "huggingface_hub": "fetching weights of VGGT and Wan; install with: pip install 'vs3r[weights]'",
}
_DECODERS = ("h264", "hevc", "mpeg4", "mjpeg", "prores", "dnxhd", "vp9", "av1", "ffv1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    """What."""
    ok: bool
    """It can be used."""
    required: bool
    """The default way through VS3R needs it."""
    detail: str
    """What was found, or why it cannot be used and what to do."""


def examine() -> list[Finding]:
    """Look at this machine. Never raises: what fails is a finding."""
    looks: list[tuple[str, bool, Callable[[], str]]] = [
        ("vs3r", True, lambda: f"{__version__}, Python {platform.python_version()}, {platform.platform()}"),
        ("CPU", True, _cpu),
        ("torch", True, _torch),
        ("OpenCV", True, _opencv),
        ("PyAV", True, _pyav),
        ("safetensors", True, lambda: importlib.metadata.version("safetensors")),
        ("disk", True, lambda: f"{shutil.disk_usage('.').free / 2**30:.1f} GiB free in this folder"),
        ("GPU", False, _gpu),
    ]
    findings = [_look(*look) for look in looks]
    findings.extend(_codecs())
    findings.extend(_look(name, False, partial(_package, name, why)) for name, why in _OPTIONAL.items())
    findings.extend(_look(f"export {name}", False, partial(_export, name)) for name in ("aoti", "onnx", "tensorrt"))
    findings.append(_look("weights", False, _weights))
    return findings


def report_table(findings: list[Finding]) -> str:
    """The findings as plain text, and what they mean together."""
    lines = []
    for finding in findings:
        state = "ok" if finding.ok else "FAIL" if finding.required else "-"
        lines.append(f"{state:<5}{finding.name:<20}{finding.detail}")
    broken = [f.name for f in findings if f.required and not f.ok]
    lines.append(f"not ready: {', '.join(broken)}" if broken else "ready: vs3r stabilize can run here")
    return "\n".join(lines)


def _look(name: str, required: bool, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name=name, ok=True, required=required, detail=look())
    except Exception as error:  # a broken installation may raise anything, and must be told, not fail the report
        reason = " ".join(str(error).split()) or type(error).__name__
        return Finding(name=name, ok=False, required=required, detail=reason)


class _Absent(Exception):
    """Why something cannot be used."""


def _cpu() -> str:
    return f"{usable_cores()} cores, {platform.machine()}"


def _torch() -> str:
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return f"{torch.__version__}, {built}"


def _opencv() -> str:
    import cv2

    return str(cv2.__version__)


def _pyav() -> str:
    import av

    return f"{av.__version__}, FFmpeg {av.ffmpeg_version_info}"


def _gpu() -> str:
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if torch.version.cuda is None:
        raise _Absent("not used: this PyTorch is a CPU build (nothing needs a GPU)")
    raise _Absent("none found by PyTorch; check the NVIDIA driver (nothing needs a GPU)")


def _codecs() -> Iterator[Finding]:
    choices = next(spec for spec in fields(EncodeConfig) if spec.name == "codec").metadata["choices"]
    for codec in choices:
        yield _look(f"encoder {codec}", codec == EncodeConfig().codec, partial(_codec, codec, "w"))
    for codec in _DECODERS:
        yield _look(f"decoder {codec}", codec == "h264", partial(_codec, codec, "r"))


def _codec(name: str, mode: Any) -> str:
    from av.codec.codec import Codec

    try:
        return Codec(name, mode).long_name
    except Exception:
        raise _Absent("not in this FFmpeg build; reinstall PyAV with: pip install --force-reinstall av") from None


def _export(name: str) -> str:
    from vs3r.export.build import FORMATS
    from vs3r.networks import default_device

    obstacle = FORMATS[name].obstacle(default_device())
    if obstacle is not None:
        raise _Absent(obstacle)
    return FORMATS[name].toolchain()


def _weights() -> str:
    from vs3r.engine.weights import is_here
    from vs3r.weights import WEIGHTS

    here = [name for name in WEIGHTS if is_here(name)]
    return f"{', '.join(here) or 'none'} here; the default needs none (flow-ba, dis, fill)"


def _package(name: str, why: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise _Absent(f"not installed: needed for {why}") from None

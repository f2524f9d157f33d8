"""Time of Wan2.2 at full size: python -m benchmarks.refine [--out docs/benchmarks/refine_gpu.csv]

Needs an NVIDIA GPU of 48 GB or more. The weights are random: time does not depend on their values. Seconds per step of
one expert, beside the floor: the operations of a forward pass over the matrix rate that this GPU reaches in bfloat16;
seconds to encode and to decode a window; peak memory.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vs3r.refine.wan.checkpoint import LOW
from vs3r.refine.wan.model import Experts, VideoCodec
from vs3r.refine.wan.precision import hold_as
from vs3r.refine.wan.windows import A14B, latent_count
from vs3r.refine.wan.windows import FRAMES as LATENT_FRAMES

FRAMES = 81
CHANNELS, INPUT_CHANNELS = A14B.channels, 2 * A14B.channels + LATENT_FRAMES
SIZES = {(832, 480): 1.678e15, (1280, 720): 6.523e15}
"""Width and height of a window of 81 frames, and floating-point operations of a forward pass of one expert."""
TOKENS, TEXT_DIM = 512, 4096
REPEATS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement."""

    what: str
    """Step of an expert, or a part of the autoencoder."""
    precision: str
    """Of the weights."""
    size: str
    """Width, height and frames."""
    seconds: float
    """Median."""
    floor_s: float | None
    """What the matrix rate allows; None where it is not what counts."""
    share_of_floor: float | None
    """floor_s / seconds."""
    peak_gib: float
    """Most memory held on the GPU."""
    gpu: str
    """Its name."""
    versions: str
    """Of PyTorch and diffusers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Some work."""

    seconds: float
    """Median."""
    peak_gib: float
    """See Row."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/refine_gpu.csv"))
    out = parser.parse_args().out
    if not torch.cuda.is_available():
        sys.exit("benchmarks.refine needs an NVIDIA GPU and PyTorch with CUDA, and finds none")
    device = torch.device("cuda")
    rows = []
    with torch.no_grad():
        for row in [*steps({}, device), *autoencoder({}, device)]:
            print(*asdict(row).values(), sep="  ")
            rows.append(row)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def steps(settings: dict[str, Any], device: torch.device) -> Iterator[Row]:
    """One expert, in both number formats. `settings` change WanTransformer3DModel's, whose own are those of 14B."""
    from diffusers import WanTransformer3DModel

    rate = matrix_rate(device)
    whole = {"in_channels": INPUT_CHANNELS, "out_channels": CHANNELS, "text_dim": TEXT_DIM} | settings
    torch.set_default_dtype(torch.bfloat16)  # in float32 it would not fit while it is made
    try:
        with device:
            expert = WanTransformer3DModel(**whole).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(torch.float32)
    prompt = torch.randn(1, TOKENS, whole["text_dim"], device=device)
    for precision in ("bf16", "fp8-storage"):
        if precision == "fp8-storage":
            hold_as(expert, "fp8-storage")
        experts = Experts(None, expert, prompt, device=device, swap=False)
        for (width, height), operations in SIZES.items():
            given = torch.randn(_latent_shape(INPUT_CHANNELS, width, height), device=device)
            measured = median_s(partial(experts.velocity, given, 0.5), device)
            yield _row(LOW, precision, (width, height), measured, floor_s=operations / rate)


def autoencoder(settings: dict[str, Any], device: torch.device) -> Iterator[Row]:
    """Encoding in float32 and decoding in bfloat16, once a window each. `settings` change AutoencoderKLWan's."""
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan(**settings).eval().requires_grad_(False)
    codec = VideoCodec(vae, device=device, decode_dtype=torch.bfloat16)
    for width, height in SIZES:
        video = torch.rand(1, 3, FRAMES, height, width, device=device) * 2 - 1
        latents = torch.randn(_latent_shape(CHANNELS, width, height), device=device)
        measured = median_s(partial(codec.encode, video), device)
        yield _row("encode", "fp32", (width, height), measured)
        measured = median_s(partial(codec.decode, latents), device)
        yield _row("decode", "bf16", (width, height), measured)


def matrix_rate(device: torch.device) -> float:
    """Operations a second of a large product in bfloat16."""
    side = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    measured = median_s(partial(torch.matmul, a, b), device, repeats=20)
    return 2 * side**3 / measured.seconds


def median_s(work: Callable[[], Tensor], device: torch.device, *, repeats: int = REPEATS) -> Measured:
    """Median time of a call after a warm-up, and the peak memory."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    work()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    return Measured(seconds=statistics.median(times), peak_gib=peak)


def _latent_shape(channels: int, width: int, height: int) -> tuple[int, ...]:
    return 1, channels, latent_count(FRAMES), height // A14B.cell_px, width // A14B.cell_px


def _row(what: str, precision: str, size: tuple[int, int], measured: Measured, *, floor_s: float | None = None) -> Row:
    import diffusers

    return Row(
        what=what,
        precision=precision,
        size=f"{size[0]}x{size[1]}x{FRAMES}",
        seconds=measured.seconds,
        floor_s=floor_s,
        share_of_floor=None if floor_s is None else floor_s / measured.seconds,
        peak_gib=measured.peak_gib,
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        versions=f"torch {torch.__version__}, diffusers {diffusers.__version__}",
    )


if __name__ == "__main__":
    main()

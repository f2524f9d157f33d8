"""Speed and memory of the learned networks: python -m benchmarks.models --out docs/benchmarks/models_gpu.csv

With random weights at full size: speed does not depend on the values. For every network, picture size and precision:
PyTorch as it is, torch.compile, AOTInductor, and TensorRT where its libraries are; median, 20th and 80th percentile,
peak memory of the call, and the difference from PyTorch in float32. Engines are built into a temporary folder. On a CPU
(processor time, one thread) it takes long; --sizes 128x128 --ways torch tries it out.
"""

from __future__ import annotations

import argparse
import csv
import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from benchmarks.kernels import cpu_times, gpu_times, machine
from vs3r.config import NetworkConfig
from vs3r.errors import BackendError
from vs3r.export.build import Task, error_of, random_like, reference_of
from vs3r.export.runtime import prepare_with
from vs3r.flow.learned import example_inputs
from vs3r.flow.raft import Raft
from vs3r.networks import DTYPES, default_device

WAYS = ("torch", "torch-compile", "aoti", "tensorrt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement."""

    model: str
    """What was run."""
    size: str
    """Of the pictures."""
    precision: str
    """Of the weights."""
    way: str
    """See `--runtime`."""
    median_ms: float
    """Of a call."""
    p20_ms: float
    """20th percentile."""
    p80_ms: float
    """80th percentile."""
    calls_per_s: float
    """From the median."""
    faster_than_torch: float | None
    """The median of `torch` over this one's; None where `torch` was not measured."""
    peak_mib: float | None
    """GPU memory of a call, weights included, as PyTorch counts it, so without TensorRT's own. None on a CPU."""
    error: float
    """RMS difference from PyTorch in float32 on random input, over the RMS of the output."""


def raft(width: int, height: int, precision: str, device: torch.device) -> Task:
    """A pair of pictures, 12 iterations."""
    torch.manual_seed(0)
    network = Raft().eval().to(device, DTYPES[precision])
    return Task(model="raft", network=network, example=example_inputs(width, height, device))


MODELS: dict[str, Callable[[int, int, str, torch.device], Task]] = {"raft": raft}


def measure(task: Task, size: str, precision: str, ways: list[str]) -> Iterator[Row]:
    inputs = random_like(task.example)
    reference = reference_of(task.network, inputs)
    base: float | None = None
    for way in ways:
        try:
            run = prepare_with(NetworkConfig(runtime=way))(task.model, task.network, task.example)
        except BackendError as reason:
            print(f"{task.model} {size} {precision} {way}: not measured: {reason}")
            continue
        with torch.inference_mode():
            error = error_of(run(*inputs), reference)
            on_gpu = task.device.type == "cuda"
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            run(*inputs)
            peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None
            median, p20, p80 = (gpu_times if on_gpu else cpu_times)(functools.partial(run, *inputs))
        base = median if way == "torch" else base
        yield Row(
            model=task.model, size=size, precision=precision, way=way, median_ms=median, p20_ms=p20, p80_ms=p80,
            calls_per_s=1e3 / median, faster_than_torch=None if base is None else base / median, peak_mib=peak,
            error=error,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--sizes", nargs="+", default=["518x294", "960x540"], metavar="WxH")
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=["fp32", "fp16"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--out", type=Path, help="write a CSV here")
    arguments = parser.parse_args()
    device = default_device()
    if device.type == "cpu":
        torch.set_num_threads(1)
    about = machine()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        for model in arguments.models:
            for size in arguments.sizes:
                width, height = map(int, size.split("x"))
                for precision in arguments.precisions:
                    task = MODELS[model](width, height, precision, device)
                    for row in measure(task, size, precision, arguments.ways):
                        memory = "" if row.peak_mib is None else f"  {row.peak_mib:8.0f} MiB"
                        spread = f"{row.median_ms:9.2f} ms ({row.p20_ms:.2f} to {row.p80_ms:.2f})"
                        print(f"{model:8s}{size:10s}{precision:6s}{row.way:14s}{spread}{memory}  error {row.error:.1e}")
                        rows.append(row)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with arguments.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*(spec.name for spec in fields(Row)), *about])
            writer.writeheader()
            writer.writerows({**asdict(r), **about} for r in rows)


if __name__ == "__main__":
    main()

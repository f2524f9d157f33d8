"""Time of Wan2.2 at full size: python -m benchmarks.refine [--only step,train,vae] [--sizes 832x480] [--out FILE.csv]

Needs an NVIDIA GPU of 48 GB or more (80 GB for bf16 and for training). The weights are random: time does not depend on
their values. Measured are a step of one expert in every number format, plain and compiled, and with every attention
that can run here; a step of TI2V-5B; a training step of one expert; encoding and decoding of a window; and peak
memory. Beside them stands the floor: the operations of a forward pass over the rate at which this GPU multiplies
matrices in bfloat16.
"""

from __future__ import annotations

import argparse
import csv
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vs3r.config import TrainConfig
from vs3r.errors import BackendError
from vs3r.refine.training.pairs import Pair
from vs3r.refine.training.trainer import ExpertTrainer, make_accelerator
from vs3r.refine.wan.attention import choose_attention, set_attention
from vs3r.refine.wan.model import Experts, VideoCodec, compile_blocks, require_packages
from vs3r.refine.wan.precision import choose_precision, hold_as
from vs3r.refine.wan.windows import A14B, FRAMES, PATCH, TI2V_5B, Layout, latent_count

WINDOW_FRAMES = 81
SIZES = ((832, 480), (1280, 720))
TOKENS, TEXT_DIM = 512, 4096
REPEATS = 3
TI2V_SETTINGS = {
    "in_channels": 48, "out_channels": 48, "num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30,
}  # fmt: skip
"""Those of the published model."""
TI2V_VAE = {
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "in_channels": 12, "out_channels": 12, "patch_size": 2,
    "is_residual": True, "scale_factor_spatial": 16, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,
}  # fmt: skip


WAYS = {
    "bf16": (A14B, "bf16", False, "sdpa"),
    "bf16-compiled": (A14B, "bf16", True, "sdpa"),
    "fp8-compiled": (A14B, "fp8", True, "sdpa"),
    "fp8-weights-compiled": (A14B, "fp8-weights", True, "sdpa"),
    "fp8-storage": (A14B, "fp8-storage", False, "sdpa"),
    "flash3-compiled": (A14B, "bf16", True, "flash3"),
    "sage-compiled": (A14B, "bf16", True, "sage"),
    "5b-compiled": (TI2V_5B, "bf16", True, "sdpa"),
}
"""Of a step: network, number format, whether compiled, attention."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement."""

    what: str
    """What was done."""
    precision: str
    """Of the weights."""
    how: str
    """Attention, and whether blocks were compiled."""
    size: str
    """Width, height and frames."""
    seconds: float
    """Median."""
    floor_s: float | None
    """What the matrix rate in bfloat16 allows; None where it is not what counts."""
    share_of_floor: float | None
    """floor_s / seconds."""
    peak_gib: float
    """Most memory held on the GPU."""
    gpu: str
    """Its name."""
    versions: str
    """Of PyTorch, diffusers and torchao."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured, and on what."""

    device: torch.device
    """A GPU, or the processor for trials with small models."""
    sizes: tuple[tuple[int, int], ...] = SIZES
    """Width and height."""
    frames: int = WINDOW_FRAMES
    """Of a window."""
    model: dict[str, Any] | None = None
    """Settings of WanTransformer3DModel other than those of 14B and TI2V-5B."""
    vae: dict[str, Any] | None = None
    """Settings of AutoencoderKLWan likewise."""
    ways: tuple[str, ...] = tuple(WAYS)
    """Of WAYS, those that a step is measured in."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
    parser.add_argument("--sizes", default=",".join(f"{w}x{h}" for w, h in SIZES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="of a step")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/refine_gpu.csv"))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks.refine needs an NVIDIA GPU and PyTorch with CUDA, and finds none")
    sizes = tuple((int(w), int(h)) for w, h in (size.split("x") for size in args.sizes.split(",")))
    require_packages()
    plan = Plan(device=torch.device("cuda"), sizes=sizes, ways=tuple(args.ways))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        for name in args.only.split(","):
            for row in PARTS[name](plan):
                print(*asdict(row).values(), sep="  ", flush=True)
                writer.writerow(asdict(row))
                file.flush()


def steps(plan: Plan) -> Iterator[Row]:
    """One expert of 14B in every way that can run here, and TI2V-5B."""
    for layout, precision, compiled, attention in map(WAYS.__getitem__, plan.ways):
        try:
            choose_precision(precision, plan.device)
            choose_attention(attention, plan.device)
        except BackendError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        what = "step TI2V-5B" if layout == TI2V_5B else "step 14B"
        yield from _timed_steps(what, plan, layout, precision=precision, compiled=compiled, attention=attention)


def _timed_steps(
    what: str, plan: Plan, layout: Layout, *, precision: str, compiled: bool, attention: str
) -> Iterator[Row]:
    rate = matrix_rate(plan.device)
    expert = make_expert(plan, layout)
    prompt = torch.randn(1, TOKENS, expert.config.text_dim, device=plan.device)
    hold_as(expert, precision)
    set_attention(expert, attention)
    if compiled:
        compile_blocks(expert)
    experts = Experts(expert, None, prompt, device=plan.device, swap=False)
    for size in plan.sizes:
        shape = latent_shape(2 * layout.channels + FRAMES, size, plan.frames, layout)
        given = torch.randn(shape, device=plan.device)
        given[:, layout.channels : layout.channels + FRAMES] = 0.0  # nothing is known
        with torch.no_grad():
            measured = median_s(partial(experts.velocity, given, 0.5), plan.device)
        floor_s = forward_operations(expert.config, shape) / rate
        how = attention + (", compiled" if compiled else "")
        yield _row(what, precision, how, (size, plan.frames), measured, floor_s=floor_s)
    del experts, expert
    _free()


def training(plan: Plan) -> Iterator[Row]:
    """Forward, backward and optimizer for one clip, with gradient checkpointing: the smaller size."""
    rate = matrix_rate(plan.device)
    expert = make_expert(plan, A14B)
    shape = latent_shape(A14B.channels, plan.sizes[0], plan.frames, A14B)
    # A forward pass, another because its values were not kept, and one back: frozen weights only pass gradients on.
    floor_s = 3 * forward_operations(expert.config, shape) / rate
    text = torch.randn(1, TOKENS, expert.config.text_dim)
    config = TrainConfig(accumulation=1)
    trainer = ExpertTrainer(expert, "transformer_2", text, config, make_accelerator(plan.device))
    clean, render = (torch.randn(shape) for _ in range(2))
    pair = Pair(clean=clean, render=render, mask=torch.zeros(1, FRAMES, *shape[2:]))
    measured = median_s(partial(trainer.step, [pair]), plan.device)
    yield _row("training step 14B", "bf16", "sdpa", (plan.sizes[0], plan.frames), measured, floor_s=floor_s)
    del trainer, expert
    _free()


def autoencoders(plan: Plan) -> Iterator[Row]:
    """Encoding in float32 and decoding in bfloat16, once a window each."""
    from diffusers import AutoencoderKLWan

    for name, layout, settings in (("14B", A14B, {}), ("TI2V-5B", TI2V_5B, TI2V_VAE)):
        if plan.vae is not None and layout == TI2V_5B:
            continue
        vae = AutoencoderKLWan(**(settings if plan.vae is None else plan.vae)).eval().requires_grad_(False)
        codec = VideoCodec(vae, device=plan.device, decode_dtype=torch.bfloat16)
        for size in plan.sizes:
            shape = latent_shape(layout.channels, size, plan.frames, layout)
            height, width = (side * layout.cell_px for side in shape[3:])
            video = torch.rand(1, 3, plan.frames, height, width, device=plan.device) * 2 - 1
            latents = torch.randn(shape, device=plan.device)
            for what, precision, work in (
                ("encode", "fp32", partial(codec.encode, video)), ("decode", "bf16", partial(codec.decode, latents))
            ):  # fmt: skip
                with torch.no_grad():
                    measured = median_s(work, plan.device, repeats=1)
                yield _row(f"{what} {name}", precision, "plain", (size, plan.frames), measured)
        del codec, vae
        _free()


PARTS: dict[str, Callable[[Plan], Iterator[Row]]] = {"step": steps, "train": training, "vae": autoencoders}


def make_expert(plan: Plan, layout: Layout) -> Any:
    """A transformer with random weights in bfloat16; what diffusers keeps in float32 is so here, too."""
    from diffusers import WanTransformer3DModel

    inputs = layout.channels if layout == TI2V_5B else 2 * layout.channels + FRAMES
    settings = {"text_dim": TEXT_DIM} | (TI2V_SETTINGS if layout == TI2V_5B else {}) | (plan.model or {})
    settings |= {"in_channels": inputs, "out_channels": layout.channels}
    torch.set_default_dtype(torch.bfloat16)  # in float32 it would not fit while it is made
    try:
        with plan.device:
            expert = WanTransformer3DModel(**settings).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(torch.float32)
    exact = set(WanTransformer3DModel._keep_in_fp32_modules)
    for name, value in expert.named_parameters():
        if exact & set(name.split(".")):
            value.data = value.data.float()
    with plan.device:
        expert.rope = type(expert.rope)(expert.config.attention_head_dim, expert.config.patch_size, 1024)
    return expert


def forward_operations(config: Any, shape: tuple[int, ...]) -> float:
    """Floating-point operations of the matrix products in a forward pass (a product and a sum are two).

    Args:
        config: of a WanTransformer3DModel.
        shape: (1, C, T, h, w) of the latents.
    """
    tokens = shape[2] * (shape[3] // PATCH) * (shape[4] // PATCH)
    width = config.num_attention_heads * config.attention_head_dim
    own = 8 * tokens * width**2 + 4 * tokens**2 * width
    across = 4 * tokens * width**2 + 4 * TOKENS * width**2 + 4 * tokens * TOKENS * width
    return float(config.num_layers * (own + across + 4 * tokens * width * config.ffn_dim))


def matrix_rate(device: torch.device) -> float:
    """Operations a second of a large product in bfloat16."""
    side = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    measured = median_s(partial(torch.matmul, a, b), device, repeats=20)
    return 2 * side**3 / measured.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Some work."""

    seconds: float
    """Median."""
    peak_gib: float
    """See Row."""


def median_s(work: Callable[[], Any], device: torch.device, *, repeats: int = REPEATS) -> Measured:
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


def latent_shape(channels: int, size: tuple[int, int], frames: int, layout: Layout) -> tuple[int, ...]:
    """(1, channels, T, h, w) of a window; sizes that the model does not take are padded."""
    step = layout.size_step
    width, height = (-(-side // step) * PATCH for side in size)
    return 1, channels, latent_count(frames), height, width


def _free() -> None:
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _row(
    what: str,
    precision: str,
    how: str,
    window: tuple[tuple[int, int], int],
    measured: Measured,
    *,
    floor_s: float | None = None,
) -> Row:
    import diffusers
    import torchao

    (width, height), frames = window
    return Row(
        what=what,
        precision=precision,
        how=how,
        size=f"{width}x{height}x{frames}",
        seconds=measured.seconds,
        floor_s=floor_s,
        share_of_floor=None if floor_s is None else floor_s / measured.seconds,
        peak_gib=measured.peak_gib,
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        versions=f"torch {torch.__version__}, diffusers {diffusers.__version__}, torchao {torchao.__version__}",
    )


if __name__ == "__main__":
    main()

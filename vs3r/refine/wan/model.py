"""The networks of Wan2.2: both experts, where they lie and in which number format, and the video autoencoder."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vs3r.config import WanConfig
from vs3r.errors import BackendError, InputError
from vs3r.refine.wan.ask import predict
from vs3r.refine.wan.attention import choose_attention, set_attention
from vs3r.refine.wan.checkpoint import HIGH, LOW, Checkpoint, find_checkpoint, read_expert, read_vae
from vs3r.refine.wan.lora import merge_lora
from vs3r.refine.wan.precision import BYTES, PARAMETERS, choose_precision, hold_as
from vs3r.refine.wan.prompt import load_prompt
from vs3r.refine.wan.schedule import BOUNDARY
from vs3r.refine.wan.windows import A14B, TI2V_5B, Layout


class Experts:
    """The high-noise and the low-noise transformer, both on the device or one at a time; or a single one for both."""

    def __init__(
        self,
        high: Any,
        low: Any,
        prompt: Tensor,
        *,
        device: torch.device,
        swap: bool,
        against: Tensor | None = None,
        guidance: float = 1.0,
    ) -> None:
        """
        Args:
            high: WanTransformer3DModel for sigma >= 0.9; None where only the other is used.
            low: the one below; None where the high-noise one does its work, too.
            prompt: (1, N, D) embedded prompt.
            device: where they run.
            swap: keep the one that is not in use in main memory.
            against: (1, N, D) embedded prompt that velocities are led away from; None for no guidance.
            guidance: how far, see WanConfig.wan_guidance (classifier-free guidance, Ho and Salimans 2022, eq. 6).
        """
        self._experts = {HIGH: high} if low is None else {HIGH: high, LOW: low}
        self._device = device
        self._swap = swap
        self._on_device = ""
        self._prompt = prompt.to(device)
        self._against = None if against is None else against.to(device)
        self._guidance = guidance
        if not swap:
            for expert in (high, low):
                if expert is not None:
                    expert.to(device)

    def velocity(self, model_input: Tensor, sigma: float, /) -> Tensor:
        """See vs3r.refine.wan.denoise.Velocity."""
        name = HIGH if sigma >= BOUNDARY or LOW not in self._experts else LOW
        expert = self._bring(name)
        found = predict(expert, model_input, self._prompt, sigma)
        if self._against is None:
            return found
        return torch.lerp(predict(expert, model_input, self._against, sigma), found, self._guidance)

    def _bring(self, name: str) -> Any:
        if self._swap and self._on_device != name:
            if self._on_device:
                self._experts[self._on_device].to("cpu")
            self._experts[name].to(self._device)
            self._on_device = name
        return self._experts[name]


class VideoCodec:
    """AutoencoderKLWan, in float32, with normalised latents. It encodes as it is: in bfloat16 the latents drift."""

    def __init__(self, vae: Any, *, device: torch.device, decode_dtype: torch.dtype) -> None:
        self._encoder = self._decoder = vae.to(device)
        if decode_dtype is not torch.float32:
            # Not diffusers' own `to`, which warns of casting, even where there is nothing to warn of.
            self._decoder = torch.nn.Module.to(copy.deepcopy(vae), decode_dtype)
        shape = 1, -1, 1, 1, 1
        self._mean = torch.tensor(vae.config.latents_mean, device=device).view(shape)
        self._std = torch.tensor(vae.config.latents_std, device=device).view(shape)
        self._dtype = decode_dtype

    def encode(self, video: Tensor) -> Tensor:
        """(1, 3, 4k + 1, H, W) in [-1, 1] to (1, C, k + 1, H / 8, W / 8), of TI2V-5B / 16, the posterior's mode."""
        latents = self._encoder.encode(video.to(self._mean.device, torch.float32)).latent_dist.mode()
        return (latents - self._mean) / self._std  # type: ignore[no-any-return]

    def decode(self, latents: Tensor) -> Tensor:
        """The way back, float32."""
        video = self._decoder.decode((latents * self._std + self._mean).to(self._dtype), return_dict=False)[0]
        return video.float()  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WanModel:
    """Everything that a window needs."""

    config: WanConfig
    """Settings; where the number format was left to the machine, with the one that it chose."""
    experts: Experts
    """The transformers."""
    codec: VideoCodec
    """The autoencoder."""
    layout: Layout
    """Of the latents."""
    device: torch.device
    """Where all of it runs."""


def load_model(config: WanConfig) -> WanModel:
    """Read the networks that the config names.

    Raises:
        InputError: weights are missing, or are of another model.
        BackendError: there is no GPU or not enough memory on it, or diffusers is not installed.
    """
    require_packages()
    checkpoint = find_checkpoint(config.wan_weights, only_low=config.wan_experts == "low")
    if config.wan_lora is not None and not Path(config.wan_lora).is_dir():
        raise InputError(f"expected a folder with LoRAs, got {config.wan_lora}; see docs/refine.md")
    if checkpoint.layout == TI2V_5B and config.wan_condition == "authors":
        raise InputError(
            f"--wan-condition authors tells the model that all is right, which {config.wan_weights} leaves alone; "
            "expected weights with two experts, such as wan2.2-i2v-a14b; or leave it out"
        )
    advice = "use --refine fill, or ask for the processor by name: --wan-device cpu"
    device = find_device(config.wan_device, work="refine wan", advice=advice)
    precision = choose_precision(config.wan_precision, device)
    config = replace(config, wan_precision=precision)
    attention = choose_attention(config.wan_attention, device)
    with memory_errors(config, checkpoint.layout):
        prompt = load_prompt(checkpoint, config.wan_prompt, form=config.wan_condition)
        against = None
        if config.wan_guidance != 1:
            against = load_prompt(checkpoint, config.wan_negative_prompt, form=config.wan_condition)
        read = {
            name: _prepare(read_expert(checkpoint, name, _dtype(precision)), name, config, attention)
            for name in checkpoint.experts
        }
        experts = Experts(
            read.get(HIGH),
            read.get(LOW),
            prompt,
            device=device,
            swap=config.wan_experts == "swap",
            against=against,
            guidance=config.wan_guidance,
        )
        codec = load_codec(checkpoint, device)
    return WanModel(config=config, experts=experts, codec=codec, layout=checkpoint.layout, device=device)


def load_codec(checkpoint: Checkpoint, device: torch.device) -> VideoCodec:
    """The autoencoder of a checkpoint; on a GPU it decodes in bfloat16."""
    decode_dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return VideoCodec(read_vae(checkpoint), device=device, decode_dtype=decode_dtype)


def load_encoder(weights: str, asked: str) -> tuple[VideoCodec, Layout]:
    """The autoencoder alone, for `train make-pairs`.

    Args:
        weights: as PairsConfig.weights.
        asked: as PairsConfig.device.
    Raises:
        InputError: weights are missing, or are of another model.
        BackendError: it cannot run here.
    """
    require_packages()
    checkpoint = find_checkpoint(weights, only_low=False)
    device = find_device(asked, work="train make-pairs", advice="ask for the processor by name: --device cpu")
    return load_codec(checkpoint, device), checkpoint.layout


def _prepare(expert: Any, name: str, config: WanConfig, attention: str) -> Any:
    """From weights as they were read to an expert that can be asked."""
    if config.wan_lora is not None:
        merge_lora(expert, Path(config.wan_lora) / name)
    expert.eval().requires_grad_(False)
    hold_as(expert, config.wan_precision)
    set_attention(expert, attention)
    if config.wan_compile:
        compile_blocks(expert)
    return expert


def compile_blocks(expert: Any, **options: Any) -> None:
    """Compile what an expert repeats: one block, once for every shape of window; `options` are torch.compile's."""
    expert.compile_repeated_blocks(fullgraph=True, dynamic=False, **options)


def _dtype(precision: str) -> torch.dtype:
    return torch.float32 if precision == "fp32" else torch.bfloat16


def require_packages() -> None:
    """Import what `--refine wan` needs beside the default packages, and make it quiet.

    Progress bars would tear the command line's apart; what is amiss with a checkpoint is an error here; and torchao
    tells of extensions that nothing here needs.

    Raises:
        BackendError: a package is not installed.
    """
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        import accelerate  # noqa: F401
        import diffusers
        import peft  # noqa: F401
        import transformers
    except ImportError as error:
        raise BackendError(
            f"refine wan needs diffusers, transformers, accelerate and peft ({error}); "
            "install them with: pip install 'vs3r[refine]'"
        ) from None
    for log in (diffusers.utils.logging, transformers.utils.logging):
        log.disable_progress_bar()
        log.set_verbosity_error()


@contextmanager
def memory_errors(config: WanConfig, layout: Layout) -> Iterator[None]:
    """Turns a full GPU into a BackendError that says what is needed and names the next smaller setting."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise BackendError(
            f"not enough memory on the GPU for refine wan: {_need(config, layout)}; "
            f"try {smaller_setting(config, layout)}"
        ) from None


def smaller_setting(config: WanConfig, layout: Layout) -> str:
    """What to change so that less memory is needed."""
    if config.wan_experts == "both" and layout == A14B:
        return "--wan-experts swap"
    if config.wan_precision in ("bf16", "fp32"):
        return "--wan-precision " + ("fp8-weights" if config.wan_compile else "fp8-storage")
    if config.wan_window_frames > 33:
        frames = max(33, (config.wan_window_frames // 8) * 4 + 1)
        stride = min(config.wan_stride_frames, frames - 17)  # 17 frames of overlap, as with the defaults
        return f"--wan-window-frames {frames} --wan-stride-frames {stride}"
    return f"--wan-pixels {config.wan_pixels // 2}"


def _need(config: WanConfig, layout: Layout) -> str:
    precision = config.wan_precision
    gigabytes = PARAMETERS[layout] * BYTES[precision] / 1e9
    if layout != A14B:
        return f"the 5B model takes {gigabytes:.0f} GB with --wan-precision {precision}, and a window comes on top"
    resident = gigabytes * (2 if config.wan_experts == "both" else 1)
    return (
        f"the experts of the 14B model take {resident:.0f} GB with --wan-experts {config.wan_experts} "
        f"--wan-precision {precision}, and a window comes on top"
    )


def find_device(asked: str, *, work: str, advice: str) -> torch.device:
    """An option that takes auto and cpu, as PyTorch names it; auto is the GPU.

    Args:
        asked: the option's value.
        work: that needs it, for the message.
        advice: what to do where there is no GPU, which ends by how to ask for the processor.
    Raises:
        BackendError: there is no GPU.
    """
    if asked == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BackendError(
            f"{work} needs an NVIDIA GPU and PyTorch with CUDA, and finds none; {advice} (days for a clip with the "
            "published model)"
        )
    return torch.device("cuda")

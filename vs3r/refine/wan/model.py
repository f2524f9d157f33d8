"""The networks of Wan2.2: both experts, where they lie and in which number format, and the video autoencoder."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vs3r.config import WanConfig
from vs3r.errors import BackendError, InputError
from vs3r.refine.wan.lora import merge_lora
from vs3r.refine.wan.prompt import load_prompt
from vs3r.refine.wan.schedule import BOUNDARY, TRAIN_TIMESTEPS
from vs3r.weights import WEIGHTS, find_weights

CHANNELS = 16
"""Of a latent frame."""
INPUT_CHANNELS = 36
"""Noise, mask (4) and condition."""
HIGH, LOW = "transformer", "transformer_2"
"""Folders of the two experts, and the names of their LoRAs' folders."""


class Experts:
    """The high-noise and the low-noise transformer; both on the device, or one at a time."""

    def __init__(self, high: Any, low: Any, prompt: Tensor, *, device: torch.device, swap: bool) -> None:
        """
        Args:
            high: WanTransformer3DModel for sigma >= 0.9; None where only the other is used.
            low: the one below.
            prompt: (1, N, D) embedded prompt.
            device: where they run.
            swap: keep the one that is not in use in main memory.
        """
        self._experts = {HIGH: high, LOW: low}
        self._device = device
        self._swap = swap
        self._on_device = ""
        self._prompt = prompt.to(device)
        if not swap:
            for expert in (high, low):
                if expert is not None:
                    expert.to(device)

    def velocity(self, model_input: Tensor, sigma: float, /) -> Tensor:
        """See vs3r.refine.wan.denoise.Velocity."""
        expert = self._bring(HIGH if sigma >= BOUNDARY else LOW)
        dtype = expert.patch_embedding.bias.dtype
        (found,) = expert(
            hidden_states=model_input.to(dtype),
            timestep=torch.tensor([sigma * TRAIN_TIMESTEPS], device=self._device),
            encoder_hidden_states=self._prompt.to(dtype),
            return_dict=False,
        )
        return found.float()  # type: ignore[no-any-return]

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
        """(1, 3, 4k + 1, H, W) in [-1, 1] to (1, 16, k + 1, H / 8, W / 8), the posterior's mode."""
        latents = self._encoder.encode(video.to(self._mean.device, torch.float32)).latent_dist.mode()
        return (latents - self._mean) / self._std  # type: ignore[no-any-return]

    def decode(self, latents: Tensor) -> Tensor:
        """The way back, float32."""
        video = self._decoder.decode((latents * self._std + self._mean).to(self._dtype), return_dict=False)[0]
        return video.float()  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WanModel:
    """Everything that a window needs."""

    experts: Experts
    """The transformers."""
    codec: VideoCodec
    """The autoencoder."""
    device: torch.device
    """Where all of it runs."""


def load_model(config: WanConfig) -> WanModel:
    """Read the networks that the config names.

    Raises:
        InputError: weights are missing, or are of another model.
        BackendError: there is no GPU or not enough memory on it, or diffusers is not installed.
    """
    require_packages()
    folder = find_weights(config.wan_weights) if config.wan_weights in WEIGHTS else Path(config.wan_weights)
    if not folder.is_dir():
        raise InputError(
            f"expected the weights of Wan2.2 as a name ({', '.join(n for n in WEIGHTS if n.startswith('wan'))}) or a "
            f"folder, got {config.wan_weights}; fetch them with: vs3r weights fetch wan2.2-i2v-a14b"
        )
    if config.wan_lora is not None and not Path(config.wan_lora).is_dir():
        raise InputError(f"expected a folder with LoRAs, got {config.wan_lora}; see docs/refine.md")
    device = _device(config)
    _quiet()
    for name in (LOW,) if config.wan_experts == "low" else (HIGH, LOW):
        _check_kind(folder / name)
    with memory_errors(config):
        prompt = load_prompt(folder, config.wan_prompt, form=config.wan_condition)
        high = None if config.wan_experts == "low" else _load_expert(folder, HIGH, config)
        experts = Experts(
            high, _load_expert(folder, LOW, config), prompt, device=device, swap=config.wan_experts == "swap"
        )
        decode_dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        codec = VideoCodec(_load_vae(folder), device=device, decode_dtype=decode_dtype)
    return WanModel(experts=experts, codec=codec, device=device)


def require_packages() -> None:
    """Raise BackendError where what `--refine wan` needs beside the default packages is not installed."""
    try:
        import accelerate  # noqa: F401
        import diffusers  # noqa: F401
        import peft  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise BackendError(
            f"refine wan needs diffusers, transformers, accelerate and peft ({error}); "
            "install them with: pip install 'vs3r[refine]'"
        ) from None


def _quiet() -> None:
    """Progress bars would tear the command line's apart; what is amiss with a checkpoint is an error here."""
    import diffusers
    import transformers

    for log in (diffusers.utils.logging, transformers.utils.logging):
        log.disable_progress_bar()
        log.set_verbosity_error()


@contextmanager
def memory_errors(config: WanConfig) -> Iterator[None]:
    """Turns a full GPU into a BackendError that names the next smaller setting."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise BackendError(
            f"not enough memory on the GPU for refine wan: {_need(config)}; try {smaller_setting(config)}"
        ) from None


def smaller_setting(config: WanConfig) -> str:
    """What to change so that less memory is needed."""
    if config.wan_experts == "both":
        return "--wan-experts swap"
    if config.wan_precision != "fp8-storage":
        return "--wan-precision fp8-storage"
    if config.wan_window_frames > 33:
        return f"--wan-window-frames {max(33, (config.wan_window_frames // 8) * 4 + 1)}"
    return f"--wan-pixels {config.wan_pixels // 2}"


def _need(config: WanConfig) -> str:
    per_expert = {"bf16": 28.6, "fp8-storage": 14.4, "fp32": 57.2}[config.wan_precision]
    resident = per_expert * (2 if config.wan_experts == "both" else 1)
    return (
        f"the experts of the 14B model take {resident:.0f} GB with --wan-experts {config.wan_experts} "
        f"--wan-precision {config.wan_precision}, and a window comes on top"
    )


def _device(config: WanConfig) -> torch.device:
    if config.wan_device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BackendError(
            "refine wan needs an NVIDIA GPU and PyTorch with CUDA, and finds none; use --refine fill, "
            "or ask for the processor by name: --wan-device cpu (days for a clip with the published model)"
        )
    return torch.device("cuda")


def _check_kind(folder: Path) -> None:
    """Refuse another model before anything large is read."""
    try:
        settings = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        raise InputError(
            f"expected {folder.name} of Wan2.2 in {folder}, and there is no config.json that can be read; "
            "fetch it with: vs3r weights fetch wan2.2-i2v-a14b"
        ) from None
    found = settings.get("in_channels"), settings.get("out_channels"), settings.get("image_dim")
    if found != (INPUT_CHANNELS, CHANNELS, None):
        raise InputError(
            f"expected an image-to-video transformer of Wan2.2 (in_channels {INPUT_CHANNELS}, out_channels {CHANNELS}, "
            f"image_dim None) in {folder}, got {found[0]}, {found[1]}, {found[2]}; use wan2.2-i2v-a14b or one like it"
        )


def _load_expert(folder: Path, name: str, config: WanConfig) -> Any:
    from diffusers import WanTransformer3DModel

    dtype = torch.float32 if config.wan_precision == "fp32" else torch.bfloat16
    expert = _read(folder / name, lambda path, **more: WanTransformer3DModel.from_pretrained(path, **more), dtype)
    if config.wan_lora is not None:
        merge_lora(expert, Path(config.wan_lora) / name)
    expert.eval().requires_grad_(False)
    if config.wan_precision == "fp8-storage":
        keep_as_fp8(expert)
    return expert


def keep_as_fp8(expert: Any) -> None:
    """Hold the linear layers of an expert's blocks in 8 bits and compute in bfloat16; after a LoRA was merged."""
    # The last projection decides the output directly; the model's own list of what stays is added to it.
    expert.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16, skip_modules_pattern=("proj_out",)
    )


def _load_vae(folder: Path) -> Any:
    from diffusers import AutoencoderKLWan

    vae = _read(folder / "vae", lambda path, **more: AutoencoderKLWan.from_pretrained(path, **more), torch.float32)
    if vae.config.z_dim != CHANNELS:
        raise InputError(
            f"expected an autoencoder with {CHANNELS} latent channels in {folder / 'vae'}, got {vae.config.z_dim}; "
            "use the one that comes with wan2.2-i2v-a14b"
        )
    return vae.eval().requires_grad_(False)


def _read(folder: Path, from_pretrained: Callable[..., Any], dtype: torch.dtype) -> Any:
    """A network of diffusers, with every tensor of the file used and none made up."""
    try:
        network, info = from_pretrained(folder, torch_dtype=dtype, local_files_only=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"expected weights that diffusers can read in {folder}, got an error: {reason}") from None
    wrong = sorted(info["missing_keys"]) + sorted(info["unexpected_keys"])
    if wrong:
        raise InputError(
            f"expected the weights of a {type(network).__name__} in {folder}, got another model's: "
            f"{len(info['missing_keys'])} tensors are missing and {len(info['unexpected_keys'])} are not known, "
            f"{', '.join(wrong[:3])} for one"
        )
    return network

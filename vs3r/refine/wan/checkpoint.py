"""Checkpoints of Wan2.2 on disk: which model a folder holds, and its networks read, with nothing missing or made up.

Two layouts are read: diffusers' (transformer, transformer_2, vae, text_encoder, tokenizer) and, for the experts, that
of the models' own code (high_noise_model, low_noise_model), in which Wan2.2-Fun-A14B-InP comes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vs3r.errors import InputError
from vs3r.refine.wan.windows import A14B, FRAMES, TI2V_5B, Layout
from vs3r.weights import WEIGHTS, find_weights, weights_folder

HIGH, LOW = "transformer", "transformer_2"
"""Folders of the two experts, and the names of their LoRAs' folders. TI2V-5B has only the first."""
_ORIGINAL = {HIGH: "high_noise_model", LOW: "low_noise_model"}
PARTS = "wan2.2-parts"
"""Weights from which a folder without autoencoder or text encoder gets them."""
_HEAD = 128
"""Channels of an attention head, where no file tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A folder of weights, looked at but not read."""

    folder: Path
    """Where it lies."""
    layout: Layout
    """Of its latents."""
    experts: tuple[str, ...]
    """HIGH and LOW, or HIGH alone."""
    original: bool
    """The experts are in the layout of the models' own code."""

    def part(self, name: str) -> Path:
        """The folder of `vae`, `text_encoder` or `tokenizer`, here or in the weights that exist for that."""
        here = self.folder / name
        fitting = self.original and self.layout == A14B
        return weights_folder(PARTS) / name if fitting and not here.is_dir() else here


def find_checkpoint(weights: str, *, only_low: bool) -> Checkpoint:
    """Look at the weights that a name or a folder means, before anything large is read.

    Args:
        weights: WanConfig.wan_weights.
        only_low: the high-noise expert is not needed.
    Raises:
        InputError: they are missing, or of another kind of model.
    """
    folder = find_weights(weights) if weights in WEIGHTS else Path(weights)
    if not folder.is_dir():
        raise InputError(
            f"expected the weights of Wan2.2 as a name ({', '.join(n for n in WEIGHTS if n.startswith('wan'))}) or a "
            f"folder, got {weights}; fetch them with: vs3r weights fetch wan2.2-i2v-a14b"
        )
    original = not any((folder / name).is_dir() for name in (HIGH, LOW)) and any(
        (folder / name).is_dir() for name in _ORIGINAL.values()
    )
    if original:
        return Checkpoint(folder=folder, layout=A14B, experts=(LOW,) if only_low else (HIGH, LOW), original=True)
    if _channels(folder / HIGH) == (TI2V_5B.channels, TI2V_5B.channels, None):
        return Checkpoint(folder=folder, layout=TI2V_5B, experts=(HIGH,), original=False)
    names = (LOW,) if only_low else (HIGH, LOW)
    for name in names:
        _check_kind(folder / name)
    return Checkpoint(folder=folder, layout=A14B, experts=names, original=False)


def _channels(folder: Path) -> tuple[Any, ...] | None:
    try:
        settings = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(settings, dict):
        return None
    return settings.get("in_channels"), settings.get("out_channels"), settings.get("image_dim")


def _check_kind(folder: Path) -> None:
    found = _channels(folder)
    if found is None:
        raise InputError(
            f"expected {folder.name} of Wan2.2 in {folder}, and there is no config.json that can be read; "
            "fetch it with: vs3r weights fetch wan2.2-i2v-a14b"
        )
    wanted = 2 * A14B.channels + FRAMES, A14B.channels, None
    if found != wanted:
        raise InputError(
            f"expected an image-to-video transformer of Wan2.2 (in_channels {wanted[0]}, out_channels {wanted[1]}, "
            f"image_dim None) in {folder}, got {found[0]}, {found[1]}, {found[2]}; use wan2.2-i2v-a14b or one like it"
        )


def read_expert(checkpoint: Checkpoint, name: str, dtype: torch.dtype) -> Any:
    """A WanTransformer3DModel on the CPU.

    Args:
        checkpoint: see find_checkpoint.
        name: HIGH or LOW.
        dtype: of its weights; diffusers keeps a few in float32.
    Raises:
        InputError: a file cannot be read or is another model's.
    """
    from diffusers import WanTransformer3DModel

    if checkpoint.original:
        folder = checkpoint.folder / _ORIGINAL[name]
        with read_errors(folder, "the weights of an expert of Wan2.2"):
            return _read_original(folder, dtype)
    read = WanTransformer3DModel.from_pretrained
    return _read(checkpoint.folder / name, lambda path, **more: read(path, **more), dtype)


def read_vae(checkpoint: Checkpoint) -> Any:
    """The AutoencoderKLWan in float32, see read_expert."""
    from diffusers import AutoencoderKLWan

    folder = checkpoint.part("vae")
    if not folder.is_dir():
        raise InputError(
            f"expected the autoencoder of Wan2.2 in {checkpoint.folder / 'vae'} or {folder}; "
            f"fetch it with: vs3r weights fetch {PARTS if checkpoint.original else 'wan2.2-i2v-a14b'}"
        )
    read = AutoencoderKLWan.from_pretrained
    vae = _read(folder, lambda path, **more: read(path, **more), torch.float32)
    if vae.config.z_dim != checkpoint.layout.channels:
        raise InputError(
            f"expected an autoencoder with {checkpoint.layout.channels} latent channels in {folder}, got "
            f"{vae.config.z_dim}; use the one that comes with the model"
        )
    return vae.eval().requires_grad_(False)


def _read(folder: Path, from_pretrained: Callable[..., Any], dtype: torch.dtype) -> Any:
    """A network of diffusers, with every tensor of the file used and none made up."""
    with read_errors(folder, "weights that diffusers can read"):
        network, info = from_pretrained(folder, torch_dtype=dtype, local_files_only=True, output_loading_info=True)
    # diffusers takes an index at its word: what it lists and no file has is not missing, only without values.
    missing = {*info["missing_keys"], *(key for key, value in network.state_dict().items() if value.is_meta)}
    check_keys(folder, type(network).__name__, sorted(missing), sorted(info["unexpected_keys"]))
    return network


@contextmanager
def read_errors(folder: Path, expected: str) -> Iterator[None]:
    """Turns what a library raises on files that it cannot read into an InputError that says what was expected."""
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # on a damaged file they may raise anything
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"expected {expected} in {folder}, got {type(error).__name__}: {reason}") from None


def check_keys(folder: Path, kind: str, missing: list[str], unexpected: list[str]) -> None:
    """Raise InputError naming the first tensors that a network did not get, or did not know."""
    if missing or unexpected:
        raise InputError(
            f"expected the weights of a {kind} in {folder}, got another model's: {len(missing)} tensors are missing "
            f"and {len(unexpected)} are not known, {', '.join((missing + unexpected)[:3])} for one"
        )


def _read_original(folder: Path, dtype: torch.dtype) -> Any:
    from accelerate import init_empty_weights
    from diffusers import WanTransformer3DModel
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
    from safetensors.torch import load_file

    state: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        state |= load_file(path)
    state = convert_wan_transformer_to_diffusers(state)
    settings = _settings_of(state, folder)
    with init_empty_weights(include_buffers=False):
        expert = WanTransformer3DModel(**settings)
    expected = set(expert.state_dict())
    check_keys(folder, type(expert).__name__, sorted(expected - set(state)), sorted(set(state) - expected))
    exact = WanTransformer3DModel._keep_in_fp32_modules
    for key in state:
        state[key] = state[key].to(torch.float32 if any(part in key.split(".") for part in exact) else dtype)
    expert.load_state_dict(state, assign=True)
    return expert


def _settings_of(state: dict[str, Tensor], folder: Path) -> dict[str, Any]:
    """What WanTransformer3DModel is made with, from the shapes of its weights."""
    patch, feed = state["patch_embedding.weight"], state["blocks.0.ffn.net.0.proj.weight"]
    heads = (json.loads((folder / "config.json").read_text()) if (folder / "config.json").is_file() else {}).get(
        "num_heads", patch.shape[0] // _HEAD
    )
    found = patch.shape[1], state["proj_out.weight"].shape[0] // patch[0, 0].numel()
    wanted = 2 * A14B.channels + FRAMES, A14B.channels
    if found != wanted:
        raise InputError(
            f"expected an expert of Wan2.2 with {wanted[0]} channels in and {wanted[1]} out in {folder}, "
            f"got {found[0]} and {found[1]}; use wan2.2-fun-a14b-inp or one like it"
        )
    return {
        "num_attention_heads": heads,
        "attention_head_dim": patch.shape[0] // heads,
        "in_channels": found[0],
        "out_channels": found[1],
        "text_dim": state["condition_embedder.text_embedder.linear_1.weight"].shape[1],
        "freq_dim": state["condition_embedder.time_embedder.linear_1.weight"].shape[1],
        "ffn_dim": feed.shape[0],
        "num_layers": 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks.")),
    }

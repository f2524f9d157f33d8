"""Checkpoints of the learned parts: who publishes them, under which licence, where they lie. They are the user's own.

Fetching them is engine/weights.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vs3r.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSet:
    """What a publisher offers under one name."""

    name: str
    """As in `vs3r weights fetch NAME`."""
    used_for: str
    """The part that needs it."""
    licence: str
    """The licence's name and what it means in a word."""
    licence_url: str
    """Where it can be read."""
    gated: bool = False
    """The publisher hands it out only to those who asked and were let in."""
    repository: str = ""
    """On the Hugging Face hub, which states size and SHA-256 of every large file; or empty, and `url` counts."""
    patterns: tuple[str, ...] = ("*",)
    """Files of the repository that are needed."""
    url: str = ""
    """The publisher's own address of the one file."""
    sha256_prefix: str = ""
    """How the SHA-256 of that file begins, as its publisher wrote it into the file's name."""

    @property
    def source(self) -> str:
        """Where it comes from, for people."""
        return f"huggingface.co/{self.repository}" if self.repository else self.url


_APACHE_URL = "https://www.apache.org/licenses/LICENSE-2.0"

WEIGHTS = {
    each.name: each
    for each in (
        WeightSet(
            name="raft-large",
            used_for="optical flow with RAFT",
            licence="BSD-3-Clause; the sets it was trained on (Sintel, KITTI, HD1K and others) have terms of their own",
            licence_url="https://github.com/pytorch/vision/blob/main/LICENSE",
            url="https://download.pytorch.org/models/raft_large_C_T_SKHT_V2-ff5fadd5.pth",
            sha256_prefix="ff5fadd5",
        ),
        WeightSet(
            name="vggt-1b",
            used_for="reconstruction with VGGT4D",
            licence="CC-BY-NC-4.0: not for commercial use",
            licence_url="https://huggingface.co/facebook/VGGT-1B",
            repository="facebook/VGGT-1B",
            patterns=("model.safetensors",),
        ),
        WeightSet(
            name="vggt-1b-commercial",
            used_for="reconstruction with VGGT4D",
            licence="VGGT License: commercial use allowed, with an acceptable-use policy",
            licence_url="https://huggingface.co/facebook/VGGT-1B-Commercial",
            gated=True,
            repository="facebook/VGGT-1B-Commercial",
            patterns=("vggt_1B_commercial.pt",),
        ),
        WeightSet(
            name="wan2.2-i2v-a14b",
            used_for="refinement with Wan",
            repository="Wan-AI/Wan2.2-I2V-A14B-Diffusers",
            licence="Apache-2.0",
            licence_url=_APACHE_URL,
        ),
        WeightSet(
            name="wan2.2-parts",
            used_for="refinement with wan2.2-fun-a14b-inp, which lacks these parts",
            repository="Wan-AI/Wan2.2-I2V-A14B-Diffusers",
            patterns=("vae/*", "text_encoder/*", "tokenizer/*"),
            licence="Apache-2.0",
            licence_url=_APACHE_URL,
        ),
        WeightSet(
            name="wan2.2-fun-a14b-inp",
            used_for="refinement with Wan",
            repository="alibaba-pai/Wan2.2-Fun-A14B-InP",
            patterns=("high_noise_model/*", "low_noise_model/*"),
            licence="Apache-2.0",
            licence_url=_APACHE_URL,
        ),
        WeightSet(
            name="wan2.2-ti2v-5b",
            used_for="refinement with Wan",
            repository="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
            licence="Apache-2.0",
            licence_url=_APACHE_URL,
        ),
    )
}


UNFINISHED = "unfinished"
"""Name of a file that lies in a folder of weights from when they begin to come until all are there: their names."""
_SUFFIXES = (".safetensors", ".pth", ".pt")


def cache_folder(kind: str) -> Path:
    """The user's own folder for things of a kind ("weights", "engines"); it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vs3r" / kind


def weights_folder(name: str) -> Path:
    """Where the weights of a name lie, or would.

    Raises:
        InputError: there are none of this name.
    """
    if name not in WEIGHTS:
        raise InputError(f"expected weights named {', '.join(WEIGHTS)}; got {name!r}")
    return cache_folder("weights") / name


def find_weights(name: str) -> Path:
    """The folder of weights that were fetched, or put there by hand.

    Raises:
        InputError: they were not, or not to the end.
    """
    folder = weights_folder(name)
    if (folder / UNFINISHED).exists():
        for file in (folder / UNFINISHED).read_text().splitlines():
            if not (folder / file).is_file():
                raise InputError(
                    f"the weights {name} were not fetched to the end, {file} is missing; go on with: vs3r "
                    f"weights fetch {name}, or put it into {folder} by hand"
                )
    if not folder.is_dir() or not any(path.is_file() and path.suffix in _SUFFIXES for path in folder.rglob("*")):
        raise InputError(f"expected the weights {name} in {folder}; fetch them with: vs3r weights fetch {name}")
    return folder


def load_checkpoint(name: str) -> dict[str, Tensor]:
    """The tensors of weights that are a single file, on the CPU. Nothing in the file is run.

    Raises:
        InputError: they were not fetched, are several files, or cannot be read.
    """
    folder = find_weights(name)
    files = sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES)
    if len(files) != 1:
        raise InputError(f"expected one checkpoint in {folder}, got {len(files)}; leave the one that is to be used")
    import torch
    from safetensors.torch import load_file

    try:
        if files[0].suffix == ".safetensors":
            return load_file(files[0])
        state = torch.load(files[0], map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        reason = str(error).split("\n")[0] or type(error).__name__
        raise InputError(
            f"expected a checkpoint, {files[0]} cannot be read ({reason}); fetch it again: vs3r weights fetch {name}"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"expected named tensors in {files[0]}, got {type(state).__name__}; use the published file")
    return state


def check_state(model: str, ours: Mapping[str, Tensor], given: Mapping[str, Tensor], *, advice: str) -> None:
    """Raise InputError naming the first few keys in which a checkpoint differs from a model, and saying what to do."""
    problems = [f"{name} is missing" for name in ours if name not in given]
    problems += [f"{name} is unexpected" for name in given if name not in ours]
    problems += [
        f"{name} is {tuple(given[name].shape)} instead of {tuple(value.shape)}"
        for name, value in ours.items()
        if name in given and given[name].shape != value.shape
    ]
    if problems:
        rest = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(f"this is no checkpoint of {model}: {'; '.join(problems[:3])}{rest}; {advice}")

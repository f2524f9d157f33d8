"""The semantic stream: one fixed prompt, embedded once and kept, so that the text encoder is not needed again."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vs3r.errors import InputError
from vs3r.refine.wan.checkpoint import PARTS, Checkpoint, check_keys, read_errors
from vs3r.weights import cache_folder

log = logging.getLogger(__name__)

TOKENS = 512
"""Length of the embedding, the prompt's own tokens first, zeros after them."""
AUTHORS_TOKENS = 226
"""Length in the form of the paper's released code: padding is not masked, and what comes of it stays in."""


def load_prompt(checkpoint: Checkpoint, text: str, *, form: str) -> Tensor:
    """The embedded prompt, (1, 512, D) or in the authors' form (1, 226, D), float32.

    It is taken from the cache, or computed with the checkpoint's text encoder and put there. What was computed by a
    text encoder that has changed since is not taken; one that has been deleted since is not missed.

    Args:
        checkpoint: has, or once had, a text encoder.
        text: the prompt.
        form: WanConfig.wan_condition.
    Raises:
        InputError: it was never computed, and there is no text encoder, or another model's.
    """
    # Not by the encoder's folder: where a checkpoint has none of its own any more, that is another.
    name = hashlib.sha256(repr((text, form, str(checkpoint.folder.resolve()))).encode()).hexdigest()[:32]
    path = cache_folder("prompts") / f"{name}.safetensors"
    encoder = checkpoint.part("text_encoder")
    files = {file.name: str(file.stat().st_size) for file in encoder.glob("*") if file.is_file()}
    kept = _read_kept(path, files)
    if kept is not None:
        return kept.float()
    found = _embed(checkpoint, text, form)
    _keep(path, found, files)
    return found.float()


def _read_kept(path: Path, files: dict[str, str]) -> Tensor | None:
    """A kept prompt, unless there is none, or it was computed without one of the encoder's files that are there now."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            if files.items() <= file.metadata().items():
                return file.get_tensor("prompt")  # type: ignore[no-any-return]
    except FileNotFoundError:
        pass
    except (OSError, SafetensorError) as error:
        log.warning("the embedded prompt in %s cannot be read (%s) and is computed anew", path, error)
    return None


def _keep(path: Path, prompt: Tensor, files: dict[str, str]) -> None:
    """Keep a prompt, with names and sizes of the encoder's files in the header."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    partial = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"prompt": prompt.contiguous()}, partial, metadata=files)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        log.warning("the embedded prompt cannot be kept (%s) and is computed at every start", error)
        with contextlib.suppress(OSError):
            partial.unlink()


def _embed(checkpoint: Checkpoint, text: str, form: str) -> Tensor:
    """As the text encoder gives it, in bfloat16."""
    folder = checkpoint.part("text_encoder")
    for part in (folder, checkpoint.part("tokenizer")):
        if not part.is_dir():
            raise InputError(
                f"expected the {part.name} of Wan2.2 in {part}, to embed the prompt once; "
                f"fetch it with: vs3r weights fetch {PARTS if checkpoint.original else 'wan2.2-i2v-a14b'}"
            )
    from transformers import AutoTokenizer, UMT5EncoderModel

    length = TOKENS if form == "validity" else AUTHORS_TOKENS
    with read_errors(checkpoint.part("tokenizer"), "a tokenizer that transformers can read"):
        tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint.part("tokenizer"), local_files_only=True)
    encoder: Any
    with read_errors(folder, "a text encoder that transformers can read"):
        encoder, info = UMT5EncoderModel.from_pretrained(
            folder, dtype=torch.bfloat16, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
    # What is missing or of another shape transformers makes up; a decoder beside the encoder does no harm.
    missing = info["missing_keys"] | {key for key, *_ in info["mismatched_keys"]}
    unexpected = [key for key in info["unexpected_keys"] if key.startswith("encoder.")]
    check_keys(folder, type(encoder).__name__, sorted(missing), sorted(unexpected))
    tokens = tokenizer(
        [text], padding="max_length", max_length=length, truncation=True, return_attention_mask=True,
        return_tensors="pt",
    )  # fmt: skip
    with torch.no_grad():
        mask = tokens.attention_mask if form == "validity" else torch.ones_like(tokens.attention_mask)
        found: Tensor = encoder.eval()(tokens.input_ids, mask).last_hidden_state
    return (found * mask[..., None]).bfloat16()

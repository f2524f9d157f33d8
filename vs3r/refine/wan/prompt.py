"""The semantic stream: one fixed prompt, embedded once and kept, so that the text encoder is not needed again."""

from __future__ import annotations

import hashlib
import logging
import os
from typing import Any

import torch
from torch import Tensor

from vs3r.errors import InputError
from vs3r.refine.wan.checkpoint import PARTS, Checkpoint, check_keys
from vs3r.weights import cache_folder

log = logging.getLogger(__name__)

TOKENS = 512
"""Length of the embedding, the prompt's own tokens first, zeros after them."""
AUTHORS_TOKENS = 226
"""Length in the form of the paper's released code: padding is not masked, and what comes of it stays in."""
_ENCODER = "text_encoder"
"""In the header of a kept prompt: names and sizes of the encoder's files."""


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
    from safetensors import safe_open
    from safetensors.torch import save_file

    encoder = checkpoint.part("text_encoder").resolve()
    name = hashlib.sha256(repr((text, form, str(encoder))).encode()).hexdigest()[:32]
    kept = cache_folder("prompts") / f"{name}.safetensors"
    files = repr(sorted((path.name, path.stat().st_size) for path in encoder.glob("*")))
    if kept.is_file():
        with safe_open(kept, framework="pt") as file:
            if not encoder.is_dir() or file.metadata() == {_ENCODER: files}:
                return file.get_tensor("prompt").float()  # type: ignore[no-any-return]
    found = _embed(checkpoint, text, form)
    partial = kept.with_suffix(f".{os.getpid()}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_file({"prompt": found.contiguous()}, partial, metadata={_ENCODER: files})
        partial.replace(kept)
    except OSError as error:
        log.warning("the embedded prompt cannot be kept (%s) and is computed at every start", error)
    return found.float()


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
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint.part("tokenizer"), local_files_only=True)
        encoder: Any
        encoder, info = UMT5EncoderModel.from_pretrained(
            folder, dtype=torch.bfloat16, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"expected a text encoder that transformers can read in {folder}, got: {reason}") from None
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

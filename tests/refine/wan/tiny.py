"""Wan2.2 with random weights, small, in a folder like the published one's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

TEXT_DIM = 16


def make_expert(seed: int, **changes: Any) -> Any:
    """A transformer of two layers."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(seed)
    settings = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 36,
        "out_channels": 16,
        "text_dim": TEXT_DIM,
        "freq_dim": 32,
        "ffn_dim": 32,
        "num_layers": 2,
        "rope_max_seq_len": 64,
    }
    return WanTransformer3DModel(**(settings | changes)).eval()


def make_vae() -> Any:
    """An autoencoder that takes 4k + 1 frames and cells of 8 x 8, as the published one."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(2)
    return AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()


def make_ti2v() -> tuple[Any, Any]:
    """The transformer and the autoencoder of TI2V-5B, small: one network, cells of 16 x 16, 48 channels."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(4)
    vae = AutoencoderKLWan(
        base_dim=4, decoder_base_dim=4, z_dim=48, dim_mult=[1, 1, 1, 1], num_res_blocks=1, is_residual=True,
        in_channels=12, out_channels=12, patch_size=2, scale_factor_spatial=16, latents_mean=[0.0] * 48,
        latents_std=[1.0] * 48,
    )  # fmt: skip
    return make_expert(5, in_channels=48, out_channels=48), vae.eval()


def make_folder(folder: Path) -> Path:
    """Save both experts, the autoencoder, a text encoder and a tokenizer of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    make_expert(0).save_pretrained(folder / "transformer")
    make_expert(1).save_pretrained(folder / "transformer_2")
    make_vae().save_pretrained(folder / "vae")
    torch.manual_seed(3)
    config = UMT5Config(vocab_size=40, d_model=TEXT_DIM, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")
    words = {word: i for i, word in enumerate(["<pad>", "<unk>", "a", "A", "video", "steady", "with"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(
        folder / "tokenizer"
    )
    return folder


def change_json(path: Path, **values: Any) -> None:
    """Set some entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))

"""The benchmark of Wan2.2: its floors, and that every part of it runs, with small models on a processor."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks import refine
from vs3r.refine.wan.windows import A14B

SMALL = {
    "num_attention_heads": 2, "attention_head_dim": 24, "text_dim": 16, "freq_dim": 32, "ffn_dim": 32, "num_layers": 1,
}  # fmt: skip
VAE = {"base_dim": 3, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}


@pytest.mark.parametrize(("size", "petaflop"), [((832, 480), 1.678), ((1280, 720), 6.523)])
def test_operations_of_a_forward_pass(size: tuple[int, int], petaflop: float) -> None:
    config = SimpleNamespace(num_attention_heads=40, attention_head_dim=128, ffn_dim=13824, num_layers=40)
    shape = refine.latent_shape(36, size, 81, A14B)
    assert shape == (1, 36, 21, size[1] // 8, size[0] // 8)
    assert refine.forward_operations(config, shape) == pytest.approx(petaflop * 1e15, rel=1e-3)


def test_every_part_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    # Compiling takes long, and is tested elsewhere.
    monkeypatch.setattr(refine, "compile_blocks", lambda _expert: None)
    plan = refine.Plan(device=torch.device("cpu"), sizes=((64, 32),), frames=5, model=SMALL, vae=VAE)
    rows = [row for part in refine.PARTS.values() for row in part(plan)]
    ways = [(row.what, row.precision, row.how) for row in rows]
    assert ways == [
        ("step 14B", "bf16", "sdpa"),
        ("step 14B", "bf16", "sdpa, compiled"),
        ("step 14B", "fp8-weights", "sdpa, compiled"),
        ("step 14B", "fp8-storage", "sdpa"),
        ("step TI2V-5B", "bf16", "sdpa, compiled"),
        ("training step 14B", "bf16", "sdpa"),
        ("encode 14B", "fp32", "plain"),
        ("decode 14B", "bf16", "plain"),
    ]
    assert all(row.seconds > 0 and row.size == "64x32x5" for row in rows)
    assert all((row.floor_s is None) == ("code" in row.what) for row in rows)
    left_out = capsys.readouterr().err
    assert "left out: --wan-precision fp8 needs an NVIDIA GPU" in left_out and "flash3" in left_out

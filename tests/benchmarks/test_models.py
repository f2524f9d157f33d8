"""What the benchmark of the networks counts and tells; the measuring itself needs a GPU to mean anything."""

from __future__ import annotations

import pytest
import torch

from benchmarks.models import SMALL, Row, always_moving, operations, tell_bars, vggt
from vs3r.reconstruct.vggt import window
from vs3r.reconstruct.vggt.mask import Candidates


def row(model: str, way: str, *, faster: float | None = None, share: float | None = None) -> Row:
    return Row(
        model=model, size="1x1", precision="bf16", way=way, median_ms=1, p20_ms=1, p80_ms=1, frames_per_s=1,
        faster_than_torch=faster, peak_mib=None, error=None, share_of_matrix_rate=share,
    )  # fmt: skip


def test_bars_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("raft", "torch", faster=9.0), row("raft", "aoti", faster=1.2), row("raft", "tensorrt", faster=1.4)]
    tell_bars([*rows, row("vggt", "torch", share=0.5)], {})
    whole, engine, share = capsys.readouterr().out.splitlines()
    assert whole.endswith("at least 30: not measured")
    assert engine.endswith("at least 1.3: 1.40, reached") and share.endswith("at least 0.6: 0.50, missed")


def test_operations_are_those_of_the_products() -> None:
    """Frame blocks and encoder grow with the frames, global attention faster."""
    one, two = operations(True, 1, (56, 84)), operations(True, 2, (56, 84))
    assert 2 * one < two < 3 * one
    network = vggt(True, "fp32", torch.device("cpu"))
    tokens = 24 + SMALL.special
    blocks = sum(p.numel() for p in network.aggregator.frame_blocks.parameters() if p.ndim == 2)
    assert one > 2 * tokens * 2 * blocks


def test_the_second_pass_is_made_to_run() -> None:
    standing_out = torch.zeros(1, 2, 3, dtype=torch.bool)
    standing_out[0, 0, 1] = True
    found = Candidates(standing_out=standing_out, score=standing_out.float(), group=standing_out.long())
    still = torch.zeros(1, 4, 6)
    assert not vars(window)["confirmed"](found, still).any()
    with always_moving():
        assert int(vars(window)["confirmed"](found, still).sum()) == 4

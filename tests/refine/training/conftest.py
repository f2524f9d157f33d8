"""Pairs with small random latents."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.refine.training.test_objective import draw_pair
from vs3r.refine.training.pairs import pack


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Five pairs: two of one piece of a clip, two of the next, and one of another clip, which is held out."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    names = ("aaaa-000000-000", "aaaa-000000-001", "aaaa-000005-000", "aaaa-000005-001", "bbbb-000000-000")
    for seed, name in enumerate(names):
        save_file(pack(draw_pair(seed)), folder / f"{name}.safetensors")
    return folder

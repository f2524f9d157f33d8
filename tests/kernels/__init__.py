"""Tests of the operators. With a GPU the Triton kernels run compiled; without one their interpreter runs them."""

from __future__ import annotations

import os

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

if DEVICE == "cpu":
    # Before Triton is first imported: that is when it decides.
    os.environ["TRITON_INTERPRET"] = "1"

ignores_numpy_warnings = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton|numpy")
"""The interpreter computes with NumPy, which warns where a GPU quietly makes NaN and infinity."""

"""With a GPU the tests run the Triton kernels compiled; without one Triton's interpreter runs them."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    # Before Triton is first imported: that is when it decides.
    os.environ["TRITON_INTERPRET"] = "1"

"""Freed memory that stays with the process."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_BYTES = 64 << 20
_LARGEST_BYTES = 32 << 20  # more is not taken


def keep_freed_memory() -> None:
    """Let malloc keep up to 64 MiB of what is freed, for blocks of up to 32 MiB each.

    glibc gives the memory of a few frames back to the system as soon as it is free, and the next message takes it anew,
    page by page, which costs more than copying it. For the whole process, so for programs of our own only; where malloc
    is another one nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)

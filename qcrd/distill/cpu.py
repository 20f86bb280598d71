"""Sets up a process that computes on a CPU."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_NEVER = 2**31 - 1
_HEAP_BYTES = 64 << 20
"""Of one heap of a thread that is not the first; padded by this, none is given back."""


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for what comes next; with another C library nothing changes.

    By default a large block goes back to the kernel as soon as it is free, so that the large tensors of every step cost
    a page fault for each 4 KiB anew. Now the process stays as large as it was at its peak.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _NEVER)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
        mallopt(_M_TOP_PAD, _HEAP_BYTES)

"""Seeds by name: the same names give the same seed on any machine, in any order of work.

Every random choice of the project is seeded by what it is for (run seed, iteration, question id, sample index),
never by a shared stream, so worker counts, batching and restarts change nothing.
"""

from __future__ import annotations

import hashlib

import numpy as np


def stable_seed(*names: str | int) -> int:
    """A seed in [0, 2^63) from a list of names; `("a", 1)` and `("a1",)` differ."""
    text = "\x1f".join(f"{type(name).__name__}:{name}" for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*names: str | int) -> np.random.Generator:
    """A numpy stream of its own for these names (Philox, whose output numpy keeps stable)."""
    return np.random.Generator(np.random.Philox(stable_seed(*names)))

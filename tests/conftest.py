"""Fixtures for all tests."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("RAY_worker_niceness", "0")  # else a test beside it that does not use Ray starves one that does
torch.set_num_threads(1)  # the models of the tests are too small to gain from more


def pytest_collection_finish() -> None:
    gc.freeze()  # what the imports made stays; each look through all of it is slower than many a test


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data, outside the project; tests that need it skip where it is absent."""
    root = Path(__file__).resolve().parent.parent
    folder = Path(os.environ.get("QCRD_DATA") or root.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no public data in {folder}; set QCRD_DATA to the folder that holds svamp/SVAMP.json")
    return folder

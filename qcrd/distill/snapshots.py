"""The student's earlier selves on disk: each snapshot is written once, as its own safetensors file.

Knows which file holds snapshot t and which files may go; nothing about why one is needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from qcrd.artifacts import sync_folder
from qcrd.distill.discriminator import set_weights, weights_of


class SnapshotStore:
    """Snapshots in one folder. Snapshot 0 is the initial student, snapshot t the student after iteration t."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, iteration: int) -> Path:
        return self.folder / f"snapshot-{iteration:05d}.safetensors"

    def save(self, iteration: int, model: nn.Module) -> None:
        """Write a snapshot so that it is whole or absent. An existing file holds the same weights and stays."""
        path = self.path(iteration)
        if path.is_file():
            return
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        save_file(weights_of(model), temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync_folder(self.folder)

    def load_into(self, iteration: int, model: nn.Module) -> None:
        """Set a model's weights to a snapshot's. Raises `FileNotFoundError` where it is gone."""
        set_weights(model, load_file(self.path(iteration)))

    def keep_only(self, iterations: Iterable[int]) -> None:
        """Delete all snapshots but these."""
        kept = {self.path(iteration) for iteration in iterations}
        for path in self.folder.glob("snapshot-*.safetensors"):
            if path not in kept:
                path.unlink()

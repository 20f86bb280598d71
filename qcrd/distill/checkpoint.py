"""The state of a training run between two iterations, as files. No pickle: safetensors, JSON, and optimizer states
read with `weights_only`. The student's weights lie in the snapshot of the checkpoint's iteration (snapshots.py).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from qcrd.distill.discriminator import Discriminator, set_weights, weights_of


@dataclass
class Progress:
    """Where training stands after an iteration. `bests[t]` is the iteration that was best on validation up to t."""

    fingerprint: str
    iteration: int = 0
    best_accuracy: float = -1.0
    best_iteration: int = 0
    bests: dict[str, int] = field(default_factory=dict)


def write_checkpoint(
    folder: Path,
    progress: Progress,
    rows: list[dict[str, Any]],
    optimizer: torch.optim.Optimizer,
    judge: Discriminator | None,
    judge_optimizer: torch.optim.Optimizer | None,
) -> None:
    """Write all state but the snapshots into an empty folder."""
    (folder / "progress.json").write_text(json.dumps(asdict(progress)) + "\n")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    if judge is not None and judge_optimizer is not None:
        save_file(weights_of(judge), folder / "discriminator.safetensors")
        torch.save(judge_optimizer.state_dict(), folder / "discriminator_optimizer.pt")


def read_checkpoint(
    folder: Path,
    fingerprint: str,
    optimizer: torch.optim.Optimizer,
    judge: Discriminator | None,
    judge_optimizer: torch.optim.Optimizer | None,
) -> tuple[Progress, list[dict[str, Any]]]:
    """Restore optimizers and judge in place. Raises `ValueError` for a checkpoint of other settings or data."""
    progress = Progress(**json.loads((folder / "progress.json").read_text()))
    if progress.fingerprint != fingerprint:
        raise ValueError(f"{folder}: checkpoint of training {progress.fingerprint}, this is {fingerprint}")
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
    if judge is not None and judge_optimizer is not None:
        set_weights(judge, load_file(folder / "discriminator.safetensors"))
        judge_optimizer.load_state_dict(torch.load(folder / "discriminator_optimizer.pt", weights_only=True))
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    return progress, rows

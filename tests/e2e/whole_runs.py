"""Whole runs in small, as processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from qcrd.storage.fingerprints import file_digest

ROOT = Path(__file__).parent.parent.parent
TINY = [
    "task.train_size=48", "task.validation_size=12", "task.test_size=12",
    "student.d_model=32", "student.d_ff=64", "discriminator.max_steps=20",
    "discriminator.eval_every=10",
    "train.steps=60", "train.iteration_steps=15", "train.global_batch_size=8", "discriminator.update_steps=2",
    "checkpoint.keep=2", "resources.threads=1",
]  # fmt: skip

WHOLE = [
    'teacher.splits=["train","test"]', "evaluation.test_limit=9", "evaluation.explained_questions=6",
    "evaluation.explain_temperatures=[0,0.7]",
]  # fmt: skip
"""Of the run that the fixture `whole` makes."""


def command(output: Path, *overrides: str) -> list[str]:
    recipe = str(ROOT / "experiments" / "quickstart.py")
    return [sys.executable, "-m", "qcrd", "run", recipe, *TINY, f"output={output}", *overrides]


def run(output: Path, *overrides: str) -> str:
    done = subprocess.run(command(output, *overrides), capture_output=True, text=True, timeout=500, cwd=output.parent)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def only(folder: Path) -> Path:
    (found,) = [path for path in folder.iterdir() if not path.name.endswith(".partial")]
    return found


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same(output: Path, other: Path) -> None:
    """Two output folders with the same students and predictions."""
    ours, theirs = only(output / "student"), only(other / "student")
    assert rows_of(ours) == rows_of(theirs)
    for name in ("best", "last"):
        left, right = (load_file(folder / name / "model.safetensors") for folder in (ours, theirs))
        assert all((left[key] == right[key]).all() for key in right)
    for stage in ("samples", "training_set", "predictions"):
        name = next(path.name for path in only(output / stage).glob("*.parquet"))
        assert file_digest(only(output / stage) / name) == file_digest(only(other / stage) / name)

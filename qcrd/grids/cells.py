"""A grid's finished cells as small files that can be committed, and read back as finished in another checkout.

A cell and seed is one folder, named by row, column, seed and identity: `cell.json` (what was measured, by which command
and commit), `predictions.parquet` (labels of the test questions at the best validation checkpoint), `metrics.jsonl`,
`explanations.parquet` and `scores.parquet` (what the student wrote, and the discriminator's scores). The
identity covers the settings and versions of all stages and the content of models and question files, so a cell of other
settings is not taken for this one. Neither weights nor questions are in these files.
"""

from __future__ import annotations

import datetime
import json
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from qcrd.config import ExperimentConfig
from qcrd.config.grid import Cell
from qcrd.pipeline.identity import experiment_identity
from qcrd.records import Explanation, Prediction, Score, read_rows, write_rows
from qcrd.report.grid.data import CellResult
from qcrd.runtime.session import cluster_resources
from qcrd.storage.atomic import discard, whole_or_absent
from qcrd.storage.fingerprints import digest_of
from qcrd.storage.json_lines import read_json_lines
from qcrd.tracking.provenance import command_line, git_state

CELL, PREDICTIONS, METRICS, EXPLANATIONS, SCORES = (
    "cell.json", "predictions.parquet", "metrics.jsonl", "explanations.parquet", "scores.parquet",
)  # fmt: skip


def cell_identity(config: ExperimentConfig) -> str:
    """Digest of all that decides an experiment's numbers: settings and versions of its stages."""
    return digest_of(experiment_identity(config))


def slug(text: str) -> str:
    """Text as a part of a file's name."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def cell_name(cell: Cell, seed: int) -> str:
    return f"{slug(cell.row)}--{slug(cell.column)}--seed{seed}"


def cell_folder(root: Path, cell: Cell, config: ExperimentConfig) -> Path:
    """Where a cell lies under `root`; `config` has its seed."""
    return root / f"{cell_name(cell, config.seed)}-{cell_identity(config)[:12]}"


def write_cell(folder: Path, result: CellResult, predictions: list[Prediction], about: Mapping[str, str]) -> None:
    """Write a finished cell. A folder that is there stays as it is."""
    if (folder / CELL).is_file():
        return
    if folder.exists():  # left by a crash of an earlier version
        discard(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    cell = {
        "row": result.row, "column": result.column, "seed": result.seed, "value": result.value,
        "about": dict(about), "metrics": dict(result.metrics),
    }  # fmt: skip
    with whole_or_absent(folder) as written:
        written.mkdir()
        write_rows(written / PREDICTIONS, Prediction, predictions)
        write_rows(written / EXPLANATIONS, Explanation, result.explanations)
        write_rows(written / SCORES, Score, result.scores)
        (written / METRICS).write_text("".join(json.dumps(dict(row)) + "\n" for row in result.rows))
        text = json.dumps(cell, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        (written / CELL).write_text(text, encoding="utf-8")


def read_cell(folder: Path) -> CellResult | None:
    """A cell that is there whole; else None."""
    if not (folder / CELL).is_file():
        return None
    cell = json.loads((folder / CELL).read_text())
    return CellResult(
        row=cell["row"], column=cell["column"], seed=cell["seed"], value=cell["value"], metrics=cell["metrics"],
        right=right_of(read_rows(folder / PREDICTIONS, Prediction)),
        rows=read_json_lines(folder / METRICS),
        explanations=read_rows(folder / EXPLANATIONS, Explanation), scores=read_rows(folder / SCORES, Score),
        source=str(folder),
    )  # fmt: skip


def right_of(predictions: list[Prediction]) -> dict[str, bool]:
    """Test question id → whether its label is right at the best validation checkpoint."""
    return {p.question_id: p.right for p in predictions if p.split == "test" and p.checkpoint == "best"}


def about() -> dict[str, str]:
    """By which command, at which commit and on what machine numbers were made."""
    code, has = git_state(Path(__file__).parent), cluster_resources()
    return {
        "command": command_line(sys.argv[1:]),
        "commit": code["commit"] + (" (with changes)" if code["dirty"] == "true" else ""),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{platform.machine()}, {has.get('CPU', 0):g} CPUs, {has.get('GPU', 0):g} GPUs",
    }

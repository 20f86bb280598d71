"""What a finished training leaves: students as model folders, the discriminator, metric rows and a summary."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from qcrd.config import StudentSettings
from qcrd.distill.checkpoint import clear
from qcrd.distill.discriminator import save_discriminator
from qcrd.distill.loop import Training
from qcrd.models.student import Student
from qcrd.models.weights import set_weights
from qcrd.rationales.single_task import max_answer_tokens
from qcrd.storage.atomic import whole_or_absent
from qcrd.storage.json_lines import parse_json_lines
from qcrd.storage.output import Storage

RESULTS = "results"
"""The folder of results beside a training's checkpoints, whole or absent."""
TIMES = "times.json"
"""How long training took, which is no part of its result."""


def keep_results(training: Training, keep_checkpoints: bool = False) -> None:
    """Write the results of a training that is over, which make its checkpoints superfluous."""
    with whole_or_absent(training.store.folder / RESULTS) as temporary:
        temporary.mkdir()
        write_results(training, temporary)
    storage, name = training.store.storage, training.store.name
    storage.publish(f"{name}/{RESULTS}")
    if not keep_checkpoints:
        clear(storage, name)


def kept_rows(storage: Storage, training: str) -> list[dict[str, Any]]:
    """Metric rows of a training so far: its results', or else its newest checkpoint's."""
    here = (storage.name_of(path) for path in (storage.folder / training).glob("checkpoints/iteration-*/rows.jsonl"))
    there = (name for name in storage.published(f"{training}/checkpoints") if name.endswith("/rows.jsonl"))
    for name in (f"{training}/{RESULTS}/metrics.jsonl", *sorted({*here, *there}, reverse=True)):
        with contextlib.suppress(FileNotFoundError):
            return parse_json_lines(storage.read_bytes(name))
    return []


def copy_results(results: Path, out: Path) -> dict[str, float]:
    """Copy the results of a training into `out`, which may exist. Returns how long it took."""
    shutil.copytree(results, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(TIMES))
    return json.loads((results / TIMES).read_text())


def write_results(training: Training, folder: Path) -> None:
    """Write students (initial, best, last), discriminator, rows and a summary. The student's weights change."""
    progress = training.progress
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in training.rows))
    for name, iteration in (("initial", 0), ("best", progress.best_iteration), ("last", progress.iteration)):
        set_weights(training.student.model, training.store.snapshot(iteration))
        save_student(
            training.student,
            training.data.tokenizer,
            training.config.student,
            training.method.answer_phrase,
            folder / name,
        )
    if training.discriminator is not None:
        save_discriminator(training.discriminator, folder / "discriminator")
    summary = {
        "steps": training.config.train.steps,
        "iterations": progress.iteration,
        "best_iteration": progress.best_iteration,
        "best_validation_accuracy": progress.best_accuracy,
        "num_parameters": sum(p.numel() for p in training.student.model.parameters()),
    }
    (folder / "training.json").write_text(json.dumps(summary, indent=2) + "\n")
    (folder / TIMES).write_text(json.dumps({"seconds": progress.seconds}) + "\n")


def save_student(
    student: Student, tokenizer: PreTrainedTokenizerBase, settings: StudentSettings, phrase: str | None, folder: Path
) -> None:
    """A model folder that transformers loads, with its tokenizer and `qcrd.json`: prefixes, limits, where a label is.

    `max_label_tokens` there is the limit of all that is written when a label is asked for; with `answer_phrase` the
    label is what follows its last occurrence.
    """
    student.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    fields = {"prefixes", "max_input_tokens", "max_label_tokens", "max_target_tokens"}
    kept = settings.model_dump(include=fields) | {"max_label_tokens": max_answer_tokens(settings, phrase)}
    if phrase is not None:
        kept["answer_phrase"] = phrase
    (folder / "qcrd.json").write_text(json.dumps(kept, indent=2) + "\n")

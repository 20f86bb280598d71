"""Asking test and validation questions changes neither training set nor discriminator; real completions of SVAMP's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qcrd.config import ExperimentConfig
from qcrd.distill.discriminator import QuestionRationales
from qcrd.distill.train import pretrain_discriminator
from qcrd.records import Question, Rationale, Sample, Vote, read_rows
from qcrd.storage.fingerprints import folder_digest
from tests.evaluate.test_splits import SPLITS, run_stage

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_started")]


def run_stages(folder: Path, *stages: str, **data: Any) -> ExperimentConfig:
    folder.mkdir()
    config = ExperimentConfig.model_validate({"name": "x", "output": str(folder), **data})
    for name in stages:
        run_stage(config, name, folder)
    return config


def test_the_training_set_and_the_discriminator_are_the_same_whoever_else_is_asked(tmp_path: Path):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    stages = ("questions", "samples", "rationales", "training_set", "discriminator")
    for name, splits in (("few", ("train",)), ("all", SPLITS)):
        config = run_stages(
            tmp_path / name, *(stages if name == "all" else stages[:-1]),
            task={"train_size": 40, "validation_size": 10, "test_size": 10, "train_limit": None},
            teacher={"kind": "simulated", "num_samples": 3, "splits": splits}, rationales={"num_samples": 3},
            student={"kind": "scratch"},
            discriminator={"kind": "scratch", **sizes, "max_steps": 6, "eval_every": 3},
            resources={"device": "cpu", "threads": 1},
        )  # fmt: skip
    few, more = tmp_path / "few", tmp_path / "all"
    rows = [read_rows(folder / "samples" / "samples.parquet", Sample) for folder in (few, more)]
    assert len(rows[0]) == 120 and rows[1][:120] == rows[0] and len(rows[1]) == 180
    assert all(row.text for row in rows[1])
    assert (few / "rationales" / "statistics.json").read_text() == (more / "rationales" / "statistics.json").read_text()
    assert len(read_rows(more / "rationales" / "votes.parquet", Vote)) == 60
    assert folder_digest(few / "training_set") == folder_digest(more / "training_set")
    judged: dict[str, QuestionRationales] = {}  # of those samples alone that training questions have
    texts = {q.id: q.text for q in read_rows(few / "questions" / "questions.parquet", Question)}
    for row in read_rows(few / "rationales" / "rationales.parquet", Rationale):
        one = judged.setdefault(row.question_id, QuestionRationales(row.question_id, texts[row.question_id], [], []))
        (one.positives if row.positive else one.negatives).append(row.text)
    pretrain_discriminator(
        {}, few / "discriminator", config.resources, config.discriminator, list(judged.values()),
        emit=lambda event: None,
    )  # fmt: skip
    assert folder_digest(few / "discriminator") == folder_digest(more / "discriminator")
    assert len(json.loads((more / "discriminator" / "held_out.json").read_text())) == 4  # a tenth of the 40


def test_imported_completions_serve_test_questions_too(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("QCRD_DATA", str(shared_data))
    imported = {
        "path": str(shared_data / "svamp" / "llm_gpt35" / "train.json.gz"), "question_field": "instruction",
        "completions_field": "output",
    }  # fmt: skip
    teacher = {
        "kind": "imported", "num_samples": 1, "splits": ["train", "test"], "parser": "last_number", **imported,
    }  # fmt: skip
    folder = tmp_path / "x"
    run_stages(
        folder, "questions", "samples", "rationales", task={"name": "svamp"}, teacher=teacher,
        rationales={"num_samples": 1},
    )  # fmt: skip
    split = {q.id: q.split for q in read_rows(folder / "questions" / "questions.parquet", Question)}
    samples = read_rows(folder / "samples" / "samples.parquet", Sample)
    assert [split[row.question_id] for row in samples] == ["train"] * 720 + ["test"] * 200
    assert sum(bool(row.text) for row in samples if split[row.question_id] == "test") == 136
    assert json.loads((folder / "rationales" / "statistics.json").read_text())["num_questions"] == 720

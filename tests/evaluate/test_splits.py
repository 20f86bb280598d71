"""Samples of test and validation questions: asked, priced and voted on like others, and never learnt from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcrd.config import ExperimentConfig
from qcrd.console import Display
from qcrd.pipeline.plan import plan
from qcrd.pipeline.stage import Stage, StageRun
from qcrd.pipeline.stages import stages_of
from qcrd.rationales.consistency import statistics
from qcrd.records import Example, Question, Rationale, Sample, Vote, read_rows, write_rows
from qcrd.tasks import get_task
from qcrd.teacher.prompts import task_prompts
from qcrd.teacher.requests import wanted_samples
from qcrd.tracking.opening import open_run_record
from qcrd.tracking.tracker import RunId

SPLITS = ("train", "validation", "test")


def config_of(*splits: str, **changes: Any) -> ExperimentConfig:
    data: dict[str, Any] = {
        "name": "x",
        "task": {"train_size": 6, "validation_size": 4, "test_size": 5, "train_limit": None},
        "teacher": {"kind": "simulated", "num_samples": 2, **({"splits": splits} if splits else {})},
        "rationales": {"num_samples": 2},
        "student": {"kind": "scratch", "vocab_size": 200},
    }
    return ExperimentConfig.model_validate(data | changes)


def stage_of(config: ExperimentConfig, name: str) -> Stage:
    return next(stage for stage in stages_of(config) if stage.name == name)


def run_stage(config: ExperimentConfig, name: str, folder: Path) -> Path:
    """Run one stage on the folders of those before it, without Ray; returns its folder."""
    stage, out = stage_of(config, name), folder / name
    out.mkdir()
    record = open_run_record(folder / "record", RunId("x", "x"), config.tracking, folder)
    inputs = {one: folder / one for one in stage.inputs(config)}
    stage.run(StageRun(config, name, inputs, {}, out, "", {}, Display(), record, False, False))
    return out


def questions_of(config: ExperimentConfig) -> list[Question]:
    return get_task("arithmetic").load(config.task)


def test_train_questions_come_first_and_keys_stay_as_they_are():
    default, more = config_of(), config_of("test", "train", "validation")
    task, questions = get_task("arithmetic"), questions_of(default)
    few, many = (
        wanted_samples(config.teacher, task_prompts(task, None), rows)
        for config, rows in ((default, questions), (more, questions[::-1]))
    )
    assert [q.split for q in few.questions] == ["train"] * 6
    assert [q.split for q in many.questions] == ["train"] * 6 + ["validation"] * 4 + ["test"] * 5
    assert few.identity == many.identity and many.keys.shape == (15, 2)
    assert (many.keys[:6] == few.keys[::-1]).all() and not np.isin(many.keys[6:], few.keys).any()


def test_only_other_splits_than_train_are_part_of_the_samples_identity():
    settings = [stage_of(config, "samples").settings(config) for config in (config_of(), config_of("train"))]
    assert settings[0] == settings[1] and set(settings[0]) == {"num_samples", "kind", "error_rate", "seed", "prompt"}
    more = [config_of("test", "train"), config_of("train", "test", "test")]
    with_test = [stage_of(config, "samples").settings(config) for config in more]
    assert with_test[0] == with_test[1] == settings[0] | {"splits": ["train", "test"]}


def test_the_plan_counts_them(tmp_path: Path):
    def work(*splits: str) -> str:
        config = config_of(*splits, output=str(tmp_path))
        return next(one.work for one in plan(config) if one.stage == "samples")

    assert work() == "12 of 12 simulated replies"
    assert work("train", "test") == "22 of 22 simulated replies"
    assert work(*SPLITS) == "30 of 30 simulated replies"
    url = {"name": "svamp", "path": "https://127.0.0.1:9/SVAMP.json", "sha256": "0" * 64}
    teacher = {"base_url": "http://127.0.0.1:9/v1", "num_samples": 2, "splits": ["train", "test"]}
    hidden = config_of(output=str(tmp_path), task=url, teacher=teacher, evaluation={"test_limit": 50})
    planned = {one.stage: one.work for one in plan(hidden)}
    assert planned["samples"].startswith("at most 1840 samples to ask for (paid)")  # 2 x (720 + 200)
    assert planned["predictions"] == "390 labels"  # 3 x (80 + 50)


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """Questions and samples; each sample's text says of which split its question is."""
    (tmp_path / "questions").mkdir()
    (tmp_path / "samples").mkdir()
    questions = questions_of(config_of())
    write_rows(tmp_path / "questions" / "questions.parquet", Question, questions)
    order = sorted(questions, key=lambda q: SPLITS.index(q.split))
    samples = [
        Sample(q.id, n, "", f"Zyx{q.split} way {n}. The answer is {answer}.", "", "", "", None, 1, None, None)
        for q in order
        for n, answer in enumerate((q.label, q.label if q.split == "train" else "1000"))
    ]
    write_rows(tmp_path / "samples" / "samples.parquet", Sample, samples)
    return tmp_path


def test_votes_are_of_all_statistics_and_training_set_of_train_alone(asked: Path):
    config = config_of(*SPLITS)
    folder = run_stage(config, "rationales", asked)
    votes, rationales = read_rows(folder / "votes.parquet", Vote), read_rows(folder / "rationales.parquet", Rationale)
    assert len(votes) == 15 and len(rationales) == 30
    train = {q.id for q in questions_of(config) if q.split == "train"}
    numbers = statistics(
        [v for v in votes if v.question_id in train], [r for r in rationales if r.question_id in train]
    )
    assert numbers["num_questions"] == 6 and numbers["sample_accuracy"] == 1.0  # the others are right half of the time
    assert (folder / "statistics.json").read_text() == json.dumps(numbers, indent=2) + "\n"
    made = run_stage(config, "training_set", asked)
    examples = read_rows(made / "examples.parquet", Example)
    assert {example.question_id for example in examples} == train
    texts = [text for example in examples for text in (*example.positive_texts, *example.negative_texts)]
    assert len(texts) == 12 and all(text.startswith("Zyxtrain") for text in texts)
    vocabulary = (made / "tokenizer" / "tokenizer.json").read_text()
    assert "train" in vocabulary and "idation" not in vocabulary

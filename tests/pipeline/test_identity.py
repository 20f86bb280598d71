"""What an experiment is known by: what may change a result is in, means and places are out."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from qcrd.config import ExperimentConfig, OpenAITeacherConfig, with_overrides
from qcrd.pipeline.identity import experiment_identity, record_folder

BASE = ExperimentConfig.model_validate({"name": "x", "task": {"train_limit": None}})
NO_IDENTITY: dict[str, Any] = {
    "output": "elsewhere", "resources.device": "cpu",
    "resources.threads": 3, "resources.workers": 2, "resources.negatives_actors": 2, "train.micro_batch_size": 2,
    "negatives.placement": "async", "tracking.enabled": False, "checkpoint.keep": 5, "teacher.mode": "batch",
    "teacher.base_url": "http://elsewhere/v1", "teacher.api_key_env": "K", "teacher.api_key_file": "/k",
    "teacher.store": "/s", "teacher.flush_seconds": 1.0, "teacher.concurrency": 7, "teacher.actors": 3,
    "teacher.samples_per_request": 2, "teacher.requests_per_minute": 60, "teacher.tokens_per_minute": 1000,
    "teacher.timeout_seconds": 3.0, "teacher.max_attempts": 2, "teacher.budget_usd": 1.0, "teacher.prices": "/p",
    "teacher.tokenizer": "/t", "teacher.max_tokens_field": "max_completion_tokens", "teacher.batch.poll_seconds": 1.0,
}  # fmt: skip


def test_paths_hardware_and_how_replies_are_got_are_no_part_of_the_identity():
    assert set(OpenAITeacherConfig.model_fields) >= {
        key.split(".")[1] for key in NO_IDENTITY if key.startswith("teacher.")
    }
    for key, value in NO_IDENTITY.items():
        changed = with_overrides(BASE, {key: value})
        assert changed != BASE and experiment_identity(changed) == experiment_identity(BASE), key
    assert experiment_identity(with_overrides(BASE, NO_IDENTITY)) == experiment_identity(BASE)


def test_every_setting_of_a_teacher_is_means_or_may_change_a_result():
    means = {key.split(".")[1] for key in NO_IDENTITY if key.startswith("teacher.")}
    shown = {key.split(".")[1] for changes in CHANGES for key in changes if key.startswith("teacher.")}
    assert means | shown | {"splits"} == set(OpenAITeacherConfig.model_fields)


CHANGES: list[dict[str, Any]] = [
    {"method": "dss"}, {"seed": 1}, {"task.seed": 1}, {"task.train_limit": 9}, {"teacher.model": "other"},
    {"teacher.temperature": 0.8}, {"teacher.top_p": 0.9}, {"teacher.max_tokens": 9}, {"teacher.num_samples": 6},
    {"teacher.seed": 1}, {"teacher.api": "completions"}, {"teacher.extra_body": {"top_k": 40}},
    {"teacher.parser": "last_number"}, {"teacher.kind": "simulated"}, {"teacher.max_tokens": 7},
    {"rationales.num_samples": 4}, {"student.model": "other"}, {"train.steps": 9}, {"loss.beta": 0.3},
    {"teacher.prompt": "prompt.txt"},
]  # fmt: skip


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: next(iter(changes)))
def test_what_may_change_a_result_is_part_of_the_identity(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompt.txt").write_text("{question}\n")
    assert experiment_identity(with_overrides(BASE, changes)) != experiment_identity(BASE)


def test_a_benchmark_is_known_by_its_questions_and_not_by_its_folder(shared_data: Path, tmp_path: Path):
    svamp = {"task.name": "svamp", "task.path": str(shared_data / "svamp" / "SVAMP.json")}
    shutil.copy(shared_data / "svamp" / "SVAMP.json", tmp_path / "copy.json")
    one, other = with_overrides(BASE, svamp), with_overrides(BASE, svamp | {"task.path": str(tmp_path / "copy.json")})
    assert experiment_identity(one) == experiment_identity(other) != experiment_identity(BASE)


def test_a_record_is_of_one_name_and_identity():
    assert record_folder(BASE) != record_folder(with_overrides(BASE, {"name": "y"}))
    assert record_folder(BASE) != record_folder(with_overrides(BASE, {"seed": 1}))
    assert record_folder(BASE) == record_folder(with_overrides(BASE, {"teacher.concurrency": 7}))


def test_the_identity_is_plain_data():
    identity = experiment_identity(BASE)
    assert json.loads(json.dumps(identity)) == identity
    assert "gpt-3.5-turbo" in str(identity) and "base_url" not in str(identity)
    assert "batch" in BASE.model_dump()["teacher"]  # the config itself is whole

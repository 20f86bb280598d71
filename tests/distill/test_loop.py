"""The whole loop on tiny models: a run that was killed and resumed equals one that never stopped, bit for bit."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qcrd.config import ExperimentConfig, with_overrides
from qcrd.distill.data import TrainingData
from qcrd.distill.discriminator import build_discriminator, save_discriminator
from qcrd.distill.loop import Training
from qcrd.distill.snapshots import SnapshotStore
from qcrd.distill.student import encode_inputs, encode_targets, load_student, train_tokenizer
from qcrd.rationales.consistency import judge_question
from qcrd.rationales.training_set import build_examples
from qcrd.records import Rationale, Sample, Vote
from qcrd.tasks import get_task, load_questions
from qcrd.teacher.base import Call
from qcrd.teacher.simulated import SimulatedTeacher

SIZES = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}


def config_of(**changes: Any) -> ExperimentConfig:
    base = ExperimentConfig.model_validate(
        {
            "name": "tiny",
            "task": {"generator": {"train_size": 20, "validation_size": 6, "test_size": 6, "max_steps": 1}},
            "teacher": {"kind": "simulated", "num_samples": 3, "simulated": {"error_rate": 0.4}},
            "rationales": {"num_samples": 3},
            "student": {
                "kind": "scratch", "scratch": {**SIZES, "dropout": 0.1}, "max_label_tokens": 10,
                "max_target_tokens": 32,
            },
            "discriminator": {"kind": "scratch", "scratch": SIZES, "update_steps": 2, "batch_questions": 4},
            "negatives": {"gap": 2, "max_new_tokens": 8},
            "loss": {"margin": 9.0},
            "train": {
                "steps": 15, "iteration_steps": 3, "global_batch_size": 4, "learning_rate": 1e-3, "log_every": 2,
            },
            "checkpoint": {"keep": 1},
        }
    )  # fmt: skip
    return with_overrides(base, changes)


def data_of(config: ExperimentConfig, folder: Path) -> TrainingData:
    """Questions, simulated samples and an untrained judge, without any stage or Ray."""
    task = get_task("arithmetic")
    questions = load_questions(task, config.task)
    train = [q for q in questions if q.split == "train"]
    teacher = SimulatedTeacher(config.teacher.simulated.error_rate)
    votes: dict[str, Vote] = {}
    rationales: dict[str, list[Rationale]] = {}
    for q in train:
        call = Call(q.id, (0, 1, 2), "", q.label, q.facts, (0, 1, 2))
        texts = [teacher.write(call, row) for row in range(3)]
        samples = [Sample(q.id, i, "", text, "", "", "", None, 1, None, None) for i, text in enumerate(texts)]
        votes[q.id], rationales[q.id] = judge_question(q, samples, task.parse, "majority")
    texts = [q.text + " " + q.label + " predict: explain: " for q in train]
    texts += [r.text for rows in rationales.values() for r in rows]
    tokenizer = train_tokenizer(texts, 200)
    examples, _ = build_examples(
        config, train, votes, rationales,
        lambda t, limit: encode_inputs(tokenizer, t, limit), lambda t, limit: encode_targets(tokenizer, t, limit),
    )  # fmt: skip
    save_discriminator(build_discriminator(config.discriminator, texts, torch.device("cpu")), folder / "judge")
    return TrainingData(examples, [q for q in questions if q.split == "validation"], tokenizer, folder / "judge")


class Killed(Exception):
    """Stands for kill -9: nothing after it runs."""


class FolderHost:
    """A host that keeps checkpoints in a folder and can die in the middle of saving one."""

    def __init__(self, folder: Path, die_at: int | None = None) -> None:
        self.folder, self.die_at = folder, die_at
        self.events: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def latest(self) -> Iterator[Path | None]:
        found = sorted(self.folder.glob("checkpoint-*"))
        yield found[-1] if found else None

    def save(self, iteration: int, write: Callable[[Path], None]) -> None:
        if iteration == self.die_at:
            raise Killed
        target = self.folder / f"checkpoint-{iteration:03d}"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        write(target)

    def emit(self, event: dict[str, Any]) -> None:
        self.events.append(event)


def train(config: ExperimentConfig, data: TrainingData, folder: Path, die_at: int | None = None) -> Training:
    host = FolderHost(folder / "checkpoints", die_at)
    snapshots = SnapshotStore(folder / "snapshots")
    task, cpu = get_task("arithmetic"), torch.device("cpu")
    training = Training(config, data, task, snapshots, "mark", host, cpu)
    training.run()
    return training


def weights(training: Training) -> dict[str, torch.Tensor]:
    assert training.judge is not None
    return {**training.student.model.state_dict(), **{f"judge.{k}": v for k, v in training.judge.state_dict().items()}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    return data_of(config_of(), tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Training, Path]:
    """An uninterrupted run, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return train(config_of(), data, folder), folder


@pytest.mark.parametrize("die_at", [1, 2, 5])
def test_killed_and_resumed_equals_uninterrupted(
    data: TrainingData, whole: tuple[Training, Path], tmp_path: Path, die_at: int
):
    with pytest.raises(Killed):
        train(config_of(), data, tmp_path / "killed", die_at)
    resumed = train(config_of(), data, tmp_path / "killed")
    assert resumed.rows == whole[0].rows
    assert [row["step"] for row in resumed.rows if "eval/accuracy" in row] == [3, 6, 9, 12, 15]
    for name, value in weights(whole[0]).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_all_of_qcrd_takes_part(whole: tuple[Training, Path]):
    training, _ = whole
    iterations = [row for row in training.rows if "eval/accuracy" in row]
    assert all(row["negatives/count"] > 0 and row["judge/updates"] == 2 for row in iterations)
    assert [row["judge/weight"] for row in iterations[:3]] == pytest.approx([0.5, 0.45, 0.405])
    steps = [row for row in training.rows if "train/loss" in row]
    assert steps[-1]["train/hinge_active"] > 0.5  # margin 9: all but a few samples of a random student
    assert steps[-1]["train/label_loss"] < steps[0]["train/label_loss"]
    assert steps[0]["train/learning_rate"] == pytest.approx(1e-3 * (1 + 14 / 15) / 2)


def test_iteration_t_samples_from_snapshot_t_minus_j(data: TrainingData, tmp_path: Path):
    training = train(config_of(), data, tmp_path)
    visited = training.schedule.visited(5)
    made = training._negatives(5, visited)
    training.snapshots.load_into(3, training.student.model)
    sampler = training.sampler
    assert sampler is not None
    for ours, theirs in zip(
        sampler.model.state_dict().values(), training.student.model.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert set(made) == set(visited)


def test_old_snapshots_go_and_needed_ones_stay(whole: tuple[Training, Path]):
    training, folder = whole
    kept = {int(path.stem.split("-")[1]) for path in (folder / "snapshots").glob("*.safetensors")}
    assert {0, 4, 5, training.progress.best_iteration} <= kept
    assert kept == training._needed_snapshots()


def test_a_checkpoint_of_other_settings_is_refused(data: TrainingData, whole: tuple[Training, Path]):
    folder = whole[1]
    host = FolderHost(folder / "checkpoints")
    other = Training(
        config_of(), data, get_task("arithmetic"), SnapshotStore(folder / "snapshots"), "other", host,
        torch.device("cpu"),
    )  # fmt: skip
    with pytest.raises(ValueError, match="checkpoint of training mark, this is other"):
        other.run()


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "finetune"},
        {"method": "dss"},
        {"discriminator.enabled": "false"},
        {"negatives.num_samples": "0"},
        {"negatives.source": "teacher"},
        {"negatives.source": "snapshot_and_teacher", "loss.scheme": "mean"},
        {"negatives.warmup": "skip"},
        {"train.iteration_steps": "epoch", "train.steps": "10"},
        {"student.dtype": "bfloat16"},
    ],
)
def test_variants_train(data: TrainingData, tmp_path: Path, changes: dict[str, str]):
    training = train(config_of(**{"train.steps": "6", **changes}), data, tmp_path)
    losses = [row["train/loss"] for row in training.rows if "train/loss" in row]
    assert losses and all(value == value for value in losses)
    with_negatives = [row for row in training.rows if "negatives/count" in row]
    assert bool(with_negatives) == (training.config.uses_student_negatives() and "negatives.warmup" not in changes)


def test_results_are_model_folders_that_load(data: TrainingData, tmp_path: Path):
    training = train(config_of(), data, tmp_path)
    (tmp_path / "results").mkdir()
    last = {name: value.clone() for name, value in training.student.model.state_dict().items()}
    training.write_results(tmp_path / "results")
    student, tokenizer = load_student(tmp_path / "results" / "last", "float32", torch.device("cpu"))
    assert all(torch.equal(value, last[name]) for name, value in student.model.state_dict().items())
    assert tokenizer.get_vocab() == data.tokenizer.get_vocab()
    assert json.loads((tmp_path / "results" / "best" / "qcrd.json").read_text())["max_label_tokens"] == 10
    rows = [json.loads(line) for line in (tmp_path / "results" / "metrics.jsonl").read_text().splitlines()]
    assert rows == training.rows


def test_a_loss_that_is_not_finite_stops_the_run(data: TrainingData, tmp_path: Path):
    with pytest.raises(FloatingPointError, match="loss nan"):
        train(config_of(**{"train.learning_rate": "1e30"}), data, tmp_path)

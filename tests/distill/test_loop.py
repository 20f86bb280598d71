"""The whole loop on tiny models: a run that was killed and resumed equals one that never stopped, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qcrd.config import ExperimentConfig, with_overrides
from qcrd.distill.checkpoint import CheckpointStore
from qcrd.distill.data import TrainingData
from qcrd.distill.discriminator import build_discriminator, save_discriminator
from qcrd.distill.loop import Training
from qcrd.distill.methods import target_of, uses_student_negatives
from qcrd.distill.results import write_results
from qcrd.models.student import load_student
from qcrd.models.tokenizer import encode_inputs, encode_targets, train_tokenizer
from qcrd.rationales.consistency import vote_on
from qcrd.rationales.training_set import build_examples
from qcrd.records import Rationale, Sample, Vote
from qcrd.storage.output import Storage
from qcrd.tasks import get_task, load_questions
from qcrd.teacher.backends.base import Call
from qcrd.teacher.backends.simulated import SimulatedTeacher

SIZES = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}


def config_of(**changes: Any) -> ExperimentConfig:
    base = ExperimentConfig.model_validate(
        {
            "name": "tiny",
            "task": {"train_size": 20, "validation_size": 6, "test_size": 6, "max_steps": 1},
            "teacher": {"kind": "simulated", "num_samples": 3, "error_rate": 0.4},
            "rationales": {"num_samples": 3},
            "student": {
                "kind": "scratch", **SIZES, "dropout": 0.1, "max_label_tokens": 10,
                "max_target_tokens": 32,
            },
            "discriminator": {"kind": "scratch", **SIZES, "update_steps": 2, "batch_questions": 4},
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
    """Questions, simulated samples and an untrained discriminator, without any stage or Ray."""
    task = get_task("arithmetic")
    questions = load_questions(task, config.task)
    train = [q for q in questions if q.split == "train"]
    teacher = SimulatedTeacher(config.teacher.error_rate)
    votes: dict[str, Vote] = {}
    rationales: dict[str, list[Rationale]] = {}
    for q in train:
        call = Call(q.id, (0, 1, 2), "", q.label, q.facts, (0, 1, 2))
        texts = [teacher.write(call, row) for row in range(3)]
        samples = [Sample(q.id, i, "", text, "", "", "", None, 1, None, None) for i, text in enumerate(texts)]
        votes[q.id], rationales[q.id] = vote_on(q, samples, task.parse, "majority")
    texts = [q.text + " " + q.label + " predict: explain: " for q in train]
    texts += [r.text for rows in rationales.values() for r in rows]
    tokenizer = train_tokenizer(texts, 200)
    examples, _ = build_examples(
        config.student, target_of(config.method, config.train), train, votes, rationales,
        lambda t, limit: encode_inputs(tokenizer, t, limit), lambda t, limit: encode_targets(tokenizer, t, limit),
    )  # fmt: skip
    save_discriminator(build_discriminator(config.discriminator, texts, torch.device("cpu")), folder / "discriminator")
    return TrainingData(
        examples, [q for q in questions if q.split == "validation"], tokenizer, folder / "discriminator"
    )


class Killed(Exception):
    """Stands for kill -9: nothing after it runs."""


class DyingStore(CheckpointStore):
    """A store whose process dies when it is about to save an iteration."""

    def __init__(self, folder: Path, identity: dict[str, Any], die_at: int | None = None) -> None:
        super().__init__(Storage.of(folder.parent), folder.name, identity, keep=1, gap=2)
        self.die_at = die_at

    def save(self, iteration: int, *rest: Any) -> None:
        if iteration == self.die_at:
            raise Killed
        super().save(iteration, *rest)


def training_of(
    config: ExperimentConfig, data: TrainingData, folder: Path, die_at: int | None = None, mark: str = "mark",
    device: str = "cpu",
) -> Training:  # fmt: skip
    store = DyingStore(folder, {"settings": {"mark": mark}}, die_at)
    return Training(config, data, get_task("arithmetic"), store, torch.device(device), lambda event: None)


def train(
    config: ExperimentConfig, data: TrainingData, folder: Path, die_at: int | None = None, device: str = "cpu"
) -> Training:
    training = training_of(config, data, folder, die_at, device=device)
    training.run()
    return training


def weights(training: Training) -> dict[str, torch.Tensor]:
    assert training.discriminator is not None
    return {
        **training.student.model.state_dict(),
        **{f"discriminator.{k}": v for k, v in training.discriminator.state_dict().items()},
    }


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
    assert all(row["negatives/count"] > 0 and row["discriminator/updates"] == 2 for row in iterations)
    assert [row["discriminator/weight"] for row in iterations[:3]] == pytest.approx([0.5, 0.45, 0.405])
    steps = [row for row in training.rows if "train/loss" in row]
    assert steps[-1]["train/hinge_active"] > 0.5  # margin 9: all but a few samples of a random student
    losses = [row["train/label_loss"] for row in steps]
    assert sum(losses[-4:]) < sum(losses[:4])
    assert steps[0]["train/learning_rate"] == pytest.approx(1e-3 * (1 + 14 / 15) / 2)


def test_iteration_t_samples_from_snapshot_t_minus_j(data: TrainingData, tmp_path: Path):
    training = training_of(config_of(), data, tmp_path, die_at=5)
    with pytest.raises(Killed):
        training.run()
    maker = training.maker
    assert maker is not None
    made = maker.negatives(5, maker.make(5, maker.batches(5)))
    for name, weight in training.store.snapshot(3).items():
        assert torch.equal(maker._sampler.model.state_dict()[name], weight)
    assert list(made) == training.schedule.visited(5)


def test_old_snapshots_go_and_needed_ones_stay(whole: tuple[Training, Path]):
    training, folder = whole
    kept = {int(path.stem.split("-")[1]) for path in (folder / "snapshots").glob("*.safetensors")}
    best = training.progress.best_iteration
    assert {0, 4, 5, best} <= kept <= {0, 4, 5, best, best - 1}


def test_a_checkpoint_of_other_settings_is_refused(data: TrainingData, whole: tuple[Training, Path]):
    with pytest.raises(ValueError, match=r'settings\.mark "mark" there, "other" here'):
        training_of(config_of(), data, whole[1], mark="other").run()


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "finetune"},
        {"method": "single_task"},
        {"method": "distill_label", "train.labels": "teacher"},
        {"method": "dss"},
        {"method": "mi"},
        {"method": "mi", "loss.mi_variant": "masked", "student.dtype": "bfloat16", "train.micro_batch_size": "2"},
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
    steps = [row for row in training.rows if "train/loss" in row]
    assert steps and all(value == value for row in steps for value in row.values())
    with_negatives = [row for row in training.rows if "negatives/count" in row]
    sampled = (
        uses_student_negatives(training.config.method, training.config.negatives) and "negatives.warmup" not in changes
    )
    assert bool(with_negatives) == sampled
    has_negatives = sampled or changes.get("negatives.source") == "teacher"
    measured = {"train/hinge_active", "train/negative_nll", "train/negative_quality"}
    assert all(measured & row.keys() == (measured if has_negatives else set()) for row in steps)


def test_results_are_model_folders_that_load(data: TrainingData, tmp_path: Path):
    training = train(config_of(), data, tmp_path)
    (tmp_path / "results").mkdir()
    last = {name: value.clone() for name, value in training.student.model.state_dict().items()}
    write_results(training, tmp_path / "results")
    student, tokenizer = load_student(tmp_path / "results" / "last", "float32", torch.device("cpu"))
    assert all(torch.equal(value, last[name]) for name, value in student.model.state_dict().items())
    assert tokenizer.get_vocab() == data.tokenizer.get_vocab()
    assert json.loads((tmp_path / "results" / "best" / "qcrd.json").read_text())["max_label_tokens"] == 10
    rows = [json.loads(line) for line in (tmp_path / "results" / "metrics.jsonl").read_text().splitlines()]
    assert rows == training.rows


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(data: TrainingData, tmp_path: Path):
    with pytest.raises(FloatingPointError, match=r"step 2: loss .*norm nan.*not-finite-step-000002.json"):
        train(config_of(**{"train.learning_rate": "1e30"}), data, tmp_path)
    kept = json.loads((tmp_path / "not-finite-step-000002.json").read_text())
    assert len(kept["question_ids"]) == 4 == len(kept["positives"]) and kept["metrics"]["grad_norm"] == "nan"


def test_micro_batches_change_nothing(data: TrainingData, tmp_path: Path):
    changes = {"student.dtype": "float64", "student.dropout": "0"}
    rows = [
        train(config_of(**changes, **{"train.micro_batch_size": size}), data, tmp_path / size).rows
        for size in ("4", "2", "1")
    ]
    assert_same_rows(rows[0], rows[1], 1e-9)
    assert_same_rows(rows[0], rows[2], 1e-9)


def assert_same_rows(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], tolerance: float) -> None:
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    for left, right in zip(ours, theirs, strict=True):
        for name, value in left.items():
            assert value == pytest.approx(right[name], rel=tolerance, abs=tolerance), (left["step"], name)

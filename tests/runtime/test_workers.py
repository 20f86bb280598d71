"""The loop on 1, 2 and 4 workers: the same trace, the same negatives, the same end; exact resume on the same number."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qcrd.config import ExperimentConfig
from qcrd.distill.checkpoint import CheckpointStore
from qcrd.distill.data import TrainingData
from qcrd.distill.loop import Training
from qcrd.distill.negatives import Negative
from qcrd.models import generation
from qcrd.models.generation import Generated
from qcrd.runtime.workers import Workers
from qcrd.storage.output import Storage
from qcrd.tasks import get_task, load_questions
from tests.distill.groups import GroupDied, run_group
from tests.distill.test_loop import config_of, data_of

SIZES = (1, 2, 4)
FLOAT64 = {"student.dtype": "float64", "student.dropout": "0"}
LONG = {
    **FLOAT64, "train.steps": "200", "train.iteration_steps": "20", "train.learning_rate": "4e-3",
    "train.log_every": "1", "loss.margin": "4.6", "negatives.num_samples": "2", "checkpoint.keep": "3",
}  # fmt: skip
FIRST = {**LONG, "student.dtype": "float32", "train.steps": "20", "train.iteration_steps": "5"}
SHORT = {**LONG, "train.steps": "8", "train.iteration_steps": "4", "train.log_every": "2"}
VARIANTS: dict[str, dict[str, str]] = {
    "micro": SHORT,  # one question a pass, where there are several workers
    "weighted_mean": {**SHORT, "loss.scheme": "weighted_mean"},
    "sampling": {**SHORT, "loss.scheme": "sampling", "negatives.source": "snapshot_and_teacher"},
    "dss": {**SHORT, "method": "dss"},
    "finetune": {**SHORT, "method": "finetune"},
}
DROPOUT = {"student.dropout": "0.1", "train.iteration_steps": "3", "train.steps": "15"}
UNEVEN = {"negatives.batch_size": "3", "evaluation.batch_size": "2", "discriminator.batch_questions": "3"}


def config_for(size: int, changes: dict[str, str]) -> ExperimentConfig:
    return config_of(**UNEVEN, **changes, **{"resources.workers": str(size)})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    """Among the questions some without a label, a positive or both; some of the questions again for validation."""
    config = config_of()
    made = data_of(config, tmp_path_factory.mktemp("data"))
    examples = list(made.examples)
    examples[3] = replace(examples[3], positives=[], positive_texts=[], rationale_ids=[])
    examples[7] = replace(examples[7], label_ids=[])
    examples[12] = replace(examples[12], positives=[], positive_texts=[], rationale_ids=[], label_ids=[])
    train = [q for q in load_questions(get_task("arithmetic"), config.task) if q.split == "train"]
    return replace(made, examples=examples, validation=train[:7])


class Watched(Training):
    """A training that remembers what no row tells."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.negatives: dict[int, dict[int, list[Negative]]] = {}

    def _negatives(self, iteration: int, visited: Any) -> dict[int, list[Negative]]:
        self.negatives[iteration] = super()._negatives(iteration, visited)
        return self.negatives[iteration]


@dataclass
class Trace:
    """What one worker saw of a run."""

    rows: list[dict[str, Any]]
    negatives: dict[int, dict[int, list[Negative]]]
    tensors: dict[str, torch.Tensor]
    """Weights and optimizer states of student and discriminator."""


def trained(config: ExperimentConfig, data: TrainingData, store: CheckpointStore) -> Trace:
    training = Watched(config, data, get_task("arithmetic"), store, torch.device("cpu"), lambda event: None)
    training.run()
    parts = {"student": training.student.model.state_dict(), "optimizer": training.optimizer.state()}
    if training.discriminator is not None and training.discriminator_optimizer is not None:
        parts |= {
            "discriminator": training.discriminator.state_dict(),
            "discriminator_optimizer": training.discriminator_optimizer.state(),
        }
    tensors = {f"{part}.{name}": value.clone() for part, values in parts.items() for name, value in values.items()}
    return Trace(training.rows, training.negatives, tensors)


def store_of(config: ExperimentConfig, folder: Path, mark: str = "mark") -> CheckpointStore:
    storage, identity = Storage.of(folder.parent), {"settings": {"mark": mark}}
    return CheckpointStore(storage, folder.name, identity, config.checkpoint.keep, config.negatives.gap)


# -- what each process of a group does ----------------------------------------------------------------------------


@dataclass
class Outcome:
    """What one worker of a group brings back."""

    traces: dict[str, Trace] = field(default_factory=dict)
    generated: Counter[str] = field(default_factory=Counter)
    """Sequences that this worker wrote in the long run: sampled, greedy."""
    plain: dict[str, Any] = field(default_factory=dict)
    refused: str = ""


def all_runs(size: int, data: TrainingData, folder: Path) -> Outcome:
    outcome = Outcome(plain=round_trips())
    write = generation._generate_batch

    def counted(student: Any, rows: Any, uniforms: Any, limit: int, temperature: float, top_k: int) -> list[Generated]:
        outcome.generated["sampled" if temperature else "greedy"] += len(rows)
        return write(student, rows, uniforms, limit, temperature, top_k)

    def run(name: str, changes: dict[str, str]) -> None:
        config = config_for(size, changes)
        outcome.traces[name] = trained(config, data, store_of(config, folder / f"{name}-{size}"))

    generation._generate_batch = counted
    run("long", LONG)
    generation._generate_batch = write
    run("first", FIRST)
    for name, changes in VARIANTS.items():
        run(name, {**changes, "train.micro_batch_size": "1"} if size > 1 and name == "micro" else changes)
    if size == 2:
        run("dropout", DROPOUT)
        config = config_for(size, DROPOUT)
        with pytest.raises(ValueError) as refused:
            trained(config, data, store_of(config, folder / "dropout-2", mark="other"))
        outcome.refused = str(refused.value)
    if size == 4:  # two iterations before its end, what two workers began is taken over by four
        began, went_on = folder / "long-2", folder / "taken_over-4"
        if Workers().rank == 0:
            shutil.copytree(began, went_on)
            for iteration in (9, 10):
                shutil.rmtree(went_on / "checkpoints" / f"iteration-{iteration:05d}")
        Workers().broadcast(None)
        run("taken_over", LONG)
    return outcome


def round_trips() -> dict[str, Any]:
    """`Workers` on lists that do not divide, and on what only the first worker has."""
    workers = Workers()
    first = workers.rank == 0
    tensors = [torch.full((3,), float(workers.rank)), torch.tensor(workers.rank)]
    workers.broadcast_(tensors)
    total = torch.tensor([1.0, workers.rank], dtype=torch.float64)
    workers.sum_(total)

    def bad() -> None:
        raise ValueError("bad on the first")

    with pytest.raises(ValueError, match="bad on the first"):
        workers.from_first(bad)
    return {
        "gathered": [workers.gather(workers.share(list(range(n)))) for n in (0, 1, 3, 5, 8)],
        "shares": [len(workers.share(list(range(n)))) for n in (0, 1, 3, 5, 8)],
        "broadcast": [workers.broadcast(["first"] if first else ["other"]), workers.broadcast(None)],
        "from_first": workers.from_first(lambda: {"rank": workers.rank}),
        "tensors": [tensor.tolist() for tensor in tensors],
        "sum": total.tolist(),
    }


class SuicidalStore(CheckpointStore):
    """Its process is killed when it is about to save iteration 3."""

    def save(self, iteration: int, *rest: Any) -> None:
        if iteration == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        super().save(iteration, *rest)


def killed_run(data: TrainingData, folder: Path) -> None:
    config = config_for(2, DROPOUT)
    trained(
        config,
        data,
        SuicidalStore(
            Storage.of(folder.parent), folder.name, {"settings": {"mark": "mark"}}, config.checkpoint.keep, 2
        ),
    )


def resumed_run(data: TrainingData, folder: Path) -> Trace:
    config = config_for(2, DROPOUT)
    return trained(config, data, store_of(config, folder))


# -- groups of workers --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcomes(data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Outcome]]:
    """By number of workers, what each of them did."""
    folder = tmp_path_factory.mktemp("outcomes")
    return {size: run_group(size, folder / f"group-{size}", all_runs, size, data, folder) for size in SIZES}


def differences(ours: Trace, theirs: Trace) -> dict[str, float]:
    """The largest absolute difference of each metric, and of the tensors."""
    assert [row.keys() for row in ours.rows] == [row.keys() for row in theirs.rows]
    largest: dict[str, float] = {}
    for left, right in zip(ours.rows, theirs.rows, strict=True):
        for name, value in left.items():
            largest[name] = max(largest.get(name, 0.0), abs(value - right[name]))
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, value in ours.tensors.items():
        part = name.split(".")[0]
        difference = (value.double() - theirs.tensors[name].double()).abs().max().item()
        largest[part] = max(largest.get(part, 0.0), difference)
    return largest


@pytest.mark.e2e
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", ["long", *VARIANTS])
def test_in_float64_any_number_of_workers_gives_the_same_trace(
    outcomes: dict[int, list[Outcome]], name: str, size: int
):
    alone, first = outcomes[1][0].traces[name], outcomes[size][0].traces[name]
    found = differences(first, alone)
    assert max(found.values()) <= 1e-9, found
    assert first.negatives == alone.negatives


@pytest.mark.e2e
@pytest.mark.parametrize("size", [2, 4])
def test_in_fp32_any_number_of_workers_gives_the_same_first_steps(outcomes: dict[int, list[Outcome]], size: int):
    alone, first = outcomes[1][0].traces["first"], outcomes[size][0].traces["first"]
    found = differences(first, alone)
    assert all(value <= 1e-5 for name, value in found.items() if "/" in name), found
    assert first.negatives == alone.negatives


@pytest.mark.e2e
def test_the_compared_runs_do_all_of_qcrd(outcomes: dict[int, list[Outcome]]):
    """Else equal traces would show little: half the hinges are active, the discriminator learns, answers are right."""
    rows = outcomes[1][0].traces["long"].rows
    steps = [row for row in rows if "train/loss" in row]
    iterations = [row for row in rows if "eval/accuracy" in row]
    active = [row["train/hinge_active"] for row in steps]
    assert len(steps) == 200 and len(iterations) == 10
    assert 0.3 < sum(active) / len(active) < 0.7 and {0.0, 1.0} < set(active)
    assert all(row["discriminator/updates"] == 2 and row["negatives/count"] > 0 for row in iterations)
    assert max(row["eval/accuracy"] for row in iterations) > min(row["eval/accuracy"] for row in iterations)
    assert all(row["train/selection_entropy"] > 0 for row in iterations)


@pytest.mark.e2e
@pytest.mark.parametrize("size", [2, 4])
def test_every_worker_ends_with_the_same_bits(outcomes: dict[int, list[Outcome]], size: int):
    first, *others = outcomes[size]
    for other in others:
        assert other.traces.keys() == first.traces.keys()
        for name, trace in other.traces.items():
            assert trace.rows == first.traces[name].rows and trace.negatives == first.traces[name].negatives
            for part, tensor in trace.tensors.items():
                assert torch.equal(tensor, first.traces[name].tensors[part]), (name, part)


@pytest.mark.e2e
@pytest.mark.parametrize("size", [2, 4])
def test_sampling_and_evaluation_are_shared_out(outcomes: dict[int, list[Outcome]], size: int):
    written = [outcome.generated for outcome in outcomes[size]]
    for kind, total in outcomes[1][0].generated.items():
        assert sum(one[kind] for one in written) == total
        assert max(one[kind] for one in written) <= 1.2 * total / size, (kind, written)


@pytest.mark.e2e
@pytest.mark.parametrize("size", [1, 2, 4])
def test_uneven_lists_and_plain_values_make_the_round_trip(outcomes: dict[int, list[Outcome]], size: int):
    for rank, outcome in enumerate(outcomes[size]):
        plain = outcome.plain
        assert plain["gathered"] == [list(range(n)) for n in (0, 1, 3, 5, 8)]
        assert plain["shares"] == [len(range(rank, n, size)) for n in (0, 1, 3, 5, 8)]
        assert plain["broadcast"] == [["first"], None] and plain["from_first"] == {"rank": 0}
        assert plain["tensors"] == [[0.0, 0.0, 0.0], 0]
        assert plain["sum"] == [size, sum(range(size))]


@pytest.mark.e2e
def test_killed_and_resumed_equals_uninterrupted_with_two_workers_and_dropout(
    outcomes: dict[int, list[Outcome]], data: TrainingData, tmp_path: Path
):
    with pytest.raises(GroupDied, match="exit code"):
        run_group(2, tmp_path / "killed", killed_run, data, tmp_path / "run")
    newest = max(path.name for path in (tmp_path / "run" / "checkpoints").glob("iteration-?????"))
    assert newest in ("iteration-00001", "iteration-00002")  # the second's write may have been under way
    for rank, resumed in enumerate(run_group(2, tmp_path / "resumed", resumed_run, data, tmp_path / "run")):
        whole = outcomes[2][rank].traces["dropout"]
        assert resumed.rows == whole.rows
        for name, value in whole.tensors.items():
            assert torch.equal(value, resumed.tensors[name]), name


@pytest.mark.e2e
def test_a_run_that_two_workers_began_goes_on_with_four(outcomes: dict[int, list[Outcome]]):
    taken_over = outcomes[4][0].traces["taken_over"]
    assert sorted(taken_over.negatives) == [9, 10]
    found = differences(taken_over, outcomes[1][0].traces["long"])
    assert max(found.values()) <= 1e-9, found


@pytest.mark.e2e
def test_a_checkpoint_of_other_settings_is_refused_by_every_worker(outcomes: dict[int, list[Outcome]]):
    for outcome in outcomes[2]:
        assert 'settings.mark "mark" there, "other" here' in outcome.refused


def test_one_worker_alone_needs_no_process_group():
    assert round_trips()["gathered"][3] == [0, 1, 2, 3, 4]
    assert (Workers().rank, Workers().world_size) == (0, 1)

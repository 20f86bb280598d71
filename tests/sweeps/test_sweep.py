"""Sweeps as data: what may be swept, which configurations are tried, and the record that a restart reads."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ray import tune
from rich.console import Console

from experiments.quickstart import recipe as quickstart
from qcrd.config import ConfigError, with_overrides
from qcrd.config.sweep import Sweep
from qcrd.console import Display
from qcrd.sweeps.plan import check_sweep, plan_sweep, shared_configurations, shared_fields, sweep_key
from qcrd.sweeps.record import TRIALS, SweepRecord, read_results
from qcrd.sweeps.search_space import (
    OptunaProposer,
    description,
    finite_values,
    grid,
    key_of,
    listed,
    most_samples,
)
from qcrd.sweeps.tune_search import scheduler_of
from tests.full_disk import files_end_at

SPACE = {"negatives.gap": tune.grid_search([1, 2]), "train.learning_rate": tune.loguniform(1e-4, 1e-2)}


def sweep_of(space: dict[str, Any], **changes: Any) -> Sweep:
    return Sweep(name="small", title="a small sweep", base=quickstart(), space=space, **changes)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"searcher": "random"}, "num_configurations"),
        ({"seeds": (1, 1)}, "seeds"),
        ({"objectives": "accuracy_and_cost"}, "objectives"),
        ({"scheduler": "pbt"}, "scheduler"),
    ],
)
def test_what_makes_no_sense_is_refused_and_named(changes: dict[str, Any], said: str):
    with pytest.raises(ValidationError, match=said):
        sweep_of(SPACE, **changes)


@pytest.mark.parametrize("space", [tune.sample_from(lambda: 1), 3, [1, 2], {"values": [1]}])
def test_what_is_no_search_space_is_refused(space: Any):
    with pytest.raises(ConfigError, match=r"negatives\.gap"):
        check_sweep(sweep_of({"negatives.gap": space}))


def test_an_unknown_field_and_a_bad_value_are_refused_before_anything_runs():
    with pytest.raises(ConfigError, match=r"negatives\.gapp"):
        check_sweep(sweep_of({"negatives.gapp": tune.choice([1])}))
    with pytest.raises(ConfigError, match=r"negatives\.gap: 0"):
        check_sweep(sweep_of({"negatives.gap": tune.choice([1, 0])}))


def test_a_grid_is_every_combination():
    space = {"negatives.gap": tune.choice([1, 2]), "negatives.num_samples": tune.randint(1, 4)}
    expected = [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    assert [tuple(values.values()) for values in grid(sweep_of(space))] == expected
    shuffled = listed(sweep_of(space, scheduler="asha")) or []
    ordered = grid(sweep_of(space))
    assert shuffled != ordered and sorted(map(key_of, shuffled)) == sorted(map(key_of, ordered))
    with pytest.raises(ConfigError, match=r"train\.learning_rate"):
        grid(sweep_of(SPACE))
    assert finite_values("x", tune.qrandint(1, 10, 3)) is None and finite_values("x", tune.uniform(0, 1)) is None


def test_random_configurations_are_distinct_repeatable_and_the_first_of_more():
    def drawn(number: int, seed: int = 0) -> list[dict[str, Any]]:
        return listed(sweep_of(SPACE, searcher="random", num_configurations=number, search_seed=seed)) or []

    ten = drawn(10)
    assert len({key_of(values) for values in ten}) == 10 and ten[:4] == drawn(4) and ten != drawn(10, seed=1)
    assert all(1e-4 <= values["train.learning_rate"] <= 1e-2 for values in ten)
    few = sweep_of({"negatives.gap": tune.choice([1, 2, 3])}, searcher="random", num_configurations=10)
    assert sorted(values["negatives.gap"] for values in listed(few) or []) == [1, 2, 3]


def test_optuna_goes_on_as_if_it_had_never_stopped():
    sweep = sweep_of(SPACE, searcher="optuna", num_configurations=16)

    def score(values: dict[str, Any]) -> float:
        return values["negatives.gap"] - abs(values["train.learning_rate"] - 1e-3)

    proposer, all_ = OptunaProposer(sweep, []), []
    while (values := proposer.propose()) is not None:
        all_.append(values)
        proposer.tell(values, score(values), 1.0)
    assert len(all_) == 16 and len({key_of(values) for values in all_}) == 16
    restarted = OptunaProposer(sweep, all_[:12])
    for values in all_[:12]:
        restarted.tell(values, score(values), 1.0)
    assert restarted.propose() == all_[12]


def test_optuna_weighs_cost_too_and_a_failure_has_no_score():
    sweep = sweep_of(SPACE, searcher="optuna", num_configurations=3, objectives="accuracy_and_cost")
    proposer = OptunaProposer(sweep, [])
    for score in (0.5, None, 0.7):
        values = proposer.propose()
        assert values is not None
        proposer.tell(values, score, 2.0)
    assert proposer.propose() is None


def test_the_teacher_is_asked_for_the_largest_m_by_all():
    sweep = sweep_of({"rationales.num_samples": tune.grid_search([1, 8, 3])})
    assert most_samples(sweep) == 8
    configs = [sweep.config(values, 0, 8) for values in grid(sweep)]
    assert [config.teacher.num_samples for config in configs] == [8, 8, 8]
    assert [config.rationales.num_samples for config in configs] == [1, 8, 3]


def test_what_trials_share_is_listed_once():
    space = {"rationales.num_samples": tune.grid_search([1, 2]), "negatives.gap": tune.grid_search([1, 2, 3])}
    assert shared_fields(sweep_of(space)) == ["rationales.num_samples"]
    shared = shared_configurations(sweep_of(space, searcher="optuna", num_configurations=4))
    assert shared == [{"rationales.num_samples": 1}, {"rationales.num_samples": 2}]
    endless = {"discriminator.learning_rate": tune.loguniform(1e-5, 1e-3)}
    with pytest.raises(ConfigError, match=r"discriminator\.learning_rate"):
        check_sweep(sweep_of(endless, searcher="optuna", num_configurations=2))
    check_sweep(sweep_of(endless, searcher="random", num_configurations=2))  # known beforehand, so made beforehand


def test_the_plan_counts_what_is_shared_once_and_writes_nothing(tmp_path: Path):
    base = with_overrides(quickstart(), {"output": str(tmp_path / "runs")})
    space = {"rationales.num_samples": tune.grid_search([1, 3]), "negatives.gap": tune.grid_search([1, 2])}
    sweep = Sweep(name="small", title="a small sweep", base=base, space=space, seeds=(0, 1))
    plan = plan_sweep(sweep)
    counts = {
        name: plan.cells.to_run[name] for name in ("samples", "training_set", "discriminator", "student", "report")
    }
    assert counts == {"samples": 1, "training_set": 2, "discriminator": 2, "student": 8, "report": 0}
    assert plan.known and not (tmp_path / "runs").exists()
    shown = io.StringIO()
    plan.show(Display(Console(file=shown, width=200)))
    assert "4 configurations x 2 seeds, 0 of them ended before" in shown.getvalue()
    drawn = plan_sweep(sweep.model_copy(update={"searcher": "optuna", "num_configurations": 9}))
    assert not drawn.known and drawn.cells.to_run["student"] == 4


def test_a_sweep_is_named_by_what_decides_it_and_not_by_how_long_it_goes_on():
    sweep = sweep_of(SPACE, searcher="random", num_configurations=2)
    assert sweep_key(sweep) == sweep_key(sweep.model_copy(update={"num_configurations": 5, "budget_hours": 1.0}))
    wider = {**SPACE, "train.learning_rate": tune.loguniform(1e-4, 1e-1)}
    for other in ({"space": wider}, {"seeds": (0, 1)}, {"scheduler": "asha"}, {"search_seed": 1}):
        assert sweep_key(sweep.model_copy(update=other)) != sweep_key(sweep)
    json.dumps(description(sweep))


def test_a_sweep_over_methods_is_named_by_what_each_of_them_reads():
    def key(space: dict[str, Any], weight: float) -> str:
        base = with_overrides(quickstart(), {"method": "qcrd", "loss.mi_weight": weight})
        return sweep_key(Sweep(name="small", title="a small sweep", base=base, space=space))

    methods = {"method": tune.grid_search(["dss", "mi"])}
    assert key(methods, 0.1) != key(methods, 0.2)
    numbers = {"negatives.gap": tune.grid_search([1, 2])}
    assert key(numbers, 0.1) == key(numbers, 0.2)  # QCRD does not read it


# -- the record ----------------------------------------------------------------------------------------------------

ABOUT = {
    "name": "small", "title": "a small sweep", "fields": ["negatives.gap"], "seeds": [0, 1], "simulated": True,
    "task": "arithmetic", "method": "qcrd", "about": {},
}  # fmt: skip


def row(iteration: int, accuracies: list[float], score: float, seconds: float = 1.0) -> dict[str, Any]:
    return {
        "iteration": iteration, "accuracies": accuracies, "score": score, "seconds": seconds,
        "seed_seconds": [seconds / 2] * 2, "steps": 10 * iteration, "training_iteration": 99,
    }  # fmt: skip


def test_the_record_survives_a_torn_line_and_takes_each_iteration_once(tmp_path: Path):
    record = SweepRecord(tmp_path / "sweep")
    record.describe(ABOUT)
    record.propose("a", {"negatives.gap": 1}, ["f0", "f1"])
    record.result("a", row(1, [0.2, 0.4], 0.3))
    record.result("a", row(2, [0.1, 0.6], 0.4, 3.0))
    record.result("a", row(1, [9.0, 9.0], 9.0))  # told again by a trial that was tried again
    record.propose("b", {"negatives.gap": 2}, ["f2", "f3"])
    record.end("b", "failed", "out of memory")
    with (tmp_path / "sweep" / TRIALS).open("a") as stream:
        stream.write('{"kind": "ended", "key": "a", "sta')
    again = SweepRecord(tmp_path / "sweep")
    again.describe(ABOUT)
    again.end("a", "finished")
    again.test("a", 0, 0.5)
    results = read_results(tmp_path / "sweep")
    first, second = results.configurations
    assert first.curves == {0: (0.2, 0.1), 1: (0.4, 0.6)} and first.status == "finished"
    assert first.score == pytest.approx((0.2 + 0.6) / 2) and first.seconds == 3.0 and first.steps == 20
    assert first.test_accuracy == {0: 0.5} and second.status == "failed" and second.reason == "out of memory"
    assert results.finished == [first]


def test_a_full_disk_leaves_a_record_that_the_next_start_reads(tmp_path: Path):
    record = SweepRecord(tmp_path)
    record.describe(ABOUT)
    record.propose("a", {"task.path": "a\u2028b"}, ["f0"])
    with files_end_at((tmp_path / TRIALS).stat().st_size + 20), pytest.raises(OSError, match=TRIALS):
        record.propose("b", {"negatives.gap": 2}, ["f1"])
    record.end("a", "failed", "disk full\u0085")  # there is room again
    assert SweepRecord(tmp_path).lines == record.lines and list(record.trials) == ["a"]


class _Trial:
    """What Tune hands to a scheduler."""

    def __init__(self, key: str) -> None:
        self.config, self.trial_id = {"key": key}, f"tune-{key}"


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_scheduler_decides_after_a_restart_as_it_would_have_without(name: str):
    sweep = sweep_of(SPACE, searcher="random", num_configurations=9, scheduler=name, reduction_factor=2)
    curves = {f"t{i}": [((7 * i) % 9) / 10 + t / 100 for t in range(1, 5)] for i in range(9)}

    def lines(keys: list[str], decide: Any) -> tuple[list[dict[str, Any]], dict[str, int]]:
        told: list[dict[str, Any]] = []
        ends = {}
        for key in keys:
            told.append({"kind": "proposed", "key": key, "values": {}})
            for t, score in enumerate(curves[key], start=1):
                told.append({"kind": "result", "key": key, **row(t, [score], score)})
                ends[key] = t
                if decide(key, told[-1]) == "STOP":
                    break
        return told, ends

    def of(scheduler: Any) -> Any:
        added: set[str] = set()

        def decide(key: str, result: dict[str, Any]) -> str:
            if key not in added:
                scheduler.on_trial_add(None, _Trial(key))
                added.add(key)
            return scheduler.on_trial_result(None, _Trial(key), result)

        return decide

    whole, ends = lines(list(curves), of(scheduler_of(sweep, 4, [])))
    assert 1 in ends.values() and 4 in ends.values()  # it ends some and lets others go on
    for cut in range(1, len(whole)):
        if whole[cut]["kind"] != "proposed":
            continue
        past = whole[:cut]
        left = [key for key in curves if key not in {line["key"] for line in past}]
        restarted = scheduler_of(sweep, 4, past)
        _, later = lines(left, of(restarted))
        assert later == {key: ends[key] for key in left}
        stopped = {key for key in ends if key not in left and ends[key] < 4}
        assert stopped <= restarted.stopped

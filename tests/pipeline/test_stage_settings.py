"""Which settings decide a stage's output, by method: cells of a grid that agree in what they use share a training."""

from typing import Any

import pytest

from qcrd.config import ConfigError, ExperimentConfig, TrainConfig, validated
from qcrd.distill.methods import METHODS, uses_teacher
from qcrd.pipeline.check import check
from qcrd.pipeline.stages import stages_of


def settings_of(stage: str, method: str, **loss: Any) -> dict[str, Any]:
    labels = "teacher" if method == "distill_label" else "gold"
    config = ExperimentConfig.model_validate(
        {"name": "x", "method": method, "loss": loss, "train": {"labels": labels}, "task": {"train_limit": None}}
    )
    return next(one for one in stages_of(config) if one.name == stage).settings(config)


@pytest.mark.parametrize(
    ("method", "read"),
    [
        ("finetune", set()),
        ("single_task", set()),
        ("distill_label", set()),
        ("dss", {"label_weight", "rationale_weight"}),
        ("mi", {"label_weight", "rationale_weight", "mi_weight", "mi_variant"}),
        ("qcrd", {"label_weight", "rationale_weight", "beta", "margin", "scheme", "discriminator_weight",
                  "discriminator_decay"}),
    ],
)  # fmt: skip
def test_a_students_settings_hold_what_its_loss_reads(method: str, read: set[str]):
    assert settings_of("student", method)["loss"].keys() == read
    others = {"beta": 0.5, "mi_weight": 0.7, "scheme": "mean"}
    same = settings_of("student", method) == settings_of("student", method, **others)
    assert same == (method not in ("mi", "qcrd"))


def test_only_single_task_has_a_training_set_of_its_own():
    made = {method: settings_of("training_set", method) for method in METHODS if method != "distill_label"}
    assert made["finetune"] == made["dss"] == made["mi"] == made["qcrd"] != made["single_task"]
    assert "target" in made["single_task"] and "target" not in made["dss"]


def test_only_finetuning_asks_no_teacher():
    taught = [
        ExperimentConfig.model_validate({"name": "x", "method": m, "train": {"labels": "teacher"}}) for m in METHODS
    ]
    assert all(uses_teacher(config.method, config.train) for config in taught)
    gold = {m: uses_teacher(m, TrainConfig()) for m in METHODS if m != "distill_label"}
    assert gold == {"finetune": False, "single_task": True, "dss": True, "mi": True, "qcrd": True}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "distill_label"},
         "train.labels: 'gold' is not allowed; method = distill_label trains on 'teacher' labels"),
        ({"method": "qcdr"},
         "method: 'qcdr' is not allowed; the methods are finetune, single_task, distill_label, dss, mi, qcrd"),
    ],
)  # fmt: skip
def test_a_method_that_is_none_or_has_other_labels_is_refused_before_anything_runs(
    changes: dict[str, Any], message: str
):
    for until in (None, "questions"):
        with pytest.raises(ConfigError) as refused:
            check(validated({"name": "x", **changes}), until)
        assert str(refused.value) == message

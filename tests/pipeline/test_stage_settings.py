"""Which settings decide a stage's output, by method: cells of a grid that agree in what they use share a training."""

from typing import Any

import pytest

from qcrd.config import ExperimentConfig
from qcrd.pipeline.stages import stages_of

METHODS = ["finetune", "single_task", "distill_label", "dss", "mi", "qcrd"]


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
    assert all(config.uses_teacher() for config in taught)
    gold = {m: ExperimentConfig(name="x", method=m).uses_teacher() for m in METHODS if m != "distill_label"}  # pyright: ignore
    assert gold == {"finetune": False, "single_task": True, "dss": True, "mi": True, "qcrd": True}

"""Each method's loss and gradients against reference.py, and what must not change them: how a batch is cut.

The schemes of QCRD and more margins are in test_step.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from qcrd.config import LossConfig
from qcrd.distill.batch import QuestionBatch
from qcrd.distill.dss_step import dss_step
from qcrd.distill.methods import METHODS
from qcrd.distill.mi_step import mi_step
from qcrd.distill.reference import disagreement, forward, peaks, reference_loss
from qcrd.models.student import Student
from qcrd.models.tokenizer import encode_targets
from tests.distill.helpers import (
    LABELS,
    POSITIVES,
    assert_equal_gradients,
    bert_pair,
    exact_norms,
    gated_student,
    gradients_of,
    question_batch,
    tiny_student,
    tiny_tokenizer,
)


def batch_with_gaps() -> QuestionBatch:
    """Two questions with all targets, one without a rationale, one without a label, and one with neither."""
    data = question_batch()
    rows = {name: [*value, value[0], value[2]] for name, value in vars(data).items() if name != "totals_of_whole"}
    return QuestionBatch(**{**rows, "label_ids": [*data.label_ids, [], []]})


def whole_targets() -> QuestionBatch:
    """As `single_task` has it: rationale, phrase and label in one target; one question without."""
    thoughts = [side[0] if side else "" for side in POSITIVES]
    texts = [f"{thought} So the answer is {label}" for thought, label in zip(thoughts, LABELS, strict=True)]
    return replace(batch_with_gaps(), label_ids=[*encode_targets(tiny_tokenizer(), texts, 64), [], []])


def of_qcrd(**changes: Any) -> QuestionBatch:
    return replace(batch_with_gaps(), **changes)


@dataclass(frozen=True)
class Case:
    """A method's batch and settings. Weights differ, so that none can stand for another."""

    method: str
    batch: QuestionBatch = field(default_factory=batch_with_gaps)
    loss: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> LossConfig:
        weights = {"label_weight": 0.3, "rationale_weight": 0.7, "mi_weight": 0.2, "margin": 4.88}
        return LossConfig.model_validate(weights | self.loss)


DATA = batch_with_gaps()
FIRST_ONLY = of_qcrd(
    positives=[side[:1] for side in DATA.positives], quality_positives=[side[:1] for side in DATA.quality_positives]
)
NO_NEGATIVES = {"negatives": [[]] * 5, "quality_negatives": [[]] * 5}
NO_DISCRIMINATOR = {
    "quality_positives": [[1.0] * len(side) for side in DATA.positives],
    "quality_negatives": [[0.0] * len(side) for side in DATA.negatives],
}
NO_DISCRIMINATOR_FIRST_ONLY = {
    **NO_DISCRIMINATOR,
    "quality_positives": [[1.0] * len(side) for side in FIRST_ONLY.positives],
}
CASES = {
    "finetune": Case("finetune"),
    "distill_label": Case("distill_label"),
    "single_task": Case("single_task", whole_targets()),
    "dss": Case("dss"),
    "mi official": Case("mi", loss={"mi_variant": "official"}),
    "mi masked": Case("mi", loss={"mi_variant": "masked"}),
    "qcrd": Case("qcrd"),
    "qcrd w/o ED": Case("qcrd", FIRST_ONLY),
    "qcrd w/o NK": Case("qcrd", of_qcrd(**NO_NEGATIVES)),
    "qcrd w/o QJ": Case("qcrd", of_qcrd(**NO_DISCRIMINATOR)),
    "qcrd w/o ED, NK, QJ": Case("qcrd", replace(FIRST_ONLY, **{**NO_DISCRIMINATOR_FIRST_ONLY, **NO_NEGATIVES})),
}


@pytest.mark.parametrize("make", [tiny_student, gated_student, bert_pair])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_every_gradient_are_those_of_the_definition(make: Callable[[], Student], name: str):
    student, case = make(), CASES[name]
    ours, _ = METHODS[case.method].step(student, case.batch, case.config)
    with exact_norms():
        expected = reference_loss(student, case.batch, case.method, case.config)
        assert float(ours.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
        assert_equal_gradients(gradients_of(ours, student), gradients_of(expected, student))


@pytest.mark.parametrize("make", [tiny_student, bert_pair])
@pytest.mark.parametrize("name", ["finetune", "single_task", "dss", "mi official", "mi masked", "qcrd"])
def test_parts_of_a_batch_add_up_to_the_whole(make: Callable[[], Student], name: str):
    student, case = make(), CASES[name]
    whole, metrics = METHODS[case.method].step(student, case.batch, case.config)
    cuts = [(0, 1), (1, 2), (2, 4), (4, 5)]  # the last part has neither label nor rationale
    parts = [METHODS[case.method].step(student, case.batch.part(*cut), case.config) for cut in cuts]
    assert all(part.keys() == metrics.keys() for _, part in parts)
    total = torch.stack([loss for loss, _ in parts]).sum()
    assert float(total.detach()) == pytest.approx(float(whole.detach()), rel=1e-12)
    for key, value in metrics.items():
        assert torch.allclose(value.double(), sum(part[key] for _, part in parts).double(), rtol=1e-12), key  # pyright: ignore
    assert_equal_gradients(gradients_of(total, student), gradients_of(whole, student))


@pytest.mark.parametrize("variant", ["official", "masked"])
def test_mi_adds_its_term_to_the_losses_of_dss(variant: str):
    student, data = tiny_student(), batch_with_gaps()
    config = LossConfig.model_validate({"mi_variant": variant})
    loss, metrics = mi_step(student, data, config)
    dss_loss, dss = dss_step(student, data, config)
    for name in ("label_loss", "rationale_loss"):
        assert float(metrics[name]) == pytest.approx(float(dss[name]), rel=1e-13)
    assert float(metrics["mi_loss"]) > 1.0
    assert float((loss - dss_loss).detach()) == pytest.approx(0.1 * float(metrics["mi_loss"]), rel=1e-10)


@pytest.mark.parametrize("variant", ["official", "masked"])
def test_descending_the_mi_term_brings_the_rationale_nearer_to_the_label(variant: str):
    """The label's distribution is a target: agreement rises with the one that it had before the step."""
    student, data = tiny_student(), question_batch()
    config = LossConfig.model_validate(
        {"mi_variant": variant, "label_weight": 0, "rationale_weight": 0, "mi_weight": 1}
    )

    @torch.no_grad()
    def peaks_of(questions: list[list[int]], targets: list[list[int]]) -> torch.Tensor:
        return peaks(*forward(student, questions, targets), variant)

    labels = peaks_of(list(data.predict_ids[:2]), list(data.label_ids[:2]))  # pyright: ignore[reportArgumentType]
    before = peaks_of(list(data.explain_ids[:2]), list(data.rationale_ids[:2]))  # pyright: ignore[reportArgumentType]
    mi_step(student, data, config)[0].backward()
    with torch.no_grad():
        for parameter in student.model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
    after = peaks_of(list(data.explain_ids[:2]), list(data.rationale_ids[:2]))  # pyright: ignore[reportArgumentType]
    assert float(disagreement(after, labels, variant)) < float(disagreement(before, labels, variant)) - 1e-6


def test_official_counts_padding_and_masked_does_not():
    """A longer label of another question moves the official maximum of this one, and only that."""
    student = tiny_student()
    data = question_batch().part(0, 2)
    padded = replace(data.totals, longest_label=data.totals.longest_label + 7)
    terms = {}
    for variant in ("official", "masked"):
        config = LossConfig.model_validate({"mi_variant": variant})
        for name, totals in (("short", data.totals), ("long", padded)):
            _, metrics = mi_step(student, replace(data, totals_of_whole=totals), config)
            terms[variant, name] = float(metrics["mi_loss"])
    assert terms["masked", "short"] == terms["masked", "long"]
    assert abs(terms["official", "short"] - terms["official", "long"]) > 1e-6

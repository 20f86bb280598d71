"""The step's shared encoder and select-then-gradient path against a naive implementation of the same definition."""

import math
from collections.abc import Callable

import pytest
import torch

from qcrd.config import (
    LossConfig,
    ScratchStudentConfig,
)
from qcrd.distill.batch import QuestionBatch
from qcrd.distill.label_step import finetune_step
from qcrd.distill.qcrd_step import qcrd_step
from qcrd.distill.reference import reference_loss
from qcrd.models.batching import padded_inputs
from qcrd.models.cross_entropy import IGNORED
from qcrd.models.packing import GROUP_RATIO
from qcrd.models.student import Student, build_student
from tests.distill.helpers import (
    assert_equal_gradients,
    bert_pair,
    exact_norms,
    gated_student,
    gradients_of,
    question_batch,
    tiny_student,
    tiny_tokenizer,
)

TOKENIZER = tiny_tokenizer()


@pytest.mark.parametrize("make", [tiny_student, gated_student, bert_pair])
@pytest.mark.parametrize("scheme", ["minmax", "maxmin", "sampling", "mean", "weighted_mean"])
@pytest.mark.parametrize("margin", [0.5, 3.0, 100.0])  # no hinge active, some, all
def test_equals_the_naive_implementation_in_loss_and_every_gradient(
    make: Callable[[], Student], scheme: str, margin: float
):
    student, data = make(), question_batch()
    config = LossConfig(scheme=scheme, margin=margin)  # pyright: ignore[reportArgumentType]
    ours, metrics = qcrd_step(student, data, config)
    with exact_norms():
        naive = reference_loss(student, data, "qcrd", config)
        assert float(ours.detach()) == pytest.approx(float(naive.detach()), rel=1e-12)
        assert_equal_gradients(gradients_of(ours, student), gradients_of(naive, student))
    assert {0.5: 0.0, 100.0: 1.0}.get(margin, float(metrics["hinge_active"])) == float(metrics["hinge_active"])


@pytest.mark.parametrize("ratio", [0.0, 1.0])  # all rows padded together, as on a GPU; each length by itself
def test_groups_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch, ratio: float):
    found = []
    for one in (0.7, ratio):
        monkeypatch.setitem(GROUP_RATIO, "cpu", one)
        student = tiny_student()
        loss, metrics = qcrd_step(student, question_batch(), LossConfig(margin=100.0))
        found.append((float(loss.detach()), gradients_of(loss, student), metrics["positive_nll"]))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-12)
    assert float(found[1][2]) == pytest.approx(float(found[0][2]), rel=1e-12)
    assert_equal_gradients(found[1][1], found[0][1])


def test_an_inactive_hinge_leaves_exactly_the_gradient_of_no_negatives():
    data = question_batch()
    without = QuestionBatch(**{**vars(data), "negatives": [[], [], []], "quality_negatives": [[], [], []]})
    results = []
    for one in (data, without):
        student = tiny_student()
        loss, _ = qcrd_step(student, one, LossConfig(margin=1e-9))
        loss.backward()
        results.append([p.grad for p in student.model.parameters()])
    for left, right in zip(*results, strict=True):
        assert torch.equal(left, right)


def test_scoring_switches_only_the_decoders_dropout_off():
    student = tiny_student(dropout=0.5)
    with student.decoder_dropout_off():
        assert not any(m.training for m in student.model.get_decoder().modules())
        assert all(m.training for m in student.model.get_encoder().modules())
    assert all(m.training for m in student.model.get_decoder().modules())


def test_dropout_is_where_transformers_has_it():
    """Over many draws the mean loss with dropout is that of transformers' own model, and far from that without."""
    config = ScratchStudentConfig(
        d_model=16, d_kv=4, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=2, dropout=0.3
    )
    student, data = build_student(config, TOKENIZER, 0, torch.device("cpu")), question_batch()
    label = torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in data.label_ids], True, IGNORED)
    ids, mask = padded_inputs(data.predict_ids, 0, student.device)
    torch.manual_seed(0)
    with torch.no_grad():
        ours = torch.stack([finetune_step(student, data, LossConfig())[0] for _ in range(300)])
        theirs = torch.stack([student.model(input_ids=ids, attention_mask=mask, labels=label).loss for _ in range(300)])
        without = finetune_step(tiny_student("float32"), data, LossConfig())[0]
    error = float((ours.var() / 300 + theirs.var() / 300).sqrt())
    assert abs(float(ours.mean() - theirs.mean())) < 4 * error
    assert abs(float(ours.mean() - without)) > 8 * error
    assert float(ours.std() / theirs.std()) == pytest.approx(1, abs=0.3)


def test_a_batch_without_any_rationale_still_has_its_label_loss():
    data = question_batch()
    nothing: dict[str, list[list[object]]] = {"positives": [[], [], []], "negatives": [[], [], []]}
    qualities: dict[str, list[list[object]]] = {"quality_positives": [[], [], []], "quality_negatives": [[], [], []]}
    student = tiny_student()
    loss, metrics = qcrd_step(student, QuestionBatch(**{**vars(data), **nothing, **qualities}), LossConfig())
    assert float(metrics["contrastive_loss"]) == 0.0
    of_nothing = ("hinge_active", "positive_nll", "negative_nll", "positive_quality", "negative_quality")
    assert all(math.isnan(metrics[name]) for name in of_nothing)
    assert float(loss.detach()) == pytest.approx(0.5 * float(metrics["label_loss"]), rel=1e-12)

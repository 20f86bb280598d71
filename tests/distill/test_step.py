"""The step's shared encoder and select-then-gradient path against a naive implementation of the same definition."""

import pytest
import torch

from qcrd.config import LossConfig
from qcrd.distill.losses import IGNORED
from qcrd.distill.step import QuestionBatch, dss_step, finetune_step, qcrd_step
from qcrd.distill.student import Student, encode_inputs, encode_targets
from tests.distill.helpers import tiny_student, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
QUESTIONS = ["Tom has 8 apples and buys 3 more.", "Ann had 12 pens. She gave away 5 pens.", "Each box holds 4 toys."]
LABELS = ["( 8 + 3 )", "( 12 - 5 )", "( 6 * 4 )"]
POSITIVES = [["We add 8 and 3 and get 11.", "8 + 3 = 11 apples."], ["12 - 5 = 7 pens.", "Taking 5 leaves 7."], []]
NEGATIVES = [["pens pens 3"], ["Tom 12 + 5 apples", "5 away"], ["6 boxes"]]


def batch() -> QuestionBatch:
    def ids(texts: list[str]) -> list[list[int]]:
        return encode_targets(TOKENIZER, texts, 64)

    return QuestionBatch(
        predict_ids=encode_inputs(TOKENIZER, ["predict: " + q for q in QUESTIONS], 99),
        explain_ids=encode_inputs(TOKENIZER, ["explain: " + q for q in QUESTIONS], 99),
        label_ids=ids(LABELS),
        rationale_ids=[*ids([side[0] for side in POSITIVES[:2]]), []],
        positives=[ids(side) for side in POSITIVES],
        negatives=[ids(side) for side in NEGATIVES],
        quality_positives=[[0.9, 0.4], [0.8, 0.7], []],
        quality_negatives=[[0.2], [0.1, 0.6], [0.3]],
        draws=[(0.7, 0.2), (0.1, 0.9), (0.5, 0.5)],
    )


def naive_nll(student: Student, question: list[int], target: list[int]) -> torch.Tensor:
    """l(r) of one rationale by a whole forward pass of its own."""
    out = student.model(input_ids=torch.tensor([question]), labels=torch.tensor([target]))
    return out.loss


def naive_qcrd(student: Student, data: QuestionBatch, scheme: str, margin: float, beta: float) -> torch.Tensor:
    """Every rationale through the whole model with gradient; min and max taken on the values, as in the formulas."""
    tokens = sum(len(row) for row in data.label_ids)
    label = sum(
        naive_nll(student, list(q), list(t)) * len(t) for q, t in zip(data.predict_ids, data.label_ids, strict=True)
    ) / tokens
    total = torch.zeros((), dtype=torch.float64)
    for n, question in enumerate(data.explain_ids):
        pos = [naive_nll(student, list(question), list(t)) for t in data.positives[n]]
        hinge = [
            torch.minimum(naive_nll(student, list(question), list(t)) - margin, torch.zeros((), dtype=torch.float64))
            for t in data.negatives[n]
        ]
        if not pos:
            continue
        s_pos, s_neg = data.quality_positives[n], data.quality_negatives[n]
        if scheme == "mean":
            term = sum(pos) / len(pos) - beta * sum(hinge) / len(hinge)
        elif scheme == "weighted_mean":
            term = sum(s * v for s, v in zip(s_pos, pos, strict=True)) / len(pos)
            term = term - beta * sum((1 - s) * v for s, v in zip(s_neg, hinge, strict=True)) / len(hinge)
        else:
            if scheme == "sampling":
                draw_pos, draw_neg = data.draws[n]
                best, worst = pos[int(draw_pos * len(pos))], hinge[int(draw_neg * len(hinge))]
            else:
                best, worst = (min(pos), max(hinge)) if scheme == "minmax" else (max(pos), min(hinge))
            i, j = next(k for k, v in enumerate(pos) if v is best), next(k for k, v in enumerate(hinge) if v is worst)
            term = s_pos[i] * best - beta * (1 - s_neg[j]) * worst
        total = total + term
    return 0.5 * label + 0.5 * total / len(data.explain_ids)


@pytest.mark.parametrize("scheme", ["minmax", "maxmin", "sampling", "mean", "weighted_mean"])
@pytest.mark.parametrize("margin", [0.5, 3.0, 100.0])  # no hinge active, some, all
def test_equals_the_naive_implementation_in_loss_and_every_gradient(scheme: str, margin: float):
    student, data = tiny_student(), batch()
    config = LossConfig(scheme=scheme, margin=margin)  # pyright: ignore[reportArgumentType]
    ours, metrics = qcrd_step(student, data, config, scoring_batch_size=3)
    ours.backward()
    gradients = {name: p.grad.clone() for name, p in student.model.named_parameters() if p.grad is not None}
    student.model.zero_grad(set_to_none=True)
    naive = naive_qcrd(student, data, scheme, margin, config.beta)
    naive.backward()
    assert float(ours.detach()) == pytest.approx(float(naive.detach()), rel=1e-10)
    for name, parameter in student.model.named_parameters():
        assert parameter.grad is not None
        # T5 takes softmax and layer norm in fp32 even here, so single elements near 0 differ; whole gradients may not
        assert float((gradients[name] - parameter.grad).norm() / parameter.grad.norm()) <= 1e-5, name
    assert {0.5: 0.0, 100.0: 1.0}.get(margin, float(metrics["hinge_active"])) == float(metrics["hinge_active"])


def test_an_inactive_hinge_leaves_exactly_the_gradient_of_no_negatives():
    data = batch()
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


def test_dss_loss_equals_transformers_own_t5_losses():
    student, data = tiny_student(), batch()
    label = torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in data.label_ids], True, IGNORED)
    rationale = torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in data.rationale_ids[:2]], True, IGNORED)
    ids, mask = student.inputs(data.predict_ids)
    expected = 0.5 * student.model(input_ids=ids, attention_mask=mask, labels=label).loss
    ids, mask = student.inputs(data.explain_ids[:2])
    expected = expected + 0.5 * student.model(input_ids=ids, attention_mask=mask, labels=rationale).loss
    loss, metrics = dss_step(student, data, LossConfig())
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    finetune, _ = finetune_step(student, data)
    assert float(finetune.detach()) == pytest.approx(float(metrics["label_loss"]), rel=1e-12)


def test_a_batch_without_any_rationale_still_has_its_label_loss():
    data = batch()
    nothing: dict[str, list[list[object]]] = {"positives": [[], [], []], "negatives": [[], [], []]}
    qualities: dict[str, list[list[object]]] = {"quality_positives": [[], [], []], "quality_negatives": [[], [], []]}
    student = tiny_student()
    loss, metrics = qcrd_step(student, QuestionBatch(**{**vars(data), **nothing, **qualities}), LossConfig())
    assert float(metrics["contrastive_loss"]) == 0.0
    assert float(loss.detach()) == pytest.approx(0.5 * float(metrics["label_loss"]), rel=1e-12)

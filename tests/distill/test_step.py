"""The step's shared encoder and select-then-gradient path against a naive implementation of the same definition."""

from collections.abc import Callable

import pytest
import torch

from qcrd.config import LossConfig, ScratchConfig, StudentConfig
from qcrd.distill.batching import padded_inputs
from qcrd.distill.losses import IGNORED
from qcrd.distill.step import QuestionBatch, dss_step, finetune_step, qcrd_step, step_loss
from qcrd.distill.student import Student, as_student, build_student
from tests.distill.helpers import bert_pair, exact_norms, question_batch, tiny_student, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def naive_nll(student: Student, question: list[int], target: list[int]) -> torch.Tensor:
    """l(r) of one rationale by a whole forward pass of its own."""
    out = student.model(input_ids=torch.tensor([question]), labels=torch.tensor([target]))
    return out.loss


def naive_qcrd(student: Student, data: QuestionBatch, scheme: str, margin: float, beta: float) -> torch.Tensor:
    """Every rationale through the whole model with gradient; min and max taken on the values, as in the formulas."""
    tokens = sum(len(row) for row in data.label_ids)
    label = (
        sum(
            naive_nll(student, list(q), list(t)) * len(t) for q, t in zip(data.predict_ids, data.label_ids, strict=True)
        )
        / tokens
    )
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


def gated_student() -> Student:
    """T5 v1.1: gated feed-forward layers, output weights of their own."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(1)
    config = T5Config(
        vocab_size=len(TOKENIZER), d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
    )  # fmt: skip
    return as_student(T5ForConditionalGeneration(config), TOKENIZER, "float64", torch.device("cpu"))


def gradients_of(loss: torch.Tensor, student: Student) -> dict[str, torch.Tensor]:
    student.model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in student.model.named_parameters() if p.grad is not None}


def assert_equal_gradients(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys() and ours
    for name, value in theirs.items():
        assert float((ours[name] - value).norm()) <= 1e-10 * max(float(value.norm()), 1e-3), name


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
        naive = naive_qcrd(student, data, scheme, margin, config.beta)
        assert float(ours.detach()) == pytest.approx(float(naive.detach()), rel=1e-12)
        assert_equal_gradients(gradients_of(ours, student), gradients_of(naive, student))
    assert {0.5: 0.0, 100.0: 1.0}.get(margin, float(metrics["hinge_active"])) == float(metrics["hinge_active"])


@pytest.mark.parametrize("make", [tiny_student, bert_pair])
@pytest.mark.parametrize("method", ["finetune", "dss", "qcrd"])
def test_parts_of_a_batch_add_up_to_the_whole(make: Callable[[], Student], method: str):
    student, data, config = make(), question_batch(), LossConfig(margin=4.0)
    whole, metrics = step_loss(student, data, method, config)
    parts = [step_loss(student, data.part(start, start + 1), method, config) for start in range(3)]
    sums = {name: sum(part[name] for _, part in parts) for name in metrics}
    assert float(sum(loss for loss, _ in parts).detach()) == pytest.approx(float(whole.detach()), rel=1e-12)
    for name, value in metrics.items():
        assert torch.allclose(value.double(), torch.as_tensor(sums[name]).double(), rtol=1e-12), name
    summed = gradients_of(sum(loss for loss, _ in parts), student)
    assert_equal_gradients(summed, gradients_of(whole, student))


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


def test_dss_loss_equals_transformers_own_t5_losses():
    student, data = tiny_student(), question_batch()
    label = torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in data.label_ids], True, IGNORED)
    rationale = torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in data.rationale_ids[:2]], True, IGNORED)
    with exact_norms():
        ids, mask = padded_inputs(data.predict_ids, 0, student.device)
        expected = 0.5 * student.model(input_ids=ids, attention_mask=mask, labels=label).loss
        ids, mask = padded_inputs(data.explain_ids[:2], 0, student.device)
        expected = expected + 0.5 * student.model(input_ids=ids, attention_mask=mask, labels=rationale).loss
        loss, metrics = dss_step(student, data, LossConfig())
        assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
        assert_equal_gradients(gradients_of(loss, student), gradients_of(expected, student))
    finetune, _ = finetune_step(student, data)
    assert float(finetune.detach()) == pytest.approx(float(metrics["label_loss"]), rel=1e-12)


def test_dropout_is_where_transformers_has_it():
    """Over many draws the mean loss with dropout is that of transformers' own model, and far from that without."""
    scratch = ScratchConfig(d_model=16, d_kv=4, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=2)
    config = StudentConfig(kind="scratch", scratch=scratch, dropout=0.3)
    student, data = build_student(config, TOKENIZER, 0, torch.device("cpu")), question_batch()
    label = torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in data.label_ids], True, IGNORED)
    ids, mask = padded_inputs(data.predict_ids, 0, student.device)
    torch.manual_seed(0)
    with torch.no_grad():
        ours = torch.stack([finetune_step(student, data)[0] for _ in range(300)])
        theirs = torch.stack([student.model(input_ids=ids, attention_mask=mask, labels=label).loss for _ in range(300)])
        without = finetune_step(tiny_student("float32"), data)[0]
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
    assert float(loss.detach()) == pytest.approx(0.5 * float(metrics["label_loss"]), rel=1e-12)

"""The tokenised training set: label targets, all positives, the teacher's negatives, of each training question.

Knows tokenizers only as "text in, ids out": it is handed the two functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from qcrd.config import StudentSettings
from qcrd.rationales.single_task import Tokenize, encode_whole_targets, max_answer_tokens
from qcrd.records import Example, Question, Rationale, Vote


@dataclass(frozen=True)
class Truncation:
    """How many texts were cut: inputs at `max_input_tokens`, targets at their limits."""

    inputs: int
    labels: int
    rationales: int


@dataclass(frozen=True)
class Target:
    """What students learn to write when they are asked for a label.

    `labels`: the gold ones, the teacher's voted ones, or those of its first samples. `answer_phrase`: None where the
    label is the target; else the rationale, this phrase and the label are, in one.
    """

    labels: Literal["gold", "voted", "first"]
    answer_phrase: str | None = None


def _label(target: Target, question: Question, vote: Vote, rationales: Sequence[Rationale]) -> str:
    """The label text a question is trained on; empty where the teacher gave none."""
    if target.labels == "gold":
        return question.label
    if target.labels == "voted":
        return vote.majority_label or ""
    return rationales[0].label if rationales else ""


def build_examples(
    student: StudentSettings,
    target: Target,
    questions: Sequence[Question],
    votes: Mapping[str, Vote],
    rationales: Mapping[str, Sequence[Rationale]],
    tokenize_inputs: Tokenize,
    tokenize_targets: Tokenize,
) -> tuple[list[Example], Truncation]:
    """One example for each question, none dropped; `rationales[q]` are in the order of sample index.

    A rationale without text (a bare answer) is no rationale and is left out of both sides. With an answer phrase
    `label_ids` are rationale and label in one.
    """
    sides = {q.id: [r for r in rationales[q.id] if r.answer is not None and r.text] for q in questions}
    texts = sorted({r.text for rows in sides.values() for r in rows})
    labels = [_label(target, q, votes[q.id], rationales[q.id]) for q in questions]
    predict = [student.prefixes.predict + q.text for q in questions]
    explain = [student.prefixes.explain + q.text for q in questions]
    long = 10**9
    full_inputs = [len(ids) for ids in tokenize_inputs(predict + explain, long)]
    labels_cut = [len(ids) > student.max_label_tokens for ids in tokenize_targets(labels, long)]
    rationales_cut = [len(ids) > student.max_target_tokens for ids in tokenize_targets(texts, long)]
    ids_of = dict(zip(texts, tokenize_targets(texts, student.max_target_tokens), strict=True))
    predict_ids = tokenize_inputs(predict, student.max_input_tokens)
    explain_ids = tokenize_inputs(explain, student.max_input_tokens)
    label_ids = tokenize_targets(labels, student.max_label_tokens)
    if target.answer_phrase is not None:
        first_texts = [rationales[q.id][0].text if rationales[q.id] else "" for q in questions]
        limit = max_answer_tokens(student, target.answer_phrase)
        label_ids, rationales_cut = encode_whole_targets(first_texts, labels, limit, tokenize_targets)
        labels_cut = []
    examples = []
    for index, question in enumerate(questions):
        positives = [r.text for r in sides[question.id] if r.positive]
        negatives = [r.text for r in sides[question.id] if not r.positive]
        first = rationales[question.id][0] if rationales[question.id] else None
        examples.append(
            Example(
                question_id=question.id,
                text=question.text,
                predict_ids=predict_ids[index],
                explain_ids=explain_ids[index],
                label_ids=label_ids[index] if labels[index] else [],
                rationale_ids=ids_of[first.text] if first is not None and first.text else [],
                positives=[ids_of[text] for text in positives],
                positive_texts=positives,
                negatives=[ids_of[text] for text in negatives],
                negative_texts=negatives,
                answer=question.answer,
            )
        )
    cut = Truncation(
        inputs=sum(length > student.max_input_tokens for length in full_inputs),
        labels=sum(labels_cut),
        rationales=sum(rationales_cut),
    )
    return examples, cut

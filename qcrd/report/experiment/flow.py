"""The report's sections about data: how many questions and rationales went where, Table A-2, examples.

Knows nothing about losses or scores over time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from qcrd.config.paper import PaperMeasure
from qcrd.records import Example, Score
from qcrd.report.experiment.data import ReportData
from qcrd.report.markdown import NOT_MEASURED, cell, count, number, percent, table


def why_no_teacher(data: ReportData) -> str:
    """Why there are no samples."""
    if not data.method.asks_teacher:
        return f"No teacher was asked: the method `{data.config.method}` on gold labels needs none."
    return "No teacher samples were handed to this report, so nothing is said about them."


def flow_section(data: ReportData) -> list[str]:
    """Counts along the stages."""
    splits = Counter(question.split for question in data.questions)
    rows = [["questions", split, str(splits[split])] for split in ("train", "validation", "test")]
    if data.samples is not None:
        rows.append(["samples", "asked for", str(len(data.samples))])
        train = {question.id for question in data.questions if question.split == "train"}
        if other := sum(sample.question_id not in train for sample in data.samples):
            rows.append(["samples", "of them to questions that are only scored, never learnt from", str(other)])
        errors = Counter(sample.error for sample in data.samples if sample.error)
        rows.append(["samples", "with an error instead of a text", str(errors.total())])
        rows += [["samples", f"error: {cell(reason, 120)}", str(n)] for reason, n in errors.most_common(10)]
    if data.statistics is not None:
        names = {
            "num_samples": f"samples used (the first {data.config.rationales.num_samples} of each question)",
            "num_parsed": "parsed", "num_positive": "positive", "num_negative": "negative",
            "num_ties": "questions whose vote was a tie", "num_without_vote": "questions without a vote",
        }  # fmt: skip
        rows += [["rationales", title, count(data.statistics.get(key))] for key, title in names.items()]
        rows.append(["rationales", "parse rate", percent(data.statistics.get("parse_rate"))])
    with_positive = sum(bool(example.positives) for example in data.examples)
    rows += [
        ["training set", "questions with a positive rationale", str(with_positive)],
        ["training set", "questions without one", str(len(data.examples) - with_positive)],
    ]
    cut = {"truncated_inputs": "inputs cut", "truncated_labels": "labels cut", "truncated_rationales": "rationales cut"}
    known = data.summaries.get("training_set", {})
    rows += [["training set", title, str(known[key])] for key, title in cut.items() if key in known]
    lines = ["## Flow of the data", "", *table(["stage", "what", "count"], rows)]
    if data.samples is None:
        return [*lines, why_no_teacher(data), ""]
    if summary := _flat(data.summaries.get("samples", {})):
        lines += ["What the sampling stage said about itself when it ran:", ""]
        lines += table(["samples", "value"], [[cell(key, 120), cell(value, 120)] for key, value in summary])
    return lines


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    flat: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat += _flat(value, f"{prefix}{key}: ")
        else:
            flat.append((f"{prefix}{key}", f"{value:.4g}" if isinstance(value, float) else str(value)))
    return flat


def statistics_section(data: ReportData) -> list[str]:
    """The paper's appendix Table 2 by both definitions of positive, beside the paper's."""
    lines = ["## Self-consistency of the teacher (Table A-2)", ""]
    if data.statistics is None:
        return [*lines, why_no_teacher(data), ""]
    k = data.config.rationales.num_samples
    header = ["statistic", "positive = gold answer", "positive = majority answer"]
    names: dict[PaperMeasure, str] = {
        "mean_positives": f"mean positives of K = {k}",
        "share_only_positives": "share of questions with only positives",
        "share_only_negatives": "share of questions with only negatives",
    }
    printed = {key: data.config.printed(key) for key in names}
    headings = dict.fromkeys(one.heading for one in printed.values() if one is not None)
    header += [" / ".join(headings)] if headings else []
    rows = []
    for key, title in names.items():
        row = [title, *(number(data.statistics.get(side, {}).get(key)) for side in ("by_gold", "by_majority"))]
        value = printed[key]
        rows.append([*row, "" if value is None else number(value.value, 2)] if headings else row)
    lines += table(header, rows)
    others = {
        "sample_accuracy": "parsed samples with the gold answer", "vote_accuracy": "questions whose vote is right",
        "mean_agreement": "mean agreement with the vote",
    }  # fmt: skip
    return lines + table(["also", "share"], [[t, percent(data.statistics.get(key))] for key, t in others.items()])


def _scored(texts: Sequence[str], scores: Sequence[float]) -> list[tuple[str, float | None]]:
    """Texts of one question and side with their scores, which the evaluation wrote in the order of the texts."""
    if len(texts) != len(scores):
        return [(text, None) for text in texts]
    return list(zip(texts, scores, strict=True))


def _teacher_rows(example: Example, scores: Sequence[Score]) -> list[list[str]]:
    """The first rationale of each side, with its score where it was measured."""
    rows = []
    for title, source, texts in (
        ("teacher, positive", "teacher_positive", example.positive_texts),
        ("teacher, negative", "teacher_negative", example.negative_texts),
    ):
        own = [s.score for s in scores if s.question_id == example.question_id and s.source == source]
        text, score = next(iter(_scored(texts, own)), (None, None))
        rows.append([title, "none" if text is None else cell(text), "" if text is None else number(score)])
    return rows


def _rationale_lines(data: ReportData) -> list[str]:
    """Whether the student's rationales go with the answers."""
    lines = ["## Rationales of the student", ""]
    if not data.method.explains:
        why = f"The method `{data.config.method}` teaches no rationales, so its student was not asked for any."
        return [*lines, why, ""]
    explained = data.evaluation.get("eval/test_explained")
    names = {
        "rationale_accuracy": "state the gold answer",
        "consistency": "state the answer that the label task predicts",
    }
    rows = [[title, percent(data.evaluation.get(f"eval/test_{key}")), count(explained)] for key, title in names.items()]
    return [*lines, *table(["greedy rationales to test questions that", "share", "n"], rows)]


def _shown_questions(data: ReportData) -> list[str]:
    """Test questions, explained ones where there are any, and the training questions that the student explained."""
    greedy = [row for row in data.explanations if row.temperature == 0]
    test = [row.question_id for row in greedy if row.split == "test"]
    test = test or [p.question_id for p in data.predictions if p.checkpoint == "best" and p.split == "test"]
    train = [row.question_id for row in greedy if row.split == "train"]
    return test[: data.config.evaluation.num_examples] + train


def examples_section(data: ReportData) -> list[str]:
    """Questions with what the student said, and the teacher to training questions, where it was asked."""
    lines = [*_rationale_lines(data), "## Examples", ""]
    questions = {question.id: question for question in data.questions}
    examples = {example.question_id: example for example in data.examples}
    predicted = {p.question_id: p for p in data.predictions if p.checkpoint == "best"}
    explained = {row.question_id: row for row in data.explanations if row.temperature == 0}
    shown_questions = _shown_questions(data)
    for question_id in shown_questions:
        question = questions[question_id]
        prediction = predicted.get(question_id)
        shown = [["question", cell(question.text), ""], ["gold label", cell(question.label), ""]]
        verdict = "" if prediction is None else ("right" if prediction.right else "wrong")
        shown.append(["predicted label", NOT_MEASURED if prediction is None else cell(prediction.text), verdict])
        if question_id in examples:
            shown += _teacher_rows(examples[question_id], data.scores)
        if (row := explained.get(question_id)) is not None:
            cut = " (cut at the token limit)" if row.truncated else ""
            shown.append([f"student, greedy{cut}", cell(row.text), number(row.score)])
        lines += [f"### {question.split} question {cell(question_id, 80)}", ""]
        lines += table(["", "text", "score"], shown)
    if any(question_id in examples for question_id in shown_questions):
        return lines
    return lines + _teacher_examples(data)


def _teacher_examples(data: ReportData) -> list[str]:
    """Training questions that have rationales on both sides, those with scores first."""
    both = [example for example in data.examples if example.positive_texts and example.negative_texts]
    scored = {score.question_id for score in data.scores}
    both.sort(key=lambda example: example.question_id not in scored)
    lines = ["### What the teacher said", ""]
    if data.statistics is None:
        return [*lines, why_no_teacher(data), ""]
    lines += ["These are training questions, not those above.", ""]
    if not both:
        return [*lines, "No training question has both a positive and a negative rationale.", ""]
    labels = {question.id: question.label for question in data.questions}
    for example in both[: data.config.evaluation.num_examples]:
        shown = [["question", cell(example.text), ""], ["gold label", cell(labels[example.question_id]), ""]]
        lines += [f"#### train question {cell(example.question_id, 80)}", ""]
        lines += table(["", "text", "score"], shown + _teacher_rows(example, data.scores))
    return lines

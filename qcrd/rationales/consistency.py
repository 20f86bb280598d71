"""Self-consistency: the vote that makes positive and negative rationales (method.md section 3; Wang et al. 2022).

A vote is taken on canonical answers, so this module knows nothing about what an answer looks like, nor who gave it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from qcrd.records import Question, Rationale, Sample, Vote
from qcrd.tasks.base import Parser


def majority(answers: Sequence[str]) -> tuple[str, bool]:
    """The most frequent answer and whether others tie with it; among ties the answer seen first wins."""
    counts = Counter(answers)  # keeps the order of first sight
    best = max(counts.values())
    winners = [answer for answer, count in counts.items() if count == best]
    return winners[0], len(winners) > 1


def vote_on(
    question: Question, samples: Sequence[Sample], parse: Parser, positives: str
) -> tuple[Vote, list[Rationale]]:
    """Parse and vote over the samples of one question, in the order of their index.

    `positives`: `majority` (gave the majority answer), `ground_truth` (gave the gold answer) or `both`. A sample that
    cannot be parsed never votes and is neither positive nor negative.
    """
    parsed = [(sample, None if sample.error else parse(sample.text, question)) for sample in samples]
    answers = [reading.answer for _, reading in parsed if reading is not None]
    winner, tie = majority(answers) if answers else (None, False)
    winner_label = next((r.label for _, r in parsed if r is not None and r.answer == winner), None)
    rationales = []
    for sample, reading in parsed:
        if reading is None:
            rationales.append(Rationale(question.id, sample.index, "", "", None, False, False))
            continue
        in_majority, right = reading.answer == winner, reading.answer == question.answer
        positive = {"majority": in_majority, "ground_truth": right, "both": in_majority and right}[positives]
        rationales.append(
            Rationale(question.id, sample.index, reading.rationale, reading.label, reading.answer, positive, right)
        )
    agreement = answers.count(winner) / len(answers) if winner is not None else 0.0
    return Vote(question.id, winner, winner_label, agreement, tie, len(samples), len(answers)), rationales


@dataclass(frozen=True)
class SideStatistics:
    """One column of the paper's appendix Table 2 under one definition of positive."""

    mean_positives: float
    share_only_positives: float
    share_only_negatives: float


def side_statistics(flags: Sequence[Sequence[bool]]) -> SideStatistics:
    """Statistics over questions; `flags[q]` says of each parsed sample of question q whether it is positive.

    Questions without any parsed sample count in the means and in neither share.
    """
    total = max(len(flags), 1)
    return SideStatistics(
        mean_positives=sum(sum(row) for row in flags) / total,
        share_only_positives=sum(bool(row) and all(row) for row in flags) / total,
        share_only_negatives=sum(bool(row) and not any(row) for row in flags) / total,
    )


def statistics(votes: Sequence[Vote], rationales: Sequence[Rationale]) -> dict[str, float | int | dict[str, float]]:
    """Counts of the flow, and Table A-2 by both definitions: by gold answer (the paper's) and by majority."""
    by_question: dict[str, list[Rationale]] = {vote.question_id: [] for vote in votes}
    for rationale in rationales:
        if rationale.answer is not None:
            by_question[rationale.question_id].append(rationale)
    majority_of = {vote.question_id: vote.majority for vote in votes}
    by_gold = side_statistics([[r.right for r in rows] for rows in by_question.values()])
    by_vote = side_statistics([[r.answer == majority_of[q] for r in rows] for q, rows in by_question.items()])
    parsed = [rationale for rationale in rationales if rationale.answer is not None]
    voted = [vote for vote in votes if vote.majority is not None]
    right_votes = {r.question_id for r in parsed if r.right and r.answer == majority_of[r.question_id]}
    return {
        "num_questions": len(votes),
        "num_samples": len(rationales),
        "num_parsed": len(parsed),
        "parse_rate": len(parsed) / max(len(rationales), 1),
        "sample_accuracy": sum(r.right for r in parsed) / max(len(parsed), 1),
        "vote_accuracy": len(right_votes) / max(len(votes), 1),
        "mean_agreement": sum(vote.agreement for vote in voted) / max(len(voted), 1),
        "num_ties": sum(vote.tie for vote in votes),
        "num_without_vote": len(votes) - len(voted),
        "num_positive": sum(r.positive for r in parsed),
        "num_negative": sum(not r.positive for r in parsed),
        "by_gold": vars(by_gold),
        "by_majority": vars(by_vote),
    }

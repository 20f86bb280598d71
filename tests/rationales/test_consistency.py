"""The vote: ties, failures to parse, the three kinds of positives, and the statistics by hand."""

import pytest

from qcrd.rationales.consistency import majority, statistics, vote_on
from qcrd.records import Question, Sample
from qcrd.tasks.base import ParsedSample

QUESTION = Question("q", "train", "?", "( 1 + 1 )", "2")


def parse(text: str, question: Question) -> ParsedSample | None:
    return None if text == "?" else ParsedSample(f"because {text}", text, text)


def samples(texts: str) -> list[Sample]:
    errors = ["timeout" if text == "!" else "" for text in texts]
    return [
        Sample("q", i, "", text, "", "", error, None, 1, None, None)
        for i, (text, error) in enumerate(zip(texts, errors, strict=True))
    ]


def test_majority_and_ties_to_the_answer_seen_first():
    assert majority(["2", "3", "3"]) == ("3", False)
    assert majority(["3", "2", "2", "3"]) == ("3", True)
    assert majority(["2"]) == ("2", False)


@pytest.mark.parametrize(
    ("texts", "positives", "expected", "tie", "agreement"),
    [
        ("33252", "majority", [True, True, False, False, False], True, 0.4),  # 3 and 2 tie, 3 was seen first
        ("33252", "ground_truth", [False, False, True, False, True], True, 0.4),
        ("33252", "both", [False] * 5, True, 0.4),
        ("22?!3", "majority", [True, True, False, False, False], False, 2 / 3),
        ("22?!3", "both", [True, True, False, False, False], False, 2 / 3),
    ],
)
def test_sides(texts: str, positives: str, expected: list[bool], tie: bool, agreement: float):
    vote, rationales = vote_on(QUESTION, samples(texts), parse, positives)
    assert [r.positive for r in rationales] == expected
    assert vote.tie == tie and vote.agreement == pytest.approx(agreement) and vote.num_samples == 5
    assert [r.right for r in rationales] == [t == "2" for t in texts]
    assert [r.answer for r in rationales] == [None if t in "?!" else t for t in texts]


def test_a_question_that_nobody_answered_is_kept_without_a_vote():
    vote, rationales = vote_on(QUESTION, samples("?!"), parse, "majority")
    assert vote.majority is None and vote.num_parsed == 0 and len(rationales) == 2
    assert not any(r.positive for r in rationales)


def test_statistics_by_both_definitions():
    asked = {f"q{i}": texts for i, texts in enumerate(["22222", "22333", "33333", "2?2?2", "????!"])}
    judged = [
        vote_on(Question(name, "train", "?", "", "2"), samples(texts), parse, "majority")
        for name, texts in asked.items()
    ]
    numbers = statistics([vote for vote, _ in judged], [row for _, rows in judged for row in rows])
    assert numbers["by_gold"] == pytest.approx(
        {"mean_positives": (5 + 2 + 0 + 3 + 0) / 5, "share_only_positives": 2 / 5, "share_only_negatives": 1 / 5}
    )
    assert numbers["by_majority"] == pytest.approx(
        {"mean_positives": (5 + 3 + 5 + 3 + 0) / 5, "share_only_positives": 3 / 5, "share_only_negatives": 0.0}
    )
    assert numbers["parse_rate"] == pytest.approx(18 / 25) and numbers["num_without_vote"] == 1
    assert numbers["sample_accuracy"] == pytest.approx(10 / 18) and numbers["vote_accuracy"] == pytest.approx(2 / 5)

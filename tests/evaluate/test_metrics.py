"""How rationales go with answers, worked out by hand."""

from qcrd.evaluate.metrics import explanation_metrics
from qcrd.evaluate.students import drawn
from qcrd.records import Explanation, Prediction, Question
from qcrd.tasks import get_task

QUESTIONS = [Question(f"t{n}", "test", "?", f"( {n} + 1 )", str(n + 1)) for n in range(4)]


def told(question: str, text: str, split: str = "test", temperature: float = 0.0) -> Explanation:
    return Explanation(question, split, temperature, 0, text, False, None)


def said(question: str, text: str, answer: str | None, checkpoint: str = "best") -> Prediction:
    return Prediction(question, "test", checkpoint, text, answer, False)


def test_rationale_accuracy_and_consistency_by_hand():
    explanations = [
        told("t0", "0 + 1 = 1"),  # right, and what is predicted
        told("t1", "1 + 1 = 3"),  # wrong, and what is predicted
        told("t2", "2 + 1 = 3"),  # right; the prediction is no answer
        told("t3", "3 + 1 = 5"),  # wrong; the prediction is right
        told("t3", "3 + 1 = 4", temperature=0.7), told("a", "1", split="train"),
    ]  # fmt: skip
    predictions = [
        said("t0", "( 0 + 1 )", "1"), said("t1", "3", "3"), said("t2", "( 2 +", None), said("t3", "( 3 + 1 )", "4"),
        said("t1", "2", "9", "last"), said("t0", "7", "7", "initial"),
    ]  # fmt: skip
    found = explanation_metrics(get_task("arithmetic"), QUESTIONS, predictions, explanations)
    assert found == {"eval/test_rationale_accuracy": 0.5, "eval/test_consistency": 0.5, "eval/test_explained": 4}


def test_no_rationales_no_numbers():
    assert explanation_metrics(get_task("arithmetic"), QUESTIONS, [], [told("a", "1", split="train")]) == {}


def test_a_smaller_draw_is_the_beginning_of_a_larger_one():
    questions = [Question(f"t{n}", "test", "?", "", "") for n in range(30)]
    few, many = drawn(questions, 5, 3), drawn(questions, 20, 3)
    assert many[:5] == few and len(set(many)) == 20 and few != questions[:5]
    assert drawn(questions, 5, 4) != few and drawn(questions, 50, 3)[:20] == many and len(drawn(questions, 50, 3)) == 30

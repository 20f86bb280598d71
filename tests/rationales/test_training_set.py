"""Examples: prefixes, EOS, limits, sides, and where labels come from."""

from qcrd.config import ExperimentConfig, with_overrides
from qcrd.distill.methods import target_of
from qcrd.models.tokenizer import encode_inputs, encode_targets, train_tokenizer
from qcrd.rationales.training_set import build_examples
from qcrd.records import Example, Question, Rationale, Vote

TEXTS = ["predict: explain: one two three four five six", "because one and two", "( 1 + 2 )", "wrong two"]
TEXTS += ["So the answer is"]
TOKENIZER = train_tokenizer(TEXTS * 5, 80)
QUESTIONS = [Question("a", "train", "one two three", "( 1 + 2 )", "3"), Question("b", "train", "four", "six", "6")]
RATIONALES = {
    "a": [
        Rationale("a", 0, "wrong two", "five", "5", False, False),
        Rationale("a", 1, "because one and two", "( 1 + 2 )", "3", True, True),
        Rationale("a", 2, "", "( 1 + 2 )", "3", True, True),
    ],
    "b": [Rationale("b", 0, "", "", None, False, False)],
}
VOTES = {"a": Vote("a", "3", "( 1 + 2 )", 0.66, False, 3, 3), "b": Vote("b", None, None, 0.0, False, 1, 0)}


def build(**changes: str) -> tuple[list[Example], object]:
    config = with_overrides(ExperimentConfig(name="x"), changes)
    return build_examples(
        config.student, target_of(config.method, config.train), QUESTIONS, VOTES, RATIONALES,
        lambda t, limit: encode_inputs(TOKENIZER, t, limit), lambda t, limit: encode_targets(TOKENIZER, t, limit),
    )  # fmt: skip


def text(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special_tokens=True)


def test_an_example_holds_both_tasks_and_both_sides():
    (a, b), cut = build()
    assert text(a.predict_ids) == "predict: one two three" and text(a.explain_ids) == "explain: one two three"
    assert text(a.label_ids) == "( 1 + 2 )" and a.label_ids[-1] == TOKENIZER.eos_token_id
    assert a.positive_texts == ["because one and two"] and [text(ids) for ids in a.positives] == a.positive_texts
    assert a.negative_texts == ["wrong two"]
    assert text(a.rationale_ids) == "wrong two"  # DSS: the first sample's, whatever its answer
    assert (b.positives, b.negatives, b.rationale_ids) == ([], [], []) and text(b.label_ids) == "six"
    assert vars(cut) == {"inputs": 0, "labels": 0, "rationales": 0}


def test_targets_that_are_cut_keep_their_eos_and_are_counted():
    (a, _), cut = build(**{"student.max_target_tokens": "3", "student.max_input_tokens": "4"})
    assert len(a.positives[0]) == 3 and a.positives[0][-1] == TOKENIZER.eos_token_id
    assert len(a.predict_ids) == 4
    assert vars(cut)["inputs"] > 0 and vars(cut)["rationales"] > 0


def test_teacher_labels_are_the_vote_for_qcrd_and_the_first_sample_for_dss():
    (a, b), _ = build(**{"train.labels": "teacher"})
    assert text(a.label_ids) == "( 1 + 2 )" and b.label_ids == []
    (a, _), _ = build(**{"train.labels": "teacher", "method": "dss"})
    assert text(a.label_ids) == "five"


def test_single_task_has_rationale_and_label_in_one_target():
    (a, b), cut = build(method="single_task")
    assert text(a.label_ids) == "wrong two So the answer is ( 1 + 2 )"  # the first sample's, and the gold label
    assert text(b.label_ids) == "So the answer is six"
    assert text(a.predict_ids) == "predict: one two three"
    assert vars(cut) == {"inputs": 0, "labels": 0, "rationales": 0}
    (a, b), _ = build(**{"method": "single_task", "train.labels": "teacher"})
    assert text(a.label_ids) == "wrong two So the answer is five" and b.label_ids == []


def test_a_cut_single_task_target_keeps_its_label():
    (end,) = encode_targets(TOKENIZER, ["So the answer is ( 1 + 2 )"], 99)
    limits = {"student.max_target_tokens": "1", "student.max_label_tokens": str(len(end))}
    (a, b), cut = build(method="single_task", **limits)
    assert a.label_ids[1:] == end and a.label_ids[0] == encode_targets(TOKENIZER, ["wrong two"], 99)[0][0]
    assert text(b.label_ids) == "So the answer is six"
    assert vars(cut) == {"inputs": 0, "labels": 0, "rationales": 1}


def test_distill_label_is_the_first_samples():
    (a, b), _ = build(**{"train.labels": "teacher", "method": "distill_label"})
    assert text(a.label_ids) == "five" and b.label_ids == []

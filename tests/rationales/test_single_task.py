"""The target of `single_task` as it is written and as its label is read."""

from pathlib import Path

import pytest

from qcrd.config import ExperimentConfig
from qcrd.distill.methods import METHODS
from qcrd.models.tokenizer import encode_targets, load_tokenizer
from qcrd.rationales.single_task import encode_whole_targets, label_of, max_answer_tokens

STUDENT = ExperimentConfig(name="x").student
SINGLE, DSS = (METHODS[name].answer_phrase for name in ("single_task", "dss"))


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("8 and 3 are 11. So the answer is ( 8 + 3 )", "( 8 + 3 )"),
        ("So the answer is neutral", "neutral"),
        ("So the answer is no. But wait. So the answer is yes ", "yes"),
        ("8 and 3 are 11. ( 8 + 3 )", ""),
        ("8 and 3 are 11. So the answer", ""),
        ("8 and 3 are 11. So the answer is", ""),
        ("a man sleeps. so the answer is contradiction", "contradiction"),  # an uncased student's
        ("", ""),
    ],
)
def test_the_label_is_what_follows_the_last_phrase(answer: str, label: str):
    assert label_of(SINGLE, answer) == label
    assert label_of(DSS, answer) == answer.strip()


def test_an_answer_may_hold_rationale_and_label():
    assert max_answer_tokens(STUDENT, SINGLE) == 256 + 64 and max_answer_tokens(STUDENT, DSS) == 64


def test_targets_on_t5s_own_tokenizer_are_those_of_the_whole_text(shared_data: Path):
    tokenizer = load_tokenizer(str(shared_data / "t5-tokenizer"))
    text = "Taking 25 from 76 leaves 51. So the answer is ( 76.0 - 25.0 )"

    def tokenize(texts, limit):
        return encode_targets(tokenizer, texts, limit)

    targets, cut = encode_whole_targets(
        ["Taking 25 from 76 leaves 51.", "", "No label."], ["( 76.0 - 25.0 )", "neutral", ""], 320, tokenize
    )
    assert targets == [*tokenize([text, "So the answer is neutral"], 999), []] and cut == [False, False, False]
    (end,) = tokenize(["So the answer is ( 76.0 - 25.0 )"], 999)
    thought, limit = targets[0][: -len(end)], len(targets[0]) - 3
    short, cut = encode_whole_targets(["Taking 25 from 76 leaves 51."], ["( 76.0 - 25.0 )"], limit, tokenize)
    assert short == [[*thought[:-3], *end]] and cut == [True]
    with pytest.raises(ValueError, match=r"max_label_tokens: 5 is not allowed; 'So the answer is neutral' needs"):
        encode_whole_targets(["why"], ["neutral"], 5, tokenize)

"""Sampling: each sequence is its own, whatever batch it is in; draws by inverse CDF by hand."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from qcrd.models.batching import length_sorted_batches, padded_inputs, token_batches
from qcrd.models.generation import draw_tokens, generate
from qcrd.models.student import Student
from qcrd.models.tokenizer import encode_inputs
from qcrd.seeding import generator
from tests.distill.helpers import TEXTS, bert_pair, tiny_student, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def rows(count: int) -> list[list[int]]:
    words = " ".join(TEXTS).split()
    stream = generator("rows")
    return encode_inputs(TOKENIZER, [" ".join(stream.choice(words, 4 + i % 9)) for i in range(count)], 99)


def stream(row: int) -> np.random.Generator:
    return generator(0, "negative", 1, f"q{row}", 0)


def test_batch_sizes_8_32_and_128_write_the_same_512_texts_in_fp32():
    student, inputs = tiny_student("float32"), rows(512)
    texts = [
        generate(student, inputs, max_new_tokens=8, batch_size=size, temperature=1.5, top_k=50, stream=stream)
        for size in (8, 32, 128)
    ]
    assert texts[0] == texts[1] == texts[2]
    assert len({tuple(one.ids) for one in texts[0]}) > 400  # and they are not all one text


def test_order_and_company_do_not_matter():
    student, inputs = tiny_student("float32"), rows(20)
    options = {"max_new_tokens": 12, "batch_size": 8, "temperature": 1.5, "top_k": 50}
    together = generate(student, inputs, stream=stream, **options)
    alone = generate(student, inputs[7:8], stream=lambda row: stream(7), **options)
    assert together[7] == alone[0]


def test_draws_by_inverse_cdf_in_order_of_token_id():
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.3, 0.2]])).repeat(5, 1)
    draws = torch.tensor([0.0, 0.09, 0.11, 0.79, 0.999], dtype=torch.float64)
    assert draw_tokens(logits, draws, 1.0, 0).tolist() == [0, 0, 1, 2, 3]
    # top-2 keeps tokens 1 (4/7) and 2 (3/7), in order of id
    assert draw_tokens(logits, torch.tensor([0.0, 0.57, 0.58, 0.99, 0.3]).double(), 1.0, 2).tolist() == [1, 1, 2, 2, 1]
    assert draw_tokens(logits, draws, 0.0, 0).tolist() == [1] * 5


def test_draws_have_the_models_frequencies():
    logits = torch.tensor([[0.0, 1.0, 2.0]]).repeat(20_000, 1)
    drawn = draw_tokens(logits, torch.from_numpy(np.random.default_rng(0).random(20_000)), 2.0, 0)
    expected = torch.softmax(torch.tensor([0.0, 0.5, 1.0]), 0)
    assert torch.bincount(drawn, minlength=3).div(20_000).tolist() == pytest.approx(expected.tolist(), abs=0.012)


def test_greedy_equals_transformers_generate():
    student, inputs = tiny_student("float32"), rows(6)
    made = generate(student, inputs, max_new_tokens=10, batch_size=4)
    ids, mask = padded_inputs(inputs, student.pad_id, student.device)
    theirs = student.model.eval().generate(input_ids=ids, attention_mask=mask, max_new_tokens=10, do_sample=False)
    for one, row in zip(made, theirs.tolist(), strict=True):
        assert row[1 : 1 + len(one.ids)] == one.ids


@pytest.mark.parametrize("make", [bert_pair, tiny_student])
def test_greedy_writes_what_teacher_forcing_finds_most_likely(make: Callable[[], Student]):
    student, inputs = make(), rows(5)
    student.model.eval()
    made = generate(student, inputs, max_new_tokens=8, batch_size=5)
    for row, one in zip(inputs, made, strict=True):
        logits = student.model(input_ids=torch.tensor([row]), labels=torch.tensor([one.ids])).logits
        assert logits.argmax(-1)[0].tolist() == one.ids


def test_a_sequence_that_is_cut_is_marked():
    student, inputs = tiny_student("float32"), rows(64)
    made = generate(student, inputs, max_new_tokens=5, batch_size=64, temperature=1.5, stream=stream)
    assert all(one.truncated == (len(one.ids) == 5) for one in made)
    assert student.model.training  # generation leaves the mode as it was


def test_sampling_without_streams_is_refused():
    with pytest.raises(ValueError, match="random stream"):
        generate(tiny_student("float32"), rows(2), max_new_tokens=2, batch_size=2, temperature=1.0)


def test_batches_hold_like_lengths():
    assert length_sorted_batches([3, 9, 5, 9], 2) == [[1, 3], [2, 0]]


def test_token_batches_are_bounded_and_hold_every_row():
    assert token_batches([3, 9, 5, 1], 9) == [[1], [2, 0, 3]]
    assert token_batches([20], 9) == [[0]]

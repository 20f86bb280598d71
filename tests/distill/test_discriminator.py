"""The discriminator: eq. 2 on its own scores, pooling without padding, learning, and saving."""

from pathlib import Path

import pytest
import torch

from qcrd.config import (
    PretrainedDiscriminatorConfig,
    ScratchDiscriminatorConfig,
)
from qcrd.distill.discriminator import (
    QuestionRationales,
    build_discriminator,
    load_discriminator,
    rationale_loss,
    save_discriminator,
)
from qcrd.distill.discriminator_training import HeldOut, augment, pretrain, split_held_out
from tests.distill.helpers import TEXTS

CONFIG = ScratchDiscriminatorConfig(
    d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
    learning_rate=5e-3, max_steps=60, eval_every=20, batch_questions=4,
)  # fmt: skip
CPU = torch.device("cpu")


def questions(count: int = 40) -> list[QuestionRationales]:
    right, wrong = ["We add 8 and 3 and get 8 + 3 = 11 apples."], ["pens pens left toys"]
    return [QuestionRationales(f"q{i}", TEXTS[0], right, wrong * (i % 2)) for i in range(count)]


def test_padding_never_wins_the_max_pool():
    discriminator = build_discriminator(CONFIG, TEXTS * 3, CPU).eval()
    pairs = [(TEXTS[0], "8 + 3"), (TEXTS[2], TEXTS[3] * 3)]
    together = discriminator.score(pairs)
    assert together == pytest.approx([discriminator.score(pairs[:1])[0], discriminator.score(pairs[1:])[0]], abs=1e-6)
    assert all(0 < score < 1 for score in together)


def test_loss_is_equation_2_on_the_scores():
    discriminator = build_discriminator(CONFIG, TEXTS * 3, CPU).eval()
    asked = [QuestionRationales("a", "q", ["x y", "z"], ["pens"]), QuestionRationales("b", "q", ["x"], [])]
    pos, neg = (
        torch.tensor(discriminator.score([("q", "x y"), ("q", "z")])),
        torch.tensor(discriminator.score([("q", "pens")])),
    )
    expected = -torch.log(torch.exp(pos).sum() / torch.exp(neg).sum())  # b has no negative and is left out
    assert float(rationale_loss(discriminator, asked).detach()) == pytest.approx(float(expected), rel=1e-5)
    assert float(rationale_loss(discriminator, asked[1:]).detach()) == 0.0


def test_pretraining_separates_what_can_be_separated():
    discriminator = build_discriminator(CONFIG, TEXTS * 3, CPU)
    rows, held_out = pretrain(discriminator, CONFIG, questions(), lambda event: None)
    assert rows[-1]["discriminator/auroc_real"] > 0.95 and rows[-1]["discriminator/mean_positive"] > 0.7
    assert rows[-1]["discriminator/loss"] < rows[0]["discriminator/loss"] + 1e-3 and len(held_out) == 4
    again = build_discriminator(CONFIG, TEXTS * 3, CPU)
    assert pretrain(again, CONFIG, questions(), lambda event: None) == (rows, held_out)


def test_held_out_questions_are_a_tenth_and_apart():
    train, held_out = split_held_out([f"q{i}" for i in range(50)], 0.1, seed=1)
    assert len(held_out) == 5 and sorted(train + held_out) == list(range(50))
    assert split_held_out([f"q{i}" for i in range(50)], 0.1, seed=2)[1] != held_out


def test_auroc_by_hand():
    metrics = HeldOut([0.9, 0.6], [0.7, 0.1], []).metrics()
    assert (
        metrics["discriminator/auroc_real"] == pytest.approx(3 / 4) and "discriminator/auroc_augmented" not in metrics
    )


def test_augmentation_fills_up_to_the_positives():
    filled = augment(CONFIG, questions(4))
    assert [len(texts) for texts in filled] == [1, 0, 1, 0]


def test_texts_of_any_length_are_cut_to_the_limit():
    short = build_discriminator(CONFIG.model_copy(update={"max_tokens": 12}), TEXTS * 3, CPU)
    rows = short.tokenize([("8", TEXTS[4] * 9), (TEXTS[4] * 9, "8"), (TEXTS[4] * 9, TEXTS[3] * 9), ("8", "3")])
    assert [len(row) for row in rows][:3] == [12, 12, 12] and len(rows[3]) < 12


def test_saved_and_loaded_discriminators_score_alike(tmp_path: Path):
    discriminator = build_discriminator(CONFIG, TEXTS * 3, CPU)
    save_discriminator(discriminator, tmp_path)
    pairs = [(TEXTS[0], TEXTS[1]), (TEXTS[2], TEXTS[3])]
    assert load_discriminator(tmp_path, CPU).score(pairs) == pytest.approx(discriminator.score(pairs), abs=1e-7)


def test_mixed_precision_of_the_encoder_alone(tmp_path: Path):
    exact = build_discriminator(CONFIG, TEXTS * 3, CPU)
    mixed = build_discriminator(CONFIG.model_copy(update={"dtype": "bfloat16"}), TEXTS * 3, CPU)
    pairs = [(TEXTS[0], TEXTS[1]), (TEXTS[2], TEXTS[3])]
    assert mixed.score(pairs) == pytest.approx(exact.score(pairs), abs=0.02)
    assert mixed.score(pairs) != exact.score(pairs)
    mixed(mixed.tokenize(pairs)).sum().backward()
    assert all(p.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in mixed.encoder.parameters())
    save_discriminator(mixed, tmp_path)
    assert load_discriminator(tmp_path, CPU).score(pairs) == mixed.score(pairs)


def test_a_pretrained_seq2seq_gives_its_encoder(tmp_path: Path):
    from tests.distill.helpers import tiny_student, tiny_tokenizer

    tiny_student("float32").model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    discriminator = build_discriminator(PretrainedDiscriminatorConfig(model=str(tmp_path)), [], CPU)
    assert 0 < discriminator.score([(TEXTS[0], TEXTS[1])])[0] < 1


def test_too_few_questions_are_refused():
    with pytest.raises(ValueError, match="at least two questions"):
        pretrain(build_discriminator(CONFIG, TEXTS, CPU), CONFIG, questions(1), lambda event: None)

"""Corrupted rationales differ where it matters, and fill a question's negatives up to its positives."""

from qcrd.rationales.augmentation import MASK, augmented_negatives, content_vocabulary, corrupt, rule_tagger
from qcrd.seeding import generator

TEXT = "Tom has 8 apples and buys 3.5 more, so 8 + 3.5 = 11.5 apples in total."


def test_words_are_told_apart_by_rules():
    tagged = [(TEXT[start:end], kind) for start, end, kind in rule_tagger(TEXT)]
    assert ("8", "number") in tagged and ("3.5", "number") in tagged and ("+", "operator") in tagged
    assert ("apples", "content") in tagged and ("buys", "content") in tagged
    assert not any(word in ("and", "so", "in", "=") for word, _ in tagged)
    assert [(w, k) for w, k in [(t[a:b], k) for t in ["it is neutral"] for a, b, k in rule_tagger(t)]] == [
        ("neutral", "class")
    ]


def test_every_corruption_changes_a_number_operator_or_class_word():
    def decisive(text: str) -> list[str]:
        return [text[a:b] for a, b, kind in rule_tagger(text) if kind != "content"]

    vocabulary = content_vocabulary([TEXT, "Ann sells pens."])
    made = [corrupt(TEXT, vocabulary, generator("c", i)) for i in range(200)]
    assert all(text is not None and decisive(text) != decisive(TEXT) for text in made)
    assert any(text is not None and MASK in text for text in made)
    assert any(text is not None and "pens" in text for text in made)
    assert made == [corrupt(TEXT, vocabulary, generator("c", i)) for i in range(200)]


def test_negatives_become_as_many_as_positives():
    positives, stream = [TEXT, "8 and 3.5 make 11.5.", "We add 3.5 to 8."], generator("x")
    assert len(augmented_negatives(positives, [], ["pens"], stream)) == 3
    assert len(augmented_negatives(positives, ["8 - 3.5 = 4.5"], ["pens"], stream)) == 2
    assert augmented_negatives(positives, positives, ["pens"], stream) == []
    assert all(text not in positives for text in augmented_negatives(positives, [], ["pens"], stream))


def test_a_text_without_any_word_to_change_gives_nothing():
    assert corrupt("it is so.", [], generator("x")) is None

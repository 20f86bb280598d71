"""Corrupted rationales: word mask and replacement, for a discriminator that has too few negatives (paper, appendix
A.3).

Content words, numbers and operators are masked or replaced. Words are chosen by part of speech: with
`stanza` (an extra) by its tagger, else by rules. Knows nothing about models or tasks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

MASK = "..."
"""What stands for a masked word. Any tokenizer can spell it."""

_TOKEN = re.compile(r"\d+(?:\.\d+)?|[A-Za-z]+(?:'[a-z]+)?|[+\-*/×÷=]|[^\sA-Za-z\d]")
_OPERATORS = ("+", "-", "*", "/")
_CLASS_WORDS = ("entailment", "neutral", "contradiction")
_FUNCTION_WORDS = frozenset(
    """a an the and or but if so of to in on at by for from with as is are was were be been being am do does did has
    have had he she it they we you i his her its their our your my him them us this that these those there then than
    not no will would can could should may might must what which who how many much more most left now first after
    before each all some answer because therefore since when while also only just""".split()  # noqa: SIM905
)

Tagger = Callable[[str], list[tuple[int, int, str]]]
"""Spans (start, end, kind) of a text; kind is number, operator, class or content."""


def rule_tagger(text: str) -> list[tuple[int, int, str]]:
    """Spans by rules: numbers, operators, class words, and words that are not function words."""
    spans = []
    for match in _TOKEN.finditer(text):
        word = match.group()
        if word[0].isdigit():
            kind = "number"
        elif word in _OPERATORS or word in "×÷":
            kind = "operator"
        elif word.lower() in _CLASS_WORDS:
            kind = "class"
        elif word[0].isalpha() and word.lower() not in _FUNCTION_WORDS and len(word) > 1:
            kind = "content"
        else:
            continue
        spans.append((match.start(), match.end(), kind))
    return spans


def stanza_tagger() -> Tagger:
    """Spans by stanza's part-of-speech tagger. Raises `ImportError` with the command that installs it."""
    try:
        import stanza  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("discriminator.augmentation: stanza needs `pip install qcrd[stanza]`") from error
    pipeline = stanza.Pipeline("en", processors="tokenize,pos", verbose=False)

    def tag(text: str) -> list[tuple[int, int, str]]:
        spans = []
        ruled = {(start, end): kind for start, end, kind in rule_tagger(text)}
        for sentence in pipeline(text).sentences:  # pyright: ignore[reportAttributeAccessIssue]
            for word in sentence.words:
                kind = ruled.get((word.start_char, word.end_char))
                if kind in ("number", "operator", "class"):
                    spans.append((word.start_char, word.end_char, kind))
                elif word.upos in ("NOUN", "PROPN", "VERB", "ADJ", "ADV"):
                    spans.append((word.start_char, word.end_char, "content"))
        return spans

    return tag


def _replacement(word: str, kind: str, vocabulary: Sequence[str], stream: np.random.Generator) -> str:
    """Another word of the same kind."""
    if kind == "number":
        value = float(word)
        other = max(0.0, value + float(stream.choice([-10, -3, -2, -1, 1, 2, 3, 10])))
        other = value + 1 if other == value else other
        return f"{other:g}"
    if kind == "operator":
        return str(stream.choice([operator for operator in _OPERATORS if operator != word]))
    if kind == "class":
        return str(stream.choice([name for name in _CLASS_WORDS if name != word.lower()]))
    others = [other for other in vocabulary if other.lower() != word.lower()]
    return str(stream.choice(others)) if others else MASK


def corrupt(
    text: str, vocabulary: Sequence[str], stream: np.random.Generator, tagger: Tagger = rule_tagger, share: float = 0.3
) -> str | None:
    """A rationale with about `share` of its taggable words masked or replaced, at least one; None where there is none.

    Three in four corruptions replace, one masks, and a number, operator or class word always is among the replaced
    where the text has one, since those decide whether a rationale is right.
    """
    spans = tagger(text)
    if not spans:
        return None
    count = max(1, round(share * len(spans)))
    decisive = [index for index, (_, _, kind) in enumerate(spans) if kind != "content"]
    chosen = set(stream.permutation(len(spans))[:count].tolist())
    forced = int(stream.choice(decisive)) if decisive else int(stream.choice(len(spans)))
    chosen.add(forced)
    pieces = [text[: spans[0][0]]]
    for index, (start, end, kind) in enumerate(spans):
        word = text[start:end]
        if index in chosen:
            masked = index != forced and stream.random() < 0.25
            word = MASK if masked else _replacement(word, kind, vocabulary, stream)
        pieces.append(word)
        pieces.append(text[end : spans[index + 1][0]] if index + 1 < len(spans) else text[end:])
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    return "".join(pieces)


def content_vocabulary(texts: Sequence[str], tagger: Tagger = rule_tagger) -> list[str]:
    """The content words of some rationales, sorted: what replacements are drawn from."""
    return sorted({text[start:end] for text in texts for start, end, kind in tagger(text) if kind == "content"})


def augmented_negatives(
    positives: Sequence[str],
    negatives: Sequence[str],
    vocabulary: Sequence[str],
    stream: np.random.Generator,
    tagger: Tagger = rule_tagger,
) -> list[str]:
    """Corrupted rationales that make a question's negatives as many as its positives.

    They come from the question's negatives in turn, or from its positives where it has no negative.
    """
    sources = list(negatives) or list(positives)
    missing = len(positives) - len(negatives)
    made = [corrupt(sources[index % len(sources)], vocabulary, stream, tagger) for index in range(max(0, missing))]
    return [text for text in made if text is not None]

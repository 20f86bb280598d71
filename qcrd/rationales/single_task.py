"""One target for rationale and label: how it is written, how long it may be, how its label is read.

It is the first sample's rationale, then "So the answer is", then the label (method.md section 9). Knows tokenizers only
as "text in, ids out".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from qcrd.config import StudentSettings

PHRASE = "So the answer is"
"""What stands between rationale and label."""

Tokenize = Callable[[Sequence[str], int], list[list[int]]]


def max_answer_tokens(student: StudentSettings, phrase: str | None) -> int:
    """Limit of what a student writes when it is asked for a label, EOS included. `phrase`: see `label_of`."""
    rationale = student.max_target_tokens if phrase is not None else 0
    return rationale + student.max_label_tokens


def label_of(phrase: str | None, text: str) -> str:
    """The label in what a student wrote when it was asked for one.

    `phrase`: what stands before the label; None where the label is all that the student writes. Empty where the phrase
    is missing.
    """
    return text.strip() if phrase is None else after_phrase(phrase, text)


def after_phrase(phrase: str, text: str) -> str:
    """What follows a phrase's last occurrence; empty where it is missing."""
    parts = re.split(re.escape(phrase), text, flags=re.IGNORECASE)  # an uncased tokenizer writes it small
    return parts[-1].strip() if len(parts) > 1 else ""


def encode_whole_targets(
    rationales: Sequence[str], labels: Sequence[str], limit: int, tokenize_targets: Tokenize
) -> tuple[list[list[int]], list[bool]]:
    """Ids of each question's target, and whether its rationale was cut so that phrase, label and EOS fit into `limit`.

    A question without a rationale has a target of phrase and label; one without a label has none. Raises `ValueError`
    where `limit` does not hold phrase and label.
    """
    long = 10**9
    ends = tokenize_targets([f" {PHRASE} {label}" for label in labels], long)  # the blank is a token's, for some
    thoughts = [ids[:-1] for ids in tokenize_targets(rationales, long)]  # their EOS comes after the label
    targets, cut = [], []
    for label, thought, end in zip(labels, thoughts, ends, strict=True):
        if len(end) > limit:
            raise ValueError(
                f"student.max_target_tokens + max_label_tokens: {limit} is not allowed; "
                f"'{PHRASE} {label}' needs {len(end)} tokens"
            )
        targets.append([*thought[: limit - len(end)], *end] if label else [])
        cut.append(bool(label) and len(thought) + len(end) > limit)
    return targets, cut

"""What the tasks' parsers share: cutting a completion before the next question, splitting it at the answer phrase.

Knows nothing about what an answer looks like.
"""

from __future__ import annotations

import re

# Chat models write "So the answer is"; the connective belongs to the phrase, not to the reasoning.
PHRASE = re.compile(r"(?:\b(?:so|thus|hence|therefore),?\s+)?\bthe answer is\b:?", re.IGNORECASE)


def normalised(text: str) -> str:
    """What two spellings of one text share: words in lower case, one space between them."""
    return " ".join(text.casefold().split())


def split_completion(text: str, next_question: str, phrase: re.Pattern[str] = PHRASE) -> tuple[str, str] | None:
    """The reasoning before the last answer phrase, and what stands after it; None where there is no phrase.

    Whatever follows the next-question marker is the teacher going on by itself.
    """
    own = text.split(next_question, 1)[0]
    phrases = list(phrase.finditer(own))
    if not phrases:
        return None
    return own[: phrases[-1].start()].strip(), own[phrases[-1].end() :]

"""What generated word problems are made of: stories, events, names and objects. Data only; no randomness, no numbers.

Slots: {who} and {friend} are people, {obj} and {obj2} objects, {a} and {b} the operands in the equation's order,
{d} a number that does not matter. No name or object may stand in a text itself: `arithmetic.problem_key` blanks them.
The words are few on purpose, so that a very small student can learn the language from scratch.
"""

from __future__ import annotations

from dataclasses import dataclass

NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jonas",
    "Karla", "Leo", "Mia", "Noah", "Olga", "Paul", "Rosa", "Simon", "Tina", "Victor",
)  # fmt: skip
OBJECTS = (
    "apples", "balls", "books", "buttons", "candles", "cards", "coins", "cups", "eggs", "flowers",
    "keys", "marbles", "pears", "pencils", "plates", "rings", "shells", "spoons", "stamps", "stones",
)  # fmt: skip


@dataclass(frozen=True)
class Story:
    """A one-step problem. `unit` is what the answer counts; empty: the objects."""

    body: str
    questions: tuple[str, str]
    unit: str = ""


STORIES: dict[str, tuple[Story, ...]] = {
    "+": (
        Story(
            "{who} has {a} {obj}. Then {who} buys {b} more {obj}.",
            ("How many {obj} does {who} have now?", "How many {obj} does {who} have in the end?"),
        ),
        Story(
            "{who} found {a} {obj} in the morning and {b} {obj} in the afternoon.",
            ("How many {obj} did {who} find in all?", "How many {obj} did {who} find on that day?"),
        ),
        Story(
            "{who} has {a} {obj} and {friend} has {b} {obj}.",
            ("How many {obj} do they have together?", "How many {obj} do {who} and {friend} have in all?"),
        ),
        Story(
            "There are {a} {obj} on the table. {who} puts {b} more {obj} on the table.",
            ("How many {obj} are on the table now?", "How many {obj} are there in the end?"),
        ),
        Story(
            "{friend} gave {b} {obj} to {who}. Before that {who} had {a} {obj}.",
            ("How many {obj} does {who} have now?", "How many {obj} did {who} have after that?"),
        ),
        Story(
            "{who} gave {b} {obj} to {friend} and has {a} {obj} left.",
            ("How many {obj} did {who} have at first?", "How many {obj} did {who} have before that?"),
        ),
        Story(
            "{who} has {a} {obj}. {friend} has {b} {obj} more than {who}.",
            ("How many {obj} does {friend} have?", "What is the number of {obj} that {friend} has?"),
        ),
        Story(
            "A box holds {a} {obj} and a bag holds {b} {obj}.",
            ("How many {obj} are there in all?", "How many {obj} do the box and the bag hold together?"),
        ),
        Story(
            "{who} made {a} {obj} on Monday and {b} {obj} on Tuesday.",
            ("How many {obj} did {who} make in all?", "How many {obj} did {who} make on both days?"),
        ),
        Story(
            "{who} paid {a} dollars for {obj} and {b} dollars for a bag.",
            ("How many dollars did {who} pay in all?", "How much did {who} pay in the end?"),
            unit="dollars",
        ),
    ),
    "-": (
        Story(
            "{who} has {a} {obj}. Then {who} gives {b} {obj} to {friend}.",
            ("How many {obj} does {who} have now?", "How many {obj} does {who} have left?"),
        ),
        Story(
            "{who} had {a} {obj} and lost {b} of them.",
            ("How many {obj} are left?", "How many {obj} does {who} have in the end?"),
        ),
        Story(
            "{who} has {a} {obj} and {friend} has {b} {obj}.",
            (
                "How many more {obj} does {who} have than {friend}?",
                "How many fewer {obj} does {friend} have than {who}?",
            ),
        ),
        Story(
            "There are {a} {obj} on the table. {who} takes {b} {obj} away.",
            ("How many {obj} are on the table now?", "How many {obj} are left on the table?"),
        ),
        Story(
            "{who} had some {obj}. Then {who} bought {b} more {obj} and now has {a} {obj}.",
            ("How many {obj} did {who} have at first?", "How many {obj} did {who} have before that?"),
        ),
        Story(
            "{who} had {a} {obj}. Some of them are gone and {b} {obj} are left.",
            ("How many {obj} are gone?", "How many {obj} did {who} lose?"),
        ),
        Story(
            "{who} has {a} {obj}. {friend} has {b} {obj} fewer than {who}.",
            ("How many {obj} does {friend} have?", "What is the number of {obj} that {friend} has?"),
        ),
        Story(
            "A box and a bag hold {a} {obj} together. The bag holds {b} {obj}.",
            ("How many {obj} are in the box?", "How many {obj} does the box hold?"),
        ),
        Story(
            "{who} needs {a} {obj} and has {b} {obj}.",
            ("How many more {obj} does {who} need?", "How many {obj} must {who} still buy?"),
        ),
        Story(
            "{who} had {a} dollars and paid {b} dollars for {obj}.",
            ("How many dollars does {who} have left?", "How much does {who} have in the end?"),
            unit="dollars",
        ),
    ),
    "*": (
        Story(
            "There are {a} boxes. Each box holds {b} {obj}.",
            ("How many {obj} are there in all?", "How many {obj} do the boxes hold together?"),
        ),
        Story(
            "{who} buys {a} bags with {b} {obj} in each bag.",
            ("How many {obj} does {who} buy?", "How many {obj} did {who} buy in all?"),
        ),
        Story(
            "{who} makes {a} {obj} every day.",
            ("How many {obj} does {who} make in {b} days?", "How many {obj} will {who} have after {b} days?"),
        ),
        Story(
            "{who} has {a} {obj}. {friend} has {b} times as many {obj} as {who}.",
            ("How many {obj} does {friend} have?", "What is the number of {obj} that {friend} has?"),
        ),
        Story(
            "{who} puts {obj} in {a} rows with {b} {obj} in each row.",
            ("How many {obj} are there in all?", "How many {obj} does {who} put in the rows?"),
        ),
        Story(
            "{who} buys {a} {obj}. Each of them costs {b} dollars.",
            ("How many dollars does {who} pay in all?", "How much does {who} pay?"),
            unit="dollars",
        ),
        Story(
            "{a} children come to {who}. {who} gives {b} {obj} to each child.",
            ("How many {obj} does {who} give to the children?", "How many {obj} do the children get in all?"),
        ),
        Story(
            "{who} needs {b} {obj} for one table.",
            ("How many {obj} does {who} need for {a} tables?", "How many {obj} must {who} buy for {a} tables?"),
        ),
    ),
    "/": (
        Story(
            "{who} puts {a} {obj} in {b} boxes so that all boxes hold the same number.",
            ("How many {obj} are in each box?", "How many {obj} does one box hold?"),
        ),
        Story(
            "{who} has {a} {obj} and puts {b} {obj} in each bag.",
            ("How many bags does {who} need?", "How many bags are there in the end?"),
            unit="bags",
        ),
        Story(
            "{who} shares {a} {obj} equally among {b} children.",
            ("How many {obj} does each child get?", "How many {obj} does one child get?"),
        ),
        Story(
            "{who} made {a} {obj} in {b} days, the same number every day.",
            ("How many {obj} did {who} make each day?", "How many {obj} did {who} make in one day?"),
        ),
        Story(
            "{who} has {a} {obj}. That is {b} times as many as {friend} has.",
            ("How many {obj} does {friend} have?", "What is the number of {obj} that {friend} has?"),
        ),
        Story(
            "{who} paid {a} dollars for {b} {obj}.",
            ("How many dollars did each of them cost?", "How much did {who} pay for one of them?"),
            unit="dollars",
        ),
        Story(
            "{who} puts {a} {obj} in rows with {b} {obj} in each row.",
            ("How many rows are there?", "How many rows does {who} make?"),
            unit="rows",
        ),
        Story(
            "{who} needs {b} {obj} for one table and has {a} {obj}.",
            ("How many tables can {who} make?", "For how many tables does {who} have {obj}?"),
            unit="tables",
        ),
    ),
}

# Problems of two and three steps: one start, one event a step, one question.
STARTS = (
    "{who} has {a} {obj}.",
    "At first {who} had {a} {obj}.",
    "{who} found {a} {obj} in the morning.",
    "There are {a} {obj} in a box of {who}.",
)
EVENTS: dict[str, tuple[str, ...]] = {
    "+": (
        "Then {who} buys {b} more {obj}.",
        "{friend} gives {b} {obj} to {who}.",
        "{who} finds {b} more {obj}.",
        "After that {who} makes {b} more {obj}.",
    ),
    "-": (
        "Then {who} gives {b} {obj} to {friend}.",
        "{who} loses {b} of the {obj}.",
        "{friend} takes {b} {obj} away.",
        "After that {who} sells {b} {obj}.",
    ),
    "*": (
        "Then {who} buys more until there are {b} times as many {obj}.",
        "After that the number of {obj} grows to {b} times as many.",
        "{friend} brings more {obj} until {who} has {b} times as many.",
    ),
    "/": (
        "Then {who} shares the {obj} equally among {b} boxes and keeps one box.",
        "After that {who} puts the {obj} in {b} equal bags and keeps one bag.",
        "{who} makes {b} equal rows of the {obj} and keeps one row.",
    ),
}
QUESTIONS = (
    "How many {obj} does {who} have now?",
    "How many {obj} does {who} have in the end?",
    "What is the number of {obj} that {who} has after that?",
)

# Sentences whose number does not matter; one may stand before or after the story.
DISTRACTORS = (
    "{who} is {d} years old.",
    "{friend} has {d} {obj2}.",
    "There are also {d} {obj2} in the room.",
)

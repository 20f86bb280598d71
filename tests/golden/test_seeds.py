"""Seeds are those of commit 989d59e: the strings in them are frozen, whatever the code calls things today.

A seed that moves is another result. seeds.json has one line for every tuple of names that the code uses.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from qcrd.config import (
    GeneratedTaskConfig,
)
from qcrd.distill.discriminator_training import split_held_out
from qcrd.distill.schedule import Schedule
from qcrd.evaluate.students import drawn
from qcrd.records import Question
from qcrd.seeding import generator, stable_seed
from qcrd.tasks import get_task, load_questions
from qcrd.teacher.backends.base import Call
from qcrd.teacher.backends.simulated import SimulatedTeacher

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((Path(__file__).parent / "seeds.json").read_text(encoding="utf-8"))
SEEDS, USES = GOLDEN["seeds"], GOLDEN["uses"]


def name_of(entry: dict[str, Any]) -> str:
    return f"{entry['what']} {entry['names']}"


@pytest.mark.parametrize("entry", SEEDS, ids=name_of)
def test_a_seed_is_what_it_was(entry: dict[str, Any]):
    seed = stable_seed(*entry["names"])
    assert seed == entry["seed"]
    if "modulus" in entry:
        assert seed % entry["modulus"] == entry["used"]


@pytest.mark.parametrize("entry", [entry for entry in SEEDS if entry["kind"] == "generator"], ids=name_of)
def test_first_draws_are_what_they_were(entry: dict[str, Any]):
    names = entry["names"]
    assert generator(*names).random(3).tolist() == entry["random"]
    assert generator(*names).permutation(7).tolist() == entry["permutation"]
    assert generator(*names).integers(1000, size=4).tolist() == entry["integers"]


def spelt_in(path: Path) -> set[tuple[str, ...]]:
    """The strings that each call of a seed's function spells out."""
    return {
        tuple(one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("stable_seed", "generator")
    }


def test_the_code_spells_the_strings_that_are_frozen():
    """A new kind of seed gets a line in seeds.json; none that is there may change or be spelt otherwise."""
    files = [path for folder in ("qcrd", "experiments") for path in (ROOT / folder).rglob("*.py")]
    found = set().union(*map(spelt_in, files))
    known = {tuple(entry["spelt"]): entry.get("gone", False) for entry in SEEDS}
    assert found <= known.keys(), found - known.keys()
    assert known.keys() - found <= {spelt for spelt, gone in known.items() if gone}


# -- what the seeds are for ---------------------------------------------------------------------------------------


def test_an_epochs_order_is_what_it_was():
    schedule = Schedule(num_examples=9, global_batch_size=4, steps=10, iteration_steps=2, seed=5)
    found = [schedule.batch(step) for step in range(5)]
    assert found == USES["9 questions, steps of 4, seed 5: questions of the first 5 steps"]


def test_held_out_and_explained_questions_are_what_they_were():
    ids = [f"q-{number}" for number in range(10)]
    held_out = [[ids[row] for row in rows] for rows in split_held_out(ids, 0.3, 0)]
    assert held_out == USES["held out of q-0 to q-9, share 0.3, seed 0"]
    questions = [Question(f"t-{number}", "test", "?", "", "") for number in range(10)]
    assert [one.id for one in drawn(questions, 4, 2)] == USES["explained of t-0 to t-9, 4, seed 2"]


def test_generated_questions_and_simulated_replies_are_what_they_were():
    task = get_task("arithmetic")
    config = GeneratedTaskConfig(train_size=30, validation_size=2, test_size=2)
    questions = load_questions(task, config)
    assert [one.text for one in questions[:3]] == USES["arithmetic 30 2 2, first texts"]
    kept = [one.id for one in load_questions(task, config, 5) if one.split == "train"]
    assert kept == USES["arithmetic 30 2 2, limit 5, ids"]
    asked = questions[7]
    seeds = tuple(stable_seed(0, asked.id, index) % 2**31 for index in range(4))
    call = Call(asked.id, (0, 1, 2, 3), "", asked.label, asked.facts, seeds)
    written = [SimulatedTeacher(0.5).write(call, row) for row in range(4)]
    assert written == USES["simulated, error rate 0.5, arithmetic 30 2 2, question 7"]

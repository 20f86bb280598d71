"""SVAMP: 1,000 short word problems whose label is an equation, in the splits of Distilling Step-by-Step (DSS).

Reads the authors' SVAMP.json, from a file or, with `task.path=download`, from the authors' repository (the copy on the
Hugging Face hub, ChilleD/SVAMP, is cut otherwise). DSS's 800 training questions are cut once more, 720 to train and 80
to validate, as the published results have it. Knows nothing about teachers or training. Method §4 and §9.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qcrd.config import BenchmarkTaskConfig, ConfigError
from qcrd.records import Question
from qcrd.storage.fingerprints import file_digest
from qcrd.tasks.base import Parser
from qcrd.tasks.equations import ANSWER_PHRASE, answer_of, is_right, parse, states_answer
from qcrd.tasks.files import DOWNLOAD, check_file, data_file, is_url
from qcrd.tasks.parsers import last_number

__all__ = [
    "ANSWER_PHRASE",
    "NAME",
    "PARSERS",
    "PROMPT",
    "SIMULATED",
    "STOP",
    "answer_of",
    "check",
    "format_prompt",
    "has_gold_labels",
    "is_right",
    "load",
    "parse",
    "sizes",
    "source",
    "split_rows",
    "states_answer",
]

NAME: str = "svamp"
SIMULATED: bool = False
STOP: tuple[str, ...] = ("\nQ:",)
PROMPT = Path(__file__).parent / "prompts" / "svamp.txt"
SHA256 = "5be77703a6d891ae476d7c082787ad361392aa02453b132516cdd5f4e7934e3e"
"""Of the authors' SVAMP.json (github.com/arkilpatel/SVAMP)."""

URL = "https://raw.githubusercontent.com/arkilpatel/SVAMP/main/SVAMP.json"
PARSERS: Mapping[str, Parser] = {"last_number": last_number}

_PLACE = ("svamp", "SVAMP.json")
_WHAT = "the authors' SVAMP.json"
_FIELDS = ("ID", "Body", "Question", "Equation")


def sizes(config: BenchmarkTaskConfig) -> dict[str, int]:
    """The published sizes."""
    return {"train": 720, "validation": 80, "test": 200}


def has_gold_labels(config: BenchmarkTaskConfig) -> bool:
    """Always."""
    return True


def _located(config: BenchmarkTaskConfig) -> BenchmarkTaskConfig:
    """`download` as the URL and checksum that it stands for."""
    if config.path != DOWNLOAD:
        return config
    return config.model_copy(update={"path": URL, "sha256": config.sha256 or SHA256})


def check(config: BenchmarkTaskConfig) -> None:
    """Raise `ConfigError` where SVAMP.json is missing."""
    check_file(_located(config), _WHAT, *_PLACE)


def source(config: BenchmarkTaskConfig) -> dict[str, str]:
    """SHA-256 of SVAMP.json; a URL's is the configured one, so that planning downloads nothing."""
    config = _located(config)
    if is_url(config.path) and config.sha256:
        return {"SVAMP.json": config.sha256}
    return {"SVAMP.json": file_digest(data_file(config, _WHAT, *_PLACE, known_sha256=SHA256))}


def split_rows() -> dict[str, list[int]]:
    """Row numbers into SVAMP.json for each split, in DSS's order.

    DSS permutes with the legacy RandomState(0); the cut into train and validation is what
    `datasets.Dataset.train_test_split(test_size=0.1, seed=0)` does with 800 rows.
    """
    order = np.random.RandomState(0).permutation(1000)
    cut = np.random.default_rng(0).permutation(800)
    rows = {"train": order[cut[80:]], "validation": order[cut[:80]], "test": order[800:]}
    return {split: [int(row) for row in numbers] for split, numbers in rows.items()}


def load(config: BenchmarkTaskConfig) -> list[Question]:
    """The 1,000 questions: train, validation, test."""
    path = data_file(_located(config), _WHAT, *_PLACE, known_sha256=SHA256)
    problems = _read(path)
    return [_question(problems[row], split, path) for split, rows in split_rows().items() for row in rows]


def format_prompt(few_shot: str, question: str) -> str:
    """The few-shot examples, then this question."""
    return f"{few_shot.rstrip()}\n\nQ: {question}\nA:"


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        problems = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"task.path: '{path}' is not JSON ({error}); give {_WHAT}") from error
    if not isinstance(problems, list) or len(problems) != 1000:
        raise ConfigError(f"task.path: '{path}' is not a list of 1000 problems; give {_WHAT}")
    for row, problem in enumerate(problems):
        if not isinstance(problem, dict) or any(not isinstance(problem.get(field), str) for field in _FIELDS):
            raise ConfigError(f"task.path: '{path}', problem {row} lacks one of {', '.join(_FIELDS)}; give {_WHAT}")
    return problems


def _question(problem: dict[str, Any], split: str, path: Path) -> Question:
    # The gold value is that of the equation, as DSS scores it; one problem prints another Answer.
    label = problem["Equation"]
    answer = answer_of(label)
    if answer is None:
        raise ConfigError(f"task.path: '{path}', {problem['ID']}: the equation {label!r} has no value; give {_WHAT}")
    text = f"{problem['Body']}\n{problem['Question']}"
    return Question(id=problem["ID"], split=split, text=text, label=label, answer=answer)

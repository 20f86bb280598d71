"""Labels and rationales of a finished student for questions in JSON lines, a batch at a time.

Needs the student's folder alone: knows nothing about experiments' settings, tasks, gold labels or Ray.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from qcrd.config import ConfigError
from qcrd.distill.methods import METHODS
from qcrd.models.generation import generate
from qcrd.models.student import Student, load_student
from qcrd.models.tokenizer import encode_inputs
from qcrd.rationales.single_task import label_of
from qcrd.runtime.devices import device_for_inference
from qcrd.storage.artifacts import MARKER
from qcrd.storage.atomic import whole_or_absent

SETTINGS = "qcrd.json"
STUDENTS = "student"
"""Where in an output finished students lie."""
BATCH = 64
"""Questions that are read, answered and written at once; memory holds no more of them."""
SHOW_SECONDS = 10.0


@dataclass(frozen=True)
class AskedQuestion:
    """A question and the name under which its answer goes out."""

    id: str | int
    text: str


def read_questions(lines: Iterable[bytes], name: str) -> Iterator[AskedQuestion]:
    """The questions of JSON lines, `{"question": …}` or `{"text": …}`, each with an `id` or else named by its line's
    number. Empty lines are left out. Raises `ConfigError` that names the line."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _question(line, number, f"FILE: line {number} of {name}")


def _question(line: bytes, number: int, place: str) -> AskedQuestion:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{place} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ConfigError(f'{place} is not an object like {{"question": "…"}}, but {type(row).__name__}')
    text, id_ = row.get("question", row.get("text")), row.get("id", number)
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{place} has no text as its 'question' (or 'text'), but {text!r}")
    if isinstance(id_, bool) or not isinstance(id_, str | int):
        raise ConfigError(f"{place} has the id {id_!r}; a text or a whole number is allowed")
    return AskedQuestion(id_, text)


@dataclass(frozen=True)
class LoadedStudent:
    """A student with its tokenizer and the prefixes and limits of `qcrd.json`."""

    student: Student
    tokenizer: PreTrainedTokenizerBase
    settings: dict[str, Any]

    def write(self, questions: list[AskedQuestion], kind: str, limit: str) -> list[str]:
        """What the student writes, greedily, to the questions after the prefix `kind`."""
        texts = [self.settings["prefixes"][kind] + question.text for question in questions]
        rows = encode_inputs(self.tokenizer, texts, self.settings["max_input_tokens"])
        made = generate(self.student, rows, max_new_tokens=self.settings[limit], batch_size=BATCH)
        return self.tokenizer.batch_decode([one.ids for one in made], skip_special_tokens=True)

    def labels(self, questions: list[AskedQuestion]) -> list[str]:
        """The label of each question."""
        return [label_in(self.settings, text) for text in self.write(questions, "predict", "max_label_tokens")]

    def rationales(self, questions: list[AskedQuestion]) -> list[str]:
        return [text.strip() for text in self.write(questions, "explain", "max_target_tokens")]


def label_in(settings: Mapping[str, Any], text: str) -> str:
    """The label in what a student writes when it is asked for one: all of it, or with `answer_phrase` in `qcrd.json`
    what follows the phrase's last occurrence; empty where the phrase is missing."""
    return label_of(settings.get("answer_phrase"), text)


def load(folder: Path) -> LoadedStudent:
    """A student in fp32, on a GPU where there is one. Raises `ConfigError` where the folder cannot be read."""
    device = device_for_inference()
    try:
        settings = json.loads((folder / SETTINGS).read_text())
        return LoadedStudent(*load_student(folder, "float32", device), settings)
    except (OSError, ValueError) as error:
        raise ConfigError(f"RUN: '{folder}' cannot be loaded: {str(error).splitlines()[0]}") from error


def answer(
    student: LoadedStudent, questions: Iterator[AskedQuestion], explain: bool, write: Callable[[str], Any],
    on_progress: Callable[[int], None],
) -> int:  # fmt: skip
    """Write one JSON line for each question, `{"id", "label"}` and more, in order. Returns their number."""
    done = 0
    while batch := list(islice(questions, BATCH)):
        columns = {"label": student.labels(batch)}
        if explain:
            columns["rationale"] = student.rationales(batch)
        for row, question in enumerate(batch):
            said = {name: texts[row] for name, texts in columns.items()}
            write(json.dumps({"id": question.id, "question": question.text, **said}) + "\n")
        done += len(batch)
        on_progress(done)
    return done


def answer_file(folder: Path, file: str, output: Path | None, explain: bool) -> None:
    """`qcrd predict` with the student in `folder`: the questions of `file` ("-": standard input) to standard
    output as they come, or to `output`, which is there whole or not at all. Raises `ConfigError`."""
    if explain:
        _check_explains(folder)
    if file != "-" and not Path(file).is_file():
        raise ConfigError(f"FILE: '{file}' does not exist; give a file of JSON lines, or - for standard input")
    if output is not None and not output.parent.is_dir():
        raise ConfigError(f"--output: '{output.parent}' is no folder")
    student, started, shown = load(folder), time.monotonic(), time.monotonic()

    def on_progress(done: int) -> None:
        nonlocal shown
        if (now := time.monotonic()) - shown >= SHOW_SECONDS:
            shown = now
            print(f"{done} questions, {done / (now - started):.1f} a second", file=sys.stderr)

    with contextlib.ExitStack() as stack:
        lines: Iterable[bytes] = sys.stdin.buffer if file == "-" else stack.enter_context(Path(file).open("rb"))
        stream = sys.stdout
        if output is not None:
            stream = stack.enter_context(stack.enter_context(whole_or_absent(output)).open("w", encoding="utf-8"))

        def write(line: str) -> None:
            stream.write(line)
            stream.flush()

        name = "standard input" if file == "-" else f"'{file}'"
        done = answer(student, read_questions(lines, name), explain, write, on_progress)
    print(f"{done} questions in {time.monotonic() - started:.1f} s by {folder}", file=sys.stderr)


def _check_explains(folder: Path) -> None:
    """Raise `ConfigError` where it is known that the student never learnt to explain."""
    marker = folder.parent / MARKER
    name = json.loads(marker.read_text())["settings"].get("method") if marker.is_file() else None
    if name in METHODS and not METHODS[name].explains:
        raise ConfigError(f"--explain: not allowed with '{folder}': the method {name!r} teaches no rationales")

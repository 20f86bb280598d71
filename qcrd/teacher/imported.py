"""Completions that somebody has paid for already, matched to questions by id or by normalised text.

Knows nothing about Ray, the store, or how a completion is parsed.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcrd.artifacts import file_digest
from qcrd.config import ConfigError, ImportedConfig
from qcrd.records import Question
from qcrd.teacher.base import Answer, Call, Reply, TeacherError


@dataclass(frozen=True)
class ImportedCompletions:
    """Texts by question id, in the file's order. `matched` counts records by the split of their question."""

    by_question_id: dict[str, list[str]]
    records: int
    unmatched: int
    matched: dict[str, int]


def normalised(text: str) -> str:
    """What two spellings of one question share: words in lower case, one space between them."""
    return " ".join(text.casefold().split())


def imported_paths(config: ImportedConfig) -> list[Path]:
    """The file, or the files of a pattern in order of name. Raises `ConfigError` where there is none."""
    path = Path(config.path or "")
    found = sorted(one for one in path.parent.glob(path.name) if one.is_file()) if path.name else []
    if not found:
        raise ConfigError(f"teacher.imported.path: '{path}' does not exist; give a file of completions")
    return found


def import_identity(config: ImportedConfig) -> dict[str, Any]:
    """Everything that decides what is imported: contents and settings, not paths."""
    settings = config.model_dump(exclude={"path", "aligned_to"})
    aligned = {"aligned_to": file_digest(_aligned_path(config))} if config.format == "aligned" else {}
    return {**settings, "content": [file_digest(path) for path in imported_paths(config)], **aligned}


def _aligned_path(config: ImportedConfig) -> Path:
    path = Path(config.aligned_to or "")
    if not path.is_file():
        raise ConfigError(
            f"teacher.imported.aligned_to: '{path}' does not exist; the format `aligned` needs the JSON-lines file of "
            "questions whose rows the completions follow"
        )
    return path


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")


def _lines(path: Path, field: str) -> list[Any]:
    rows = []
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError:
                raise ConfigError(f"{field}: line {number} of '{path}' is not JSON") from None
    return rows


def _json_list(path: Path) -> list[Any]:
    try:
        data = json.loads(_read_text(path))
    except ValueError:
        raise ConfigError(f"teacher.imported.path: '{path}' is not JSON; is its format another one?") from None
    if not isinstance(data, list):
        raise ConfigError(f"teacher.imported.path: '{path}' holds a {type(data).__name__}; expected a list")
    return data


def _field(record: Any, setting: str, name: str, row: int) -> Any:
    if not isinstance(record, dict) or name not in record:
        has = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
        raise ConfigError(f"teacher.imported.{setting}: {name!r} is not in record {row}, which has {has}")
    return record[name]


def _records(config: ImportedConfig) -> list[tuple[str | None, str, list[str]]]:
    """(question id or None, question text, completions) of each record."""
    paths = imported_paths(config)
    if config.format == "aligned":
        texts = [text for path in paths for text in _json_list(path)]
        rows = _lines(_aligned_path(config), "teacher.imported.aligned_to")
        if len(texts) != len(rows):
            raise ConfigError(
                f"teacher.imported.path: {len(texts)} completions, but aligned_to has {len(rows)} questions"
            )
        return [
            (None, str(_field(row, "question_field", config.question_field, n)), [str(text)])
            for n, (text, row) in enumerate(zip(texts, rows, strict=True))
        ]
    if config.format == "lines":
        found = []
        for n, row in enumerate(row for path in paths for row in _lines(path, "teacher.imported.path")):
            text = str(_field(row, "text_field", config.text_field, n))
            if config.id_field in row:
                found.append((str(row[config.id_field]), "", [text]))
            else:
                found.append((None, str(_field(row, "question_field", config.question_field, n)), [text]))
        return found
    found = []
    for n, row in enumerate(row for path in paths for row in _json_list(path)):
        texts = _field(row, "completions_field", config.completions_field, n)
        if not isinstance(texts, list):
            raise ConfigError(f"teacher.imported.completions_field: record {n} holds no list of completions")
        question = str(_field(row, "question_field", config.question_field, n))
        found.append((None, question, [str(text) for text in texts]))
    return found


def read_completions(config: ImportedConfig, questions: Sequence[Question]) -> ImportedCompletions:
    """Match a file's completions with the questions of all splits. Several records of one question are joined.

    Raises `ConfigError` for a missing file or field, naming the setting and the record.
    """
    ids = {question.id: question for question in questions}
    texts: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        texts[normalised(question.text)].append(question)
    completions: dict[str, list[str]] = defaultdict(list)
    matched: Counter[str] = Counter()
    records = _records(config)
    unmatched = 0
    for question_id, text, answers in records:
        found = [ids[question_id]] if question_id in ids else texts.get(normalised(text), [])
        if not found:
            unmatched += 1
        for question in found:
            completions[question.id] += answers
        matched.update({question.split for question in found})
    return ImportedCompletions(dict(completions), len(records), unmatched, dict(matched))


class ImportedTeacher:
    """Answers from a file. Sample i of a question is its i-th completion."""

    def __init__(self, by_question_id: Mapping[str, Sequence[str]]) -> None:
        self._texts = by_question_id

    async def ask(self, call: Call) -> Answer:
        texts = self._texts.get(call.question_id, ())
        found = [texts[index] for index in call.indices if index < len(texts)]
        if not found:
            raise TeacherError("no completion in the imported file")
        return Answer([Reply(text=text, finish_reason="imported") for text in found])

    async def close(self) -> None:
        """Nothing is open."""

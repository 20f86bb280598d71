"""Completions that somebody has paid for already, matched to questions by row, by id or by normalised text.

A question's completions keep their place: where one is missing, the others do not move up. Knows nothing about Ray, the
store, tasks, or how a completion is parsed.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcrd.config import ConfigError, ImportedTeacherConfig
from qcrd.records import Question
from qcrd.storage.fingerprints import file_digest
from qcrd.tasks.reading import normalised
from qcrd.teacher.backends.base import Answer, Backend, Call, ImportedCompletions, Reply, TeacherError
from qcrd.teacher.prompts import Prompts


def imported_paths(config: ImportedTeacherConfig) -> list[Path]:
    """The file, or the files of a pattern in order of name. Raises `ConfigError` where there is none."""
    path = Path(config.path or "")
    found = sorted(one for one in path.parent.glob(path.name) if one.is_file()) if path.name else []
    if not found:
        raise ConfigError(f"teacher.path: '{path}' does not exist; give a file of completions")
    return found


_IN_KEY = ("format", "row_id", "row_field", "question_field", "id_field", "text_field", "completions_field")
"""Settings that are in every key, whatever the format."""


def import_identity(config: ImportedTeacherConfig) -> dict[str, Any]:
    """Everything that decides what is imported: contents and settings, not paths."""
    settings = {name: getattr(config, name) for name in _IN_KEY}
    aligned = {"aligned_to": file_digest(_aligned_path(config))} if _needs_aligned_to(config) else {}
    return {**settings, "content": [file_digest(path) for path in imported_paths(config)], **aligned}


def _needs_aligned_to(config: ImportedTeacherConfig) -> bool:
    return config.format in ("aligned", "csv") and config.row_id is None


def _aligned_path(config: ImportedTeacherConfig) -> Path:
    path = Path(config.aligned_to or "")
    if not path.is_file():
        raise ConfigError(
            f"teacher.aligned_to: '{path}' does not exist; the format {config.format!r} needs the JSON-lines "
            "file of questions whose rows the completions follow, or row_id"
        )
    return path


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"teacher.path: '{path}' cannot be read: {error}") from None


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
        raise ConfigError(f"teacher.path: '{path}' is not JSON; is its format another one?") from None
    if not isinstance(data, list):
        raise ConfigError(f"teacher.path: '{path}' holds a {type(data).__name__}; expected a list")
    return data


def _field(record: Any, setting: str, name: str, row: int) -> Any:
    if not isinstance(record, dict) or name not in record:
        has = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
        raise ConfigError(f"teacher.{setting}: {name!r} is not in record {row}, which has {has}")
    return record[name]


@dataclass(frozen=True)
class _Entry:
    """Completions of one question, which is named by its id or its text; `index` is the place of the first one, None
    where it follows what the question has already."""

    question_id: str | None
    question: str
    texts: list[str]
    index: int | None = None


def _name_of(row: Any, number: int, config: ImportedTeacherConfig) -> tuple[str | None, str]:
    """Question id or question text of a JSON-lines row."""
    if isinstance(row, dict) and config.id_field in row:
        return str(row[config.id_field]), ""
    return None, str(_field(row, "question_field", config.question_field, number))


def _names_of_rows(config: ImportedTeacherConfig) -> list[tuple[str | None, str]] | None:
    """Question id or text of each row of `aligned_to`; None where `row_id` says it."""
    if not _needs_aligned_to(config):
        return None
    rows = _lines(_aligned_path(config), "teacher.aligned_to")
    return [_name_of(row, number, config) for number, row in enumerate(rows)]


def _aligned_records(config: ImportedTeacherConfig) -> list[_Entry]:
    texts = [text for path in imported_paths(config) for text in _json_list(path)]
    names = _names_of_rows(config)
    if names is None:
        names = [(str(config.row_id).format(row=row), "") for row in range(len(texts))]
    if len(texts) != len(names):
        raise ConfigError(f"teacher.path: {len(texts)} completions, but aligned_to has {len(names)} questions")
    return [_Entry(*name, [str(text)]) for name, text in zip(names, texts, strict=True)]


def _csv_records(config: ImportedTeacherConfig) -> list[_Entry]:
    """File i holds sample i of each question, one a row."""
    names = _names_of_rows(config)
    found = []
    for index, path in enumerate(imported_paths(config)):
        seen: set[int] = set()
        for number, record in enumerate(csv.DictReader(io.StringIO(_read_text(path), newline=""))):
            row = _row_number(_field(record, "row_field", config.row_field, number), path, config)
            if row in seen or (names is not None and row >= len(names)):
                why = "occurs twice" if row in seen else f"is beyond the {len(names or ())} rows of aligned_to"
                raise ConfigError(f"teacher.row_field: row {row} of '{path}' {why}")
            seen.add(row)
            name = (str(config.row_id).format(row=row), "") if names is None else names[row]
            found.append(_Entry(*name, [str(_field(record, "text_field", config.text_field, number))], index))
    return found


def _row_number(value: str, path: Path, config: ImportedTeacherConfig) -> int:
    if not value.isdecimal():
        raise ConfigError(f"teacher.row_field: {config.row_field!r} is {value!r} in '{path}'; expected a row number")
    return int(value)


def _line_records(config: ImportedTeacherConfig) -> list[_Entry]:
    rows = [row for path in imported_paths(config) for row in _lines(path, "teacher.path")]
    return [
        _Entry(*_name_of(row, number, config), [str(_field(row, "text_field", config.text_field, number))])
        for number, row in enumerate(rows)
    ]


def _list_records(config: ImportedTeacherConfig) -> list[_Entry]:
    found = []
    for number, row in enumerate(row for path in imported_paths(config) for row in _json_list(path)):
        texts = _field(row, "completions_field", config.completions_field, number)
        if not isinstance(texts, list):
            raise ConfigError(f"teacher.completions_field: record {number} holds no list of completions")
        question = str(_field(row, "question_field", config.question_field, number))
        found.append(_Entry(None, question, [str(text) for text in texts]))
    return found


_FORMATS = {"aligned": _aligned_records, "csv": _csv_records, "lines": _line_records, "records": _list_records}


def read_completions(config: ImportedTeacherConfig, questions: Sequence[Question]) -> ImportedCompletions:
    """Match a file's completions with the questions of all splits. Several records of one question are joined.

    Raises `ConfigError` for a missing file or field, naming the setting and the record.
    """
    ids = {question.id: question for question in questions}
    texts: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        texts[normalised(question.text)].append(question)
    completions: dict[str, list[str]] = defaultdict(list)
    matched: Counter[str] = Counter()
    records = _FORMATS[config.format](config)
    unmatched = 0
    for record in records:
        found = texts.get(normalised(record.question), [])
        if record.question_id is not None:
            found = [ids[record.question_id]] if record.question_id in ids else []
        if not found:
            unmatched += 1
        for question in found:
            have = completions[question.id]
            if record.index is not None and len(have) > record.index:
                raise ConfigError(
                    f"teacher.path: file {record.index} has two rows of question {question.id!r}, whose text "
                    "another one shares; name rows by row_id or by the id_field of aligned_to"
                )
            have += [""] * ((record.index or 0) - len(have))
            have += record.texts
        matched.update({question.split for question in found})
    return ImportedCompletions(dict(completions), len(records), unmatched, dict(matched))


class ImportedTeacher:
    """Answers from a file. Sample i of a question is its i-th completion; an empty one is a missing one: an error."""

    def __init__(self, by_question_id: Mapping[str, Sequence[str]]) -> None:
        self._texts = by_question_id

    async def ask(self, call: Call) -> Answer:
        texts = self._texts.get(call.question_id, ())
        found = [texts[index] if index < len(texts) else "" for index in call.indices]
        if not all(text.strip() for text in found):
            raise TeacherError("no completion in the imported file")
        return Answer([Reply(text=text, finish_reason="imported") for text in found])

    async def close(self) -> None:
        """Nothing is open."""


def _identity(config: ImportedTeacherConfig, stop: Sequence[str]) -> dict[str, Any]:
    return {"kind": "imported", **import_identity(config)}


def _check(config: ImportedTeacherConfig, prompts: Prompts) -> None:
    import_identity(config)


BACKEND = Backend(
    kind="imported",
    settings=ImportedTeacherConfig,
    costs="nothing",
    simulated=False,
    shown=("format",),
    asked="imported texts",
    name=lambda config: "imported",
    identity=_identity,
    check=_check,
    build=lambda config, stop, completions: ImportedTeacher(completions),
    completions=read_completions,
)

"""Existing completions: three formats, matching by text, bad files, and the real GPT-3.5 and PaLM ones."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from qcrd.config import ConfigError, ImportedConfig, TaskConfig
from qcrd.records import Question
from qcrd.tasks import get_task, load_questions
from qcrd.teacher.imported import read_completions

QUESTIONS = [
    Question("a", "train", "Tom has 3 pens.\nHow many?", "", ""), Question("b", "test", "Ann ran.\nHow far?", "", ""),
]  # fmt: skip


def write(path: Path, data: Any) -> str:
    text = "".join(json.dumps(row) + "\n" for row in data) if path.suffix == ".jsonl" else json.dumps(data)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def test_records_match_by_normalised_text_and_the_rest_is_counted(tmp_path: Path):
    rows = [
        {"q": "tom has 3 pens. How many?\n", "c": ["one", "two"]}, {"q": "Who?", "c": ["three"]},
        {"q": "Ann  ran. How far?", "c": ["four"]}, {"q": "Tom has 3 pens. How many?", "c": ["five"]},
    ]  # fmt: skip
    path = write(tmp_path / "r.json.gz", rows)
    found = read_completions(ImportedConfig(path=path, question_field="q", completions_field="c"), QUESTIONS)
    assert found.by_question_id == {"a": ["one", "two", "five"], "b": ["four"]}
    assert (found.records, found.unmatched, found.matched) == (4, 1, {"train": 2, "test": 1})


def test_lines_match_by_id_or_text(tmp_path: Path):
    rows = [{"question_id": "b", "text": "x"}, {"question": "TOM has 3 pens. how many?", "text": "y"}]
    found = read_completions(ImportedConfig(path=write(tmp_path / "l.jsonl", rows), format="lines"), QUESTIONS)
    assert found.by_question_id == {"b": ["x"], "a": ["y"]}


def test_aligned_lists_follow_the_rows_of_a_file(tmp_path: Path):
    path = write(tmp_path / "c.json", ["for ann", "for tom"])
    rows = write(tmp_path / "rows.jsonl", [{"input": QUESTIONS[1].text}, {"input": QUESTIONS[0].text}])
    config = ImportedConfig(path=path, format="aligned", aligned_to=rows, question_field="input")
    assert read_completions(config, QUESTIONS).by_question_id == {"b": ["for ann"], "a": ["for tom"]}
    write(tmp_path / "c.json", ["for ann"])
    with pytest.raises(ConfigError, match="1 completions, but aligned_to has 2 questions"):
        read_completions(config, QUESTIONS)


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        ([{"question": "x"}], {}, "teacher.imported.completions_field: 'completions' is not in record 0"),
        ([{"text": "x"}], {"format": "lines"}, "teacher.imported.question_field: 'question' is not in record 0"),
        ({"a": 1}, {}, "holds a dict; expected a list"),
        ([{"question": "x", "completions": "y"}], {}, "record 0 holds no list of completions"),
        ([], {"path": "/no/such"}, "teacher.imported.path: '/no/such' does not exist"),
        ([], {"format": "aligned"}, "teacher.imported.aligned_to: "),
    ],
)
def test_bad_files_name_the_setting(tmp_path: Path, content: Any, changes: dict[str, Any], message: str):
    suffix = "x.jsonl" if changes.get("format") == "lines" else "x.json"
    config = ImportedConfig.model_validate({"path": write(tmp_path / suffix, content), **changes})
    with pytest.raises(ConfigError) as caught:
        read_completions(config, QUESTIONS)
    assert message in str(caught.value)


def test_the_real_gpt35_samples(shared_data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("QCRD_DATA", str(shared_data))
    questions = load_questions(get_task("svamp"), TaskConfig(name="svamp"))
    config = ImportedConfig(
        path=str(shared_data / "svamp" / "llm_gpt35" / "train.json.gz"), question_field="instruction",
        completions_field="output",
    )  # fmt: skip
    found = read_completions(config, questions)
    assert found.records == 700 and found.unmatched == 0
    assert found.matched["test"] == 136 and found.matched["train"] + found.matched["validation"] == 564
    assert min(len(texts) for texts in found.by_question_id.values()) == 10


def test_the_real_palm_list(shared_data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("QCRD_DATA", str(shared_data))
    questions = load_questions(get_task("svamp"), TaskConfig(name="svamp"))
    folder = shared_data / "svamp"
    config = ImportedConfig(
        path=str(folder / "llm_palm" / "train_CoT_*.json"), format="aligned",
        aligned_to=str(folder / "svamp_train.json"), question_field="input",
    )  # fmt: skip
    found = read_completions(config, questions)
    assert found.unmatched == 0 and sum(found.matched.values()) == 800
    first = next(q for q in questions if q.text.startswith("Luke scored 84 points"))
    assert found.by_question_id[first.id][0].startswith("Luke scored 84 points after 2 rounds.")

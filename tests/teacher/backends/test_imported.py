"""Existing completions: four formats, matching by row, id or text, bad files, and all the real ones."""

import asyncio
import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from qcrd.config import (
    BenchmarkTaskConfig,
    ConfigError,
    ImportedTeacherConfig,
    validated,
)
from qcrd.records import Question
from qcrd.tasks import get_task, load_questions
from qcrd.teacher.backends.base import Call, Reply, Result, TeacherError
from qcrd.teacher.backends.imported import ImportedTeacher, import_identity, read_completions

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
    found = read_completions(ImportedTeacherConfig(path=path, question_field="q", completions_field="c"), QUESTIONS)
    assert found.by_question_id == {"a": ["one", "two", "five"], "b": ["four"]}
    assert (found.records, found.unmatched, found.matched) == (4, 1, {"train": 2, "test": 1})


def test_lines_match_by_id_or_text(tmp_path: Path):
    rows = [{"question_id": "b", "text": "x"}, {"question": "TOM has 3 pens. how many?", "text": "y"}]
    found = read_completions(ImportedTeacherConfig(path=write(tmp_path / "l.jsonl", rows), format="lines"), QUESTIONS)
    assert found.by_question_id == {"b": ["x"], "a": ["y"]}


def test_aligned_lists_follow_the_rows_of_a_file(tmp_path: Path):
    path = write(tmp_path / "c.json", ["for ann", "for tom"])
    rows = write(tmp_path / "rows.jsonl", [{"input": QUESTIONS[1].text}, {"input": QUESTIONS[0].text}])
    config = ImportedTeacherConfig(path=path, format="aligned", aligned_to=rows, question_field="input")
    assert read_completions(config, QUESTIONS).by_question_id == {"b": ["for ann"], "a": ["for tom"]}
    write(tmp_path / "c.json", ["for ann"])
    with pytest.raises(ConfigError, match="1 completions, but aligned_to has 2 questions"):
        read_completions(config, QUESTIONS)


def test_aligned_rows_are_named_by_id_or_by_number(tmp_path: Path):
    path = write(tmp_path / "c.json.gz", ["for ann", "for tom", "for nobody"])
    rows = write(tmp_path / "rows.jsonl", [{"uid": "b"}, {"uid": "a"}, {"uid": "c"}])
    config = ImportedTeacherConfig(path=path, format="aligned", aligned_to=rows, id_field="uid")
    found = read_completions(config, QUESTIONS)
    assert found.by_question_id == {"b": ["for ann"], "a": ["for tom"]} and found.unmatched == 1
    numbered = [Question(f"x-train-{row}", "train", "One text.", "", "") for row in (2, 0)]
    found = read_completions(ImportedTeacherConfig(path=path, format="aligned", row_id="x-train-{row}"), numbered)
    assert found.by_question_id == {"x-train-0": ["for ann"], "x-train-2": ["for nobody"]}
    assert (found.records, found.unmatched, found.matched) == (3, 1, {"train": 2})


def test_each_csv_file_is_one_sample_and_gaps_stay(tmp_path: Path):
    for name, text in {"a": "n,t\n0,a0\n1,a1\n", "b": 'n,t\n1,"b1\nand, more"\n', "c": "n,t\n0,c0\n"}.items():
        (tmp_path / f"{name}.csv").write_text(text)
    rows = write(tmp_path / "rows.jsonl", [{"id": "b"}, {"id": "a"}])
    config = ImportedTeacherConfig(
        path=str(tmp_path / "*.csv"), format="csv", aligned_to=rows, row_field="n", text_field="t", id_field="id"
    )
    found = read_completions(config, QUESTIONS)
    assert found.by_question_id == {"b": ["a0", "", "c0"], "a": ["a1", "b1\nand, more"]}
    assert (found.records, found.unmatched, found.matched) == (4, 0, {"test": 2, "train": 2})
    named = ImportedTeacherConfig(
        path=str(tmp_path / "?.csv"), format="csv", row_id="q{row}", row_field="n", text_field="t"
    )
    question = Question("q0", "train", "", "", "")
    assert read_completions(named, [question]).by_question_id == {"q0": ["a0", "", "c0"]}
    assert import_identity(config) != import_identity(named)
    assert "aligned_to" in import_identity(config) and "aligned_to" not in import_identity(named)


def test_a_missing_completion_is_an_error():
    def ask(question_id: str, *indices: int) -> Sequence[Result]:
        teacher = ImportedTeacher({"b": ["a0", "", "c0"]})
        return asyncio.run(teacher.ask(Call(question_id, indices, "", "", "", (0,) * len(indices)))).records

    assert ask("b", 2) == [Reply("c0", finish_reason="imported")]
    assert ask("b", 2, 0) == [Reply("c0", finish_reason="imported"), Reply("a0", finish_reason="imported")]
    for question_id, index in (("b", 1), ("b", 3), ("c", 0)):
        with pytest.raises(TeacherError, match="no completion in the imported file") as error:
            ask(question_id, index)
        assert not error.value.retryable and not error.value.of_endpoint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("n,text\n0,a\n0,b\n", "teacher.row_field: row 0 of '"),
        ("n,text\n2,a\n", "is beyond the 2 rows of aligned_to"),
        ("n,text\nzero,a\n", "teacher.row_field: 'n' is 'zero' in '"),
        ("m,text\n0,a\n", "teacher.row_field: 'n' is not in record 0, which has m, text"),
        ("n,words\n0,a\n", "teacher.text_field: 'text' is not in record 0, which has n, words"),
        ("n,text\n0,a\n1,b\n", "has two rows of question 'a', whose text another one shares"),
    ],
)
def test_bad_csv_files_name_the_setting(tmp_path: Path, content: str, message: str):
    (tmp_path / "x.csv").write_text(content)
    rows = write(tmp_path / "rows.jsonl", [{"question": QUESTIONS[0].text}] * 2)
    config = ImportedTeacherConfig(path=str(tmp_path / "x.csv"), format="csv", aligned_to=rows, row_field="n")
    with pytest.raises(ConfigError) as caught:
        read_completions(config, QUESTIONS)
    assert message in str(caught.value)


def test_a_row_id_has_one_place_for_the_row():
    with pytest.raises(ConfigError, match=r"^teacher\.row_id: 'esnli-train' is not allowed"):
        validated({"name": "x", "teacher": {"kind": "imported", "path": "x", "row_id": "esnli-train"}})


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        ([{"question": "x"}], {}, "teacher.completions_field: 'completions' is not in record 0"),
        ([{"text": "x"}], {"format": "lines"}, "teacher.question_field: 'question' is not in record 0"),
        ({"a": 1}, {}, "holds a dict; expected a list"),
        ([{"question": "x", "completions": "y"}], {}, "record 0 holds no list of completions"),
        ([], {"path": "/no/such"}, "teacher.path: '/no/such' does not exist"),
        ([], {"format": "aligned"}, "teacher.aligned_to: "),
    ],
)
def test_bad_files_name_the_setting(tmp_path: Path, content: Any, changes: dict[str, Any], message: str):
    suffix = "x.jsonl" if changes.get("format") == "lines" else "x.json"
    config = ImportedTeacherConfig.model_validate({"path": write(tmp_path / suffix, content), **changes})
    with pytest.raises(ConfigError) as caught:
        read_completions(config, QUESTIONS)
    assert message in str(caught.value)


def test_the_real_gpt35_samples(shared_data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("QCRD_DATA", str(shared_data))
    questions = load_questions(get_task("svamp"), BenchmarkTaskConfig(name="svamp"))
    config = ImportedTeacherConfig(
        path=str(shared_data / "svamp" / "llm_gpt35" / "train.json.gz"), question_field="instruction",
        completions_field="output",
    )  # fmt: skip
    found = read_completions(config, questions)
    assert found.records == 700 and found.unmatched == 0
    assert found.matched["test"] == 136 and found.matched["train"] + found.matched["validation"] == 564
    assert min(len(texts) for texts in found.by_question_id.values()) == 10


def test_the_real_palm_list(shared_data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("QCRD_DATA", str(shared_data))
    questions = load_questions(get_task("svamp"), BenchmarkTaskConfig(name="svamp"))
    folder = shared_data / "svamp"
    config = ImportedTeacherConfig(
        path=str(folder / "llm_palm" / "train_CoT_*.json"), format="aligned",
        aligned_to=str(folder / "svamp_train.json"), question_field="input",
    )  # fmt: skip
    found = read_completions(config, questions)
    assert found.unmatched == 0 and sum(found.matched.values()) == 800
    first = next(q for q in questions if q.text.startswith("Luke scored 84 points"))
    assert found.by_question_id[first.id][0].startswith("Luke scored 84 points after 2 rounds.")


def by_id(aligned_to: str, id_field: str) -> dict[str, str]:
    return {"aligned_to": aligned_to, "id_field": id_field}


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("name", "pattern", "settings", "matched", "unmatched"),
    [
        ("cqa", "train_*", by_id("cqa_train.json.gz", "id"), {"train": 8766, "validation": 975}, 0),
        ("cqa", "test_*", by_id("cqa_test.json.gz", "id"), {"test": 1221}, 0),
        ("anli1", "valid_*", by_id("anli1_valid.json.gz", "uid"), {"validation": 1000}, 0),
        ("anli1", "test_*", by_id("anli1_test.json.gz", "uid"), {"test": 1000}, 0),
        # Only the first 10,000 of the 11,000 questions are at hand.
        ("esnli", "train_*", {"row_id": "esnli-train-{row}"}, {"train": 10_000}, 1000),
        ("esnli", "valid_*", {"row_id": "esnli-validation-{row}"}, {"validation": 9842}, 0),
        ("esnli", "test_*", {"row_id": "esnli-test-{row}"}, {"test": 9824}, 0),
    ],
)
def test_the_real_palm_lists_of_other_tasks(
    name: str, pattern: str, settings: dict[str, str], matched: dict[str, int], unmatched: int, shared_data: Path
):
    folder = shared_data / name
    questions = get_task(name).load(BenchmarkTaskConfig(name=name, path=str(folder)))
    settings = {**settings, "path": str(folder / "llm_palm" / pattern), "format": "aligned"}
    if "aligned_to" in settings:
        settings["aligned_to"] = str(folder / settings["aligned_to"])
    found = read_completions(ImportedTeacherConfig.model_validate(settings), questions)
    assert (found.matched, found.unmatched) == (matched, unmatched)
    assert {len(texts) for texts in found.by_question_id.values()} == {1}


BING = {
    "cqa": (by_id("cqa_train.json.gz", "id"), {"train": 5 * 8766, "validation": 5 * 975}),
    "esnli": ({"row_id": "esnli-train-{row}"}, {"train": 49_900}),
}


@pytest.mark.e2e
@pytest.mark.parametrize("name", list(BING))
def test_the_real_bing_files(name: str, shared_data: Path):
    """Five styles are five samples; e-SNLI's first style, `causal`, lacks 100 rows, which are gaps, not shifts."""
    folder, (settings, matched) = shared_data / name, BING[name]
    questions = get_task(name).load(BenchmarkTaskConfig(name=name, path=str(folder)))
    settings = {"path": str(folder / "llm_bing" / "*.csv.gz"), "format": "csv", "row_field": "idx", **settings}
    settings["text_field"] = "rationale"
    if "aligned_to" in settings:
        settings["aligned_to"] = str(folder / settings["aligned_to"])
    found = read_completions(ImportedTeacherConfig.model_validate(settings), questions)
    assert (found.matched, found.unmatched) == (matched, 0)
    assert {len(texts) for texts in found.by_question_id.values()} == {5}
    train = [question for question in questions if question.split == "train"]
    if name == "esnli":
        causal = {row["idx"] for row in read_csv(folder / "llm_bing" / "causal.csv.gz")}
        missing = [row for row in range(10_000) if str(row) not in causal]
        assert len(missing) == 100
        for row in missing:
            texts = found.by_question_id[train[row].id]
            assert texts[0] == "" and texts[1:] != [""] * 4
    else:
        neutral = read_csv(folder / "llm_bing" / "neutral.csv.gz")
        by_question = {row["premise"]: row["rationale"] for row in neutral}
        for question in train:
            asked = question.text.split("\nAnswer Choices:")[0]
            assert asked not in by_question or found.by_question_id[question.id][4] == by_question[asked]


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(gzip.decompress(path.read_bytes()).decode(), newline="")))

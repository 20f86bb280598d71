"""SVAMP in DSS's splits, against DSS's own files; and the errors of a task of one file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qcrd.config import BenchmarkTaskConfig, ConfigError
from qcrd.storage.fingerprints import file_digest
from qcrd.tasks import svamp


@pytest.fixture
def original(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QCRD_DATA", str(shared_data))
    return shared_data / "svamp" / "SVAMP.json"


@pytest.fixture
def served(original: Path, site) -> str:
    """URL of SVAMP.json on a server of this machine, with an empty download cache."""
    shutil.copyfile(original, site.folder / "SVAMP.json")
    return f"{site.url}/SVAMP.json"


def test_splits_are_those_of_dss(original: Path) -> None:
    folder = original.parent
    train = [json.loads(line) for line in (folder / "svamp_train.json").read_text().splitlines()]
    test = [json.loads(line) for line in (folder / "svamp_test.json").read_text().splitlines()]
    cut = json.loads((folder / "dss_split_indices_seed0.json").read_text())
    expected = {
        "train": [train[row] for row in cut["train"]],
        "validation": [train[row] for row in cut["valid"]],
        "test": test,
    }
    questions = svamp.load(BenchmarkTaskConfig(name="svamp"))
    assert len(questions) == 1000 and len({question.id for question in questions}) == 1000
    for split, rows in expected.items():
        mine = [question for question in questions if question.split == split]
        assert len(mine) == svamp.sizes(BenchmarkTaskConfig(name="svamp"))[split]
        assert [{"input": question.text, "label": question.label} for question in mine] == rows


def test_a_question_and_its_answer(original: Path) -> None:
    questions = {question.id: question for question in svamp.load(BenchmarkTaskConfig(name="svamp"))}
    first = questions["chal-1"]
    assert first.text.endswith("25 dollars on each pack\nHow much do you have to pay to buy each pack?")
    assert (first.label, first.answer, first.facts) == ("( 76.0 - 25.0 )", "51", "")
    assert svamp.is_right("51", first) and not svamp.is_right("( 76.0 + 25.0 )", first)
    printed = {problem["ID"]: problem["Answer"] for problem in json.loads(original.read_text())}
    differ = {key for key, question in questions.items() if float(question.answer) != printed[key]}
    assert len(differ) == 1


def test_order_needs_no_file() -> None:
    rows = svamp.split_rows()
    assert sorted(row for split in rows.values() for row in split) == list(range(1000))
    assert {split: len(numbers) for split, numbers in rows.items()} == svamp.sizes(BenchmarkTaskConfig(name="svamp"))


def test_source_is_the_checksum(original: Path) -> None:
    assert (
        svamp.source(BenchmarkTaskConfig(name="svamp"))
        == {"SVAMP.json": svamp.SHA256}
        == {"SVAMP.json": file_digest(original)}
    )


def test_a_missing_file_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCRD_DATA", str(tmp_path))
    advice = "give the authors' SVAMP.json, or set QCRD_DATA to a folder that holds svamp/SVAMP.json"
    for path in (None, str(tmp_path / "other.json")):
        shown = path or tmp_path / "svamp" / "SVAMP.json"
        for call in (svamp.check, svamp.load, svamp.source):
            with pytest.raises(ConfigError) as caught:
                call(BenchmarkTaskConfig(name="svamp", path=path))
            assert str(caught.value) == f"task.path: '{shown}' does not exist; {advice}"


def test_a_changed_file_is_refused(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tmp_path / "svamp" / "SVAMP.json"
    changed.parent.mkdir()
    changed.write_text(original.read_text() + "\n")
    assert len(svamp.load(BenchmarkTaskConfig(name="svamp", path=str(changed)))) == 1000
    with pytest.raises(ConfigError, match=r"^task\.path: .* has the sha256 .*; it should be "):
        svamp.load(BenchmarkTaskConfig(name="svamp", path=str(changed), sha256=svamp.SHA256))
    monkeypatch.setenv("QCRD_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match=r"^task\.path: .* has the sha256 "):
        svamp.load(BenchmarkTaskConfig(name="svamp"))


@pytest.mark.parametrize("content", ["{", "[]", json.dumps([{"ID": "a"}] * 1000), "[1, 2]"])
def test_a_file_of_another_kind_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"^task\.path: .*give the authors' SVAMP\.json$"):
        svamp.load(BenchmarkTaskConfig(name="svamp", path=str(path)))


def test_a_url_is_downloaded_once(served: str, tmp_path: Path) -> None:
    config = BenchmarkTaskConfig(name="svamp", path=served, sha256=svamp.SHA256)
    svamp.check(config)
    assert svamp.source(config) == {"SVAMP.json": svamp.SHA256}
    assert not (tmp_path / "cache").exists()
    assert len(svamp.load(config)) == 1000
    (tmp_path / "site" / "SVAMP.json").unlink()
    assert len(svamp.load(config)) == 1000
    assert len(list((tmp_path / "cache" / "qcrd").iterdir())) == 1


def test_download_is_the_authors_file(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = BenchmarkTaskConfig(name="svamp", path="download")
    svamp.check(config)
    assert svamp.source(config) == {"SVAMP.json": svamp.SHA256}
    monkeypatch.setattr(svamp, "URL", served)
    assert len(svamp.load(config)) == 1000


def test_a_url_needs_a_checksum_and_the_right_one(served: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^task\.sha256: None is not allowed; a URL"):
        svamp.check(BenchmarkTaskConfig(name="svamp", path=served))
    with pytest.raises(ConfigError, match=r"^task\.path: .* has the sha256 "):
        svamp.load(BenchmarkTaskConfig(name="svamp", path=served, sha256="0" * 64))
    with pytest.raises(ConfigError, match=r"^task\.path: .* could not be downloaded \(.*404"):
        svamp.load(BenchmarkTaskConfig(name="svamp", path=served + ".gone", sha256=svamp.SHA256))
    assert list((tmp_path / "cache" / "qcrd").iterdir()) == []

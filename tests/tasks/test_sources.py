"""Where rows come from: folders, the hub, URLs; what they are held to; and errors of one line."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from qcrd.config import BenchmarkTaskConfig, ConfigError
from qcrd.storage.fingerprints import file_digest
from qcrd.tasks.sources import (
    Benchmark,
    Hub,
    Row,
    RowFile,
    Urls,
    check_source,
    file_of,
    read_part,
    rows_digest,
    source_of,
    text_of,
)

ROWS = [{"q": "one", "x": 1}, {"q": "zwei – ü", "x": 2}]
RECORDS = [["one"], ["zwei – ü"]]
DIGEST = hashlib.sha256('["one"]\n["zwei – ü"]\n'.encode()).hexdigest()


def record(row: Row) -> list[str]:
    return [text_of(row, "q")]


def benchmark(**downloads: Hub | Urls) -> Benchmark:
    files = {"train": (RowFile("toy_train.json", 3), RowFile("toy_first.csv", 2, DIGEST, has_gold_labels=False))}
    return Benchmark("toy", {**files, "test": (RowFile("toy_test.json", 2, DIGEST),)}, downloads, record)


def lines(rows: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Only the first rows of the training part, as CSV, and the test part in gzip."""
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "toy_first.csv").write_text("x,q\n1,one\n2,zwei – ü\n")
    (folder / "toy_test.json.gz").write_bytes(gzip.compress(lines(ROWS)))
    return folder


def test_the_digest_is_of_the_records_in_order() -> None:
    assert rows_digest(RECORDS) == DIGEST != rows_digest(RECORDS[::-1])


def test_the_first_file_that_is_there_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy, config = benchmark(), BenchmarkTaskConfig(name="x", path=str(folder))
    assert file_of(toy, config, "train") == RowFile("toy_first.csv", 2, DIGEST, has_gold_labels=False)
    assert read_part(toy, config, "train") == read_part(toy, config, "test") == RECORDS
    assert source_of(toy, config) == {"toy_first.csv": DIGEST, "toy_test.json": DIGEST}
    monkeypatch.setenv("QCRD_DATA", str(folder.parent))
    assert read_part(toy, BenchmarkTaskConfig(name="x"), "test") == RECORDS
    whole = folder / "toy_train.json"
    whole.write_bytes(lines([*ROWS, {"q": "three"}]))
    assert read_part(toy, config, "train") == [*RECORDS, ["three"]]
    assert source_of(toy, config) == {"toy_train.json": file_digest(whole), "toy_test.json": DIGEST}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lines([*ROWS, ROWS[0]]), "has 3 rows of test; it should have 2"),
        (lines(ROWS[::-1]), "the rows of test are not those of toy, their sha256 is "),
        (lines([ROWS[0], {"x": 2}]), "row 1 of test: it lacks the text 'q'; it has x"),
        (lines([{"q": None}]), "row 0 of test: it lacks the text 'q'; it has q"),
        (b'{"q": "one"}\n[1]\n', "row 1 of test: it is a list, not an object"),
        (b'{"q"\n', "row 0 of test: Expecting"),
        (b'{"q": "\xff"}\n', "row 0 of test: 'utf-8' codec can't decode"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_other_rows_are_refused(content: bytes, message: str, suffix: str, folder: Path) -> None:
    (folder / "toy_test.json.gz").unlink()
    path = folder / f"toy_test.json{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(ConfigError) as caught:
        read_part(benchmark(), BenchmarkTaskConfig(name="x", path=str(folder)), "test")
    assert message in str(caught.value) and str(caught.value).startswith(f"task.path: '{path}'")
    assert "\n" not in str(caught.value)


def test_a_broken_gzip_file_is_refused(folder: Path) -> None:
    path = folder / "toy_test.json.gz"
    for content in (b"no gzip", path.read_bytes()[:30]):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"^task\.path: .*toy_test\.json\.gz', row . of test: "):
            read_part(benchmark(), BenchmarkTaskConfig(name="x", path=str(folder)), "test")


def test_a_missing_file_says_what_to_do(folder: Path) -> None:
    (folder / "toy_test.json.gz").unlink()
    for call in (check_source, source_of):
        with pytest.raises(ConfigError) as caught:
            call(benchmark(), BenchmarkTaskConfig(name="x", path=str(folder)))
        assert str(caught.value) == (
            f"task.path: '{folder}/toy_test.json' does not exist; give a folder that holds toy_train.json, "
            "toy_test.json (or .gz), or 'download', or set QCRD_DATA to the folder above it"
        )
    with pytest.raises(ConfigError, match=r"^task\.path: 'https://x/y\.json' is not allowed, these are several "):
        check_source(benchmark(), BenchmarkTaskConfig(name="x", path="https://x/y.json"))
    with pytest.raises(ConfigError, match=r"^task\.sha256: '0+' is not allowed; toy knows its own checksums$"):
        check_source(benchmark(), BenchmarkTaskConfig(name="x", path=str(folder), sha256="0" * 64))


def test_files_of_urls_follow_each_other(site, folder: Path) -> None:
    parts = {"a.csv": "id,Sentence,x\n1,one,1\n", "b.csv": "id,Sentence,x\n2,zwei – ü,2\n"}
    for name, text in parts.items():
        (site.folder / name).write_text(text)
    files = {f"{site.url}/{name}": hashlib.sha256(text.encode()).hexdigest() for name, text in parts.items()}
    toy = benchmark(train=Urls(files, {"Sentence": "q"}), test=Urls(files, {"Sentence": "q"}))
    config = BenchmarkTaskConfig(name="x", path="download")
    check_source(toy, config)
    source = source_of(toy, config)
    assert list(source) == ["toy_train.json", "toy_test.json"] and source["toy_test.json"] == DIGEST
    assert not (folder.parent / "cache").exists()
    assert read_part(toy, config, "test") == RECORDS
    # A download is held to the whole part, whatever lies in the folder.
    with pytest.raises(ConfigError, match=r"^task\.path: 'download of toy' has 2 rows of train; it should have 3"):
        read_part(toy, config, "train")
    (site.folder / "a.csv").unlink()
    assert read_part(toy, config, "test") == RECORDS
    gone = {url + ".gone": sha256 for url, sha256 in files.items()}
    with pytest.raises(ConfigError, match=r"^task\.path: '[^']*a\.csv\.gone' could not be downloaded \(.*404"):
        read_part(benchmark(test=Urls(gone, {})), config, "test")


def test_rows_of_the_datasets_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test.jsonl").write_bytes(lines(ROWS))
    toy = benchmark(test=Hub(str(tmp_path / "data"), None, "test", "main"))
    assert read_part(toy, BenchmarkTaskConfig(name="x", path="download"), "test") == RECORDS


def test_the_hub_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub = Hub("nobody/nothing", None, "train", "0123abc")
    toy = replace(benchmark(), downloads={"train": hub, "test": hub})
    config = BenchmarkTaskConfig(name="x", path="download")
    assert source_of(toy, config) == {"toy_train.json": "nobody/nothing@0123abc", "toy_test.json": DIGEST}
    with pytest.raises(ConfigError) as caught:
        read_part(toy, config, "test")
    said = str(caught.value)
    assert re.fullmatch(r"task\.path: 'download' failed, nobody/nothing on the Hugging Face hub .*network", said)

"""Where a benchmark's rows come from, and what they are held to, whatever the source.

A benchmark lies in a folder of JSON-lines or CSV files, plain or gzip (`task.path`, else its folder under the data
folder), or is downloaded (`task.path=download`) from the Hugging Face hub or its authors' URLs. What was read must have
the known number of rows and, where this project has seen a true copy, the known SHA-256 of the rows. Knows nothing
about what the rows mean: a benchmark brings a function that makes a record, a list of plain values, of a row.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcrd.config import BenchmarkTaskConfig, ConfigError
from qcrd.storage.fingerprints import canonical_json, digest_of, file_digest
from qcrd.tasks.files import DOWNLOAD, data_folder, downloaded, is_url

Row = Mapping[str, Any]
Record = list[Any]


@dataclass(frozen=True)
class RowFile:
    """A file in the benchmark's folder, by its name without `.gz`, and what its rows are held to."""

    name: str
    rows: int
    sha256: str | None = None
    """Of the records (`rows_digest`); None where this project has seen no true copy."""
    has_gold_labels: bool = True


@dataclass(frozen=True)
class Hub:
    """One split of a data set on the Hugging Face hub."""

    name: str
    config: str | None
    split: str
    revision: str


@dataclass(frozen=True)
class Urls:
    """CSV files by URL, with the SHA-256 of each and new names for some columns; their rows follow each other."""

    files: Mapping[str, str]
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Benchmark:
    """The parts of a benchmark. Of the files that may hold a part, the first that is there is read; the first of all is
    the whole part, and what a download is held to."""

    name: str
    files: Mapping[str, tuple[RowFile, ...]]
    downloads: Mapping[str, Hub | Urls]
    record: Callable[[Row], Record]


def text_of(row: Row, column: str) -> str:
    """A column's text. Raises `ValueError` where the row has none."""
    value = row.get(column)
    if not isinstance(value, str):
        raise ValueError(f"it lacks the text {column!r}; it has {', '.join(map(str, row))}")
    return value


def rows_digest(records: Iterable[Record]) -> str:
    """SHA-256 of records in their order: one line of canonical JSON each."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(canonical_json(record).encode() + b"\n")
    return digest.hexdigest()


def folder_of(benchmark: Benchmark, config: BenchmarkTaskConfig) -> Path:
    """The benchmark's folder: `task.path`, else the one under the data folder."""
    return Path(config.path) if config.path else data_folder() / benchmark.name


def _found(benchmark: Benchmark, config: BenchmarkTaskConfig, part: str) -> tuple[RowFile, Path] | None:
    """The first file of the folder that holds a part; None where there is none, or where the part is downloaded."""
    if config.path == DOWNLOAD:
        return None
    folder = folder_of(benchmark, config)
    for file in benchmark.files[part]:
        for path in (folder / file.name, folder / f"{file.name}.gz"):
            if path.is_file():
                return file, path
    return None


def is_whole(benchmark: Benchmark, config: BenchmarkTaskConfig) -> bool:
    """Whether a folder has every part whole, as far as names tell."""
    found = {part: _found(benchmark, config, part) for part in benchmark.files}
    return all(one is not None and one[0] is benchmark.files[part][0] for part, one in found.items())


def _advice(benchmark: Benchmark) -> str:
    names = ", ".join(files[0].name for files in benchmark.files.values())
    return f"give a folder that holds {names} (or .gz), or '{DOWNLOAD}', or set QCRD_DATA to the folder above it"


def check_source(benchmark: Benchmark, config: BenchmarkTaskConfig) -> None:
    """Raise `ConfigError` where a part cannot be had; reads and downloads nothing."""
    if config.sha256 is not None:
        raise ConfigError(f"task.sha256: '{config.sha256}' is not allowed; {benchmark.name} knows its own checksums")
    if is_url(config.path):
        raise ConfigError(f"task.path: '{config.path}' is not allowed, these are several files; {_advice(benchmark)}")
    if config.path == DOWNLOAD:
        return
    for part, files in benchmark.files.items():
        if _found(benchmark, config, part) is None:
            path = folder_of(benchmark, config) / files[0].name
            raise ConfigError(f"task.path: '{path}' does not exist; {_advice(benchmark)}")


def file_of(benchmark: Benchmark, config: BenchmarkTaskConfig, part: str) -> RowFile:
    """What a part will be held to: the file that the folder has, else the whole part; looks at names alone."""
    found = _found(benchmark, config, part)
    return benchmark.files[part][0] if found is None else found[0]


def source_of(benchmark: Benchmark, config: BenchmarkTaskConfig) -> dict[str, str]:
    """What decides the rows of each part: their digest where it is known, whatever the source; else the file's."""
    check_source(benchmark, config)
    source: dict[str, str] = {}
    for part in benchmark.files:
        file = file_of(benchmark, config, part)
        found = _found(benchmark, config, part)
        if file.sha256 is not None:
            source[file.name] = file.sha256
        elif found is not None:
            source[file.name] = file_digest(found[1])
        else:
            source[file.name] = _download_identity(benchmark.downloads[part])
    return source


def _download_identity(download: Hub | Urls) -> str:
    if isinstance(download, Hub):
        return f"{download.name}@{download.revision}"
    return digest_of(list(download.files.values()))


def read_part(benchmark: Benchmark, config: BenchmarkTaskConfig, part: str) -> list[Record]:
    """The records of a part. Raises `ConfigError` where rows cannot be had, read, or are not the known ones."""
    check_source(benchmark, config)
    file = file_of(benchmark, config, part)
    found = _found(benchmark, config, part)
    if found is None:
        where, rows = f"{DOWNLOAD} of {benchmark.name}", _downloaded_rows(benchmark.downloads[part])
    else:
        where, rows = str(found[1]), _file_rows(found[1])
    records: list[Record] = []
    try:
        for row in rows:
            records.append(benchmark.record(row))
    except ConfigError:
        raise
    except (ValueError, OSError, EOFError, csv.Error, zlib.error) as error:  # gzip and csv have errors of their own
        message = f"task.path: '{where}', row {len(records)} of {part}: {error}; {_advice(benchmark)}"
        raise ConfigError(message) from error
    if len(records) != file.rows:
        raise ConfigError(
            f"task.path: '{where}' has {len(records)} rows of {part}; it should have {file.rows}; {_advice(benchmark)}"
        )
    digest = rows_digest(records) if file.sha256 is not None else None
    if digest != file.sha256:
        raise ConfigError(
            f"task.path: '{where}': the rows of {part} are not those of {benchmark.name}, their sha256 is {digest} and "
            f"should be {file.sha256}; {_advice(benchmark)}"
        )
    return records


def _file_rows(path: Path) -> Iterator[Row]:
    """Rows of a JSON-lines or CSV file. Raises `ValueError`."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
        if path.name.removesuffix(".gz").endswith(".csv"):
            yield from _csv_rows(stream, {})
            return
        for line in stream:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"it is a {type(row).__name__}, not an object")
            yield row


def _csv_rows(stream: Any, columns: Mapping[str, str]) -> Iterator[Row]:
    """Rows of a CSV file with a header, some of its columns under new names."""
    reader = csv.reader(io.TextIOWrapper(stream, encoding="utf-8", newline=""))
    names = [columns.get(name, name) for name in next(reader, [])]
    for values in reader:
        yield dict(zip(names, values, strict=False))


def _downloaded_rows(download: Hub | Urls) -> Iterable[Row]:
    if isinstance(download, Hub):
        return _hub_rows(download)
    return _url_rows(download)


def _url_rows(urls: Urls) -> Iterator[Row]:
    for url, sha256 in urls.files.items():
        with downloaded(url, sha256).open("rb") as stream:
            yield from _csv_rows(stream, urls.columns)


def _hub_rows(hub: Hub) -> Iterable[Row]:
    """All rows of a split on the hub, from its cache where it was downloaded before."""
    import datasets  # takes a second, and only a download needs it

    try:
        return datasets.load_dataset(hub.name, hub.config, split=hub.split, revision=hub.revision)  # pyright: ignore[reportReturnType]
    except OSError as error:  # ConnectionError and a data set that is not found are
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"task.path: '{DOWNLOAD}' failed, {hub.name} on the Hugging Face hub could not be loaded ({reason}); "
            "give a folder of files, or try again with network"
        ) from error

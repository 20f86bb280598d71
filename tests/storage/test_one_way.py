"""One way to write a file: nothing outside storage/ renames, replaces, syncs or locks by itself."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "qcrd"
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] != "storage"]
MODULES = {"fcntl", "filelock"}
CALLS = {
    "os.replace", "os.rename", "os.renames", "os.link", "os.fsync", "os.fdatasync", "os.truncate", "os.ftruncate",
    "shutil.move", "tempfile.mkstemp", "tempfile.NamedTemporaryFile",
}  # fmt: skip


def offences(source: str) -> list[str]:
    """What a module does that is storage's to do."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found += [node.module] if node.module.split(".")[0] in MODULES else []
            found += [name for alias in node.names if (name := f"{node.module}.{alias.name}") in CALLS]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called, arguments = ast.unparse(node.func), len(node.args) + len(node.keywords)
            # a text's `replace` has two arguments, a path's has one; only paths have `rename` with one
            is_path = node.func.attr in ("replace", "rename") and arguments == 1 and len(node.args) == 1
            found += [called] if called in CALLS or is_path else []
    return found


def test_nothing_outside_storage_renames_replaces_syncs_or_locks() -> None:
    assert len(FILES) > 40
    found = {path.relative_to(PACKAGE).as_posix(): offences(path.read_text()) for path in FILES}
    assert {name: what for name, what in found.items() if what} == {}


def test_a_temporary_name_is_made_in_one_place() -> None:
    """By the package's files as they are written: a name that ends in .tmp is atomic.py's."""
    makers = [path for path in sorted(PACKAGE.rglob("*.py")) if ".tmp" in path.read_text()]
    assert [path.relative_to(PACKAGE).as_posix() for path in makers] == ["storage/atomic.py"]


@pytest.mark.parametrize(
    "source",
    [
        "import fcntl", "from filelock import FileLock", "from os import replace", "import os; os.fsync(3)",
        "path.replace(target)", "temporary.rename(target)", "import shutil; shutil.move(a, b)",
    ],
)  # fmt: skip
def test_what_is_not_allowed_is_found(source: str) -> None:
    assert offences(source)


@pytest.mark.parametrize("source", ["text.replace('a', 'b')", "replace(cell, seed=1)", "import os; os.getpid()"])
def test_what_is_allowed_is_not_found(source: str) -> None:
    assert not offences(source)


UNFINISHED = {"out", "run", "written", "temporary", "folder"}
"""Names of what is written in place: a stage's unfinished folder, or what `staged` gives. `run`: as in `run.out`."""


def written_in_place(source: str) -> list[str]:
    """What a module writes where it lies: `Path.write_text`, `write_bytes`, `open` for writing, of anything else."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        arguments = [*node.args[:2], *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        modes = [str(mode.value) for mode in arguments if isinstance(mode, ast.Constant)]
        opens = name == "open" and any(re.fullmatch(r"[wax][bt+]*|r[bt]?\+[bt]?", mode) for mode in modes)
        if not opens and (name not in ("write_text", "write_bytes") or len(node.args) != 1):
            continue  # a store's `write_text` takes a name, too
        first: ast.AST = node.func.value if isinstance(node.func, ast.Attribute) else node
        while not isinstance(first, ast.Name | ast.Call):
            first = first.left if isinstance(first, ast.BinOp) else getattr(first, "value", ast.Call())
        if not isinstance(first, ast.Name) or first.id not in UNFINISHED:
            found.append(ast.unparse(node.func))
    return found


def test_only_what_is_not_finished_yet_is_written_in_place() -> None:
    found = {path.relative_to(PACKAGE).as_posix(): written_in_place(path.read_text()) for path in FILES}
    assert {name: what for name, what in found.items() if what} == {"evaluate/inference.py": INTO_STAGED}


INTO_STAGED = ["stack.enter_context(whole_or_absent(output)).open"]
"""The file that a person asked for, whole or absent."""


@pytest.mark.parametrize(
    "source", ["path.write_text('a')", "open('a', 'w')", "(storage.folder / name).write_bytes(b'')", "path.open('a')"]
)
def test_what_is_written_in_place_is_found(source: str) -> None:
    assert written_in_place(source)


@pytest.mark.parametrize(
    "source", ["(out / 'a').write_text('b')", "path.open()", "path.open('rb')", "store.write_text(name, text)"]
)
def test_what_is_written_into_an_unfinished_folder_is_not_found(source: str) -> None:
    assert not written_in_place(source)

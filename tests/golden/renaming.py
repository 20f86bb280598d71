"""How the identities of 989d59e became those of today, and the renaming of the finished cells by it, once.

`python -m tests.golden.renaming` proves for each cell of experiments/real_esnli.py that its old folder is named by its
old identity, and that this identity, renamed, is the one that the recipe has today; then it renames the folder, and in
its metrics the keys that said `judge`. It changes nothing where a proof fails.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from qcrd.config import with_overrides
from qcrd.grids.cells import cell_folder, cell_identity
from qcrd.storage.fingerprints import digest_of

HERE = Path(__file__).parent
BEFORE = HERE / "cells_before.json"
RESULTS = HERE.parents[1] / "experiments" / "results" / "real_esnli"
ONLINE = (
    "enabled", "seed", "learning_rate", "batch_questions", "max_tokens", "dtype", "max_grad_norm", "update_every",
    "update_steps",
)  # fmt: skip
"""What of the discriminator's settings a student's training reads; the others decide its pretraining alone."""


def stages_before(found: dict[str, Any], keys: list[str]) -> dict[str, list[Any]]:
    """Version and settings per stage from one of the *_before.json files; `keys` are those of a cell."""

    def resolved(value: Any) -> Any:
        if isinstance(value, dict) and set(value) == {"$"}:
            return resolved(found["groups"][value["$"]])
        if isinstance(value, dict):
            return {key: resolved(item) for key, item in value.items()}
        return [resolved(item) for item in value] if isinstance(value, list) else value

    stages = [resolved(found["stages"][key]) for key in keys]
    return {stage["stage"]: [stage["version"], stage["settings"]] for stage in stages if stage["stage"] != "report"}


def renamed(stages: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Today's identity of an experiment from that of 989d59e."""
    return {
        {"judge": "discriminator"}.get(name, name): [version, _settings(name, settings)]
        for name, (version, settings) in stages.items()
    }


def _settings(stage: str, settings: dict[str, Any]) -> dict[str, Any]:
    settings = json.loads(json.dumps(settings))
    if stage == "questions" and settings["source"]:  # a benchmark; only a generated task has what the generator needs
        del settings["task"]["generator"]
    if stage == "student" and "negatives" in settings:
        online = settings["discriminator"]
        settings["discriminator"] = {key: online[key] for key in ONLINE} if online["enabled"] else {"enabled": False}
        if "fixed" in settings:
            settings["negatives"]["fixed"] = settings.pop("fixed")
    return settings


def _rename_keys(value: Any) -> Any:
    return {key.replace("judge", "discriminator"): item for key, item in value.items()}


def rename_cells() -> None:
    from experiments.real_esnli import recipe

    before = json.loads(BEFORE.read_text())
    grid = recipe()
    moves = []
    for known in before["cells"]:
        stages = stages_before(before, known["stages"])
        assert digest_of(stages) == known["identity"] and known["folder"].endswith(known["identity"][:12])
        cell = grid.cell(known["row"], known["column"])
        assert cell is not None
        config = with_overrides(cell.config, {"seed": known["seed"]})
        assert digest_of(renamed(stages)) == cell_identity(config), known["folder"]
        moves.append((RESULTS / known["folder"], cell_folder(RESULTS, cell, config)))
    for old, new in moves:
        if new.exists():
            continue
        subprocess.run(["git", "mv", str(old), str(new)], check=True)
        rows = [json.loads(line) for line in (new / "metrics.jsonl").read_text().splitlines()]
        (new / "metrics.jsonl").write_text("".join(json.dumps(_rename_keys(row)) + "\n" for row in rows))
        cell = json.loads((new / "cell.json").read_text())
        cell["metrics"] = _rename_keys(cell["metrics"])
        (new / "cell.json").write_text(json.dumps(cell, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
        print(f"{old.name} → {new.name}")


if __name__ == "__main__":
    rename_cells()

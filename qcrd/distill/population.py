"""A member of a population: one configuration, all seeds, that may go on from another member's state with new values.

    <folder of a sweep>/population/<key>/life-00/member.json   its history, and the iteration that it told last
                                                 seed0/        checkpoints and results of a seed's training, …

A takeover begins a new life: a copy of the other's, whole or absent, after which the old one is deleted. So the newest
life is where a member stands, whatever was killed when. The history is the student's, from its first step on: entries
{"iteration": after which, "values": then in use, "from": the member that was taken over, None at first}. Knows nothing
about Ray, nor who takes over from whom.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from qcrd.config import ExperimentConfig, with_overrides
from qcrd.distill.results import RESULTS
from qcrd.runtime.events import Event
from qcrd.storage.atomic import discard, remove_left_overs, whole_or_absent, write_atomically
from qcrd.sweeps.seeds import SeedJob, train_seeds

MEMBER = "member.json"
Entry = dict[str, Any]


def newest_life(root: Path) -> Path | None:
    """Of the member in `root`; None before it begins."""
    return max(root.glob("life-??*"), key=_number, default=None)


def _number(life: Path) -> int:
    return int(life.name.removeprefix("life-"))


def read_member(life: Path) -> dict[str, Any]:
    """`iteration`: the last one that was told. `history`: see above."""
    return json.loads((life / MEMBER).read_text())


def _write_member(life: Path, iteration: int, history: Sequence[Entry]) -> None:
    write_atomically(life / MEMBER, json.dumps({"iteration": iteration, "history": history}, indent=2) + "\n")


def begin_life(root: Path, values: Mapping[str, Any]) -> Path:
    """The life in which a member goes on, or begins with `values`."""
    life = newest_life(root)
    if life is None:
        life = root / "life-00"
        root.mkdir(parents=True, exist_ok=True)
        with whole_or_absent(life) as temporary:
            temporary.mkdir()
            _write_member(temporary, 0, [{"iteration": 0, "values": dict(values), "from": None}])
    for other in root.glob("life-*"):
        if other != life:
            discard(other)
    remove_left_overs(root)
    return life


def take_over(root: Path, donor: Path, entry: Entry) -> None:
    """Go on from the life that lies in `donor`, as `entry` says; nothing where that was done before."""
    life = newest_life(root)
    if life is not None:
        last = read_member(life)["history"][-1]
        if (last["iteration"], last["from"]) == (entry["iteration"], entry["from"]):
            return
    root.mkdir(parents=True, exist_ok=True)
    with whole_or_absent(root / f"life-{0 if life is None else _number(life) + 1:02d}") as temporary:
        shutil.copytree(donor, temporary)
        _write_member(temporary, entry["iteration"], [*read_member(donor)["history"], entry])


def train_member(
    life: Path, jobs: Sequence[SeedJob], perturbed: Sequence[str], device: torch.device,
    emit: Callable[[int, Event], None], report: Callable[[dict[str, Any]], None], reported: int = 0,
) -> None:  # fmt: skip
    """`train_seeds` with the values that the member has now; its checkpoints are on the disk before each report.

    `perturbed`: the fields that may change on the way. A row has the member's `history`, too.
    """
    history = read_member(life)["history"]
    values = {field: history[-1]["values"][field] for field in perturbed}

    def tell(row: dict[str, Any]) -> None:
        _write_member(life, row["iteration"], history)
        report({**row, "history": history})

    train_seeds([_job_of(life, job, values) for job in jobs], device, emit, tell, reported=reported, saved=True)


def _job_of(life: Path, job: SeedJob, values: Mapping[str, Any]) -> SeedJob:
    """A seed's training in this life. What it is known by leaves out what may change."""
    config = with_overrides(ExperimentConfig.model_validate(job.config), dict(values))
    identity = copy.deepcopy(job.identity)
    for field in values:
        part, name = field.split(".")
        identity["settings"].get(part, {}).pop(name, None)
    folder = life / f"seed{job.seed}"
    return replace(
        job, config=config.model_dump(mode="json"), identity=identity, folder=str(folder), student=str(folder / RESULTS)
    )

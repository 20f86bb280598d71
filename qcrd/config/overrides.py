"""Settings of the command line (`key=value`) put into what a recipe gives: an experiment, a grid or a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qcrd.config.base import ConfigError
from qcrd.config.experiment import ExperimentConfig
from qcrd.config.grid import Grid, as_llm_judge
from qcrd.config.settings import with_overrides
from qcrd.config.sweep import Sweep
from qcrd.config.teacher import RationalesConfig


def pairs_of(overrides: Sequence[str]) -> dict[str, str]:
    """`key=value` overrides as a mapping. Raises `ConfigError`."""
    pairs = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"override: {text!r} is not allowed; write key=value, e.g. negatives.gap=3")
        pairs[key] = value
    return pairs


def _parted(pairs: Mapping[str, str], group: str) -> tuple[dict[str, str], dict[str, str]]:
    """The settings of a group (`sweep.…`) without its name, and the others."""
    own = {key.removeprefix(f"{group}."): value for key, value in pairs.items() if key.startswith(f"{group}.")}
    return own, {key: value for key, value in pairs.items() if not key.startswith(f"{group}.")}


def override_grid(grid: Grid, pairs: Mapping[str, str], seeds: str | None) -> Grid:
    """A grid with its LLM judge's settings (llm_judge.model=…), those of all cells, and seeds replaced."""
    own, others = _parted(pairs, "llm_judge")
    cells = [cell.model_copy(update={"config": with_overrides(cell.config, others)}) for cell in grid.cells]
    changed: dict[str, Any] = {"cells": cells} | ({} if seeds is None else {"seeds": seeds.split(",")})
    if own:
        if grid.llm_judge is None:
            raise ConfigError(f"llm_judge.{next(iter(own))}: not allowed; no LLM judge is asked in {grid.name}")
        samples = RationalesConfig(num_samples=grid.llm_judge.num_samples)
        asking = ExperimentConfig(name="llm-judge", teacher=grid.llm_judge, rationales=samples)
        with as_llm_judge():
            changed["llm_judge"] = with_overrides(
                asking, {f"teacher.{key}": value for key, value in own.items()}
            ).teacher
    return Grid.model_validate(grid.model_dump() | changed)


def override_sweep(sweep: Sweep, pairs: Mapping[str, str], seeds: str | None) -> Sweep:
    """A sweep with its own settings (sweep.budget_hours=2), those of its base, and seeds replaced."""
    own, others = _parted(pairs, "sweep")
    base = with_overrides(sweep.base, others)
    changed: dict[str, Any] = {**own, "base": base} | ({} if seeds is None else {"seeds": seeds.split(",")})
    return Sweep.model_validate({**dict(sweep), **changed})

"""What can be known to be wrong with an experiment before anything is written, asked or paid for."""

from __future__ import annotations

from collections.abc import Sequence

from qcrd.config import ConfigError, ExperimentConfig
from qcrd.pipeline.stage import Stage
from qcrd.pipeline.stages import STAGES, stages_of
from qcrd.storage.output import Storage


def stages_until(config: ExperimentConfig, until: str | None) -> Sequence[Stage]:
    """The stages of an experiment up to one of them; None: all. Raises `ConfigError` for one that it does not have."""
    stages = stages_of(config)
    if until is None:
        return stages
    names = [stage.name for stage in stages]
    if until not in names:
        absent = f"{config.name} has no such stage" if until in (stage.name for stage in STAGES) else "it is no stage"
        raise ConfigError(f"--until: {until!r} is not allowed, since {absent}; allowed are {', '.join(names)}")
    return stages[: names.index(until) + 1]


def check(config: ExperimentConfig, until: str | None = None) -> None:
    """Everything that can be known to be wrong of the stages up to `until`. Raises `ConfigError`."""
    for stage in stages_until(config, until):
        stage.check(config)


def prepare_output(storage: Storage) -> None:
    """Raise `ConfigError` where an output cannot be written to."""
    try:
        storage.prepare()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise ConfigError(f"output: '{storage.place}' cannot be written to: {error.strerror}") from None

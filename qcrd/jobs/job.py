"""What is submitted to a cluster, as data: the command, the code that travels, what the cluster's nodes must have.

Whoever may see a job can read its settings, so no secret may be part of it: secrets go by the name of an environment
variable that the nodes have. Knows nothing about Ray, nor about how a job is run or watched (submit.py).
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcrd.config import (
    BenchmarkTaskConfig,
    ConfigError,
    ExperimentConfig,
)
from qcrd.config.grid import Grid
from qcrd.config.recipes import project_root, recipe_file
from qcrd.config.sweep import Sweep
from qcrd.distill.methods import uses_teacher
from qcrd.storage.fingerprints import digest_of
from qcrd.storage.output import is_url
from qcrd.tasks import get_task
from qcrd.tasks.parsers import get_parser
from qcrd.teacher.backends.table import backend_of
from qcrd.tracking import provenance

RECIPE, COMMIT = "qcrd.recipe", "qcrd.commit"
"""Keys of a job's metadata; the first marks the jobs that are ours."""
EXCLUDES = (
    ".git", ".venv", "venv", "__pycache__", ".pytest_cache", ".ruff_cache", ".mypy_cache", "*.egg-info", "/build",
    "/dist", "/data", "/runs", "mlruns", "mlartifacts", "*.db", ".env", ".env.*", ".netrc", "*.pem", "*.key",
)  # fmt: skip
"""What of the project does not travel, besides all that .gitignore and .rayignore name: data, results, and secrets."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET_VARIABLE = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD)$")
_SHORTEST = 8  # characters of a value that is looked for: EMPTY and the like are no secrets
_SECRET_NAME = re.compile(
    r"(api|access|secret)[-_]?key$|secret$|passw(or)?d$|authorization$|(auth|access|bearer|api)[-_]?token$|^token$",
    re.I,
)
_SECRET_SHAPES = {
    "a name or password in a URL": re.compile(r"://[^/@\s]+@"),
    "a key in a URL": re.compile(r"[?&][\w-]*(key|token|secret|password|signature|sig)=", re.I),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"),
    "an Authorization header": re.compile(r"\b(Bearer|Basic) [\w+/=.-]{8,}"),
    "an API key": re.compile(r"\b(sk-[\w-]{16,}|AIza[\w-]{30,}|A[KS]IA[0-9A-Z]{16}\b)"),
    "a token": re.compile(
        r"\b(hf_\w{16,}|gh[opsur]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[a-z]-[\w-]{10,}|eyJ[\w-]{10,}\.[\w-]{10,})"
    ),
}


@dataclass(frozen=True)
class Job:
    """One job. `name` says what it is and is the start of its submission ids; `entrypoint` is a command of the shell;
    `root` is the folder whose content travels."""

    name: str
    entrypoint: str
    root: Path
    metadata: dict[str, str]
    variables: dict[str, str]

    def runtime_env(self) -> dict[str, Any]:
        """Ray's runtime environment: the code, and of which commit it is. What it needs is in the image, and secrets
        are on the nodes."""
        return {"working_dir": str(self.root), "excludes": list(EXCLUDES), "env_vars": dict(self.variables)}


def job_of(
    made: ExperimentConfig | Grid | Sweep,
    recipe: str,
    overrides: Sequence[str],
    flags: Sequence[str],
    secrets: Sequence[str],
) -> Job:
    """The job that runs a recipe, whose content `made` is, with overrides and flags of `qcrd run` or `sweep`.

    Its name follows from all of these, not from how overrides are spelled. `secrets`: variables without which it ends
    at once. Raises `ConfigError` for what can be known to be wrong without the cluster's disks and keys; the job itself
    looks at these first.
    """
    file, colon, function = recipe.partition(":")
    path = recipe_file(recipe).resolve()
    root = project_root(path)
    if not (root / "pyproject.toml").is_file():
        raise ConfigError(
            f"RECIPE: {file!r} is in no project; the folder that is sent to the cluster is the nearest one above "
            "the recipe with a pyproject.toml"
        )
    reference = path.relative_to(root).as_posix() + colon + function
    check_settings(made, root)
    refuse_secrets(_plain(made), secrets)
    verb = "sweep" if isinstance(made, Sweep) else "run"
    key = digest_of([verb, reference, _plain(made), list(flags), list(secrets)])[:12]
    command = shlex.join(["python", "-m", "qcrd", verb, reference, *overrides, *flags])
    checks = [f': "${{{name}:?is not set on the node of the driver}}"' for name in secrets]
    state = provenance.git_state(root)
    variables = {provenance.COMMIT: state["commit"], provenance.DIRTY: state["dirty"]}
    commit = state["commit"] + (", with changes" if state["dirty"] == "true" else "")
    metadata = {RECIPE: reference, COMMIT: commit}
    return Job(f"qcrd-{made.name}-{key}", " && ".join([*checks, command]), root, metadata, variables)


def _plain(made: ExperimentConfig | Grid | Sweep) -> dict[str, Any]:
    """A recipe's content as plain data."""
    if isinstance(made, Sweep):
        from qcrd.sweeps.search_space import (
            description,  # imports Ray Tune: seconds, which a sweep's recipe has taken already
        )

        return made.model_dump(mode="json", exclude={"space"}) | {"space": description(made)}
    return made.model_dump(mode="json")


def _configs(made: ExperimentConfig | Grid | Sweep) -> list[ExperimentConfig]:
    if isinstance(made, Grid):
        return [cell.config for cell in made.cells]
    return [made.base if isinstance(made, Sweep) else made]


# -- what is wrong before anything is submitted -----------------------------------------------------------------------


def check_settings(made: ExperimentConfig | Grid | Sweep, root: Path) -> None:
    """Raise `ConfigError` for unknown tasks and parsers, and for what would be lost or exposed in the code's copy."""
    for config in _configs(made):
        get_parser(config.teacher.parser, get_task(config.task.name))
        _check_place("output", config.output)
    teachers = [config.teacher for config in _configs(made)]
    if isinstance(made, Grid) and made.llm_judge is not None:
        teachers.append(made.llm_judge)
    for teacher in teachers:
        if teacher.store is not None:
            _check_place("teacher.store", teacher.store)
        key_file = backend_of(teacher).key_file(teacher)
        if key_file is not None and (root / key_file).is_relative_to(root):
            raise ConfigError(
                f"teacher.api_key_file: {key_file!r} is not allowed in a submitted job; the key would "
                "travel with the code: give the absolute path of a file that the nodes have, or use teacher.api_key_env"
            )


def _check_place(field: str, place: str) -> None:
    if not (Path(place).is_absolute() or is_url(place)):
        raise ConfigError(
            f"{field}: {place!r} is not allowed in a submitted job, which runs in a temporary copy of the code; give "
            "an absolute path that all nodes share, or a URL such as s3://bucket/folder"
        )


def variable_names(text: str | None) -> tuple[str, ...]:
    """`NAME,NAME` as names of environment variables. Raises `ConfigError`, without showing what may be a value."""
    names = tuple(sorted({name.strip() for name in (text or "").split(",") if name.strip()}))
    if not all(_VARIABLE.fullmatch(name) for name in names):
        raise ConfigError("--secrets: give names of environment variables, as in HF_TOKEN,WANDB_API_KEY; no values")
    return names


def refuse_secrets(settings: Mapping[str, Any], secrets: Sequence[str] = ()) -> None:
    """Raise `ConfigError` where a setting holds what is, or looks like, a secret: by its own name, by its shape, or as
    the value of an environment variable that is called like one or is in `secrets`. The value is not shown."""
    values = {name: value.strip() for name, value in os.environ.items()}
    names = [name for name in values if name in secrets or _SECRET_VARIABLE.search(name)]
    known = {name: values[name] for name in names if len(values[name]) >= _SHORTEST}
    for field, text in _texts("", settings):
        why = [f"the value of {name}" for name, value in known.items() if value in text]
        why += [shape for shape, pattern in _SECRET_SHAPES.items() if pattern.search(text)]
        if text and _SECRET_NAME.search(field.rpartition(".")[2]):
            why.append("by its name")
        if why:
            raise ConfigError(
                f"{field}: what looks like a secret ({why[0]}) is not allowed in a submitted job, which others can "
                "read; put it into an environment variable of the cluster's nodes"
            )


def _texts(field: str, value: Any) -> Iterator[tuple[str, str]]:
    """All texts in plain data, by dotted field."""
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, Mapping):
        for key, child in value.items():
            yield from _texts(f"{field}.{key}" if field else str(key), child)
    elif isinstance(value, list | tuple):
        for child in value:
            yield from _texts(field, child)


# -- what the nodes must have -----------------------------------------------------------------------------------------


def needed_variables(made: ExperimentConfig | Grid | Sweep, secrets: Sequence[str]) -> dict[str, str]:
    """Environment variables that the cluster's nodes must have for a recipe: name → what for."""
    needed: dict[str, str] = {}
    configs = _configs(made)
    teachers = [config.teacher for config in configs if uses_teacher(config.method, config.train)]
    if isinstance(made, Grid) and made.llm_judge is not None:
        teachers.append(made.llm_judge)
    for teacher in teachers:
        for name, purpose in backend_of(teacher).variables(teacher).items():
            needed.setdefault(name, purpose)
    if any(isinstance(config.task, BenchmarkTaskConfig) and config.task.path is None for config in configs):
        needed["QCRD_DATA"] = "the folder of the benchmarks' files, under the same path on all nodes"
    if any(config.tracking.enabled for config in configs):
        if any(config.tracking.uri is None for config in configs):
            needed["MLFLOW_TRACKING_URI"] = "MLflow's address, unless a file in the output folder will do"
        needed["MLFLOW_TRACKING_TOKEN"] = "or MLFLOW_TRACKING_USERNAME and _PASSWORD, where MLflow asks for them"
    places = [place for config in configs for place in (config.output, config.teacher.store) if place is not None]
    if any(place.startswith("s3://") for place in places):
        needed["AWS_…"] = "credentials for s3://, unless the nodes have them by an instance profile or role"
    if any(place.startswith(("gs://", "gcs://")) for place in places):
        needed["GOOGLE_APPLICATION_CREDENTIALS"] = "for gs://, unless the nodes have a service account"
    return needed | {name: "--secrets; the job ends at once without it" for name in secrets}

"""From settings to a teacher and its limits, and what can be known to be wrong before the first request.

Knows nothing about Ray or where replies are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qcrd.config import ConfigError, ExperimentConfig, TeacherConfig
from qcrd.tasks.base import Prompted
from qcrd.teacher.backends.base import Teacher
from qcrd.teacher.backends.imported import ImportedTeacher, import_identity
from qcrd.teacher.backends.openai_endpoint import OpenAITeacher, api_key
from qcrd.teacher.backends.simulated import SimulatedTeacher
from qcrd.teacher.backends.vllm_engine import VllmTeacher
from qcrd.teacher.cost import check_budget
from qcrd.teacher.limits import SharedLimits
from qcrd.teacher.requests import prompt_path, read_prompt, store_place
from qcrd.teacher.store import SampleStore, StoreError


def check_teacher(config: ExperimentConfig, task: Prompted) -> None:
    """Raise `ConfigError` for what can be known to be wrong before the first request."""
    teacher = config.teacher
    if task.ANSWER_PHRASE not in read_prompt(teacher, task):
        raise ConfigError(f"teacher.prompt: '{prompt_path(teacher, task)}' never says {task.ANSWER_PHRASE!r}")
    check_budget(teacher)
    try:
        SampleStore(store_place(config))
    except StoreError as error:
        raise ConfigError(f"teacher.store: {error}") from error
    if teacher.kind == "openai":
        api_key(teacher)
    elif teacher.kind == "imported":
        import_identity(teacher.imported)
    elif teacher.kind == "simulated" and not task.SIMULATED:
        raise ConfigError(f"teacher.kind: 'simulated' is not allowed for task {task.NAME}: its questions are not made")


def build_teacher(config: TeacherConfig, stop: Sequence[str], completions: Mapping[str, Sequence[str]]) -> Teacher:
    """The teacher that the settings name. Call it on the event loop that will use it."""
    if config.kind == "simulated":
        return SimulatedTeacher(config.simulated.error_rate)
    if config.kind == "imported":
        return ImportedTeacher(completions)
    if config.kind == "vllm":
        return VllmTeacher(config, stop)
    return OpenAITeacher(config, stop)


def make_limits(teacher: TeacherConfig, spent_usd: float) -> SharedLimits:
    return SharedLimits(
        teacher.requests_per_minute, teacher.tokens_per_minute, teacher.budget_usd, spent_usd,
        patience=max(10, teacher.concurrency),
    )  # fmt: skip

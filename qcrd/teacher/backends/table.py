"""The table of teachers: one entry a kind. A new kind is a file, its entry here, and its settings (config/teacher.py).

Importing it loads no client and no engine: each backend does so when it is built.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qcrd.config import TeacherSettings
from qcrd.teacher.backends import imported, openai_endpoint, simulated, vllm_engine
from qcrd.teacher.backends.base import Backend, Teacher

BACKENDS: tuple[Backend[Any], ...] = (
    openai_endpoint.BACKEND, vllm_engine.BACKEND, simulated.BACKEND, imported.BACKEND,
)  # fmt: skip
_BY_SETTINGS: dict[type[TeacherSettings], Backend[Any]] = {backend.settings: backend for backend in BACKENDS}


def backend_of(teacher: TeacherSettings) -> Backend[Any]:
    """The entry of a teacher's kind."""
    return _BY_SETTINGS[type(teacher)]


def build_teacher(teacher: TeacherSettings, stop: Sequence[str], completions: Mapping[str, Sequence[str]]) -> Teacher:
    """The teacher that the settings name. Call it on the event loop that will use it."""
    return backend_of(teacher).build(teacher, stop, completions)


def any_simulated(teachers: Iterable[TeacherSettings]) -> bool:
    """Whether no language model was asked by one of these teachers: then no number says anything."""
    return any(backend_of(teacher).simulated for teacher in teachers)

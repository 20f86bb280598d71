"""What can be known to be wrong before the first request. Knows nothing about Ray."""

from __future__ import annotations

from qcrd.config import ConfigError
from qcrd.teacher.backends.table import backend_of
from qcrd.teacher.prices import check_budget
from qcrd.teacher.requests import SampleSource
from qcrd.teacher.store import SampleStore
from qcrd.teacher.store_format import StoreError


def check_teacher(source: SampleSource) -> None:
    """Raise `ConfigError` for what can be known to be wrong before the first request."""
    teacher, prompts = source.teacher, source.prompts
    if prompts.answer_phrase not in prompts.template:
        raise ConfigError(f"teacher.prompt: '{prompts.path}' never says {prompts.answer_phrase!r}")
    check_budget(teacher)
    try:
        SampleStore(source.store)
    except StoreError as error:
        raise ConfigError(f"teacher.store: {error}") from error
    backend_of(teacher).check(teacher, prompts)

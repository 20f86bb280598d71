"""The first call of a job, made before any actor starts: a wrong key, an unknown model or a dead endpoint is one clear
error then, and whether the server gives several choices a call is known. Its replies are kept like all others.

Knows nothing about Ray.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qcrd.config import ConfigError, OpenAITeacherConfig, TeacherSettings
from qcrd.teacher.asking import Asker, Leases, Stopped
from qcrd.teacher.backends.base import Answer, TeacherError
from qcrd.teacher.backends.table import backend_of, build_teacher
from qcrd.teacher.limits import AttemptReport, Grant, Need, make_limits
from qcrd.teacher.prices import Price
from qcrd.teacher.prompts import Prompts
from qcrd.teacher.requests import Wanted, build_call, split_calls
from qcrd.teacher.store import SampleStore
from qcrd.teacher.store_writer import StoreWriter

MEMORY = "endpoints.json"
ATTEMPTS = 3
QUESTIONS = 3
"""Where the endpoint refuses this many different questions, it is not the question."""


def samples_per_request(teacher: TeacherSettings, store: SampleStore) -> int | None:
    """n: as it is set, or as an earlier job found out; None where nobody knows yet."""
    backend = backend_of(teacher)
    endpoint = backend.endpoint(teacher)
    count = backend.samples_per_request(teacher)
    if count is not None or endpoint is None:
        return count
    honours_n = json.loads(store.read_text(MEMORY) or "{}").get(_name(endpoint))
    return None if honours_n is None else teacher.num_samples if honours_n else 1


def remember(endpoint: OpenAITeacherConfig, store: SampleStore, honours_n: bool) -> None:
    """Note beside the store's parts whether this endpoint gives several choices a call."""
    known, name = json.loads(store.read_text(MEMORY) or "{}"), _name(endpoint)
    if known.get(name) != honours_n:
        store.write_text(MEMORY, json.dumps({**known, name: honours_n}, indent=1, sort_keys=True) + "\n")


def _name(endpoint: OpenAITeacherConfig) -> str:
    return f"{endpoint.base_url or 'OpenAI'} {endpoint.model} {endpoint.api}"


@dataclass(frozen=True)
class Probed:
    """n for the calls that follow, which samples the first call settled (`count` of question `row` from `first`), and
    dollars at most that it cost: what its answer said, and `unpriced`, of attempts that said nothing."""

    samples_per_request: int
    row: int = 0
    first: int = 0
    count: int = 0
    usd: float = 0.0
    unpriced: float = 0.0


def probe(
    teacher: OpenAITeacherConfig, prompts: Prompts, wanted: Wanted, missing: np.ndarray, store: SampleStore,
    spent_usd: float, price: Price | None, is_proven: bool,
) -> Probed:  # fmt: skip
    """Make the first call that is missing.

    `is_proven`: the endpoint has answered some of these samples before, so where it refuses a question it is the
    question's fault. Raises `ConfigError` for what the settings have wrong, `Stopped` where the endpoint does not
    answer or the budget does not suffice.
    """
    n = samples_per_request(teacher, store)
    calls = split_calls(missing, teacher.num_samples if n is None else n)
    return asyncio.run(_probe(teacher, prompts, wanted, calls, store, spent_usd, price, is_proven, n))


async def _probe(
    config: OpenAITeacherConfig, prompts: Prompts, wanted: Wanted, calls: np.ndarray, store: SampleStore,
    spent_usd: float, price: Price | None, is_proven: bool, n: int | None,
) -> Probed:  # fmt: skip
    config = config.model_copy(update={"max_attempts": min(ATTEMPTS, config.max_attempts)})
    limits = make_limits(config, spent_usd)

    async def lease(needs: Sequence[Need], reports: Sequence[AttemptReport]) -> Grant:
        return limits.lease(needs, reports)

    teacher = build_teacher(config, prompts.stop, {})
    try:
        with StoreWriter(store.place, config.flush_seconds) as writer:
            leases = Leases(lease)
            asker = Asker(config, teacher, writer, leases, 1, price)
            refused: TeacherError | None = None
            for row, first, count in calls[:QUESTIONS].tolist():
                for samples in sorted({count, 1}, reverse=True):
                    call = build_call(config, prompts, wanted.questions[row], first, samples)
                    try:
                        answer, attempts = await asker.answer(call)
                    except TeacherError as error:
                        refused = _refused(config, error, samples)
                        continue
                    asked = asker.keep(answer, attempts, wanted.keys_of(row, first, samples))
                    learnt = _learnt(config, store, answer, count, samples, n)
                    await leases.flush()
                    settled = asked.replies + asked.failures
                    return Probed(learnt, row, first, settled, limits.totals.usd, limits.unpriced)
            assert refused is not None
            if is_proven:
                await leases.flush()
                return Probed(n or 1, usd=limits.totals.usd, unpriced=limits.unpriced)
            raise ConfigError(f"teacher: the endpoint refuses these requests: {refused}")
    finally:
        await teacher.close()


def _refused(teacher: OpenAITeacherConfig, error: TeacherError, samples: int) -> TeacherError:
    """The error where the question, or `n`, may be to blame; raises what the settings, or the endpoint, are to blame
    for."""
    if error.status in (401, 403):
        where = f"file {teacher.api_key_file!r}" if teacher.api_key_file else f"variable {teacher.api_key_env!r}"
        raise ConfigError(f"teacher.api_key_env: the endpoint refuses the key of {where}: {error}")
    if error.status == 404:
        raise ConfigError(f"teacher.model: {teacher.model!r} is not known at {teacher.base_url or 'OpenAI'}: {error}")
    may_be_n = samples > 1 and error.status not in (None, 429)  # some servers fail where `n` is asked for
    if error.of_endpoint and not may_be_n:
        raise Stopped(f"the endpoint {teacher.base_url or 'OpenAI'} does not answer: {error}")
    return error


def _learnt(
    teacher: OpenAITeacherConfig, store: SampleStore, answer: Answer, wished: int, samples: int, n: int | None
) -> int:
    if n is not None:
        return n
    if wished == 1:  # a single sample was missing: nothing was learnt, and there is no hurry to
        return 1
    honours_n = samples > 1 and len(answer.records) > 1
    remember(teacher, store, honours_n)
    return teacher.num_samples if honours_n else 1

"""Which samples an experiment wants, what identifies each, and which of them the store lacks.

The identity of a sample is the task's name, the question's text, the prompt, the sample index and what changes a
reply: for a real teacher model, api, temperature, top_p, max_tokens, stop, seed, extra fields. Not in it are `base_url`
(one model served from two addresses is one model; give models that differ different names), `num_samples` (so m = 1
and m = 5 share calls) and everything in `config.TEACHER_MEANS`. Knows nothing about Ray or how a teacher is reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qcrd.config import ConfigError, ExperimentConfig, TeacherConfig
from qcrd.records import SEPARATOR, Question
from qcrd.seeding import stable_seed
from qcrd.storage.fingerprints import digest_of, folder_digest
from qcrd.storage.output import Storage
from qcrd.tasks.base import Prompted
from qcrd.teacher.backends.base import Call
from qcrd.teacher.backends.imported import import_identity
from qcrd.teacher.store import KEY_TYPE, StoreIndex, question_key, sample_key

_ANY_QUESTION = f"QUESTION{SEPARATOR}QUESTION"
"""Stands for the question where the prompt is identified; tasks whose questions have two texts read it too."""


def prompt_path(config: TeacherConfig, task: Prompted) -> Path:
    """The few-shot prompt: `teacher.prompt`, else the task's own."""
    return Path(config.prompt) if config.prompt else task.PROMPT


def read_prompt(config: TeacherConfig, task: Prompted) -> str:
    """The few-shot examples as text. Raises `ConfigError` where the file is missing, or no text."""
    path = prompt_path(config, task)
    if not path.is_file():
        raise ConfigError(f"teacher.prompt: '{path}' does not exist; give a file of few-shot examples")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"teacher.prompt: '{path}' is not UTF-8: {error}") from None


def model_settings(config: TeacherConfig, task: Prompted) -> dict[str, Any]:
    """Everything but prompt, question and index that changes a reply."""
    if config.kind == "imported":
        return {"kind": "imported", **import_identity(config.imported)}
    if config.kind == "simulated":
        return {"kind": "simulated", "error_rate": config.simulated.error_rate, "seed": config.seed}
    settings = {
        "kind": config.kind,
        "model": config.model,
        "api": config.api,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": config.max_tokens,
        "stop": list(task.STOP),
        "seed": config.seed,
    }
    if config.kind == "vllm":
        settings |= {"revision": config.vllm.revision, "dtype": config.vllm.dtype}
        if Path(config.model).is_dir():
            settings["model"] = folder_digest(Path(config.model))
    return settings | ({"extra_body": config.extra_body} if config.extra_body else {})


def asked_splits(config: TeacherConfig) -> list[str]:
    """`teacher.splits` in the one order in which they are asked, each once."""
    return [split for split in ("train", "validation", "test") if split in config.splits]


def store_place(config: ExperimentConfig) -> str:
    """Folder or URL of the sample store."""
    return config.teacher.store or f"{Storage.of(config.output).place}/store"


@dataclass(frozen=True)
class Wanted:
    """The samples an experiment wants. `keys`: KEY_TYPE, (questions that are asked, teacher.num_samples); `identity` is
    the digest of all in them but question and index."""

    identity: str
    questions: Sequence[Question]
    keys: np.ndarray

    @property
    def total(self) -> int:
        return self.keys.size

    def keys_of(self, row: int, first: int, count: int) -> list[bytes]:
        """The keys of samples `first` to `first + count - 1` of a question."""
        # numpy drops trailing zero bytes of what it hands out
        return [self.keys[row, column].ljust(KEY_TYPE.itemsize, b"\0") for column in range(first, first + count)]

    def distinct(self) -> np.ndarray:
        """Which samples are the first with their key (bool, shape of `keys`)."""
        _, first = np.unique(self.keys, return_index=True)
        mask = np.zeros(self.keys.size, dtype=bool)
        mask[first] = True
        return mask.reshape(self.keys.shape)


def wanted_samples(config: ExperimentConfig, task: Prompted, questions: Sequence[Question]) -> Wanted:
    """`teacher.num_samples` samples of each question of `teacher.splits`: the training questions first, each split in
    the questions' order.

    Two questions with one text have the same keys. Raises `ConfigError` for a missing prompt or imported file.
    """
    few_shot = read_prompt(config.teacher, task)
    identity = {
        "task": task.NAME,
        "prompt": task.format_prompt(few_shot, _ANY_QUESTION),
        "model": model_settings(config.teacher, task),
    }
    digest = digest_of(identity)
    asked = [question for split in asked_splits(config.teacher) for question in questions if question.split == split]
    count = config.teacher.num_samples
    keys = bytearray()
    for question in asked:
        of_question = question_key(digest, question.text)
        for index in range(count):
            keys += sample_key(of_question, index)
    return Wanted(digest, asked, np.frombuffer(bytes(keys), KEY_TYPE).reshape(len(asked), count))


def missing_mask(wanted: Wanted, index: StoreIndex, retry_errors: bool) -> np.ndarray:
    """Which samples have to be asked for (bool, shape of `wanted.keys`): those without a record, and with
    `retry_errors` also those that failed. Of samples with one key only the first is asked for."""
    missing = ~index.answered(wanted.keys) & wanted.distinct()
    return missing if retry_errors else missing & ~index.failed(wanted.keys)


def split_calls(missing: np.ndarray, samples_per_request: int) -> np.ndarray:
    """Calls for the missing samples: int32 (calls, 3), of question row, first column and number of samples.

    One sample a call: in order of sample index, so that a job that stops early has whole sets for a smaller m.
    Several: question by question; a call asks for up to `samples_per_request` neighbouring samples.
    """
    if samples_per_request == 1:
        columns, rows = np.nonzero(missing.T)
        return np.stack([rows, columns, np.ones_like(rows)], axis=1).astype(np.int32)
    calls: list[tuple[int, int, int]] = []
    for row in np.flatnonzero(missing.any(axis=1)).tolist():
        columns = np.flatnonzero(missing[row])
        for run in np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1):
            for start in range(0, len(run), samples_per_request):
                part = run[start : start + samples_per_request]
                calls.append((row, int(part[0]), len(part)))
    return np.array(calls, dtype=np.int32).reshape(-1, 3)


def build_call(
    config: TeacherConfig, task: Prompted, few_shot: str, question: Question, first: int, count: int
) -> Call:
    """The call for samples `first` to `first + count - 1` of a question."""
    indices = tuple(range(first, first + count))
    return Call(
        question_id=question.id,
        indices=indices,
        prompt=task.format_prompt(few_shot, question.text),
        label=question.label,
        facts=question.facts,
        seeds=tuple(stable_seed(config.seed, question.id, index) % 2**31 for index in indices),
    )

"""Which samples an experiment wants, what identifies each, and which of them the store lacks.

The identity of a sample is the task's name, the question's text, the prompt, the sample index and what changes a
reply, as its backend says: for a real teacher model, api, temperature, top_p, max_tokens, stop, seed, extra fields. Not
in it are `base_url` (one model served from two addresses is one model; give models that differ different names),
`num_samples` (so m = 1 and m = 5 share calls) and how replies are got (tests/teacher/test_requests.py lists those
settings). Knows nothing about Ray or how a teacher is reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qcrd.config import TeacherSettings
from qcrd.records import SEPARATOR, Question
from qcrd.seeding import stable_seed
from qcrd.storage.fingerprints import digest_of
from qcrd.storage.output import Storage
from qcrd.teacher.backends.base import Call
from qcrd.teacher.backends.table import backend_of
from qcrd.teacher.prompts import Prompts
from qcrd.teacher.store import StoreIndex
from qcrd.teacher.store_format import KEY_TYPE, question_key, sample_key

_ANY_QUESTION = f"QUESTION{SEPARATOR}QUESTION"
"""Stands for the question where the prompt is identified; tasks whose questions have two texts read it too."""


def model_settings(teacher: TeacherSettings, stop: Sequence[str]) -> dict[str, Any]:
    """Everything but prompt, question and index that changes a reply."""
    return backend_of(teacher).identity(teacher, stop)


def asked_splits(teacher: TeacherSettings) -> list[str]:
    """`teacher.splits` in the one order in which they are asked, each once."""
    return [split for split in ("train", "validation", "test") if split in teacher.splits]


def store_place(teacher: TeacherSettings, storage: Storage) -> str:
    """Folder or URL of the sample store: `teacher.store`, else beside what else is written."""
    return teacher.store or f"{storage.place}/store"


@dataclass(frozen=True)
class SampleSource:
    """Where samples come from: who is asked, in which words, and the store (folder or URL) that has what was said."""

    teacher: TeacherSettings
    prompts: Prompts
    store: str


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


def wanted_samples(teacher: TeacherSettings, prompts: Prompts, questions: Sequence[Question]) -> Wanted:
    """`teacher.num_samples` samples of each question of `teacher.splits`: the training questions first, each split in
    the questions' order.

    Two questions with one text have the same keys. Raises `ConfigError` for a missing imported file.
    """
    identity = {
        "task": prompts.name,
        "prompt": prompts.prompt(_ANY_QUESTION),
        "model": model_settings(teacher, prompts.stop),
    }
    digest = digest_of(identity)
    asked = [question for split in asked_splits(teacher) for question in questions if question.split == split]
    count = teacher.num_samples
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


def build_call(teacher: TeacherSettings, prompts: Prompts, question: Question, first: int, count: int) -> Call:
    """The call for samples `first` to `first + count - 1` of a question."""
    indices = tuple(range(first, first + count))
    return Call(
        question_id=question.id,
        indices=indices,
        prompt=prompts.prompt(question.text),
        label=question.label,
        facts=question.facts,
        seeds=tuple(stable_seed(teacher.seed, question.id, index) % 2**31 for index in indices),
    )

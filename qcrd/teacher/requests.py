"""Which requests an experiment makes, what identifies each, and how many the store does not answer yet.

The identity of a sample is the task's name, the question's text, the prompt, the sample index and what changes a
reply: for a real teacher model, api, temperature, top_p, max_tokens, stop, seed. Not in it are `base_url` (one model
served from two addresses is one model; give models that differ different names), `num_samples` (so m = 1 and m = 5
share calls), concurrency, timeouts and keys. Knows nothing about Ray or about how a teacher is reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qcrd.artifacts import digest_of
from qcrd.config import ConfigError, ExperimentConfig, TeacherConfig
from qcrd.records import Question
from qcrd.seeding import stable_seed
from qcrd.tasks.base import Task
from qcrd.teacher.base import SampleRequest
from qcrd.teacher.imported import import_identity
from qcrd.teacher.store import SampleStore, sample_key


def prompt_path(config: TeacherConfig, task: Task) -> Path:
    """The few-shot prompt: `teacher.prompt`, else the task's own."""
    return Path(config.prompt) if config.prompt else task.PROMPT


def read_prompt(config: TeacherConfig, task: Task) -> str:
    """The few-shot examples as text. Raises `ConfigError` where the file is missing."""
    path = prompt_path(config, task)
    if not path.is_file():
        raise ConfigError(f"teacher.prompt: '{path}' does not exist; give a file of few-shot examples")
    return path.read_text(encoding="utf-8")


def model_settings(config: TeacherConfig, task: Task) -> dict[str, Any]:
    """Everything but prompt, question and index that changes a reply."""
    if config.kind == "imported":
        return {"kind": "imported", **import_identity(config.imported)}
    if config.kind == "simulated":
        return {"kind": "simulated", "error_rate": config.simulated.error_rate, "seed": config.seed}
    return {
        "kind": config.kind,
        "model": config.model,
        "api": config.api,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": config.max_tokens,
        "stop": list(task.STOP),
        "seed": config.seed,
    }


def build_requests(config: ExperimentConfig, task: Task, questions: Sequence[Question]) -> list[SampleRequest]:
    """`teacher.num_samples` requests for each training question, in (question, index) order.

    Two questions with one text have the same keys. Raises `ConfigError` for a missing prompt or imported file.
    """
    teacher = config.teacher
    few_shot = read_prompt(teacher, task)
    settings = model_settings(teacher, task)
    requests: list[SampleRequest] = []
    for question in questions:
        if question.split != "train":
            continue
        prompt = task.format_prompt(few_shot, question.text)
        prompt_digest = digest_of(prompt)
        for index in range(teacher.num_samples):
            request = SampleRequest(
                key=sample_key(task.NAME, question.text, prompt_digest, settings, index),
                question_id=question.id,
                index=index,
                prompt=prompt,
                question=question.text,
                label=question.label,
                facts=question.facts,
                seed=stable_seed(teacher.seed, question.id, index) % 2**31,
            )
            requests.append(request)
    return requests


def missing_requests(config: ExperimentConfig, task: Task, questions: Sequence[Question], store_folder: Path) -> int:
    """How many different requests `sample` would make now. Only those of a real teacher cost money."""
    keys = {request.key for request in build_requests(config, task, questions)}
    return len(keys - SampleStore(store_folder).replies(keys))

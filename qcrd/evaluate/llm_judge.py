"""Which of two students' rationales an LLM judge finds better (the paper's Table 7).

It is asked as the teacher is: by the same sampling, through the same limits, into the same sample store, so a reply
that was paid for is never bought again. A sample's identity holds the LLM judge's model and the whole request, with the
criterion in it. What is asked and how it is read is in llm_judge_prompt.py; this module knows nothing about grids.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qcrd.config import ConfigError, EvaluationConfig, LanguageModelSettings, PaidSettings, TeacherSettings
from qcrd.config.grid import Comparison, as_llm_judge
from qcrd.evaluate.llm_judge_prompt import (
    SIMULATED_NAME,
    ComparisonResult,
    JudgedPair,
    Pair,
    judged_pair,
    llm_judge_prompts,
    request_text,
    simulated_reply,
)
from qcrd.records import Question, Sample, read_rows, write_rows
from qcrd.storage.atomic import whole_or_absent, write_atomically
from qcrd.storage.fingerprints import digest_of
from qcrd.tasks.base import Task
from qcrd.teacher.asking import Stopped
from qcrd.teacher.backends.table import BACKENDS, backend_of
from qcrd.teacher.check import check_teacher
from qcrd.teacher.prices import read_price, spent_usd
from qcrd.teacher.requests import SampleSource
from qcrd.teacher.sample import OnProgress, sample
from qcrd.teacher.tokens import prompt_token_counter

ORDERS = 2


@dataclass(frozen=True)
class LlmJudge:
    """Who compares: settings as a teacher's, the task whose rationales are compared, and the sample store of the
    students' teacher, which is used where the settings name no other."""

    settings: TeacherSettings
    task: Task
    store: str

    @property
    def simulated(self) -> bool:
        return backend_of(self.settings).simulated

    def source(self) -> SampleSource:
        """One sample a request. Raises `ConfigError` where the prompt's file is missing."""
        asked = self.settings.model_copy(update={"num_samples": 1, "splits": ("train",)})
        return SampleSource(asked, llm_judge_prompts(asked.prompt), asked.store or self.store)


def check_llm_judge(judge: LlmJudge) -> None:
    """Raise `ConfigError` for what can be known to be wrong before the first request to an LLM judge.

    Its settings are a teacher's; errors name them as the LLM judge's (`llm_judge.api_key_env`).
    """
    backend = backend_of(judge.settings)
    if backend.completions is not None:
        others = ", ".join(other.kind for other in BACKENDS if other.completions is None)
        raise ConfigError(f"llm_judge.kind: {backend.kind!r} is not allowed; these are: {others}")
    if not backend.simulated:
        with as_llm_judge():
            source = judge.source()
            check_teacher(source)
        request_text(source.prompts.template, Question("", "", "", "", ""), "", "")


def comparison_requests(judge: TeacherSettings, evaluation: EvaluationConfig, test_questions: int) -> int:
    """At most so many requests does one comparison make of students that are evaluated as `evaluation` says; for a
    plan, before there are any rationales. What the sample store has already is not taken off."""
    if backend_of(judge).simulated:
        return 0
    return ORDERS * min(evaluation.explained_questions, evaluation.test_limit or test_questions, test_questions)


def comparison_usd(
    judge: TeacherSettings, requests: int, max_target_tokens: int, questions: Sequence[Question]
) -> float | None:
    """What these requests cost at most, in US dollars, as far as bytes tell tokens: rationales of `max_target_tokens`
    and replies of full length, and the mean of the test questions among `questions`. None where the price is not
    known."""
    price, test = read_price(judge), [question for question in questions if question.split == "test"]
    if not isinstance(judge, PaidSettings) or price is None or not test:
        return None
    counter, template = prompt_token_counter(judge)[0], llm_judge_prompts(judge.prompt).template
    shown = sum(counter.many([request_text(template, question, "", "") for question in test])) / len(test)
    prompt = requests * (shown + 2 * max_target_tokens)
    return spent_usd(price, round(prompt), requests * judge.max_tokens, judge.mode == "batch")


def compare_rationales(
    judge: LlmJudge, comparison: Comparison, pairs: Sequence[Pair], out: Path, on_progress: OnProgress,
    retry_errors: bool = False,
) -> ComparisonResult:  # fmt: skip
    """Ask about each pair (see `pairs_of`) in both orders.

    Writes the pairs' verdicts and replies to the Parquet file `out`, and counts, tokens and price beside it (`.json`).
    Ray must be running where a reply is missing. A request that failed for good leaves its pair unparsed;
    `retry_errors` asks it again. `llm_judge.budget_usd` holds for the requests of this one comparison. Raises
    `Stopped`, with what was answered kept, where the budget or the endpoint stops it.
    """
    if judge.simulated:
        name, summary, replies = SIMULATED_NAME, {}, _simulated(judge.task, pairs)
    else:
        assert isinstance(judge.settings, LanguageModelSettings)  # `check_llm_judge` refuses others
        name = judge.settings.model
        with as_llm_judge(Stopped):
            summary, replies = _replies(judge.source(), pairs, on_progress, retry_errors)
    rows = [judged_pair(pair, *both) for pair, both in zip(pairs, replies, strict=True)]
    read = [row for row in rows if row.verdict is not None]
    result = ComparisonResult(
        comparison.column, comparison.first, comparison.second, comparison.temperature,
        items={row.question_id: str(row.verdict) for row in read},
        agreement=sum(row.forward == row.backward for row in read) / max(len(read), 1),
        unparsed=len(rows) - len(read),
        judge=name,
    )  # fmt: skip
    with whole_or_absent(out) as written:
        write_rows(written, JudgedPair, rows)
    about = {"judge": name, "counts": result.counts(), "unparsed": result.unparsed, "agreement": result.agreement}
    write_atomically(out.with_suffix(".json"), json.dumps(about | summary, indent=2) + "\n")
    return result


def _simulated(task: Task, pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    return [
        (
            simulated_reply(task, pair.question, pair.first, pair.second),
            simulated_reply(task, pair.question, pair.second, pair.first),
        )
        for pair in pairs
    ]


def requests_of(template: str, pairs: Sequence[Pair]) -> list[tuple[Question, Question]]:
    """The requests of each pair, the first rationale as A and as B, as questions that the sampling takes. The id seeds
    a request, so it says nothing but what the prompt says."""

    def request(question: Question, a: str, b: str) -> Question:
        text = request_text(template, question, a, b)
        return Question(digest_of(text)[:32], "train", text, label="", answer="")

    return [
        (request(pair.question, pair.first, pair.second), request(pair.question, pair.second, pair.first))
        for pair in pairs
    ]


def _replies(
    source: SampleSource, pairs: Sequence[Pair], on_progress: OnProgress, retry_errors: bool
) -> tuple[dict[str, object], list[tuple[str, str]]]:
    """What the sampling says of itself, and the replies to each pair in both orders; "" where there is none."""
    asked = requests_of(source.prompts.template, pairs)
    distinct = {request.id: request for both in asked for request in both}
    with tempfile.TemporaryDirectory(prefix="qcrd-judge-") as folder:
        path = Path(folder) / "samples.parquet"
        summary = sample(source, list(distinct.values()), path, on_progress, retry_errors)
        replies = {row.question_id: row.text for row in read_rows(path, Sample)}
    return summary, [(replies[forward.id], replies[backward.id]) for forward, backward in asked]

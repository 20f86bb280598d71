"""Which of two students' rationales an LLM judge finds better (the paper's Table 7).

The judge is asked as the teacher is: by the same sampling, through the same limits, into the same sample store, so a
reply that was paid for is never bought again. A sample's identity holds the judge's model and the whole request, with
the criterion in it. What is asked and how it is read is in verdicts.py; this module knows nothing about grids.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from qcrd.config import ConfigError, ExperimentConfig, TeacherConfig
from qcrd.config.grid import Comparison, as_llm_judge
from qcrd.evaluate import verdicts
from qcrd.evaluate.verdicts import ComparisonResult, JudgedPair, Pair
from qcrd.records import Explanation, Question, Sample, read_rows, write_rows
from qcrd.storage.atomic import whole_or_absent, write_atomically
from qcrd.storage.fingerprints import digest_of
from qcrd.tasks import get_task
from qcrd.teacher.asking import Stopped
from qcrd.teacher.backends.build import check_teacher
from qcrd.teacher.cost import prompt_token_counter, read_price, spent_usd
from qcrd.teacher.requests import read_prompt
from qcrd.teacher.sample import OnProgress, sample

ORDERS = 2


def check_llm_judge(config: ExperimentConfig, judge: TeacherConfig) -> None:
    """Raise `ConfigError` for what can be known to be wrong before the first request to a judge.

    Its settings are a teacher's; errors name them as the judge's (`llm_judge.api_key_env`).
    """
    if judge.kind == "imported":
        raise ConfigError("llm_judge.kind: 'imported' is not allowed; openai, vllm and simulated are")
    if judge.kind != "simulated":
        asking = _asking(config, judge)
        with as_llm_judge():
            check_teacher(asking, verdicts)
        verdicts.judge_prompt(read_prompt(asking.teacher, verdicts), Question("", "", "", "", ""), "", "")


def comparison_requests(config: ExperimentConfig, judge: TeacherConfig) -> int:
    """At most so many requests does one comparison make of students that are trained as `config` says; for a plan,
    before there are any rationales. What the sample store has already is not taken off."""
    if judge.kind == "simulated":
        return 0
    test = get_task(config.task.name).sizes(config.task)["test"]
    return ORDERS * min(config.evaluation.explained_questions, config.evaluation.test_limit or test, test)


def comparison_usd(config: ExperimentConfig, judge: TeacherConfig, questions: Sequence[Question]) -> float | None:
    """What these requests cost at most, in US dollars, as far as bytes tell tokens: rationales and replies of full
    length, and the mean of the test questions among `questions`. None where the price is not known."""
    price, test = read_price(judge), [question for question in questions if question.split == "test"]
    if price is None or not test:
        return None
    counter, template = prompt_token_counter(judge)[0], read_prompt(judge, verdicts)
    shown = sum(counter.many([verdicts.judge_prompt(template, question, "", "") for question in test])) / len(test)
    requests = comparison_requests(config, judge)
    prompt = requests * (shown + 2 * config.student.max_target_tokens)
    return spent_usd(price, round(prompt), requests * judge.max_tokens, judge.mode == "batch")


def compare_rationales(
    config: ExperimentConfig, judge: TeacherConfig, comparison: Comparison, questions: Sequence[Question],
    first: Sequence[Explanation], second: Sequence[Explanation], out: Path, on_progress: OnProgress,
    retry_errors: bool = False,
) -> ComparisonResult:  # fmt: skip
    """Ask about each test question that both students explained at the comparison's temperature, in both orders.

    `config` says which task it is and where the sample store lies. Writes the pairs' verdicts and replies to the
    Parquet file `out`, and counts, tokens and price beside it (`.json`). Ray must be running where a reply is missing.
    A request that failed for good leaves its pair unparsed; `retry_errors` asks it again. `llm_judge.budget_usd` holds for
    the requests of this one comparison. Raises `ValueError` where there is no pair, and `Stopped`, with what was
    answered kept, where the budget or the endpoint stops it.
    """
    pairs = verdicts.pairs_of(questions, first, second, comparison.temperature)
    if judge.kind == "simulated":
        name, summary, replies = verdicts.SIMULATED_NAME, {}, _simulated(config, pairs)
    else:
        name = judge.model
        with as_llm_judge(Stopped):
            summary, replies = _replies(_asking(config, judge), pairs, on_progress, retry_errors)
    rows = [verdicts.judged_pair(pair, *both) for pair, both in zip(pairs, replies, strict=True)]
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


def _asking(config: ExperimentConfig, judge: TeacherConfig) -> ExperimentConfig:
    """`config` with the judge in the teacher's place: one sample a request, in the teacher's store."""
    store = judge.store or config.teacher.store
    asked = judge.model_copy(update={"num_samples": 1, "splits": ("train",), "store": store})
    return config.model_copy(update={"teacher": asked})


def _simulated(config: ExperimentConfig, pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    task = get_task(config.task.name)
    return [
        (
            verdicts.simulated_reply(task, pair.question, pair.first, pair.second),
            verdicts.simulated_reply(task, pair.question, pair.second, pair.first),
        )
        for pair in pairs
    ]


def _replies(
    config: ExperimentConfig, pairs: Sequence[Pair], on_progress: OnProgress, retry_errors: bool
) -> tuple[dict[str, object], list[tuple[str, str]]]:
    """What the sampling says of itself, and the replies to each pair in both orders; "" where there is none."""
    template = read_prompt(config.teacher, verdicts)
    asked = [
        (
            _request(verdicts.judge_prompt(template, pair.question, pair.first, pair.second)),
            _request(verdicts.judge_prompt(template, pair.question, pair.second, pair.first)),
        )
        for pair in pairs
    ]
    distinct = {request.id: request for both in asked for request in both}
    with tempfile.TemporaryDirectory(prefix="qcrd-judge-") as folder:
        path = Path(folder) / "samples.parquet"
        summary = sample(config, verdicts, list(distinct.values()), path, on_progress, retry_errors)
        replies = {row.question_id: row.text for row in read_rows(path, Sample)}
    return summary, [(replies[forward.id], replies[backward.id]) for forward, backward in asked]


def _request(prompt: str) -> Question:
    """A request as the sampling takes it. The id seeds it, so it says nothing but what the prompt says."""
    return Question(digest_of(prompt)[:32], "train", prompt, label="", answer="")

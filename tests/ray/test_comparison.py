"""An LLM judge over real HTTP: two orders a pair, what is kept, what is asked again, and the budget."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from qcrd.config import (
    BenchmarkTaskConfig,
    ConfigError,
    EvaluationConfig,
    ImportedTeacherConfig,
    OpenAITeacherConfig,
    SimulatedTeacherConfig,
    TeacherConfig,
)
from qcrd.config.grid import Comparison
from qcrd.evaluate.llm_judge import LlmJudge, check_llm_judge, compare_rationales, comparison_requests
from qcrd.evaluate.llm_judge_prompt import PROMPT, ComparisonResult, JudgedPair, pairs_of, request_text
from qcrd.records import Explanation, Question, read_rows
from qcrd.tasks import get_task
from qcrd.teacher.asking import Stopped
from qcrd.teacher.tokens import worst_case_prompt_tokens
from tests.teacher.loopback import Reaction, Server, loopback

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_started")]
QUESTIONS = [Question(f"t{n}", "test", f"What is {n} + 3?", f"( {n} + 3 )", str(n + 3)) for n in range(6)]
TEXTS = [
    ("good 0", "bad 0"), ("bad 1", "good 1"), ("good 2", "good 2, too"), ("even 3", "even 3, too"),
    ("odd 4", "odd 4, too"), ("good 5", "broken 5"),
]  # fmt: skip
THERE, BACK = (
    Comparison(column="c", first=a, second=b, temperature=0.7) for a, b in (("DSS", "QCRD"), ("QCRD", "DSS"))
)
FIRST, SECOND = (
    [Explanation(f"t{n}", "test", 0.7, 0, both[side], False, None) for n, both in enumerate(TEXTS)] for side in (0, 1)
)


def judge(number: int, prompt: str) -> Reaction | None:
    """Good beats bad; two good ones: the first; even: a tie; odd: no verdict. A broken one is refused where it is B."""
    a, b = re.findall(r"Explanation [AB]:\n\| (.*)\n", prompt)
    if b.startswith("broken"):
        return 400, {}, json.dumps({"error": {"message": "no"}})
    verdict = "A" if a.startswith("good") else "B" if b.startswith("good") else "tie"
    text = "I cannot say." if a.startswith("odd") else f"Because.\n\n**Verdict: {verdict}**"
    usage = {"prompt_tokens": 7, "completion_tokens": 5}
    return 200, {}, json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": usage})


def llm_judge_of(settings: TeacherConfig, folder: Path, task: str = "arithmetic") -> LlmJudge:
    return LlmJudge(settings, get_task(task), str(folder / "store"))


def compare(server: Server, folder: Path, comparison: Comparison = THERE, **changes: Any) -> ComparisonResult:
    retry = changes.pop("retry_errors", False)
    asked = OpenAITeacherConfig.model_validate(
        {"model": "m", "base_url": server.base_url, "temperature": 0, "concurrency": 4} | changes
    )
    pairs = pairs_of(QUESTIONS, *((FIRST, SECOND) if comparison is THERE else (SECOND, FIRST)), 0.7)
    judge = llm_judge_of(asked, folder)
    return compare_rationales(judge, comparison, pairs, folder / "out.parquet", lambda *how: None, retry)


def test_both_orders_are_asked_once_and_read_together(tmp_path: Path):
    with loopback(judge) as server:
        found = compare(server, tmp_path)
        assert server.asked.total() == 12  # a judge gives one sample, whatever teacher.num_samples is for a teacher
        assert found == ComparisonResult(
            "c", "DSS", "QCRD", 0.7, {"t0": "first", "t1": "second", "t2": "tie", "t3": "tie"}, 0.75, 2, "m"
        )
        assert found.counts() == (1, 2, 1)
        bodies = json.dumps(server.bodies)
        assert "DSS" not in bodies and "QCRD" not in bodies and "t0" not in bodies
        rows = {row.question_id: row for row in read_rows(tmp_path / "out.parquet", JudgedPair)}
        assert (rows["t2"].verdict, rows["t2"].forward, rows["t2"].backward) == ("tie", "first", "second")
        assert (rows["t5"].verdict, rows["t5"].forward, rows["t5"].backward) == (None, None, "first")
        assert rows["t4"].forward_reply == "I cannot say." and rows["t5"].forward_reply == ""
        about = json.loads((tmp_path / "out.json").read_text())
        assert about["judge"] == "m" and about["counts"] == [1, 2, 1] and about["prompt_tokens"] == 7 * 11

        assert compare(server, tmp_path) == found and server.asked.total() == 12
        mirrored = compare(server, tmp_path, BACK)  # the same requests
        assert mirrored.counts() == (1, 2, 1) and mirrored.items["t0"] == "second" and server.asked.total() == 12
        compare(server, tmp_path, retry_errors=True)
        assert server.asked.total() == 14  # the one that was refused: by the job's first call, and by its actor
        (tmp_path / "criterion.txt").write_text(
            "Shorter is better. {question}{answer}\nExplanation A:\n{a}\nExplanation B:\n{b}\n"
        )
        compare(server, tmp_path, prompt=str(tmp_path / "criterion.txt"))
        assert server.asked.total() == 26
        compare(server, tmp_path, model="other")
        assert server.asked.total() == 38


def test_a_budget_stops_the_judge_and_what_was_paid_is_kept(tmp_path: Path):
    price = {
        "model": "m", "prompt_usd_per_million": 1000000, "completion_usd_per_million": 0, "batch_factor": None,
        "as_of": "2026-01-01", "source": "test",
    }  # fmt: skip
    prices = tmp_path / "prices.json"
    prices.write_text(json.dumps([price]))  # a dollar a prompt token, of which the server counts 7
    longest = max(request_text(PROMPT.read_text(), QUESTIONS[n], a, b) for n, (a, b) in enumerate(TEXTS))
    reserved = worst_case_prompt_tokens(longest) + 20
    with loopback(judge) as server:
        with pytest.raises(Stopped, match=r"llm_judge\.budget_usd: "):
            compare(server, tmp_path, prices=str(prices), budget_usd=reserved + 7 * 4)
        paid = server.asked.total()
        assert 4 <= paid < 12 and 7 * paid <= reserved + 7 * 4 and not (tmp_path / "out.parquet").exists()
        assert compare(server, tmp_path, prices=str(prices)).counts() == (1, 2, 1)
        assert server.asked.total() == 12
        assert json.loads((tmp_path / "out.json").read_text())["usd"] == 7 * 11


def test_the_simulated_judge_asks_nobody(tmp_path: Path):
    told = [Explanation(f"t{n}", "test", 0.7, 0, f"it is {n + 3}", False, None) for n in range(6)]
    wrong = [Explanation(f"t{n}", "test", 0.7, 0, f"it is {n + n % 2 + 3}", False, None) for n in range(6)]
    simulated = llm_judge_of(SimulatedTeacherConfig(), tmp_path)
    pairs = pairs_of(QUESTIONS, told, wrong, 0.7)
    found = compare_rationales(simulated, THERE, pairs, tmp_path / "o.parquet", lambda *how: None)
    assert found.counts() == (3, 3, 0) and found.agreement == 1.0 and found.unparsed == 0
    assert found.judge.startswith("simulated") and not (tmp_path / "store").exists()
    check_llm_judge(simulated)
    assert comparison_requests(simulated.settings, EvaluationConfig(), 300) == 0


def test_a_plan_counts_requests_and_a_bad_judge_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KEY", "x")
    asked = OpenAITeacherConfig(api_key_env="KEY")
    test, few = get_task("svamp").sizes(BenchmarkTaskConfig(name="svamp"))["test"], EvaluationConfig(test_limit=20)
    assert comparison_requests(asked, EvaluationConfig(), test) == 100 and comparison_requests(asked, few, test) == 40
    check_llm_judge(llm_judge_of(asked, tmp_path, "svamp"))
    with pytest.raises(ConfigError, match=r"^llm_judge\.api_key_env: the environment variable 'NO_KEY' is not set"):
        check_llm_judge(llm_judge_of(OpenAITeacherConfig(api_key_env="NO_KEY"), tmp_path))
    with pytest.raises(ConfigError, match=r"^llm_judge\.kind: 'imported' is not allowed"):
        check_llm_judge(llm_judge_of(ImportedTeacherConfig(path="x"), tmp_path))
    (tmp_path / "prompt.txt").write_text("Verdict: {a} {b}")
    with pytest.raises(ConfigError, match=r"^llm_judge\.prompt: the file must have each of the fields"):
        own = OpenAITeacherConfig(api_key_env="KEY", prompt=str(tmp_path / "prompt.txt"))
        check_llm_judge(llm_judge_of(own, tmp_path))

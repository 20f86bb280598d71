"""The keys by which paid samples are known are those of commit 989d59e, for every kind of teacher and the LLM judge.

They never change: a key that moves is a sample that is paid for twice. sample_keys.json says in neutral words what was
asked; `teacher_of` alone says how the settings are spelt today.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import qcrd.tasks
from qcrd.config import ExperimentConfig, TeacherConfig
from qcrd.evaluate import llm_judge
from qcrd.evaluate.llm_judge import LlmJudge
from qcrd.evaluate.llm_judge_prompt import pairs_of
from qcrd.records import Explanation, Question
from qcrd.tasks import get_task
from qcrd.teacher.prompts import Prompts, task_prompts
from qcrd.teacher.requests import build_call, wanted_samples

GOLDEN = json.loads((Path(__file__).parent / "sample_keys.json").read_text(encoding="utf-8"))
Asked = tuple[TeacherConfig, Prompts, Question]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the constant files: prompts, a model, what somebody has paid for."""
    folder = tmp_path_factory.mktemp("golden")
    for name, text in GOLDEN["files"].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return folder


def teacher_of(words: dict[str, Any], root: Path) -> dict[str, Any]:
    """Settings of a teacher from the neutral words."""
    teacher = dict(words)
    if isinstance(teacher.get("model"), dict):
        teacher["model"] = str(root / teacher["model"]["folder"])
    if "prompt" in teacher:
        teacher["prompt"] = str(root / teacher["prompt"])
    file = teacher.pop("file", {})
    paths = {name: str(root / file[name]) for name in ("path", "aligned_to") if name in file}
    if teacher["kind"] in (
        "simulated",
        "imported",
    ):  # once they had these, which were no part of a key; now they do not
        for name in ("model", "temperature", "top_p", "max_tokens"):
            teacher.pop(name, None)
    return teacher | file | paths


def config_of(task: str, words: dict[str, Any], root: Path) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {"name": "golden", "task": {"name": task}, "teacher": teacher_of(words, root), "rationales": {"num_samples": 1}}
    )


def known(teacher: TeacherConfig, prompts: Prompts, question: Question, index: int) -> dict[str, Any]:
    """What is frozen of one sample: its key, the digest of all in it but question and index, the seed that is sent."""
    wanted = wanted_samples(teacher, prompts, [question])
    call = build_call(teacher, prompts, question, index, 1)
    key = wanted.keys_of(0, index, 1)[0].hex()
    return {"key": key, "identity": wanted.identity, "request_seed": call.seeds[0]}


def frozen(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in ("key", "identity", "request_seed")}


def test_every_kind_is_there():
    samples, judged = GOLDEN["samples"], GOLDEN["judged"]
    assert len(samples) + 2 * len(judged) >= 50
    assert {one["task"] for one in samples} >= {"svamp", "cqa", "anli1", "esnli", "arithmetic"}
    assert {one["teacher"]["kind"] for one in samples} == {"openai", "vllm", "simulated", "imported"}
    files = [one["teacher"]["file"] for one in samples if one["teacher"]["kind"] == "imported"]
    assert {file["format"] for file in files} == {"aligned", "csv", "lines", "records"}


@pytest.mark.parametrize("entry", GOLDEN["samples"], ids=lambda entry: entry["about"])
def test_the_key_of_a_sample_is_what_it_was(entry: dict[str, Any], root: Path):
    asked = entry["question"]
    question = Question(asked["id"], asked["split"], asked["text"], "", "")
    teacher = config_of(entry["task"], entry["teacher"], root).teacher
    prompts = task_prompts(get_task(entry["task"]), teacher.prompt)
    assert known(teacher, prompts, question, entry["index"]) == frozen(entry)


def requests_of(entry: dict[str, Any], root: Path) -> list[Asked]:
    """What a comparison asks of the LLM judge, in both orders; nobody is asked."""
    pair, temperature = entry["pair"], entry["temperature"]
    question = Question("t-1", "test", pair["text"], pair["label"], "")
    sides = [
        [Explanation("t-1", "test", temperature, 0, pair[side], False, None)] for side in ("first", "second")
    ]  # fmt: skip
    settings = config_of(entry["task"], entry["judge"], root).teacher
    source = LlmJudge(settings, get_task(entry["task"]), str(root / "store")).source()
    pairs = pairs_of([question], sides[0], sides[1], temperature)
    (both,) = llm_judge.requests_of(source.prompts.template, pairs)
    return [(source.teacher, source.prompts, request) for request in both]


@pytest.mark.parametrize("entry", GOLDEN["judged"], ids=lambda entry: entry["about"])
def test_the_key_of_a_verdict_is_what_it_was(entry: dict[str, Any], root: Path):
    asked = requests_of(entry, root)
    assert len(asked) == 2
    for (teacher, prompts, question), request in zip(asked, entry["requests"].values(), strict=True):
        assert (question.id, question.text) == (request["id"], request["text"])
        assert known(teacher, prompts, question, 0) == frozen(request)


# -- the same by hand ---------------------------------------------------------------------------------------------


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def key_by_hand(task: str, prompt: str, model: dict[str, Any], question: str, index: int) -> str:
    identity = hashlib.sha256(canonical({"task": task, "prompt": prompt, "model": model})).hexdigest()
    asked = hashlib.sha256(canonical([identity, question])).digest()
    return hashlib.sha256(asked + b" " + str(index).encode()).hexdigest()


def test_a_key_worked_out_by_hand():
    entry = next(one for one in GOLDEN["samples"] if one["about"] == "openai chat, svamp's own prompt")
    examples = (Path(qcrd.tasks.__file__).parent / "prompts" / "svamp.txt").read_text(encoding="utf-8")
    model = {
        "kind": "openai", "model": "gpt-3.5-turbo", "api": "chat", "temperature": 0.7, "top_p": 1.0,
        "max_tokens": 256, "stop": ["\nQ:"], "seed": 0,
    }  # fmt: skip
    prompt = examples.rstrip() + "\n\nQ: QUESTION</s>QUESTION\nA:"
    assert key_by_hand("svamp", prompt, model, entry["question"]["text"], 0) == entry["key"]


def test_a_verdicts_key_worked_out_by_hand():
    entry = next(one for one in GOLDEN["judged"] if one["about"] == "the paper's judge")
    model = {
        "kind": "openai", "model": "gpt-3.5-turbo", "api": "chat", "temperature": 0.0, "top_p": 1.0,
        "max_tokens": 256, "stop": [], "seed": 0,
    }  # fmt: skip
    for request in entry["requests"].values():
        assert key_by_hand("judge", "QUESTION</s>QUESTION", model, request["text"], 0) == request["key"]

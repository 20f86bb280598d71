"""Our side of vLLM: what its engine is given and what is made of its answers.

There is no vLLM here. A stand-in has the few names of its documented interface that we use; nothing below says that
vLLM itself behaves so.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from qcrd.config import ConfigError, VllmTeacherConfig
from qcrd.records import Question
from qcrd.tasks import svamp
from qcrd.teacher.backends.base import Answer, Call, Reply, TeacherError
from qcrd.teacher.backends.vllm_engine import VllmTeacher, chat_prompt, engine_arguments, sampling_parameters
from qcrd.teacher.prompts import task_prompts
from qcrd.teacher.requests import build_call

TEMPLATE = (
    "{% for message in messages %}<s> {{ message['role'] }} : {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}teacher :{% endif %}{% if brief %} brief{% endif %}"
)
WORDS = ["<unk>", "<s>", "user", "teacher", ":", "how", "many", "brief"]
CALL = Call("q", (1, 2, 4), "how many", "label", "", (7, 8, 10))


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """A small real one that adds <s> of its own accord, as many models' do."""
    core = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    core.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])  # pyright: ignore
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", unk_token="<unk>")
    made.chat_template = template
    return made


def config(**settings: Any) -> VllmTeacherConfig:
    return VllmTeacherConfig(**{"model": "m", "api": "completions", "max_tokens": 50, **settings})


# -- pure functions -----------------------------------------------------------------------------------------------


def test_engine_arguments():
    assert engine_arguments(config()) == {
        "model": "m", "revision": None, "tokenizer_revision": None, "dtype": "auto", "tensor_parallel_size": 1,
        "gpu_memory_utilization": 0.9, "enable_prefix_caching": True,
    }  # fmt: skip
    vllm = {"tensor_parallel_size": 4, "max_model_len": 4096, "revision": "abc", "dtype": "bfloat16"}
    arguments = engine_arguments(config(**vllm))
    assert arguments["distributed_executor_backend"] == "mp" and arguments["max_model_len"] == 4096
    assert arguments["revision"] == arguments["tokenizer_revision"] == "abc" and arguments["dtype"] == "bfloat16"


def test_sampling_parameters():
    extra = {"top_k": 40, "chat_template_kwargs": {"enable_thinking": False}}
    found = sampling_parameters(config(temperature=0.9, top_p=0.8, extra_body=extra), ("\nQ:",), CALL)
    assert found == {
        "n": 3, "temperature": 0.9, "top_p": 0.8, "max_tokens": 50, "stop": ["\nQ:"], "seed": 7, "top_k": 40,
    }  # fmt: skip
    assert sampling_parameters(config(), (), CALL)["stop"] is None


def test_an_extra_field_may_not_replace_a_setting():
    with pytest.raises(ConfigError, match=r"^teacher\.extra_body: 'seed' is not allowed"):
        sampling_parameters(config(extra_body={"seed": 1}), (), CALL)


def test_a_sample_has_the_seed_that_it_would_have_alone():
    question = Question(id="q", split="train", text="how many", label="", answer="")
    prompts = replace(task_prompts(svamp, None), template="few shot")
    whole = build_call(config(seed=3), prompts, question, 0, 5)
    singles = [whole.part(slice(row, row + 1)) for row in range(5)]
    assert singles == [build_call(config(seed=3), prompts, question, index, 1) for index in range(5)]
    assert len(set(whole.seeds)) == 5


def test_chat_prompt():
    assert chat_prompt(tokenizer(), "how many") == "<s> user : how many teacher :"
    assert chat_prompt(tokenizer(), "how", {"brief": True}) == "<s> user : how teacher : brief"
    with pytest.raises(ConfigError, match=r"^teacher\.api: 'chat' is not allowed.*completions$"):
        chat_prompt(tokenizer(None), "how many")


# -- with a stand-in for vLLM -------------------------------------------------------------------------------------


class EngineDeadError(Exception):
    pass


class EngineGenerateError(Exception):
    pass


class OutputKind(Enum):
    FINAL_ONLY = 2


class Params:
    def __init__(
        self, *, n: int, temperature: float, top_p: float, max_tokens: int, stop: list[str] | None, seed: int,
        output_kind: OutputKind, top_k: int = 0,
    ) -> None:  # fmt: skip
        self.n, self.seed, self.output_kind, self.top_k = n, seed, output_kind, top_k


class Engine:
    """Answers the i-th request with i + 1 tokens, or does what `does` has for it."""

    def __init__(self) -> None:
        self.arguments: Any = None
        self.asked: list[tuple[dict[str, Any], Params, str]] = []
        self.does: dict[int, Exception | str | float] = {}
        self.closed = False

    def from_engine_args(self, arguments: Any) -> Engine:
        self.arguments = arguments
        return self

    async def generate(self, prompt: dict[str, Any], params: Params, request_id: str) -> AsyncIterator[Any]:
        number = len(self.asked)
        self.asked.append((prompt, params, request_id))
        deed = self.does.get(number, "stop")
        if isinstance(deed, Exception):
            raise deed
        await asyncio.sleep(deed if isinstance(deed, float) else 0)
        choice = SimpleNamespace(text=f"text {number}", token_ids=[0] * (number + 1), finish_reason=deed)
        yield SimpleNamespace(outputs=[choice], prompt_token_ids=[0] * 9)

    def shutdown(self) -> None:
        self.closed = True


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    made = Engine()
    parts: dict[str, dict[str, Any]] = {
        "vllm": {"AsyncEngineArgs": dict, "AsyncLLMEngine": made, "SamplingParams": Params},
        "vllm.sampling_params": {"RequestOutputKind": OutputKind},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.exceptions": {"EngineDeadError": EngineDeadError, "EngineGenerateError": EngineGenerateError},
    }
    for name, content in parts.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return made


def ask(teacher: VllmTeacher, call: Call = CALL) -> Answer:
    return asyncio.run(teacher.ask(call))


def test_one_request_a_sample_and_the_counts_stand_with_the_first(engine: Engine):
    teacher = VllmTeacher(config(), ["\nQ:"])
    assert engine.arguments == engine_arguments(config())
    assert ask(teacher) == Answer(
        [
            Reply("text 0", finish_reason="stop", prompt_tokens=9, completion_tokens=1 + 2 + 3),
            Reply("text 1", finish_reason="stop", prompt_tokens=0, completion_tokens=0),
            Reply("text 2", finish_reason="stop", prompt_tokens=0, completion_tokens=0),
        ]
    )
    prompts, params, ids = zip(*engine.asked, strict=True)
    assert all(prompt == {"prompt": "how many"} for prompt in prompts) and len(set(ids)) == 3
    assert [one.seed for one in params] == [7, 8, 10]
    assert all(one.n == 1 and one.output_kind is OutputKind.FINAL_ONLY for one in params)
    asyncio.run(teacher.close())
    assert engine.closed


def test_a_chat_has_the_special_tokens_of_its_template_once(engine: Engine, tmp_path: Path):
    tokenizer().save_pretrained(tmp_path)
    teacher = VllmTeacher(config(api="chat", model=str(tmp_path)), [])
    ask(teacher, Call("q", (0,), "how many", "", "", (7,)))
    expected = ["<s>", "user", ":", "how", "many", "teacher", ":"]
    assert engine.asked[0][0] == {"prompt_token_ids": [WORDS.index(word) for word in expected]}


@pytest.mark.parametrize(
    ("deed", "reason", "retryable", "of_endpoint"),
    [
        (EngineDeadError("gone"), "engine is dead: gone", False, True),
        (EngineGenerateError("slip"), "vLLM failed: slip", True, False),
        (ValueError("too long"), "refuses the request: too long", False, False),
        (5.0, "timeout: no reply within 0.05 s", True, False),
        ("abort", "without a reply", True, False),
    ],
)
def test_failures(engine: Engine, deed: Exception | str | float, reason: str, retryable: bool, of_endpoint: bool):
    engine.does[0] = deed
    teacher = VllmTeacher(config(timeout_seconds=0.05), [])
    with pytest.raises(TeacherError, match=reason) as error:
        ask(teacher)
    assert (error.value.retryable, error.value.of_endpoint) == (retryable, of_endpoint)


def test_what_came_before_a_failure_is_kept(engine: Engine):
    engine.does[1] = EngineGenerateError("slip")
    answer = ask(VllmTeacher(config(), []))
    assert answer.records == [Reply("text 0", finish_reason="stop", prompt_tokens=9, completion_tokens=1)]


def test_a_field_that_vllm_does_not_know_is_named_before_the_model_is_loaded(engine: Engine):
    VllmTeacher(config(extra_body={"top_k": 40}), [])
    engine.arguments = None
    with pytest.raises(ConfigError, match=r"^teacher\.extra_body: .*top_q"):
        VllmTeacher(config(extra_body={"top_q": 40}), [])
    assert engine.arguments is None


def test_without_vllm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"^teacher\.kind: 'vllm' is not allowed.*pip install 'qcrd\[vllm\]'$"):
        VllmTeacher(config(), [])

"""A teacher inside the job: an open model on vLLM's asynchronous engine, one replica an actor.

WE HAVE NOT RUN IT: no GPU was at hand. It was written from the sources of vLLM 0.30.0, and the tests put a stand-in
where vLLM would be. vLLM is imported when a teacher is made and nowhere else.

Each sample is an engine request of its own with a seed of its own. vLLM's `n` would give sample i the seed of the call
plus i, so a sample would depend on which others were asked for with it; and one seed for many prompts gives them all
the same noise (vLLM issue 50440). It costs little: vLLM itself makes n requests of one with `n`, and its prefix
cache serves either.

Knows nothing about parsing, Ray, retries or where replies are kept, and leaves a model's thoughts in the text.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qcrd.config import ConfigError, VllmTeacherConfig
from qcrd.storage.fingerprints import folder_digest
from qcrd.teacher.backends.base import Answer, Backend, Call, Reply, TeacherError, language_model_identity
from qcrd.teacher.prompts import Prompts

TEMPLATE_FIELD = "chat_template_kwargs"
"""The field of `teacher.extra_body` that goes to the chat template, as with vLLM's server; others are of sampling."""
_OWN_FIELDS = frozenset({"n", "temperature", "top_p", "max_tokens", "stop", "seed", "output_kind"})


def engine_arguments(config: VllmTeacherConfig) -> dict[str, Any]:
    """Arguments of vLLM's `AsyncEngineArgs`."""
    arguments: dict[str, Any] = {
        "model": config.model,
        "revision": config.revision,
        "tokenizer_revision": config.revision,
        "dtype": config.dtype,
        "tensor_parallel_size": config.tensor_parallel_size,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "enable_prefix_caching": True,
    }
    if config.max_model_len is not None:
        arguments["max_model_len"] = config.max_model_len
    if config.tensor_parallel_size > 1:
        # Worker processes beside the engine, on the GPUs of its Ray actor; vLLM's Ray backend would ask Ray for more.
        arguments["distributed_executor_backend"] = "mp"
    return arguments


def sampling_parameters(config: VllmTeacherConfig, stop: Sequence[str], call: Call) -> dict[str, Any]:
    """Arguments of vLLM's `SamplingParams` for a call. Raises `ConfigError` for an extra field that has a setting."""
    extra = {name: value for name, value in config.extra_body.items() if name != TEMPLATE_FIELD}
    for name in extra:
        if name in _OWN_FIELDS:
            raise ConfigError(f"teacher.extra_body: {name!r} is not allowed; it follows from other settings of teacher")
    return {
        "n": len(call.indices),
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": config.max_tokens,
        "stop": list(stop) or None,
        "seed": call.seeds[0],
        **extra,
    }


def chat_prompt(tokenizer: Any, prompt: str, options: Mapping[str, Any] | None = None) -> str:
    """The prompt as a user's message in the model's chat template, up to where the reply begins.

    It has the template's special tokens as text: encode it without adding more. Raises `ConfigError` where the
    tokenizer has no template.
    """
    if not tokenizer.chat_template:
        raise ConfigError(
            f"teacher.api: 'chat' is not allowed with {tokenizer.name_or_path!r}, "
            "whose tokenizer has no chat template; set teacher.api to completions"
        )
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **(options or {}))


class VllmTeacher:
    """A teacher (base.py) that is a model on the GPUs of this process. Making it loads the model."""

    def __init__(self, config: VllmTeacherConfig, stop: Sequence[str]) -> None:
        try:
            from vllm import AsyncEngineArgs, AsyncLLMEngine, SamplingParams  # pyright: ignore[reportMissingImports]
            from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]
            from vllm.v1.engine.exceptions import (  # pyright: ignore[reportMissingImports]
                EngineDeadError,
                EngineGenerateError,
            )
        except ImportError as error:
            raise ConfigError(
                f"teacher.kind: 'vllm' is not allowed without vLLM ({error}); pip install 'qcrd[vllm]'"
            ) from error
        self._config, self._stop = config, stop
        self._dead, self._failed = EngineDeadError, EngineGenerateError
        self._sampling, self._final = SamplingParams, RequestOutputKind.FINAL_ONLY
        self._tokenizer: Any = None
        if config.api == "chat":
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(config.model, revision=config.revision)
            self._engine_prompt("")  # a model without a template is refused before it is loaded
        try:
            self._engine_sampling(Call("", (0,), "", "", "", (0,)))
        except TypeError as error:
            raise ConfigError(
                f"teacher.extra_body: {config.extra_body} does not fit vLLM's SamplingParams: {error}"
            ) from error
        self._engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(**engine_arguments(config)))

    async def ask(self, call: Call) -> Answer:
        """One reply for each sample. Where one fails, those before it are the answer; without any, its error is."""
        prompt = self._engine_prompt(call.prompt)
        singles = [call.part(slice(row, row + 1)) for row in range(len(call.indices))]
        results = await asyncio.gather(*(self._generate(prompt, one) for one in singles), return_exceptions=True)
        replies: list[Reply] = []
        for result in results:
            if isinstance(result, Reply):
                replies.append(result)
            elif replies:
                break
            else:
                raise result
        completion = sum(reply.completion_tokens or 0 for reply in replies)
        others = [replace(reply, prompt_tokens=0, completion_tokens=0) for reply in replies[1:]]
        return Answer([replace(replies[0], completion_tokens=completion), *others])

    async def close(self) -> None:
        self._engine.shutdown()

    def _engine_prompt(self, prompt: str) -> dict[str, Any]:
        """The prompt as vLLM takes it: text, which it encodes itself, or the tokens of a chat."""
        if self._tokenizer is None:
            return {"prompt": prompt}
        text = chat_prompt(self._tokenizer, prompt, self._config.extra_body.get(TEMPLATE_FIELD))
        return {"prompt_token_ids": self._tokenizer(text, add_special_tokens=False)["input_ids"]}

    def _engine_sampling(self, call: Call) -> Any:
        return self._sampling(**sampling_parameters(self._config, self._stop, call), output_kind=self._final)

    async def _generate(self, prompt: dict[str, Any], call: Call) -> Reply:
        """The reply for the one sample of `call`, with the counts of its own engine request."""
        request_id = f"{call.question_id}-{call.indices[0]}-{uuid.uuid4().hex}"
        last: Any = None
        try:
            async with asyncio.timeout(self._config.timeout_seconds):
                async for output in self._engine.generate(prompt, self._engine_sampling(call), request_id):
                    last = output
        except TimeoutError:
            reason = f"timeout: no reply within {self._config.timeout_seconds:g} s"
            raise TeacherError(reason, retryable=True) from None
        except self._dead as error:
            raise TeacherError(f"vLLM's engine is dead: {error}", of_endpoint=True) from error
        except self._failed as error:
            raise TeacherError(f"vLLM failed: {error.__cause__ or error}", retryable=True) from error
        except Exception as error:  # what else vLLM lets through is a request that it refuses; the class has changed
            raise TeacherError(f"vLLM refuses the request: {error}") from error
        if last is None or last.outputs[0].finish_reason in (None, "abort", "error"):
            raise TeacherError("vLLM ended the request without a reply", retryable=True)
        choice = last.outputs[0]
        return Reply(
            text=choice.text,
            finish_reason=choice.finish_reason,
            prompt_tokens=len(last.prompt_token_ids or ()),
            completion_tokens=len(choice.token_ids),
        )


def _identity(config: VllmTeacherConfig, stop: Sequence[str]) -> dict[str, Any]:
    settings = language_model_identity("vllm", config, stop) | {"revision": config.revision, "dtype": config.dtype}
    return settings | ({"model": folder_digest(Path(config.model))} if Path(config.model).is_dir() else {})


def _samples_per_request(config: VllmTeacherConfig) -> int:
    if config.num_samples == 1 or config.samples_per_request == "auto":
        return config.num_samples
    return config.samples_per_request


def _check(config: VllmTeacherConfig, prompts: Prompts) -> None:
    """What else is wrong is known where the model is loaded."""


BACKEND = Backend(
    kind="vllm",
    settings=VllmTeacherConfig,
    costs="gpu",
    simulated=False,
    shown=("model", "revision", "dtype", "temperature", "top_p", "max_tokens"),
    asked="samples to ask for",
    name=lambda config: f"{config.model} (vllm)",
    identity=_identity,
    check=_check,
    build=lambda config, stop, completions: VllmTeacher(config, stop),
    samples_per_request=_samples_per_request,
    gpus=lambda config: config.tensor_parallel_size,
)

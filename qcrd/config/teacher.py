"""Settings of the teacher: who is asked, how often, how, and what becomes of the samples."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from qcrd.config.base import Positive, Settings, Share


class SimulatedConfig(Settings):
    """The offline teacher of the generated task. Nothing it says was said by a language model."""

    error_rate: Share = 0.25


class ImportedConfig(Settings):
    """Completions that somebody has already paid for, in one file or in the files of a pattern (`train_CoT_*.json`).

    `format`: `aligned` is a JSON list whose item i answers row i; `csv` is CSV files with a row number and a text, file
    i in order of name holding sample i of each question; `lines` is JSON lines {question_id or question, text};
    `records` is a JSON list of objects with a question and a list of completions.

    A row number of `aligned` and `csv` becomes a question's id by `row_id` ("esnli-train-{row}"), or is a row of
    `aligned_to` (JSON lines), which has the question's id or text.
    """

    path: str | None = None
    format: Literal["aligned", "csv", "lines", "records"] = "records"
    aligned_to: str | None = None
    row_id: str | None = Field(
        default=None, pattern=r"^[^{}]*\{row\}[^{}]*$", description="question id of a row number"
    )
    row_field: str = Field(default="row", description="column of the row number (csv)")
    question_field: str = "question"
    id_field: str = "question_id"
    text_field: str = "text"
    completions_field: str = "completions"


class BatchConfig(Settings):
    """Batch mode: requests go up as files, replies come down within a day, at a lower price."""

    poll_seconds: float = Field(default=30.0, gt=0)
    max_requests: int = Field(default=50_000, gt=0, le=50_000, description="requests in one batch file")
    max_bytes: int = Field(default=100_000_000, gt=0, description="size of one batch file")


class VllmConfig(Settings):
    """Replicas of an open model inside the Ray job (`teacher.kind=vllm`, extra `vllm`); `teacher.actors` of them."""

    tensor_parallel_size: Positive = 1
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    max_model_len: Positive | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    revision: str | None = None


REQUEST_FIELDS = frozenset(
    {"model", "messages", "prompt", "n", "best_of", "max_tokens", "max_completion_tokens", "stream"}
)
"""What `TeacherConfig.extra_body` may not hold: other settings decide it, and money is reckoned by it."""


class TeacherConfig(Settings):
    """Who is asked, how often, and how. What decides a reply is listed in teacher/requests.py; the rest is how to get
    it, and may change between two starts of one run."""

    kind: Literal["openai", "simulated", "imported", "vllm"] = "openai"
    mode: Literal["online", "batch"] = "online"
    model: str = "gpt-3.5-turbo"
    base_url: str | None = Field(default=None, description="any OpenAI-compatible endpoint; default: OpenAI's")
    api: Literal["chat", "completions"] = "chat"
    api_key_env: str = Field(
        default="OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="variable that holds the key"
    )
    api_key_file: str | None = Field(default=None, description="file of mode 600 that holds the key")
    num_samples: Positive = 5
    splits: tuple[Literal["train", "validation", "test"], ...] = Field(
        default=("train",), description="splits that are asked; what is not train is only ever scored"
    )
    temperature: float = Field(default=0.7, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: Positive = 256
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    extra_body: dict[str, Any] = Field(default={}, description='more fields of the request, e.g. {"top_k": 40}')
    seed: int = 0
    prompt: str | None = Field(default=None, description="few-shot prompt file; default: the task's own")
    parser: str = Field(default="task", description="how an answer is read from a completion: task, or a named parser")
    store: str | None = Field(default=None, description="sample store: folder or fsspec URL; default: <output>/store")
    flush_seconds: float = Field(default=5.0, gt=0, description="replies are on the disk, or at the URL, after this")
    concurrency: Positive = Field(default=32, description="requests under way at once, over all actors")
    actors: Positive = 1
    samples_per_request: Literal["auto"] | Positive = Field(
        default="auto", description="n: choices a request; auto: all that a question lacks, where the server can"
    )
    requests_per_minute: Positive | None = Field(default=None, description="over all actors; None: no limit of ours")
    tokens_per_minute: Positive | None = Field(default=None, description="prompt and completion, over all actors")
    timeout_seconds: float = Field(default=120.0, gt=0)
    max_attempts: Positive = 6
    budget_usd: float | None = Field(default=None, gt=0, description="the price of all samples that the run uses")
    prices: str | None = Field(default=None, description="price file; default: qcrd/teacher/prices.json")
    tokenizer: str | None = Field(default=None, description="folder or hub name, to count prompt tokens for the plan")
    batch: BatchConfig = BatchConfig()
    vllm: VllmConfig = VllmConfig()
    simulated: SimulatedConfig = SimulatedConfig()
    imported: ImportedConfig = ImportedConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.base_url is not None and ("@" in self.base_url or "?" in self.base_url):
            raise ValueError(
                "teacher.base_url: a URL with a name, password or query in it is not allowed; "
                "put the key into the environment variable that teacher.api_key_env names"
            )
        if own := REQUEST_FIELDS & self.extra_body.keys():
            raise ValueError(
                f"teacher.extra_body: {sorted(own)[0]!r} is not allowed; it follows from other settings of teacher"
            )
        if self.mode == "batch" and self.kind != "openai":
            raise ValueError(f"teacher.mode: 'batch' is not allowed with teacher.kind = {self.kind}; only with openai")
        return self


TEACHER_MEANS = frozenset(
    {
        "mode", "base_url", "api_key_env", "api_key_file", "store", "flush_seconds", "concurrency", "actors",
        "samples_per_request", "requests_per_minute", "tokens_per_minute", "timeout_seconds", "max_attempts",
        "budget_usd", "prices", "tokenizer", "batch",
    }
)  # fmt: skip
"""Fields of `TeacherConfig` that decide how replies are got, not what they are: part of no identity."""


_VLLM_HARDWARE = ("tensor_parallel_size", "gpu_memory_utilization", "max_model_len")


class RationalesConfig(Settings):
    """Which samples become positive and negative rationales (self-consistency)."""

    num_samples: Positive = Field(default=5, description="m: the first m stored samples of each question are used")
    positives: Literal["majority", "ground_truth", "both"] = "majority"

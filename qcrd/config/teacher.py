"""Settings of the teacher: who is asked, how often, how, and what becomes of the samples."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from qcrd.config.base import Positive, Settings, Share
from qcrd.config.kinds import with_told_kind

REQUEST_FIELDS = frozenset(
    {"model", "messages", "prompt", "n", "best_of", "max_tokens", "max_completion_tokens", "stream"}
)
"""What `extra_body` of a teacher may not hold: other settings decide it, and money is reckoned by it."""


class TeacherSettings(Settings):
    """What every kind of teacher has. Each kind's own settings stand in its class below; which of all of them decide a
    reply is said by `identity` of its backend (teacher/backends/), and the rest may change between two starts of one
    run."""

    num_samples: Positive = 5
    splits: tuple[Literal["train", "validation", "test"], ...] = Field(
        default=("train",), description="splits that are asked; what is not train is only ever scored"
    )
    seed: int = 0
    prompt: str | None = Field(default=None, description="few-shot prompt file; default: the task's own")
    parser: str = Field(default="task", description="how an answer is read from a completion: task, or a named parser")
    store: str | None = Field(default=None, description="sample store: folder or fsspec URL; default: <output>/store")
    flush_seconds: float = Field(default=5.0, gt=0, description="replies are on the disk, or at the URL, after this")
    concurrency: Positive = Field(default=32, description="requests under way at once, over all actors")
    actors: Positive = 1
    timeout_seconds: float = Field(default=120.0, gt=0)
    max_attempts: Positive = 6


class LanguageModelSettings(TeacherSettings):
    """What every teacher has that is a language model."""

    model: str = "gpt-3.5-turbo"
    api: Literal["chat", "completions"] = "chat"
    temperature: float = Field(default=0.7, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: Positive = 256
    extra_body: dict[str, Any] = Field(default={}, description='more fields of the request, e.g. {"top_k": 40}')
    samples_per_request: Literal["auto"] | Positive = Field(
        default="auto", description="n: choices a request; auto: all that a question lacks, where the server can"
    )
    tokenizer: str | None = Field(default=None, description="folder or hub name, to count prompt tokens for the plan")

    @model_validator(mode="after")
    def _check_extra_body(self) -> Self:
        if own := REQUEST_FIELDS & self.extra_body.keys():
            raise ValueError(
                f"teacher.extra_body: {sorted(own)[0]!r} is not allowed; it follows from other settings of teacher"
            )
        return self


class PaidSettings(LanguageModelSettings):
    """What every teacher has whose tokens are paid for: prices, a budget, and limits of its owner."""

    requests_per_minute: Positive | None = Field(default=None, description="over all actors; None: no limit of ours")
    tokens_per_minute: Positive | None = Field(default=None, description="prompt and completion, over all actors")
    budget_usd: float | None = Field(default=None, gt=0, description="the price of all samples that the run uses")
    prices: str | None = Field(default=None, description="price file; default: qcrd/teacher/prices.json")
    mode: Literal["online", "batch"] = "online"


class BatchConfig(Settings):
    """Batch mode: requests go up as files, replies come down within a day, at a lower price."""

    poll_seconds: float = Field(default=30.0, gt=0)
    max_requests: int = Field(default=50_000, gt=0, le=50_000, description="requests in one batch file")
    max_bytes: int = Field(default=100_000_000, gt=0, description="size of one batch file")


class OpenAITeacherConfig(PaidSettings):
    """A model behind any OpenAI-compatible endpoint."""

    kind: Literal["openai"] = "openai"
    base_url: str | None = Field(default=None, description="any OpenAI-compatible endpoint; default: OpenAI's")
    api_key_env: str = Field(
        default="OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="variable that holds the key"
    )
    api_key_file: str | None = Field(default=None, description="file of mode 600 that holds the key")
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    batch: BatchConfig = BatchConfig()

    @model_validator(mode="after")
    def _check_base_url(self) -> Self:
        if self.base_url is not None and ("@" in self.base_url or "?" in self.base_url):
            raise ValueError(
                "teacher.base_url: a URL with a name, password or query in it is not allowed; "
                "put the key into the environment variable that teacher.api_key_env names"
            )
        return self


class VllmTeacherConfig(LanguageModelSettings):
    """Replicas of an open model inside the Ray job (extra `vllm`); `actors` of them."""

    kind: Literal["vllm"] = "vllm"
    revision: str | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    tensor_parallel_size: Positive = 1
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    max_model_len: Positive | None = None


class SimulatedTeacherConfig(TeacherSettings):
    """The offline teacher of the generated task. Nothing it says was said by a language model."""

    kind: Literal["simulated"] = "simulated"
    error_rate: Share = 0.25


class ImportedTeacherConfig(TeacherSettings):
    """Completions that somebody has already paid for, in one file or in the files of a pattern (`train_CoT_*.json`).

    `format`: `aligned` is a JSON list whose item i answers row i; `csv` is CSV files with a row number and a text, file
    i in order of name holding sample i of each question; `lines` is JSON lines {question_id or question, text};
    `records` is a JSON list of objects with a question and a list of completions.

    A row number of `aligned` and `csv` becomes a question's id by `row_id` ("esnli-train-{row}"), or is a row of
    `aligned_to` (JSON lines), which has the question's id or text.
    """

    kind: Literal["imported"] = "imported"
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

    @model_validator(mode="after")
    def _check_path(self) -> Self:
        if not self.path:
            raise ValueError(f"teacher.path: {self.path!r} is not allowed; teacher.kind = imported needs a file")
        return self


TeacherConfig = Annotated[
    OpenAITeacherConfig | VllmTeacherConfig | SimulatedTeacherConfig | ImportedTeacherConfig,
    Field(discriminator="kind"),
    with_told_kind("openai", OpenAITeacherConfig, VllmTeacherConfig, SimulatedTeacherConfig, ImportedTeacherConfig),
]
"""Who is asked, how often, and how: the settings of one kind."""


class RationalesConfig(Settings):
    """Which samples become positive and negative rationales (self-consistency)."""

    num_samples: Positive = Field(default=5, description="m: the first m stored samples of each question are used")
    positives: Literal["majority", "ground_truth", "both"] = "majority"

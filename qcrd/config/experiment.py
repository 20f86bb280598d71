"""The experiment as typed, frozen settings.

Every number of the method is a field here, with the paper's value as its default. An unknown key or an
impossible value is a `ConfigError` of one line that names the field, the value and what is allowed.
This module knows nothing about files, Ray, models or any one benchmark.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class ConfigError(ValueError):
    """Bad settings. The message is one line: field, value, what is allowed."""


class Settings(BaseModel):
    """Base of every group of settings: immutable, no unknown keys, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class GeneratorConfig(Settings):
    """How many problems a generated task makes, and of what kind. Benchmarks read from files ignore it."""

    train_size: Positive = 2000
    validation_size: Positive = 200
    test_size: Positive = 400
    min_steps: int = Field(default=1, ge=1, le=3)
    max_steps: int = Field(default=3, ge=1, le=3)
    max_number: int = Field(default=20, ge=5, le=1000)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_steps > self.max_steps:
            raise ValueError(
                f"task.generator.min_steps: {self.min_steps} is not allowed; at most max_steps = {self.max_steps}"
            )
        return self


class TaskConfig(Settings):
    """The benchmark: which questions, from which file, in which splits."""

    name: str = "arithmetic"
    seed: int = 0
    path: str | None = Field(
        default=None,
        description="folder of the questions' files (SVAMP: file or URL), or 'download'; default: under QCRD_DATA",
    )
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", description="checksum the file must have")
    train_limit: Positive | Literal["auto"] | None = Field(
        default="auto",
        description="training questions, drawn by task.seed; auto: as many as the steps can visit; None: all",
    )
    train_share: float = Field(
        default=1.0, gt=0, le=1, description="share of the training questions; a smaller one is part of a larger one"
    )
    generator: GeneratorConfig = GeneratorConfig()


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


class ScratchConfig(Settings):
    """Sizes of a T5 initialised from scratch; its tokenizer is trained on the task unless one is named."""

    d_model: Positive = 128
    d_kv: Positive = 32
    d_ff: Positive = 256
    num_layers: Positive = 2
    num_decoder_layers: Positive = 2
    num_heads: Positive = 4
    dropout: Share = 0.0
    initializer_factor: float = Field(default=1.0, gt=0, description="T5's initialisation is scaled by this")
    vocab_size: int = Field(default=512, ge=64, description="upper bound for the tokenizer trained on the task")
    tokenizer: str | None = Field(default=None, description="folder or hub name of an existing tokenizer")


class PrefixesConfig(Settings):
    """What tells the student which of its two tasks it is asked."""

    predict: str = "predict: "
    explain: str = "explain: "


class StudentConfig(Settings):
    """The small model. `seq2seq`: a folder or hub name; `encoder_pair`: two copies of an encoder joined to an
    encoder-decoder; `scratch`: a T5 with random weights."""

    kind: Literal["seq2seq", "encoder_pair", "scratch"] = "seq2seq"
    model: str = Field(default="t5-base", description="folder or hub name")
    revision: str | None = None
    scratch: ScratchConfig = ScratchConfig()
    prefixes: PrefixesConfig = PrefixesConfig()
    dropout: Share | None = Field(default=None, description="None: as the model's own config has it")
    max_input_tokens: Positive = 1024
    max_target_tokens: Positive = 256
    max_label_tokens: Positive = 64
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"


class DiscriminatorConfig(Settings):
    """The quality judge: an encoder over question + rationale."""

    enabled: bool = Field(default=True, description="False is the ablation w/o QJ: s+ = 1, s- = 0")
    kind: Literal["pretrained", "scratch"] = "pretrained"
    model: str = "t5-base"
    revision: str | None = None
    scratch: ScratchConfig = ScratchConfig()
    hidden_size: Positive | None = Field(default=None, description="of the head; None: the encoder's d_model")
    seed: int = 0
    learning_rate: float = Field(default=1e-4, gt=0)
    batch_questions: Positive = 8
    max_steps: Positive = 500
    eval_every: Positive = 100
    holdout: float = Field(default=0.1, gt=0, lt=1)
    target_score: float = Field(default=0.95, gt=0.5, lt=1, description="stop once s+ >= this and s- <= 1 - this")
    augmentation: Literal["rules", "stanza"] = "rules"
    max_tokens: Positive = 512
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the encoder's passes; weights, head and optimizer stay float32"
    )
    max_grad_norm: float = Field(default=1.0, gt=0)
    update_every: Positive = Field(default=1, description="iterations between online updates")
    update_steps: int = Field(default=25, ge=0, description="optimizer steps of one online update")


class NegativesConfig(Settings):
    """Negative rationales: where they come from and how they are sampled."""

    source: Literal["snapshot", "fixed", "teacher", "snapshot_and_teacher", "none"] = "snapshot"
    num_samples: int = Field(default=1, ge=0, description="k: samples a question visited")
    gap: int = Field(default=5, ge=1, description="j: iteration t samples from snapshot max(0, t - j)")
    warmup: Literal["initial", "skip"] = "initial"
    fixed: str | None = Field(
        default=None, description="for source=fixed: a model folder, or a recipe, whose student is trained first"
    )
    fixed_overrides: dict[str, Any] = Field(
        default={}, description="settings of that recipe to replace; the command line adds its own overrides"
    )
    temperature: float = Field(default=1.5, ge=0)
    top_k: int = Field(default=50, ge=0, description="0: the whole vocabulary")
    max_new_tokens: Positive = 64
    batch_size: Positive = Field(default=128, description="sequences of one generation batch")
    placement: Literal["inline", "async"] = Field(
        default="inline",
        description="inline: before each iteration, by the training workers; async: by actors of their own, while the "
        "iteration before trains. The texts are the same",
    )


class LossConfig(Settings):
    """Section 5 of the method: L = a1*L_pred + a2*L_cl + a3*L_D."""

    label_weight: float = Field(default=0.5, ge=0)
    rationale_weight: float = Field(default=0.5, ge=0)
    discriminator_weight: float = Field(default=0.5, ge=0)
    discriminator_decay: float = Field(default=0.9, gt=0, le=1)
    beta: float = Field(default=0.2, gt=0)
    margin: float = Field(default=3.0, gt=0)
    scheme: Literal["minmax", "maxmin", "sampling", "mean", "weighted_mean"] = "minmax"
    mi_weight: float = Field(default=0.1, ge=0, description="of the mutual-information term (method mi)")
    mi_variant: Literal["official", "masked"] = Field(
        default="official",
        description="official: the reference code's second softmax, and its maximum over padding too; masked: neither",
    )


class TrainConfig(Settings):
    """Optimisation of the student."""

    steps: Positive = 10_000
    iteration_steps: Positive | Literal["epoch"] = 250
    global_batch_size: Positive = 8
    micro_batch_size: Positive | None = Field(
        default=None, description="questions of one forward and backward pass of a worker; None: all of its share"
    )
    learning_rate: float = Field(default=1e-5, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    labels: Literal["gold", "teacher"] = "gold"
    log_every: Positive = 10


class CheckpointConfig(Settings):
    """Checkpoints of a training run in progress."""

    keep: Positive = 2


class EvaluationConfig(Settings):
    """Greedy label predictions."""

    batch_size: Positive = 64
    num_examples: int = Field(default=5, ge=0, description="questions whose rationales the report shows")
    validation_limit: Positive | None = Field(
        default=None, description="validation questions labelled, at each iteration and at the end: the first ones"
    )
    test_limit: Positive | None = Field(default=None, description="test questions labelled: the first of the split")
    explained_questions: int = Field(
        default=50, ge=0, description="test questions, drawn by task.seed, that the student explains at the end"
    )
    explain_temperatures: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        default=(0.0,), description="temperatures of these explanations; 0 is greedy and always there"
    )


class ResourcesConfig(Settings):
    """Hardware. Nothing here changes a result, so none of it enters a fingerprint."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: Positive = Field(default=1, description="data-parallel training workers")
    gpu_per_worker: float = Field(
        default=1.0, gt=0, le=1, description="GPU share of a model stage's worker: below 1, trials or cells share a GPU"
    )
    deterministic: bool = Field(
        default=True, description="on a GPU: sums in a fixed order, so that a run which goes on ends in the same bits"
    )
    threads: Positive | None = Field(
        default=None, description="CPU threads of a model stage; None: all cores, shared by the training workers"
    )
    negatives_actors: Positive = Field(default=1, description="for negatives.placement = async")
    negatives_cpus: float = Field(default=1.0, ge=0, description="CPUs that Ray reserves for each of them")
    negatives_gpus: float | None = Field(
        default=None, ge=0, le=1, description="GPU share of each; None: a whole one where training has GPUs"
    )
    max_failures: int = Field(default=3, ge=0, description="restarts of a training worker that dies")
    gpu_hour_usd: float | None = Field(default=None, ge=0, description="price of a GPU hour, for the plan of a grid")


class TrackingConfig(Settings):
    """MLflow. The local record is always written, whatever stands here."""

    enabled: bool = True
    uri: str | None = Field(default=None, description="default: MLFLOW_TRACKING_URI, else SQLite in the output folder")
    experiment: str = "qcrd"
    log_model: bool = True


class ExperimentConfig(Settings):
    """One experiment, complete."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    method: Literal["finetune", "single_task", "distill_label", "dss", "mi", "qcrd"] = "qcrd"
    seed: int = 0
    output: str = "runs"
    task: TaskConfig = TaskConfig()
    teacher: TeacherConfig = TeacherConfig()
    rationales: RationalesConfig = RationalesConfig()
    student: StudentConfig = StudentConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    negatives: NegativesConfig = NegativesConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        m, k = self.rationales.num_samples, self.teacher.num_samples
        if m > k:
            raise ValueError(f"rationales.num_samples: {m} is not allowed; at most teacher.num_samples = {k}")
        if self.teacher.kind == "imported" and not self.teacher.imported.path:
            raise ValueError("teacher.imported.path: None is not allowed; teacher.kind = imported needs a file")
        if "train" not in self.teacher.splits:
            raise ValueError(f"teacher.splits: {list(self.teacher.splits)} is not allowed; train must be among them")
        if 0.0 not in self.evaluation.explain_temperatures:
            raise ValueError(
                f"evaluation.explain_temperatures: {list(self.evaluation.explain_temperatures)} is not allowed; "
                "0 must be among them"
            )
        if self.method == "distill_label" and self.train.labels != "teacher":
            raise ValueError(
                f"train.labels: {self.train.labels!r} is not allowed; method = distill_label trains on 'teacher' labels"
            )
        if self.negatives.source == "fixed" and not self.negatives.fixed:
            raise ValueError(
                "negatives.fixed: None is not allowed; negatives.source = fixed needs a model folder or a recipe"
            )
        self._check_batch()
        return self

    def _check_batch(self) -> None:
        """A global batch is shared evenly, so that no mean depends on how."""
        batch, workers = self.train.global_batch_size, self.resources.workers
        if workers > 1 and self.resources.gpu_per_worker < 1:
            raise ValueError(
                f"resources.gpu_per_worker: {self.resources.gpu_per_worker} is not allowed with resources.workers = "
                f"{workers}; the workers of one training need a whole GPU each"
            )
        if batch % workers:
            raise ValueError(
                f"train.global_batch_size: {batch} is not allowed; "
                f"it must be a multiple of resources.workers = {workers}"
            )
        if batch // workers % self.micro_batch_size():
            raise ValueError(
                f"train.global_batch_size: {batch} is not allowed; it must be a multiple of resources.workers x "
                f"train.micro_batch_size = {workers} x {self.train.micro_batch_size}"
            )

    def micro_batch_size(self) -> int:
        """Questions of one forward and backward pass of a worker."""
        share = self.train.global_batch_size // self.resources.workers
        return min(self.train.micro_batch_size or share, share)

    def identity(self) -> dict[str, Any]:
        """All that may change a result, as plain data: without paths, hardware, tracking, and how replies are got."""
        data = self.model_dump(mode="json", exclude={"output", "resources", "tracking", "checkpoint"})
        data["task"].pop("path")
        data["train"].pop("micro_batch_size")
        data["negatives"].pop("placement")
        if self.fixed_recipe is not None:
            data["negatives"]["fixed"] = self.fixed_recipe.rpartition("/")[2]  # a recipe's folder is a path
        else:
            data["negatives"].pop("fixed_overrides")
        for part, paths in (("imported", ("path", "aligned_to")), ("vllm", _VLLM_HARDWARE)):
            for name in paths:
                data["teacher"][part].pop(name)
        data["teacher"] = {key: value for key, value in data["teacher"].items() if key not in TEACHER_MEANS}
        return data

    @property
    def fixed_recipe(self) -> str | None:
        """`negatives.fixed` where it names a recipe (file.py or file.py:function) and not a folder."""
        fixed = self.negatives.fixed if self.negatives.source == "fixed" else None
        return fixed if fixed is not None and fixed.partition(":")[0].endswith(".py") else None

    def train_limit(self, available: int) -> int | None:
        """How many of the `available` training questions are kept; None where that is all of them.

        `auto` keeps as many as `train.steps` can visit, so that no teacher is asked about a question that no student
        sees. Raises `ConfigError` for more than there are.
        """
        limit = self.task.train_limit
        if isinstance(limit, int) and limit > available:
            raise ConfigError(f"task.train_limit: {limit} is not allowed; the training split has {available} questions")
        share = max(1, round(self.task.train_share * (limit if isinstance(limit, int) else available)))
        if limit == "auto":
            share = min(share, self.train.steps * self.train.global_batch_size)
        return None if share == available else share

    def uses_teacher(self) -> bool:
        """Whether anybody is asked: fine-tuning on gold labels needs no teacher."""
        return self.method != "finetune" or self.train.labels == "teacher"

    def uses_discriminator(self) -> bool:
        return self.method == "qcrd" and self.discriminator.enabled

    def uses_student_negatives(self) -> bool:
        """Whether negatives are sampled from the student or a fixed model."""
        sampled = self.negatives.source in ("snapshot", "snapshot_and_teacher", "fixed")
        return self.method == "qcrd" and sampled and self.negatives.num_samples > 0


def _allowed_keys(location: Sequence[int | str]) -> list[str]:
    """The keys that the group of settings at `location` has."""
    model: type[BaseModel] = ExperimentConfig
    for part in location:
        field = model.model_fields.get(str(part))
        kind = field.annotation if field is not None else None
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return []
        model = kind
    return list(model.model_fields)


def one_line(error: ValidationError) -> str:
    """The first of a validation's errors as one line: field, value, what is allowed."""
    first, rest = error.errors()[0], error.error_count() - 1
    more = f" (and {rest} more)" if rest else ""
    field = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("constrained-", "literal[")))
    value = "***" if "key" in field else first.get("input")  # somebody may have put the key itself there
    if first["type"] == "extra_forbidden":
        allowed = _allowed_keys(first["loc"][:-1])
        close = difflib.get_close_matches(str(first["loc"][-1]), allowed, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"{field}: unknown key (value {value!r}); allowed here: {', '.join(allowed)}{hint}{more}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return message + more
    return f"{field}: {value!r} is not allowed; {message[0].lower()}{message[1:]}{more}"


def validated(data: Mapping[str, Any]) -> ExperimentConfig:
    """An experiment from plain data. Raises `ConfigError`."""
    try:
        return ExperimentConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(one_line(error)) from None


def _plain(value: Any) -> Any:
    """A command-line value as plain data; numbers and booleans stay text, which pydantic reads by the field's type."""
    if not isinstance(value, str):
        return value
    if value in ("null", "None"):  # `none` is a value of some fields
        return None
    if value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _json_or_text(value: Any) -> Any:
    """A command-line value where no field says which type it has."""
    try:
        return json.loads(value)
    except (TypeError, ValueError):
        return value


def with_overrides(config: ExperimentConfig, overrides: Mapping[str, Any]) -> ExperimentConfig:
    """`config` with dotted keys replaced, for the command line and for sweeps alike.

    Example: `with_overrides(config, {"train.learning_rate": "1e-4"})`. Raises `ConfigError`.
    """
    data = config.model_dump()
    for key, value in overrides.items():
        group = data
        *parents, last = key.split(".")
        for depth, part in enumerate(parents):
            child = group.get(part)
            if not isinstance(child, dict):
                allowed = _allowed_keys(parents[:depth])
                raise ConfigError(f"{key}: unknown key (value {value!r}); allowed here: {', '.join(allowed)}")
            group = child
        group[last] = _json_or_text(value) if parents[-1:] == ["extra_body"] else _plain(value)
    return validated(data)


def flatten(config: Settings) -> dict[str, Any]:
    """Settings as one flat mapping with dotted keys."""
    flat: dict[str, Any] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, child in value.items():
                visit(f"{prefix}.{key}" if prefix else key, child)
        else:
            flat[prefix] = value

    visit("", config.model_dump())
    return flat

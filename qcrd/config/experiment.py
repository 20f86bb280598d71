"""The experiment as typed, frozen settings.

Every number of the method is a field, with the paper's value as its default. An unknown key or an impossible value is a
`ConfigError` of one line that names the field, the value and what is allowed. Knows nothing about files, Ray, models or
any one benchmark.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from qcrd.config.base import ConfigError, Settings
from qcrd.config.models import DiscriminatorConfig, PretrainedDiscriminatorConfig, Seq2SeqStudentConfig, StudentConfig
from qcrd.config.paper import PaperMeasure, PaperNumber
from qcrd.config.running import ResourcesConfig, TrackingConfig
from qcrd.config.task import GeneratedTaskConfig, TaskConfig
from qcrd.config.teacher import OpenAITeacherConfig, RationalesConfig, TeacherConfig
from qcrd.config.training import CheckpointConfig, EvaluationConfig, LossConfig, NegativesConfig, TrainConfig


class ExperimentConfig(Settings):
    """One experiment, complete."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    method: str = Field(default="qcrd", description="one of the methods that distill/methods.py lists")
    seed: int = 0
    output: str = "runs"
    task: TaskConfig = GeneratedTaskConfig()
    teacher: TeacherConfig = OpenAITeacherConfig()
    rationales: RationalesConfig = RationalesConfig()
    student: StudentConfig = Seq2SeqStudentConfig()
    discriminator: DiscriminatorConfig = PretrainedDiscriminatorConfig()
    negatives: NegativesConfig = NegativesConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()
    paper: tuple[PaperNumber, ...] = Field(default=(), description="what a paper printed, for the report; no setting")

    @model_validator(mode="after")
    def _check(self) -> Self:
        m, k = self.rationales.num_samples, self.teacher.num_samples
        if m > k:
            raise ValueError(f"rationales.num_samples: {m} is not allowed; at most teacher.num_samples = {k}")
        if "train" not in self.teacher.splits:
            raise ValueError(f"teacher.splits: {list(self.teacher.splits)} is not allowed; train must be among them")
        if 0.0 not in self.evaluation.explain_temperatures:
            raise ValueError(
                f"evaluation.explain_temperatures: {list(self.evaluation.explain_temperatures)} is not allowed; "
                "0 must be among them"
            )
        if self.negatives.source == "fixed" and not self.negatives.fixed:
            raise ValueError("negatives.fixed: None is not allowed; negatives.source = fixed needs a model folder")
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

    def printed(self, measure: PaperMeasure, of_any_student: bool = False) -> PaperNumber | None:
        """What a paper printed for this task, method and student; `of_any_student`: else the first of another one."""
        fitting = [
            one for one in self.paper
            if one.measure == measure and one.task in (None, self.task.name) and one.method in (None, self.method)
            and one.discriminator in (None, self.discriminator.enabled)
        ]  # fmt: skip
        model = self.student.model if isinstance(self.student, Seq2SeqStudentConfig) else None
        own = [one for one in fitting if not one.models or model in one.models]
        return next(iter(own or (fitting if of_any_student else [])), None)

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

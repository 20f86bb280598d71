"""What an experiment is: typed, frozen settings in groups, their overrides, and the finding of a recipe."""

from qcrd.config.base import ConfigError, Positive, Settings, Share
from qcrd.config.experiment import ExperimentConfig
from qcrd.config.models import (
    DiscriminatorConfig,
    DiscriminatorSettings,
    EncoderPairStudentConfig,
    NamedModel,
    PrefixesConfig,
    PretrainedDiscriminatorConfig,
    ScratchDiscriminatorConfig,
    ScratchSizes,
    ScratchStudentConfig,
    Seq2SeqStudentConfig,
    StudentConfig,
    StudentSettings,
)
from qcrd.config.paper import PaperNumber
from qcrd.config.running import ResourcesConfig, TrackingConfig
from qcrd.config.settings import flatten, one_line, validated, with_overrides
from qcrd.config.task import BenchmarkTaskConfig, GeneratedTaskConfig, TaskConfig, TaskSettings
from qcrd.config.teacher import (
    REQUEST_FIELDS,
    BatchConfig,
    ImportedTeacherConfig,
    LanguageModelSettings,
    OpenAITeacherConfig,
    PaidSettings,
    RationalesConfig,
    SimulatedTeacherConfig,
    TeacherConfig,
    TeacherSettings,
    VllmTeacherConfig,
)
from qcrd.config.training import CheckpointConfig, EvaluationConfig, LossConfig, NegativesConfig, TrainConfig

__all__ = [
    "REQUEST_FIELDS",
    "BatchConfig",
    "BenchmarkTaskConfig",
    "CheckpointConfig",
    "ConfigError",
    "DiscriminatorConfig",
    "DiscriminatorSettings",
    "EncoderPairStudentConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "GeneratedTaskConfig",
    "ImportedTeacherConfig",
    "LanguageModelSettings",
    "LossConfig",
    "NamedModel",
    "NegativesConfig",
    "OpenAITeacherConfig",
    "PaidSettings",
    "PaperNumber",
    "Positive",
    "PrefixesConfig",
    "PretrainedDiscriminatorConfig",
    "RationalesConfig",
    "ResourcesConfig",
    "ScratchDiscriminatorConfig",
    "ScratchSizes",
    "ScratchStudentConfig",
    "Seq2SeqStudentConfig",
    "Settings",
    "Share",
    "SimulatedTeacherConfig",
    "StudentConfig",
    "StudentSettings",
    "TaskConfig",
    "TaskSettings",
    "TeacherConfig",
    "TeacherSettings",
    "TrackingConfig",
    "TrainConfig",
    "VllmTeacherConfig",
    "flatten",
    "one_line",
    "validated",
    "with_overrides",
]

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
from qcrd.config.running import ResourcesConfig, TrackingConfig
from qcrd.config.settings import flatten, one_line, validated, with_overrides
from qcrd.config.task import BenchmarkTaskConfig, GeneratedTaskConfig, TaskConfig, TaskSettings
from qcrd.config.teacher import (
    REQUEST_FIELDS,
    TEACHER_MEANS,
    BatchConfig,
    ImportedConfig,
    RationalesConfig,
    SimulatedConfig,
    TeacherConfig,
    VllmConfig,
)
from qcrd.config.training import CheckpointConfig, EvaluationConfig, LossConfig, NegativesConfig, TrainConfig

__all__ = [
    "REQUEST_FIELDS",
    "TEACHER_MEANS",
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
    "ImportedConfig",
    "LossConfig",
    "NamedModel",
    "NegativesConfig",
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
    "SimulatedConfig",
    "StudentConfig",
    "StudentSettings",
    "TaskConfig",
    "TaskSettings",
    "TeacherConfig",
    "TrackingConfig",
    "TrainConfig",
    "VllmConfig",
    "flatten",
    "one_line",
    "validated",
    "with_overrides",
]

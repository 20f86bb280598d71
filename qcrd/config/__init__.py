"""What an experiment is: typed, frozen settings in groups, their overrides, and the finding of a recipe."""

from qcrd.config.base import ConfigError, Positive, Settings, Share
from qcrd.config.experiment import ExperimentConfig
from qcrd.config.models import DiscriminatorConfig, PrefixesConfig, ScratchConfig, StudentConfig
from qcrd.config.running import ResourcesConfig, TrackingConfig
from qcrd.config.settings import flatten, one_line, validated, with_overrides
from qcrd.config.task import GeneratorConfig, TaskConfig
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
    "CheckpointConfig",
    "ConfigError",
    "DiscriminatorConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "GeneratorConfig",
    "ImportedConfig",
    "LossConfig",
    "NegativesConfig",
    "Positive",
    "PrefixesConfig",
    "RationalesConfig",
    "ResourcesConfig",
    "ScratchConfig",
    "Settings",
    "Share",
    "SimulatedConfig",
    "StudentConfig",
    "TaskConfig",
    "TeacherConfig",
    "TrackingConfig",
    "TrainConfig",
    "VllmConfig",
    "flatten",
    "one_line",
    "validated",
    "with_overrides",
]

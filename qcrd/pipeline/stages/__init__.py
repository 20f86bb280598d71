"""The stages of an experiment, one object a file, in the order in which data flows through them."""

from __future__ import annotations

from qcrd.config import ExperimentConfig
from qcrd.pipeline.stage import Stage
from qcrd.pipeline.stages.discriminator import DISCRIMINATOR
from qcrd.pipeline.stages.predictions import PREDICTIONS
from qcrd.pipeline.stages.questions import QUESTIONS
from qcrd.pipeline.stages.rationales import RATIONALES
from qcrd.pipeline.stages.report import REPORT
from qcrd.pipeline.stages.samples import SAMPLES
from qcrd.pipeline.stages.student import STUDENT
from qcrd.pipeline.stages.training_set import TRAINING_SET

STAGES: tuple[Stage, ...] = (
    QUESTIONS, SAMPLES, RATIONALES, TRAINING_SET, DISCRIMINATOR, STUDENT, PREDICTIONS, REPORT,
)  # fmt: skip


def stages_of(config: ExperimentConfig) -> list[Stage]:
    """The stages that an experiment has, which follows from its method."""
    return [stage for stage in STAGES if stage.is_part_of(config)]

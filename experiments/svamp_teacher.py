"""SVAMP with a teacher behind an OpenAI-compatible endpoint, T5-base and the paper's settings.

Name the teacher on the command line: `teacher.model=…`, and `teacher.base_url=…` for an endpoint of your own.
"""

from experiments.paper import numbers
from qcrd.config import BenchmarkTaskConfig, ExperimentConfig, OpenAITeacherConfig


def recipe() -> ExperimentConfig:
    return ExperimentConfig(
        name="svamp-teacher",
        task=BenchmarkTaskConfig(name="svamp"),
        teacher=OpenAITeacherConfig(model="gpt-3.5-turbo", num_samples=5),
        paper=numbers("svamp"),
    )

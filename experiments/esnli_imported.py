"""QCRD on real e-SNLI with five real LLM rationales a question; no teacher is asked.

As `cqa_imported`, on the first 10,000 training questions: the five prompts are five samples, of which the first
(causal) has no reply to 100 questions. Where the folder has the whole training file, the questions beyond the first
10,000 have no replies and count as errors; `task.train_limit` then draws from all of them. Data: QCRD_DATA, default
../shared/data.
"""

from experiments.cqa_imported import recipe as cqa
from experiments.paper import numbers
from qcrd.config import BenchmarkTaskConfig, ExperimentConfig, ImportedTeacherConfig
from qcrd.tasks.files import data_folder


def recipe() -> ExperimentConfig:
    base = cqa()
    teacher = ImportedTeacherConfig(
        parser=base.teacher.parser,
        num_samples=base.teacher.num_samples,
        path=str(data_folder() / "esnli" / "llm_bing" / "*.csv.gz"),
        format="csv",
        row_id="esnli-train-{row}",
        row_field="idx",
        text_field="rationale",
    )
    return base.model_copy(
        update={
            "name": "esnli-imported",
            "task": BenchmarkTaskConfig(name="esnli"),
            "evaluation": base.evaluation.model_copy(update={"validation_limit": 500}),
            "teacher": teacher,
            "paper": numbers("esnli"),
        }
    )

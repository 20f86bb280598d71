"""What the trained student answers and explains, and the discriminator's scores of rationales."""

from __future__ import annotations

from typing import Any

from qcrd.config import ExperimentConfig
from qcrd.distill.methods import uses_teacher
from qcrd.evaluate.students import evaluate
from qcrd.pipeline.stage import Planning, Stage, StageRun, Summary, Work
from qcrd.pipeline.stages.questions import sizes_of
from qcrd.pipeline.stages.rationales import RATIONALES
from qcrd.pipeline.stages.student import STUDENT
from qcrd.storage.artifacts import Artifact
from qcrd.storage.output import Storage
from qcrd.tasks import get_task
from qcrd.tracking.record import RunRecord

CHECKPOINTS = 3  # initial, best, last


class PredictionsStage(Stage):
    name = "predictions"
    version = 4
    of_task = False

    def inputs(self, config: ExperimentConfig) -> tuple[str, ...]:
        rationales = (RATIONALES.name,) if uses_teacher(config.method, config.train) else ()
        return (*rationales, *STUDENT.inputs(config), STUDENT.name)

    def settings(self, config: ExperimentConfig) -> dict[str, Any]:
        evaluation = config.evaluation
        return {
            "batch_size": evaluation.batch_size,
            "num_examples": evaluation.num_examples,
            "validation_limit": evaluation.validation_limit,
            "test_limit": evaluation.test_limit,
            "explained_questions": evaluation.explained_questions,
            "explain_temperatures": list(evaluation.explain_temperatures),
            "task_seed": config.task.seed,
            "top_k": config.negatives.top_k,
            "max_new_tokens": config.negatives.max_new_tokens,
            "seed": config.seed,
        }

    def planned_work(self, planning: Planning) -> Work:
        sizes, evaluation = sizes_of(planning.config), planning.config.evaluation
        limits = {"validation": evaluation.validation_limit, "test": evaluation.test_limit}
        labels = sum(min(sizes[split], limit or sizes[split]) for split, limit in limits.items())
        return Work(f"{CHECKPOINTS * labels} labels")

    def run(self, run: StageRun) -> Summary:
        config = run.config
        task, storage = get_task(config.task.name), Storage.of(config.output)
        return evaluate(config, task, storage, run.inputs, run.out, run.on_event)

    def track(self, record: RunRecord, artifact: Artifact, config: ExperimentConfig) -> None:
        record.add_artifact(artifact.fetch() / "predictions.parquet", self.name)


PREDICTIONS = PredictionsStage()

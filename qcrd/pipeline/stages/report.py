"""The report of one experiment."""

from __future__ import annotations

from typing import Any

from qcrd.config import ExperimentConfig
from qcrd.distill.methods import get_method, uses_student_negatives, uses_teacher, uses_teacher_negatives
from qcrd.pipeline.stage import Stage, StageRun, Summary, short
from qcrd.pipeline.stages.predictions import PREDICTIONS
from qcrd.pipeline.stages.samples import SAMPLES
from qcrd.report.experiment.report import headline_lines, write_report
from qcrd.report.experiment.settings import SHOWN_OF_PAPER, MethodFacts, shown_settings
from qcrd.storage.artifacts import Artifact
from qcrd.tracking.record import RunRecord

_HEALTH = {
    "report/parse_rate": "teacher samples that could be parsed (share)",
    "report/hinge_active_min": "active hinges after iteration j, lowest (share)",
    "report/hinge_active_max": "active hinges after iteration j, highest (share)",
    "report/discriminator_auroc_real": "discriminator's AUROC, teacher's negatives, held-out questions",
    "report/discriminator_auroc_augmented": "discriminator's AUROC, augmented negatives, held-out questions",
    "report/online_updates": "discriminator's online updates (optimizer steps)",
    "report/truncated_negatives": "truncated negatives (share)",
}


def facts_of(config: ExperimentConfig) -> MethodFacts:
    """What the report must know of the experiment's method."""
    method, of_student = get_method(config.method), uses_student_negatives(config.method, config.negatives)
    return MethodFacts(
        asks_teacher=uses_teacher(config.method, config.train),
        explains=method.explains,
        loss_fields=method.loss_fields,
        contrastive=method.negatives,
        negatives=of_student or uses_teacher_negatives(config.method, config.negatives),
        student_negatives=of_student,
        discriminator=method.discriminator,
    )


class ReportStage(Stage):
    name = "report"
    version = 3
    of_task = False

    def inputs(self, config: ExperimentConfig) -> tuple[str, ...]:
        samples = (SAMPLES.name,) if uses_teacher(config.method, config.train) else ()
        return (*samples, *PREDICTIONS.inputs(config), PREDICTIONS.name)

    def settings(self, config: ExperimentConfig) -> dict[str, Any]:
        """What it shows beside its inputs. The student's folder is a path, its content an input's."""
        shown = shown_settings(config, facts_of(config))
        settings: dict[str, Any] = {
            "name": config.name,
            "num_examples": config.evaluation.num_examples,
            "shown": {name: value for name, value in shown.items() if name != "student.model"},
        }
        if config.paper:
            settings["paper"] = [
                {"measure": measure, "value": one.value, "heading": one.heading, "note": one.note}
                for measure, any_student in SHOWN_OF_PAPER.items()
                if (one := config.printed(measure, any_student)) is not None
            ]
        return settings

    def run(self, run: StageRun) -> Summary:
        return write_report(run.config, facts_of(run.config), run.inputs, run.summaries, run.out)

    def track(self, record: RunRecord, artifact: Artifact, config: ExperimentConfig) -> None:
        record.add_artifact(artifact.fetch(), self.name)

    def headline(self, summary: Summary) -> list[list[str]]:
        return [[title, short(summary[key])] for key, title in _HEALTH.items() if key in summary]

    def closing_lines(self, summary: Summary) -> list[str]:
        return headline_lines(summary)


REPORT = ReportStage()

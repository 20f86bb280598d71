"""The report of one experiment."""

from __future__ import annotations

from typing import Any

from qcrd.config import ExperimentConfig
from qcrd.pipeline.stage import Stage, StageRun, Summary, short
from qcrd.pipeline.stages.predictions import PREDICTIONS
from qcrd.pipeline.stages.samples import SAMPLES
from qcrd.report.experiment.report import headline_lines, write_report
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


class ReportStage(Stage):
    name = "report"
    version = 3
    of_task = False

    def inputs(self, config: ExperimentConfig) -> tuple[str, ...]:
        samples = (SAMPLES.name,) if config.uses_teacher() else ()
        return (*samples, *PREDICTIONS.inputs(config), PREDICTIONS.name)

    def settings(self, config: ExperimentConfig) -> dict[str, Any]:
        return config.identity()

    def run(self, run: StageRun) -> Summary:
        return write_report(run.config, run.inputs, run.summaries, run.out)

    def track(self, record: RunRecord, artifact: Artifact, config: ExperimentConfig) -> None:
        record.add_artifact(artifact.fetch(), self.name)

    def headline(self, summary: Summary) -> list[list[str]]:
        return [[title, short(summary[key])] for key, title in _HEALTH.items() if key in summary]

    def closing_lines(self, summary: Summary) -> list[str]:
        return headline_lines(summary)


REPORT = ReportStage()

"""Self-consistency: the vote that makes positive and negative rationales of the samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, TypeVar

from qcrd.config import ExperimentConfig
from qcrd.distill.methods import uses_teacher
from qcrd.pipeline.stage import Stage, StageRun, Summary, short
from qcrd.pipeline.stages.questions import QUESTIONS, read_questions
from qcrd.pipeline.stages.samples import SAMPLES
from qcrd.rationales.consistency import statistics, vote_on
from qcrd.records import Question, Rationale, Sample, Vote, iter_rows, write_rows
from qcrd.storage.artifacts import Artifact
from qcrd.tasks import get_task
from qcrd.tasks.parsers import get_parser
from qcrd.tracking.record import RunRecord

OfQuestion = TypeVar("OfQuestion", Vote, Rationale)


def of_training_questions(rows: Sequence[OfQuestion], questions: Mapping[str, Question]) -> list[OfQuestion]:
    """Those of training questions: nothing that was said about another one is ever counted or learnt from."""
    return [row for row in rows if questions[row.question_id].split == "train"]


class RationalesStage(Stage):
    name = "rationales"
    version = 1

    def is_part_of(self, config: ExperimentConfig) -> bool:
        return uses_teacher(config.method, config.train)

    def inputs(self, config: ExperimentConfig) -> tuple[str, ...]:
        return (QUESTIONS.name, SAMPLES.name)

    def settings(self, config: ExperimentConfig) -> dict[str, Any]:
        return {
            "num_samples": config.rationales.num_samples,
            "positives": config.rationales.positives,
            "parser": config.teacher.parser,
        }

    def check(self, config: ExperimentConfig) -> None:
        get_parser(config.teacher.parser, get_task(config.task.name))

    def run(self, run: StageRun) -> Summary:
        config = run.config
        parse = get_parser(config.teacher.parser, get_task(config.task.name))
        questions = {question.id: question for question in read_questions(run.inputs[QUESTIONS.name])}
        votes: list[Vote] = []
        rationales: list[Rationale] = []
        samples = iter_rows(run.inputs[SAMPLES.name] / "samples.parquet", Sample)
        for question_id, rows in groupby(samples, lambda row: row.question_id):  # they lie question by question
            used = [row for row in rows if row.index < config.rationales.num_samples]
            vote, voted = vote_on(questions[question_id], used, parse, config.rationales.positives)
            votes.append(vote)
            rationales += voted
        write_rows(run.out / "votes.parquet", Vote, votes)
        write_rows(run.out / "rationales.parquet", Rationale, rationales)
        numbers = statistics(of_training_questions(votes, questions), of_training_questions(rationales, questions))
        (run.out / "statistics.json").write_text(json.dumps(numbers, indent=2) + "\n")
        _show_statistics(run, numbers)
        return numbers

    def track(self, record: RunRecord, artifact: Artifact, config: ExperimentConfig) -> None:
        record.add_artifact(artifact.fetch() / "statistics.json", self.name)

    def headline(self, summary: Summary) -> list[list[str]]:
        return [["teacher's mean agreement with its vote (share)", short(summary["mean_agreement"])]]


def _show_statistics(run: StageRun, numbers: Summary) -> None:
    """The paper's appendix Table 2, by both definitions of positive."""
    k = run.config.rationales.num_samples
    names = {
        "mean_positives": f"mean positives of {k}", "share_only_positives": "share with only positives",
        "share_only_negatives": "share with only negatives",
    }  # fmt: skip
    gold, voted = numbers["by_gold"], numbers["by_majority"]
    rows = [[title, f"{gold[key]:.3f}", f"{voted[key]:.3f}"] for key, title in names.items()]
    run.display.table(
        f"Rationales of {numbers['num_questions']} questions, parse rate {numbers['parse_rate']:.1%}, "
        f"right {numbers['sample_accuracy']:.1%}, vote right {numbers['vote_accuracy']:.1%}, "
        f"mean agreement {numbers['mean_agreement']:.1%}",
        ["statistic (Table A-2)", "positive = gold answer", "positive = majority"],
        rows,
    )


RATIONALES = RationalesStage()

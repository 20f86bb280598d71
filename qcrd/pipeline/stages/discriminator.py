"""The discriminator's training on the teacher's rationales, before the student's."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from qcrd.config import ExperimentConfig
from qcrd.distill.discriminator import QuestionRationales
from qcrd.distill.discriminator_training import AUROC_WARNING
from qcrd.distill.methods import uses_discriminator
from qcrd.distill.train import pretrain_discriminator
from qcrd.pipeline.model_identity import check_model, given_tokenizer, model_identity
from qcrd.pipeline.stage import Planning, Stage, StageRun, Summary, Work
from qcrd.pipeline.stages.questions import QUESTIONS, read_questions
from qcrd.pipeline.stages.rationales import RATIONALES, of_training_questions
from qcrd.records import Rationale, read_rows
from qcrd.runtime.remote import run_remotely
from qcrd.storage.artifacts import Artifact
from qcrd.storage.output import Storage
from qcrd.tracking.record import RunRecord


class DiscriminatorStage(Stage):
    name = "discriminator"
    version = 2

    def is_part_of(self, config: ExperimentConfig) -> bool:
        return uses_discriminator(config.method, config.discriminator)

    def inputs(self, config: ExperimentConfig) -> tuple[str, ...]:
        return (QUESTIONS.name, RATIONALES.name)

    def settings(self, config: ExperimentConfig) -> dict[str, Any]:
        discriminator = config.discriminator
        return {
            "model": model_identity(discriminator),
            "hidden_size": discriminator.hidden_size,
            "seed": discriminator.seed,
            "learning_rate": discriminator.learning_rate,
            "batch_questions": discriminator.batch_questions,
            "max_steps": discriminator.max_steps,
            "eval_every": discriminator.eval_every,
            "holdout": discriminator.holdout,
            "target_score": discriminator.target_score,
            "augmentation": discriminator.augmentation,
            "max_tokens": discriminator.max_tokens,
            "dtype": discriminator.dtype,
            "max_grad_norm": discriminator.max_grad_norm,
        }

    def check(self, config: ExperimentConfig) -> None:
        check_model(config, "discriminator")

    def check_inputs_to_come(self, config: ExperimentConfig) -> None:
        given_tokenizer(config, "discriminator")

    def planned_work(self, planning: Planning) -> Work:
        discriminator = planning.config.discriminator
        return Work(f"at most {discriminator.max_steps} steps of {discriminator.batch_questions} questions")

    def run(self, run: StageRun) -> Summary:
        config = run.config
        questions = {question.id: question for question in read_questions(run.inputs[QUESTIONS.name])}
        rows = read_rows(run.inputs[RATIONALES.name] / "rationales.parquet", Rationale)
        sides: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
        for row in of_training_questions(rows, questions):
            if row.answer is not None and row.text:
                sides[row.question_id][0 if row.positive else 1].append(row.text)
        rationales = [QuestionRationales(id_, questions[id_].text, *both) for id_, both in sides.items()]
        metric_rows = run_remotely(
            config.resources, Storage.of(config.output), pretrain_discriminator, {}, run.out, config.resources,
            config.discriminator, rationales, on_event=run.on_event,
        )  # fmt: skip
        last = metric_rows[-1]
        auroc = last.get("discriminator/auroc_real", last.get("discriminator/auroc_augmented"))
        if auroc is None or auroc < AUROC_WARNING:
            shown = "not measurable" if auroc is None else f"{auroc:.3f}"
            run.display.warn(f"the discriminator's AUROC on held-out rationales is {shown}, below {AUROC_WARNING}")
        return {"steps": last["step"], **{key: value for key, value in last.items() if key != "step"}}

    def track(self, record: RunRecord, artifact: Artifact, config: ExperimentConfig) -> None:
        record.add_artifact(artifact.fetch() / "pretraining.jsonl", self.name)


DISCRIMINATOR = DiscriminatorStage()

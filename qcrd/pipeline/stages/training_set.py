"""The tokenised training set, and the tokenizer where it is trained on the task."""

from __future__ import annotations

from typing import Any

from qcrd.config import ExperimentConfig, ScratchSizes
from qcrd.distill.methods import get_method, target_of, uses_teacher
from qcrd.models.tokenizer import encode_inputs, encode_targets, train_tokenizer
from qcrd.pipeline.model_identity import check_model, given_tokenizer, tokenizer_identity
from qcrd.pipeline.stage import Stage, StageRun, Summary
from qcrd.pipeline.stages.questions import QUESTIONS, read_questions
from qcrd.pipeline.stages.rationales import RATIONALES, of_training_questions
from qcrd.rationales.training_set import build_examples
from qcrd.records import Example, Rationale, Vote, read_rows, write_rows
from qcrd.storage.artifacts import Artifact
from qcrd.tracking.record import RunRecord


class TrainingSetStage(Stage):
    name = "training_set"
    version = 1

    def inputs(self, config: ExperimentConfig) -> tuple[str, ...]:
        return (QUESTIONS.name, RATIONALES.name) if uses_teacher(config.method, config.train) else (QUESTIONS.name,)

    def settings(self, config: ExperimentConfig) -> dict[str, Any]:
        student = config.student
        settings: dict[str, Any] = {
            "prefixes": {"predict": student.prefixes.predict, "explain": student.prefixes.explain},
            "max_input_tokens": student.max_input_tokens,
            "max_target_tokens": student.max_target_tokens,
            "max_label_tokens": student.max_label_tokens,
            **tokenizer_identity(config, "student"),
        }
        if config.train.labels == "teacher":
            settings |= {"labels": "teacher", "voted": get_method(config.method).voted_labels}
        if (phrase := get_method(config.method).answer_phrase) is not None:
            settings["target"] = f"rationale, {phrase}, label"
        return settings

    def check(self, config: ExperimentConfig) -> None:
        check_model(config, "student")

    def check_inputs_to_come(self, config: ExperimentConfig) -> None:
        given_tokenizer(config, "student")

    def run(self, run: StageRun) -> Summary:
        config = run.config
        questions = {question.id: question for question in read_questions(run.inputs[QUESTIONS.name])}
        train_questions = [question for question in questions.values() if question.split == "train"]
        votes = {question.id: Vote(question.id, None, None, 0.0, False, 0, 0) for question in train_questions}
        rationales: dict[str, list[Rationale]] = {question.id: [] for question in train_questions}
        if RATIONALES.name in run.inputs:
            folder = run.inputs[RATIONALES.name]
            votes = {vote.question_id: vote for vote in read_rows(folder / "votes.parquet", Vote)}
            for row in of_training_questions(read_rows(folder / "rationales.parquet", Rationale), questions):
                rationales[row.question_id].append(row)
        student, target = config.student, target_of(config.method, config.train)
        tokenizer = given_tokenizer(config, "student")
        if tokenizer is None:
            prefixes = list(student.prefixes.model_dump().values())
            texts = [text for question in train_questions for text in (question.text, question.label)] + prefixes * 100
            texts += [row.text for rows in rationales.values() for row in rows]
            texts += [target.answer_phrase] * 100 if target.answer_phrase is not None else []
            assert isinstance(student, ScratchSizes)
            tokenizer = train_tokenizer(texts, student.vocab_size)
        examples, cut = build_examples(
            student, target, train_questions, votes, rationales,
            lambda texts, limit: encode_inputs(tokenizer, texts, limit),
            lambda texts, limit: encode_targets(tokenizer, texts, limit),
        )  # fmt: skip
        tokenizer.save_pretrained(run.out / "tokenizer")
        write_rows(run.out / "examples.parquet", Example, examples)
        return {
            "examples": len(examples),
            "without_positive": sum(not example.positives for example in examples),
            "without_label": sum(not example.label_ids for example in examples),
            "positives": sum(len(example.positives) for example in examples),
            "teacher_negatives": sum(len(example.negatives) for example in examples),
            "vocabulary": len(tokenizer),
            "truncated_inputs": cut.inputs,
            "truncated_labels": cut.labels,
            "truncated_rationales": cut.rationales,
        }

    def track(self, record: RunRecord, artifact: Artifact, config: ExperimentConfig) -> None:
        count = artifact.marker()["summary"]["examples"]
        record.add_dataset(self.name, artifact.digest(), count, str(artifact.path), "training")


TRAINING_SET = TrainingSetStage()

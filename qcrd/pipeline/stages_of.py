"""The stages of one experiment in order: what each reads, which settings decide its output, and what it does.

A stage reads finished folders and fills one new folder. Which stages an experiment has follows from its method:
without a teacher's help nobody is asked, without a discriminator none is trained. Knows nothing about where folders lie or
what is already done (pipeline.py).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeVar

from qcrd.config import ConfigError, ExperimentConfig, ScratchConfig
from qcrd.console import Display
from qcrd.distill.discriminator import QuestionRationales
from qcrd.distill.discriminator_training import AUROC_WARNING
from qcrd.distill.loop import Event
from qcrd.distill.results import copy_results
from qcrd.distill.train import pretrain_discriminator, run_remotely, train
from qcrd.evaluate.students import evaluate
from qcrd.models.student import encode_inputs, encode_targets, load_tokenizer, train_tokenizer
from qcrd.rationales.consistency import statistics, vote_on
from qcrd.rationales.single_task import PHRASE
from qcrd.rationales.training_set import build_examples
from qcrd.records import Example, Question, Rationale, Sample, Vote, iter_rows, read_rows, write_rows
from qcrd.report.experiment.report import write_report
from qcrd.storage.artifacts import model_folder
from qcrd.storage.fingerprints import folder_digest
from qcrd.storage.output import Storage
from qcrd.tasks import get_task, load_questions, train_limit
from qcrd.tasks.parsers import get_parser
from qcrd.teacher.requests import asked_splits, model_settings, read_prompt
from qcrd.teacher.sample import sample
from qcrd.tracking.record import RunRecord

Summary = dict[str, Any]
Judged = TypeVar("Judged", Vote, Rationale)


@dataclass(frozen=True)
class StageRun:
    """What a stage is given: settings, folders to read, the folder to fill, and where to tell how it goes."""

    config: ExperimentConfig
    name: str
    inputs: dict[str, Path]
    summaries: dict[str, Summary]
    out: Path
    fingerprint: str
    identity: dict[str, Any]
    """What the fingerprint stands for: the stage's version and settings, and the digests of its inputs."""
    display: Display
    record: RunRecord
    retry_errors: bool
    """Whether samples that failed are asked for again."""
    accept_missing: bool
    """Whether samples that are missing become error rows instead of being asked for."""

    def on_event(self, event: Event) -> None:
        """Progress and metric rows from wherever the work is done."""
        if event["kind"] == "progress":
            self.display.progress(self.name, event["done"], event["total"], event["info"])
        elif event["kind"] == "metrics":
            for row in event["rows"]:
                self.record.log(self.name, {k: v for k, v in row.items() if k != "step"}, int(row["step"]))
        elif event["kind"] == "restart":
            self.record.restart_stage(self.name, event["rows"])


@dataclass(frozen=True)
class Stage:
    """One stage. `version` is raised when its code changes results. `inputs` are the stages whose folders it reads."""

    name: str
    version: int
    inputs: tuple[str, ...]
    settings: Callable[[ExperimentConfig], dict[str, Any]]
    run: Callable[[StageRun], Summary]
    of_task: bool
    """Named after the task (shared between experiments) or after the experiment."""


def model_identity(name: str, revision: str | None) -> dict[str, str | None]:
    """What a model's name stands for: a folder's content, or a hub name with its revision."""
    if Path(name).is_dir():
        return {"content": folder_digest(Path(name))}
    return {"hub": name, "revision": revision}


def given_tokenizer(config: ExperimentConfig, part: Literal["student", "discriminator"]) -> Any:
    """The tokenizer of a model that is there; None where the pipeline trains it. Raises `ConfigError`."""
    model = config.student if part == "student" else config.discriminator
    field = "scratch.tokenizer" if model.kind == "scratch" else "model"
    name = model.scratch.tokenizer if model.kind == "scratch" else model.model
    try:
        return None if name is None else load_tokenizer(name, model.revision)
    except ValueError as error:
        raise ConfigError(f"{part}.{field}: {error}; give a model folder or a hub name") from error


def check_tokenizers(config: ExperimentConfig) -> None:
    """Raise `ConfigError` where the student's or the discriminator's tokenizer cannot be read."""
    given_tokenizer(config, "student")
    if config.uses_discriminator():
        given_tokenizer(config, "discriminator")


def _scratch(scratch: ScratchConfig) -> dict[str, Any]:
    settings = scratch.model_dump(exclude={"tokenizer"})
    return settings | {"tokenizer": model_identity(scratch.tokenizer, None) if scratch.tokenizer else None}


def _model(kind: str, name: str, revision: str | None, scratch: ScratchConfig) -> dict[str, Any]:
    identity = _scratch(scratch) if kind == "scratch" else model_identity(name, revision)
    return {"kind": kind, **identity}


# -- questions ----------------------------------------------------------------------------------------------------


def _questions_settings(config: ExperimentConfig) -> dict[str, Any]:
    task = get_task(config.task.name)
    settings = config.task.model_dump(exclude={"path", "sha256", "train_share"})
    settings["train_limit"] = train_limit(task, config)  # resolved: the schedule matters only where it cuts
    return {"task": settings, "source": task.source(config.task)}


def _make_questions(run: StageRun) -> Summary:
    task = get_task(run.config.task.name)
    questions = load_questions(task, run.config.task, train_limit(task, run.config))
    write_rows(run.out / "questions.parquet", Question, questions)
    sizes: dict[str, int] = defaultdict(int)
    for question in questions:
        sizes[question.split] += 1
    return dict(sizes)


# -- samples ------------------------------------------------------------------------------------------------------


def _samples_settings(config: ExperimentConfig) -> dict[str, Any]:
    task = get_task(config.task.name)
    settings = {"num_samples": config.teacher.num_samples, **model_settings(config.teacher, task)}
    if (splits := asked_splits(config.teacher)) != ["train"]:  # else an artifact keeps the name that it had before
        settings["splits"] = splits
    return settings | {"prompt": read_prompt(config.teacher, task)}


def _make_samples(run: StageRun) -> Summary:
    questions = read_rows(run.inputs["questions"] / "questions.parquet", Question)

    def on_progress(done: int, total: int, info: Mapping[str, Any]) -> None:
        text = ", ".join(f"{key} {value}" for key, value in info.items())
        run.display.progress(run.name, done, total, text)

    task = get_task(run.config.task.name)
    return sample(
        run.config, task, questions, run.out / "samples.parquet", on_progress, run.retry_errors, run.accept_missing
    )


# -- rationales ---------------------------------------------------------------------------------------------------


def _rationales_settings(config: ExperimentConfig) -> dict[str, Any]:
    return {**config.rationales.model_dump(), "parser": config.teacher.parser}


def _make_rationales(run: StageRun) -> Summary:
    config = run.config
    parse = get_parser(config.teacher.parser, get_task(config.task.name))
    questions = {q.id: q for q in read_rows(run.inputs["questions"] / "questions.parquet", Question)}
    votes: list[Vote] = []
    rationales: list[Rationale] = []
    samples = iter_rows(run.inputs["samples"] / "samples.parquet", Sample)
    for id_, rows in groupby(samples, lambda row: row.question_id):  # they lie question by question
        used = [row for row in rows if row.index < config.rationales.num_samples]
        vote, judged = vote_on(questions[id_], used, parse, config.rationales.positives)
        votes.append(vote)
        rationales += judged
    write_rows(run.out / "votes.parquet", Vote, votes)
    write_rows(run.out / "rationales.parquet", Rationale, rationales)
    numbers = statistics(_of_train(votes, questions), _of_train(rationales, questions))
    (run.out / "statistics.json").write_text(json.dumps(numbers, indent=2) + "\n")
    _show_statistics(run, numbers)
    return numbers


def _of_train(rows: Sequence[Judged], questions: Mapping[str, Question]) -> list[Judged]:
    """Those of training questions: nothing that was said about another one is ever counted or learnt from."""
    return [row for row in rows if questions[row.question_id].split == "train"]


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


# -- training set -------------------------------------------------------------------------------------------------


def _training_set_settings(config: ExperimentConfig) -> dict[str, Any]:
    student = config.student
    limits = student.model_dump(include={"prefixes", "max_input_tokens", "max_target_tokens", "max_label_tokens"})
    labels: dict[str, Any] = {}
    if config.train.labels == "teacher":
        labels = {"labels": "teacher", "voted": config.method == "qcrd"}
    if config.method == "single_task":
        labels["target"] = f"rationale, {PHRASE}, label"
    if student.kind == "scratch" and student.scratch.tokenizer is None:
        return {**limits, **labels, "vocab_size": student.scratch.vocab_size}
    name = student.scratch.tokenizer if student.kind == "scratch" else student.model
    return {**limits, **labels, "tokenizer": model_identity(str(name), student.revision)}


def _make_training_set(run: StageRun) -> Summary:
    config = run.config
    questions = {q.id: q for q in read_rows(run.inputs["questions"] / "questions.parquet", Question)}
    train_questions = [q for q in questions.values() if q.split == "train"]
    votes = {q.id: Vote(q.id, None, None, 0.0, False, 0, 0) for q in train_questions}
    rationales: dict[str, list[Rationale]] = {q.id: [] for q in train_questions}
    if "rationales" in run.inputs:
        votes = {v.question_id: v for v in read_rows(run.inputs["rationales"] / "votes.parquet", Vote)}
        for row in _of_train(read_rows(run.inputs["rationales"] / "rationales.parquet", Rationale), questions):
            rationales[row.question_id].append(row)
    student, tokenizer = config.student, given_tokenizer(config, "student")
    if tokenizer is None:
        prefixes = list(student.prefixes.model_dump().values())
        texts = [text for q in train_questions for text in (q.text, q.label)] + prefixes * 100
        texts += [row.text for rows in rationales.values() for row in rows]
        texts += [PHRASE] * 100 if config.method == "single_task" else []
        tokenizer = train_tokenizer(texts, student.scratch.vocab_size)
    examples, cut = build_examples(
        config, train_questions, votes, rationales,
        lambda texts, limit: encode_inputs(tokenizer, texts, limit),
        lambda texts, limit: encode_targets(tokenizer, texts, limit),
    )  # fmt: skip
    tokenizer.save_pretrained(run.out / "tokenizer")
    write_rows(run.out / "examples.parquet", Example, examples)
    return {
        "examples": len(examples),
        "without_positive": sum(not e.positives for e in examples),
        "without_label": sum(not e.label_ids for e in examples),
        "positives": sum(len(e.positives) for e in examples),
        "teacher_negatives": sum(len(e.negatives) for e in examples),
        "vocabulary": len(tokenizer),
        "truncated_inputs": cut.inputs,
        "truncated_labels": cut.labels,
        "truncated_rationales": cut.rationales,
    }


# -- discriminator --------------------------------------------------------------------------------------------------------

_ONLINE_FIELDS = {"enabled", "update_every", "update_steps", "kind", "model", "revision", "scratch"}


def _discriminator_settings(config: ExperimentConfig) -> dict[str, Any]:
    discriminator = config.discriminator
    return {
        **discriminator.model_dump(exclude=_ONLINE_FIELDS),
        "model": _model(discriminator.kind, discriminator.model, discriminator.revision, discriminator.scratch),
    }


def _make_discriminator(run: StageRun) -> Summary:
    questions = {q.id: q for q in read_rows(run.inputs["questions"] / "questions.parquet", Question)}
    sides: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for row in _of_train(read_rows(run.inputs["rationales"] / "rationales.parquet", Rationale), questions):
        if row.answer is not None and row.text:
            sides[row.question_id][0 if row.positive else 1].append(row.text)
    judged = [QuestionRationales(id_, questions[id_].text, *both) for id_, both in sides.items()]
    rows = run_remotely(run.config, pretrain_discriminator, {}, run.out, judged, on_event=run.on_event)
    last = rows[-1]
    auroc = last.get("discriminator/auroc_real", last.get("discriminator/auroc_augmented"))
    if auroc is None or auroc < AUROC_WARNING:
        shown = "not measurable" if auroc is None else f"{auroc:.3f}"
        run.display.warn(f"the discriminator's AUROC on held-out rationales is {shown}, below {AUROC_WARNING}")
    return dict(last)


# -- student ------------------------------------------------------------------------------------------------------


_WEIGHTS = {"label_weight", "rationale_weight"}
_LOSS_FIELDS = {
    "dss": _WEIGHTS,
    "mi": _WEIGHTS | {"mi_weight", "mi_variant"},
    "qcrd": _WEIGHTS | {"beta", "margin", "scheme", "discriminator_weight", "discriminator_decay"},
}
"""Fields of `LossConfig` that a method reads; the others' loss is L_pred alone."""


def _student_settings(config: ExperimentConfig) -> dict[str, Any]:
    student = config.student.model_dump(exclude={"kind", "model", "revision", "scratch"})
    settings: dict[str, Any] = {
        "method": config.method,
        "seed": config.seed,
        "student": student,
        "model": _model(config.student.kind, config.student.model, config.student.revision, config.student.scratch),
        "loss": config.loss.model_dump(include=_LOSS_FIELDS.get(config.method, set())),
        "train": config.train.model_dump(exclude={"micro_batch_size"}),
        "evaluation": config.evaluation.model_dump(include={"validation_limit"}),
    }
    if config.method == "qcrd":
        settings["negatives"] = config.negatives.model_dump(exclude={"fixed", "fixed_overrides", "placement"})
        if config.negatives.source == "fixed":
            settings["fixed"] = _fixed(config)
        settings["discriminator"] = config.discriminator.model_dump(exclude={"model", "revision", "scratch", "kind"})
    return settings


def _fixed(config: ExperimentConfig) -> dict[str, Any]:
    """What the fixed writer of negatives is known by: a folder's content; a recipe's name until it is trained."""
    if config.fixed_recipe is not None:
        negatives = config.identity()["negatives"]
        return {"recipe": negatives["fixed"], "overrides": negatives["fixed_overrides"]}
    return model_identity(str(model_folder(Storage.of(config.output), str(config.negatives.fixed))), None)


def _make_student(run: StageRun) -> Summary:
    inputs = {name: run.inputs[name] for name in ("questions", "training_set", "discriminator") if name in run.inputs}
    times = train(run.config, inputs, run.fingerprint, run.identity, run.out, run.on_event)
    return {**json.loads((run.out / "training.json").read_text()), **times}


# -- predictions and report ---------------------------------------------------------------------------------------


def _predictions_settings(config: ExperimentConfig) -> dict[str, Any]:
    return {
        **config.evaluation.model_dump(),
        "task_seed": config.task.seed,
        "top_k": config.negatives.top_k,
        "max_new_tokens": config.negatives.max_new_tokens,
        "seed": config.seed,
    }


def _make_predictions(run: StageRun) -> Summary:
    return evaluate(run.config, run.inputs, run.out, run.on_event)


def _report_settings(config: ExperimentConfig) -> dict[str, Any]:
    """Everything, with models by their content and not by their path."""
    data = config.identity()
    for part in (config.student, config.discriminator):
        model = _model(part.kind, part.model, part.revision, part.scratch)
        data["student" if part is config.student else "discriminator"]["model"] = model
    if config.negatives.source == "fixed":
        data["negatives"]["fixed"] = _fixed(config)
    return data


def _make_report(run: StageRun) -> Summary:
    return write_report(run.config, run.inputs, run.summaries, run.out)


def stages_of(config: ExperimentConfig) -> list[Stage]:
    """The stages of an experiment, in the order in which data flows."""
    asked = ("samples", "rationales") if config.uses_teacher() else ()
    judged = ("discriminator",) if config.uses_discriminator() else ()
    rationales = ("rationales",) if asked else ()
    trained = ("questions", "training_set", *judged)
    every = ("questions", *asked, "training_set", *judged, "student", "predictions")
    stages = {
        "questions": Stage("questions", 1, (), _questions_settings, _make_questions, True),
        "samples": Stage("samples", 2, ("questions",), _samples_settings, _make_samples, True),
        "rationales": Stage("rationales", 1, ("questions", "samples"), _rationales_settings, _make_rationales, True),
        "training_set": Stage(
            "training_set", 1, ("questions", *rationales), _training_set_settings, _make_training_set, True
        ),
        "discriminator": Stage("discriminator", 2, ("questions", "rationales"), _discriminator_settings, _make_discriminator, True),
        "student": Stage("student", 2, trained, _student_settings, _make_student, False),
        "predictions": Stage(
            "predictions", 4, (*rationales, *trained, "student"), _predictions_settings, _make_predictions, False
        ),
        "report": Stage("report", 3, every, _report_settings, _make_report, False),
    }
    return [stages[name] for name in (*every, "report")]


def with_trained_student(config: ExperimentConfig, results: Path, schedule: Sequence[Mapping[str, Any]]) -> list[Stage]:
    """The stages of an experiment whose student is trained already: `results` is copied.

    `schedule`, as plain data, says how its settings changed on the way, so that it is no student of `config` alone.
    """

    def settings(config: ExperimentConfig) -> dict[str, Any]:
        return {**_student_settings(config), "schedule": list(schedule)}

    def copy(run: StageRun) -> Summary:
        times = copy_results(results, run.out)
        return {**json.loads((run.out / "training.json").read_text()), **times}

    return [
        replace(stage, settings=settings, run=copy) if stage.name == "student" else stage for stage in stages_of(config)
    ]

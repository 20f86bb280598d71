"""From a config to finished stages: `plan` says what would run and spends nothing, `run` does what is missing."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants

from qcrd.config import ConfigError, ExperimentConfig, with_overrides
from qcrd.config.recipes import load_recipe
from qcrd.console import Display
from qcrd.distill.schedule import iteration_length
from qcrd.pipeline.recording import start_record
from qcrd.pipeline.stages_of import Stage, StageRun, check_tokenizers, stages_of
from qcrd.records import Example, Question, read_rows
from qcrd.storage.artifacts import Artifact
from qcrd.storage.fingerprints import digest_of, fingerprint
from qcrd.storage.json_lines import read_json_lines
from qcrd.storage.output import Storage
from qcrd.tasks import get_task, load_questions, train_limit
from qcrd.tasks.base import Task
from qcrd.tasks.files import is_download
from qcrd.tasks.parsers import get_parser
from qcrd.teacher.backends.build import check_teacher
from qcrd.teacher.cost import CostEstimate, cost_rows, estimate_cost
from qcrd.teacher.freeze import known_completion
from qcrd.teacher.probe import samples_per_request
from qcrd.teacher.requests import asked_splits, missing_mask, store_place, wanted_samples
from qcrd.teacher.store import SampleStore, StoreError
from qcrd.tracking.opening import open_run_record
from qcrd.tracking.record import RunRecord, read_metrics
from qcrd.tracking.tracker import RunId

RAY_DEFAULTS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a checkpoint's commit waits for this poll
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # Ray's own logs stay in its session folder
}


@dataclass(frozen=True)
class PlannedStage:
    """One line of a plan."""

    stage: str
    state: str
    work: str
    cost: CostEstimate | None = None


def check(config: ExperimentConfig, until: str = "report") -> None:
    """Everything that can be known to be wrong before anything is written or asked. Raises `ConfigError`.

    `until`: the last stage to run; with `questions` nobody is asked."""
    task = get_task(config.task.name)
    task.check(config.task)
    train_limit(task, config)
    _check_gold_labels(config, task)
    get_parser(config.teacher.parser, task)
    if config.uses_teacher() and until != "questions":
        check_teacher(config, task)
    student = config.student
    named: dict[str, str | None] = {"student.model": student.model}
    if student.kind == "scratch":
        named = {"student.scratch.tokenizer": student.scratch.tokenizer}
    if config.uses_discriminator():
        discriminator = config.discriminator
        scratch = discriminator.kind == "scratch"
        field = "discriminator.scratch.tokenizer" if scratch else "discriminator.model"
        named[field] = discriminator.scratch.tokenizer if scratch else discriminator.model
    if (other := fixed_recipe(config)) is not None:
        check(other, until)
    elif config.negatives.source == "fixed":
        named["negatives.fixed"] = config.negatives.fixed
    for field, name in named.items():
        looks_like_path = name is not None and (name.startswith((".", "/", "~")) or name.count("/") > 1)
        if looks_like_path and not Path(str(name)).is_dir():
            raise ConfigError(f"{field}: {name!r} does not exist; give a model folder or a hub name")


def _check_gold_labels(config: ExperimentConfig, task: Task) -> None:
    """Raise `ConfigError` where gold labels are wanted of training questions that have none."""
    if task.has_gold_labels(config.task):
        return
    why = f"the training questions of {task.NAME} that were found have no gold labels"
    if config.train.labels == "gold":
        raise ConfigError(f"train.labels: 'gold' is not allowed, 'teacher' is; {why}")
    if config.rationales.positives != "majority":
        raise ConfigError(f"rationales.positives: {config.rationales.positives!r} is not allowed, 'majority' is; {why}")


def _artifact(config: ExperimentConfig, stage: Stage, done: Mapping[str, Artifact]) -> Artifact | None:
    """Where a stage's output lies; None while an input is not finished, since its content decides the name."""
    if any(name not in done for name in stage.inputs):
        return None
    digests = {name: done[name].digest() for name in stage.inputs}
    name = config.task.name if stage.of_task else config.name
    mark = fingerprint(stage.name, stage.version, stage.settings(config), digests)
    return Artifact(Storage.of(config.output), stage.name, name, mark).newest()


def plan(
    config: ExperimentConfig, download: bool = False, until: str = "report", count_samples: bool = True
) -> list[PlannedStage]:
    """Stages up to `until` as done or to run, with counts of teacher requests, their price, and training steps. Writes
    and asks nothing; only with `download` are questions fetched, without which those behind a URL have no price yet.
    Without `count_samples` no question is read, and missing samples have neither count nor price."""
    check(config, until)
    other = fixed_recipe(config)
    if other is not None and (student := _finished_student(other)) is not None:
        config = _with_fixed(config, student)
    done: dict[str, Artifact] = {}
    planned = []
    for stage in stages_of(config):
        artifact = _artifact(config, stage, done)
        if artifact is not None and artifact.is_finished():
            done[stage.name] = artifact
            planned.append(PlannedStage(stage.name, "done", str(artifact.path)))
        elif stage.name == "samples" and count_samples:
            planned.append(_planned_samples(config, done.get("questions"), download))
        else:
            planned.append(PlannedStage(stage.name, "to run", _work(config, stage.name)))
        if stage.name == until:
            break
    return planned


def plan_whole(config: ExperimentConfig, download: bool = False) -> list[PlannedStage]:
    """`plan`, with the stages of the student first that `negatives.fixed` has trained."""
    other = fixed_recipe(config)
    first: list[PlannedStage] = []
    if other is not None:
        check(config)
        first = [replace(one, stage=f"{one.stage} (negatives.fixed)") for one in plan(other, download, "student")]
    return first + plan(config, download)


def _finished_student(config: ExperimentConfig) -> Artifact | None:
    try:
        artifact = student_job(config).artifact
    except ValueError:  # a stage before it is not finished
        return None
    return artifact if artifact.is_finished() else None


def show_cost(cost: CostEstimate, display: Display) -> None:
    """What missing samples cost, as a table with its notes."""
    columns, rows, notes = cost_rows(cost)
    display.table(f"What the {cost.samples} missing samples cost", columns, rows)
    for note in notes:
        display.say(note)


_ASKED = {
    "openai": "samples to ask for (paid)", "vllm": "samples to ask for", "simulated": "simulated replies",
    "imported": "imported texts",
}  # fmt: skip


def _planned_samples(config: ExperimentConfig, questions: Artifact | None, download: bool) -> PlannedStage:
    """How many samples are missing, and what they cost."""
    task, teacher = get_task(config.task.name), config.teacher
    limit = train_limit(task, config)
    if questions is None and is_download(config.task.path) and not download:
        sizes = dict(task.sizes(config.task))
        sizes["train"] = limit or sizes["train"]
        total = sum(sizes[split] for split in asked_splits(teacher)) * teacher.num_samples
        return PlannedStage("samples", "to run", f"at most {total} {_ASKED[teacher.kind]}; --download shows the price")
    rows = load_questions(task, config.task, limit) if questions is None else _questions_of(questions)
    wanted, store = wanted_samples(config, task, rows), SampleStore(store_place(config))
    try:
        index = store.index(set_aside=False)
    except (StoreError, OSError) as error:
        raise ConfigError(f"teacher.store: {error}") from None
    missing = missing_mask(wanted, index, retry_errors=False)
    work = f"{int(missing.sum())} of {wanted.total} {_ASKED[teacher.kind]}"
    if teacher.kind != "openai":
        return PlannedStage("samples", "to run", work)
    if n := samples_per_request(config, store):  # an earlier job may have found it out
        teacher = teacher.model_copy(update={"samples_per_request": n})
    cost = estimate_cost(teacher, task, wanted, missing, known_completion(wanted, index))
    return PlannedStage("samples", "to run", work, cost)


def _questions_of(artifact: Artifact) -> list[Question]:
    return read_rows(artifact.fetch() / "questions.parquet", Question)


def _work(config: ExperimentConfig, stage: str) -> str:
    """What a stage that has to run would do."""
    task = get_task(config.task.name)
    sizes = dict(task.sizes(config.task))
    sizes["train"] = train_limit(task, config) or sizes["train"]
    if stage == "questions":
        return ", ".join(f"{count} {split}" for split, count in sizes.items())
    if stage == "discriminator":
        return f"at most {config.discriminator.max_steps} steps of {config.discriminator.batch_questions} questions"
    if stage == "student":
        train = config.train
        length = iteration_length(train.iteration_steps, sizes["train"], train.global_batch_size)
        iterations = -(-train.steps // length)
        workers = f" on {config.resources.workers} workers" if config.resources.workers > 1 else ""
        steps = f"{train.steps} steps of {train.global_batch_size} questions"
        return f"{steps} in {iterations} iterations of {length}{workers}"
    if stage == "predictions":
        limits = {"validation": config.evaluation.validation_limit, "test": config.evaluation.test_limit}
        return f"{3 * sum(min(sizes[split], limit or sizes[split]) for split, limit in limits.items())} labels"
    return ""


def start_ray() -> None:
    """Connect to the cluster that RAY_ADDRESS names, or start Ray on this machine, on loopback."""
    for name, value in RAY_DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS") or "local"  # else Ray would join whatever cluster it finds here
        with _on_loopback(address == "local"):
            ray.init(
                address, log_to_driver=False, logging_level=logging.ERROR, dashboard_host="127.0.0.1",
                include_dashboard=False,  # of a Ray of our own, where ray[default] would add eleven processes
            )  # fmt: skip


@contextlib.contextmanager
def _on_loopback(alone: bool) -> Iterator[None]:
    """Where `alone`, a Ray that is started meanwhile listens on loopback only, as it does on macOS and Windows anyway;
    on Linux it would listen on all interfaces."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = before and not alone
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def stop_ray() -> None:
    """End what still runs on Ray; its state is on the disk."""
    ray.shutdown()


def cluster_resources() -> Mapping[str, float]:
    """What the cluster has by kind, such as CPU and GPU; nothing where Ray has not been started."""
    return ray.cluster_resources() if ray.is_initialized() else {}


def record_folder(config: ExperimentConfig) -> Path:
    """Where an experiment's local record lies: one folder for one config, wherever it runs."""
    key = digest_of(config.identity())[:12]
    return Storage.of(config.output).folder / "records" / f"{config.name}-{key}"


@dataclass(frozen=True)
class Options:
    """How a run goes about it; nothing here changes a result.

    `retry_errors`: a finished samples artifact with error rows gets a new revision, for which they are asked again:
    once, whatever the number of experiments that share it (`retried`: fingerprint → revision).
    `accept_missing`: samples that the store lacks become error rows; nobody is asked. `until`: the last stage to run.
    """

    retry_errors: bool = False
    accept_missing: bool = False
    until: str = "report"
    retried: dict[str, int] = field(default_factory=dict)


DEFAULT_OPTIONS = Options()
Stages = Callable[[ExperimentConfig], list[Stage]]


def open_record(config: ExperimentConfig, display: Display) -> RunRecord:
    """The record of an experiment that is a run of its own."""
    folder = record_folder(config)
    output = Storage.of(config.output).folder
    return open_run_record(folder, RunId(folder.name, config.name), config.tracking, output, display.warn)


def run(
    config: ExperimentConfig, display: Display, options: Options = DEFAULT_OPTIONS, record: RunRecord | None = None,
    stages: Stages = stages_of,
) -> dict[str, Artifact]:  # fmt: skip
    """Run what is missing. Returns the finished artifacts by stage. Raises `ConfigError` before anything is written.

    `record`: where the run is recorded; by default in a record of its own. It is closed at the end. `stages`: of the
    experiment, where they are others than usual (see `stages.with_trained_student`).
    """
    check(config, options.until)
    storage = Storage.of(config.output)
    prepare_output(storage)
    with contextlib.ExitStack() as stack:
        if record is None:
            name = storage.name_of(record_folder(config))
            stack.enter_context(recorded_alone(storage, name, display=display))
            record = open_record(config, display)
        start_record(record, config, {})
        status = "FAILED"
        try:
            trained = with_fixed_student(config, display, options)
            finished = _run_stages(trained, display, record, options, stages)
            status = "FINISHED"
            return finished
        finally:
            record.close(status)


@contextlib.contextmanager
def recorded_alone(storage: Storage, *folders: str, display: Display, without: Sequence[str] = ()) -> Iterator[None]:
    """Keep the record in the first of these folders to one process, and mirror all of them (see `Storage.mirror`)."""
    name = folders[0].replace("/", "-")

    def on_wait() -> None:
        display.say(f"{Path(folders[0]).name}: another run is at it; waiting")

    with storage.locked(name, on_wait), storage.mirror(*folders, without=without):
        yield


def prepare_output(storage: Storage) -> None:
    """Raise `ConfigError` where an output cannot be written to."""
    try:
        storage.prepare()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise ConfigError(f"output: '{storage.place}' cannot be written to: {error.strerror}") from None


def fixed_recipe(config: ExperimentConfig) -> ExperimentConfig | None:
    """The experiment whose student writes the negatives, where `negatives.fixed` names a recipe, not a folder."""
    if config.fixed_recipe is None:
        return None
    other = load_recipe(config.fixed_recipe)
    if not isinstance(other, ExperimentConfig):
        raise ConfigError(f"negatives.fixed: {config.fixed_recipe!r} is not one experiment")
    other = with_overrides(other, config.negatives.fixed_overrides)
    shared = {name: getattr(config, name) for name in ("output", "resources", "tracking")}
    return other.model_copy(update={"seed": config.seed, **shared})


def with_fixed_student(config: ExperimentConfig, display: Display, options: Options) -> ExperimentConfig:
    """`config` with the folder of the student whose recipe `negatives.fixed` names; it is trained first."""
    other = fixed_recipe(config)
    if other is None or options.until not in ("student", "predictions", "report"):
        return config
    display.say(f"the student of {config.negatives.fixed} writes the negatives, so it comes first")
    finished = run(other, display, replace(options, until="student"))
    return _with_fixed(config, finished["student"])


def _with_fixed(config: ExperimentConfig, student: Artifact) -> ExperimentConfig:
    place = f"{student.storage.place}/{student.full_name}/best"
    negatives = config.negatives.model_copy(update={"fixed": place})
    return config.model_copy(update={"negatives": negatives})


def _run_stages(
    config: ExperimentConfig, display: Display, record: RunRecord, options: Options, stages: Stages = stages_of
) -> dict[str, Artifact]:
    finished: dict[str, Artifact] = {}
    summaries: dict[str, dict[str, Any]] = {}
    recorded = {row["stage"] for row in read_metrics(record.folder)}
    there: list[str] = []
    for stage in stages(config):
        artifact = _artifact(config, stage, finished)
        assert artifact is not None
        if options.retry_errors and stage.name == "samples" and artifact.is_finished() and _errors_of(artifact):
            revision = options.retried.setdefault(artifact.fingerprint, artifact.revision + 1)
            artifact = replace(artifact, revision=revision)
        skipped = artifact.is_finished()
        if not skipped:
            if stage.name == "samples" and options.until not in ("samples", "rationales"):
                check_tokenizers(config)  # a name that nobody knows is found before anything is paid for
            start_ray()
            with artifact.locked(lambda: display.say(f"  {stage.name}: another run is at it; waiting")):  # noqa: B023
                skipped = artifact.is_finished()
                if not skipped:
                    display.stages_skipped(there)
                    there = []
                    _run_stage(config, stage, artifact, finished, summaries, display, record, options)
        if skipped:
            there.append(stage.name)
        finished[stage.name] = artifact
        summaries[stage.name] = artifact.marker()["summary"]
        if stage.name == "student" and stage.name not in recorded and skipped:
            record.restart_stage(stage.name, read_json_lines(artifact.fetch() / "metrics.jsonl"))
        if f"{stage.name}_summary" not in recorded:
            record.log(f"{stage.name}_summary", _numbers(stage.name, summaries[stage.name]))
        _record_artifact(config, record, stage, artifact)
        if stage.name == options.until:
            break
    display.stages_skipped(there)
    return finished


def _identity(config: ExperimentConfig, stage: Stage, finished: Mapping[str, Artifact]) -> dict[str, Any]:
    """What a stage's fingerprint stands for."""
    digests = {name: finished[name].digest() for name in stage.inputs}
    return {"version": stage.version, "settings": stage.settings(config), "inputs": digests}


@dataclass(frozen=True)
class StudentJob:
    """A student to train: all that training needs to know, once the stages before it are finished."""

    config: ExperimentConfig
    artifact: Artifact
    identity: dict[str, Any]
    inputs: dict[str, Path]


def prepare_student(config: ExperimentConfig, display: Display, record: RunRecord, options: Options) -> None:
    """Run what is missing of the stages before the student."""
    trained = with_fixed_student(config, display, options)
    before = stages_of(trained)[_student_index(trained) - 1]
    _run_stages(trained, display, record, replace(options, until=before.name))


def student_job(config: ExperimentConfig) -> StudentJob:
    """The student of an experiment whose stages before it are finished. Raises `ValueError` where one is not."""
    other = fixed_recipe(config)
    if other is not None:
        config = _with_fixed(config, student_job(other).artifact)
    index = _student_index(config)
    finished: dict[str, Artifact] = {}
    for stage in stages_of(config)[:index]:
        artifact = _artifact(config, stage, finished)
        if artifact is None or not artifact.is_finished():
            raise ValueError(f"{config.name}: stage {stage.name} is not finished")
        finished[stage.name] = artifact
    stage = stages_of(config)[index]
    artifact = _artifact(config, stage, finished)
    assert artifact is not None
    inputs = {name: finished[name].fetch() for name in stage.inputs if name in ("questions", "training_set", "discriminator")}
    return StudentJob(config, artifact, _identity(config, stage, finished), inputs)


def _student_index(config: ExperimentConfig) -> int:
    return [stage.name for stage in stages_of(config)].index("student")


def _errors_of(samples: Artifact) -> int:
    return samples.marker()["summary"]["errors"]


def _run_stage(
    config: ExperimentConfig, stage: Stage, artifact: Artifact, finished: Mapping[str, Artifact],
    summaries: Mapping[str, dict[str, Any]], display: Display, record: RunRecord, options: Options,
) -> None:  # fmt: skip
    inputs = {name: finished[name] for name in stage.inputs}
    identity = _identity(config, stage, finished)
    display.stage_started(stage.name)
    started = time.perf_counter()
    summary = stage.run(
        StageRun(
            config, stage.name, {name: one.fetch() for name, one in inputs.items()}, dict(summaries), artifact.begin(),
            artifact.fingerprint, identity, display, record, options.retry_errors, options.accept_missing,
        )
    )  # fmt: skip
    artifact.finish(stage.settings(config), identity["inputs"], summary)
    shown = ", ".join(f"{key} {_short(value)}" for key, value in summary.items() if not isinstance(value, dict))
    display.stage_finished(stage.name, time.perf_counter() - started, shown)
    if stage.name == "samples" and _errors_of(artifact):
        display.warn(f"{_errors_of(artifact)} samples are error rows; --retry-errors asks just those again")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _numbers(stage: str, summary: Mapping[str, Any]) -> dict[str, float]:
    """A summary's numbers as metrics, with the stage's name before keys that have none."""
    flat: dict[str, float] = {}
    for key, value in summary.items():
        name = key if "/" in key else f"{stage}/{key}"
        if isinstance(value, dict):
            flat |= {f"{name}_{inner}": float(v) for inner, v in value.items() if isinstance(v, int | float)}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[name] = float(value)
    return {key.replace("discriminator/step", "discriminator/steps"): value for key, value in flat.items() if key != "step"}


def _record_artifact(config: ExperimentConfig, record: RunRecord, stage: Stage, artifact: Artifact) -> None:
    """What of a finished stage the tracker shows beside numbers."""
    if stage.name == "report":
        record.add_artifact(artifact.fetch(), "report")
    elif stage.name == "predictions":
        record.add_artifact(artifact.fetch() / "predictions.parquet", "predictions")
    elif stage.name == "rationales":
        record.add_artifact(artifact.fetch() / "statistics.json", "rationales")
    elif stage.name == "discriminator":
        record.add_artifact(artifact.fetch() / "pretraining.jsonl", "discriminator")
    elif stage.name == "student":
        record.add_student(artifact.fetch() / "best")
    elif stage.name == "questions":
        rows = _questions_of(artifact)
        for split in ("train", "validation", "test"):
            count = sum(row.split == split for row in rows)
            record.add_dataset(f"{config.task.name}-{split}", artifact.digest(), count, config.task.name, split)
    elif stage.name == "training_set":
        rows = len(read_rows(artifact.fetch() / "examples.parquet", Example))
        record.add_dataset("training_set", artifact.digest(), rows, str(artifact.path), "training")


_HEALTH = {
    "report/parse_rate": "teacher samples that could be parsed (share)",
    "report/hinge_active_min": "active hinges after iteration j, lowest (share)",
    "report/hinge_active_max": "active hinges after iteration j, highest (share)",
    "report/discriminator_auroc_real": "discriminator's AUROC, teacher's negatives, held-out questions",
    "report/discriminator_auroc_augmented": "discriminator's AUROC, augmented negatives, held-out questions",
    "report/online_updates": "discriminator's online updates (optimizer steps)",
    "report/truncated_negatives": "truncated negatives (share)",
}


def headline(finished: Mapping[str, Artifact]) -> tuple[list[list[str]], list[str]]:
    """What a person wants first: the teacher's price, the method's health as table rows, and the lines of accuracy."""
    summary = finished["report"].marker()["summary"]
    health = _teacher_rows(finished["samples"].marker()["summary"]) if "samples" in finished else []
    if "rationales" in finished:
        agreement = finished["rationales"].marker()["summary"]["mean_agreement"]
        health.append(["teacher's mean agreement with its vote (share)", _short(agreement)])
    health += [[title, _short(summary[key])] for key, title in _HEALTH.items() if key in summary]
    training = finished["student"].marker()["summary"]
    health.append(["iterations, best", f"{training['iterations']}, {training['best_iteration']}"])
    text = (finished["report"].fetch() / "report.md").read_text()
    wanted = ("test accuracy", "untrained", "gain", "- **WARNING**")
    return health, [line for line in text.splitlines() if line.startswith(wanted)]


def _teacher_rows(samples: Mapping[str, Any]) -> list[list[str]]:
    """Tokens, money, rate and errors by kind, as far as they were measured."""
    rows = []
    if samples.get("prompt_tokens") or samples.get("completion_tokens"):
        uncounted = f", {samples['uncounted']} replies without counts" if samples.get("uncounted") else ""
        tokens = f"{samples['prompt_tokens']} + {samples['completion_tokens']}{uncounted}"
        rows.append(["teacher tokens, prompt + completion", tokens])
    if "usd" in samples:
        rows.append(["price of the teacher's samples", f"${samples['usd']:.4f}"])
    if samples.get("samples_per_second"):
        rows.append(["samples a second, when they were asked for", f"{samples['samples_per_second']:.1f}"])
    errors = {key: count for key, count in samples.items() if key.startswith("error ")}
    return rows + [[f"teacher samples with {kind}", str(count)] for kind, count in errors.items()]

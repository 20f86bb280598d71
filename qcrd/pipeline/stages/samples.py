"""The teacher's samples: a frozen view of the sample store, for which what is missing there is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qcrd.config import ConfigError, ExperimentConfig, PaidSettings
from qcrd.distill.methods import uses_teacher
from qcrd.pipeline.stage import Planning, Stage, StageRun, Summary, Work
from qcrd.pipeline.stages.questions import QUESTIONS, read_questions, sizes_of
from qcrd.storage.output import Storage
from qcrd.tasks import get_task, load_questions, train_limit
from qcrd.tasks.files import must_be_downloaded
from qcrd.teacher.backends.table import backend_of
from qcrd.teacher.check import check_teacher
from qcrd.teacher.cost import estimate_cost
from qcrd.teacher.freeze import known_completion
from qcrd.teacher.probe import samples_per_request
from qcrd.teacher.prompts import task_prompts
from qcrd.teacher.requests import (
    SampleSource,
    asked_splits,
    missing_mask,
    model_settings,
    store_place,
    wanted_samples,
)
from qcrd.teacher.sample import sample
from qcrd.teacher.store import SampleStore
from qcrd.teacher.store_format import StoreError


def sample_source(config: ExperimentConfig) -> SampleSource:
    """Where an experiment's samples come from. Raises `ConfigError` where the prompt's file is missing."""
    prompts = task_prompts(get_task(config.task.name), config.teacher.prompt)
    return SampleSource(config.teacher, prompts, store_place(config.teacher, Storage.of(config.output)))


class SamplesStage(Stage):
    name = "samples"
    version = 2
    costs_money = True

    def is_part_of(self, config: ExperimentConfig) -> bool:
        return uses_teacher(config.method, config.train)

    def inputs(self, config: ExperimentConfig) -> tuple[str, ...]:
        return (QUESTIONS.name,)

    def settings(self, config: ExperimentConfig) -> dict[str, Any]:
        prompts = task_prompts(get_task(config.task.name), config.teacher.prompt)
        settings = {"num_samples": config.teacher.num_samples, **model_settings(config.teacher, prompts.stop)}
        if (splits := asked_splits(config.teacher)) != ["train"]:
            settings["splits"] = splits
        return settings | {"prompt": prompts.template}

    def check(self, config: ExperimentConfig) -> None:
        check_teacher(sample_source(config))

    def planned_work(self, planning: Planning) -> Work:
        if not planning.count:
            return Work()
        config, teacher, backend = planning.config, planning.config.teacher, backend_of(planning.config.teacher)
        task = get_task(config.task.name)
        if QUESTIONS.name in planning.finished:
            questions = read_questions(planning.finished[QUESTIONS.name].fetch())
        elif must_be_downloaded(config.task) and not planning.download:
            sizes = sizes_of(config)
            total = sum(sizes[split] for split in asked_splits(teacher)) * teacher.num_samples
            return Work(f"at most {total} {backend.asked}; --download shows the price")
        else:
            questions = load_questions(task, config.task, train_limit(task, config))
        source = sample_source(config)
        wanted, store = wanted_samples(teacher, source.prompts, questions), SampleStore(source.store)
        try:
            index = store.index(set_aside=False)
        except (StoreError, OSError) as error:
            raise ConfigError(f"teacher.store: {error}") from None
        missing = missing_mask(wanted, index, retry_errors=False)
        text = f"{int(missing.sum())} of {wanted.total} {backend.asked}"
        if not isinstance(teacher, PaidSettings):
            return Work(text)
        if n := samples_per_request(teacher, store):  # an earlier job may have found it out
            teacher = teacher.model_copy(update={"samples_per_request": n})
        return Work(text, estimate_cost(teacher, source.prompts, wanted, missing, known_completion(wanted, index)))

    def run(self, run: StageRun) -> Summary:
        def on_progress(done: int, total: int, info: Mapping[str, Any]) -> None:
            text = ", ".join(f"{key} {value}" for key, value in info.items())
            run.display.progress(run.name, done, total, text)

        questions = read_questions(run.inputs[QUESTIONS.name])
        return sample(
            sample_source(run.config), questions, run.out / "samples.parquet", on_progress, run.retry_errors,
            run.accept_missing,
        )  # fmt: skip

    def errors(self, summary: Summary) -> int:
        return summary["errors"]

    def headline(self, summary: Summary) -> list[list[str]]:
        """Tokens, money, rate and errors by kind, as far as they were measured."""
        rows = []
        if summary.get("prompt_tokens") or summary.get("completion_tokens"):
            uncounted = f", {summary['uncounted']} replies without counts" if summary.get("uncounted") else ""
            tokens = f"{summary['prompt_tokens']} + {summary['completion_tokens']}{uncounted}"
            rows.append(["teacher tokens, prompt + completion", tokens])
        if "usd" in summary:
            rows.append(["price of the teacher's samples", f"${summary['usd']:.4f}"])
        if summary.get("samples_per_second"):
            rows.append(["samples a second, when they were asked for", f"{summary['samples_per_second']:.1f}"])
        kinds = {key: count for key, count in summary.items() if key.startswith("error ")}
        return rows + [[f"teacher samples with {kind}", str(count)] for kind, count in kinds.items()]


SAMPLES = SamplesStage()

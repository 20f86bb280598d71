"""The training loop in plain torch: iterations of steps, negatives before each, the judge's update after it.

It talks to its surroundings through a `Host` alone (checkpoints out and in, events out), so the same loop runs inside
a Ray Train worker, in a Tune trial or in a unit test. Every draw is seeded by what it is for, so a run that was killed
and resumed equals one that never stopped. Sections 5-8 of the method. Knows nothing about Ray, MLflow or folders of
artifacts.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.nn.utils import clip_grad_norm_

from qcrd.config import ExperimentConfig
from qcrd.distill.checkpoint import Progress, read_checkpoint, write_checkpoint
from qcrd.distill.data import TrainingData
from qcrd.distill.discriminator import (
    JudgedQuestion,
    judge_optimizer,
    load_discriminator,
    optimizer_step,
    save_discriminator,
)
from qcrd.distill.generation import generate
from qcrd.distill.negatives import Negative, sample_negatives, snapshot_for
from qcrd.distill.schedule import Schedule, iteration_length
from qcrd.distill.snapshots import SnapshotStore
from qcrd.distill.step import QuestionBatch, dss_step, finetune_step, qcrd_step
from qcrd.distill.student import Student, build_student, encode_inputs, load_student
from qcrd.seeding import generator, stable_seed
from qcrd.tasks.base import Task

Event = dict[str, Any]


class Host(Protocol):
    """What surrounds the loop."""

    def latest(self) -> AbstractContextManager[Path | None]:
        """The newest durable checkpoint's folder, to read from."""
        ...

    def save(self, iteration: int, write: Callable[[Path], None]) -> None:
        """Make a checkpoint durable; `write` fills an empty folder."""
        ...

    def emit(self, event: Event) -> None:
        """Progress and metric rows, on their way to a person."""
        ...


class Training:
    """One training run's state. `run` goes on from the host's newest checkpoint."""

    def __init__(
        self, config: ExperimentConfig, data: TrainingData, task: Task, snapshots: SnapshotStore, fingerprint: str,
        host: Host, device: torch.device,
    ) -> None:
        self.config, self.data, self.task, self.snapshots, self.host = config, data, task, snapshots, host
        length = iteration_length(config.train.iteration_steps, len(data.examples), config.train.global_batch_size)
        self.schedule = Schedule(
            len(data.examples), config.train.global_batch_size, config.train.steps, length, config.seed
        )
        self.student = build_student(config.student, data.tokenizer, config.seed, device)
        self.optimizer = torch.optim.AdamW(
            self.student.model.parameters(), lr=config.train.learning_rate, betas=(0.9, 0.999), eps=1e-8,
            weight_decay=config.train.weight_decay,
        )  # fmt: skip
        self.judge = None
        self.judge_optimizer = None
        if config.uses_discriminator() and data.judge_folder is not None:
            self.judge = load_discriminator(data.judge_folder, device)
            self.judge_optimizer = judge_optimizer(self.judge, config.discriminator)
        self.sampler = self._build_sampler(device)
        self.progress = Progress(fingerprint)
        self.rows: list[dict[str, Any]] = []
        self._positive_quality: dict[int, list[float]] = {}

    def _build_sampler(self, device: torch.device) -> Student | None:
        """The model that negatives are sampled from: a twin of the student, or a fixed model."""
        if not self.config.uses_student_negatives():
            return None
        if self.config.negatives.source == "fixed":
            assert self.config.negatives.fixed is not None
            sampler, tokenizer = load_student(Path(self.config.negatives.fixed), self.config.student.dtype, device)
            if tokenizer.get_vocab() != self.data.tokenizer.get_vocab():
                raise ValueError(f"negatives.fixed: {self.config.negatives.fixed!r} has another vocabulary")
            return sampler
        twin = copy.copy(self.student)
        twin.model = copy.deepcopy(self.student.model)
        return twin

    # -- the run ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to the last step. All results are then in `student`, `judge`, `rows` and the snapshots."""
        with self.host.latest() as folder:
            if folder is not None:
                self.progress, self.rows = read_checkpoint(
                    folder, self.progress.fingerprint, self.optimizer, self.judge, self.judge_optimizer
                )
        if self.progress.iteration == 0:
            self.snapshots.save(0, self.student.model)
        else:
            self.snapshots.load_into(self.progress.iteration, self.student.model)
        self.host.emit({"kind": "restart", "rows": self.rows})
        while self.progress.iteration < self.schedule.num_iterations:
            self._run_iteration(self.progress.iteration + 1)

    def _run_iteration(self, iteration: int) -> None:
        visited = self.schedule.visited(iteration)
        started = time.perf_counter()
        negatives = self._negatives(iteration, visited)
        made = time.perf_counter()
        quality = self._quality(visited, negatives)
        summary = self._train_steps(iteration, negatives, quality)
        trained = time.perf_counter()
        summary |= self._negative_metrics(visited, negatives)
        summary |= self._update_judge(iteration, visited, negatives)
        updated = time.perf_counter()
        accuracy = self.validation_accuracy()
        summary["eval/accuracy"] = accuracy
        times = {
            "time/negatives": made - started, "time/steps": trained - made, "time/judge": updated - trained,
            "time/evaluation": time.perf_counter() - updated,
        }  # fmt: skip
        self._log(self.schedule.steps_of(iteration).stop, {**summary, "train/iteration": iteration}, times)
        self.snapshots.save(iteration, self.student.model)
        progress = self.progress
        progress.iteration = iteration
        if accuracy > progress.best_accuracy:
            progress.best_accuracy, progress.best_iteration = accuracy, iteration
        progress.bests[str(iteration)] = progress.best_iteration
        self.host.save(iteration, self.write_checkpoint)
        self.snapshots.keep_only(self._needed_snapshots())

    def write_checkpoint(self, folder: Path) -> None:
        """Write all state but the snapshots into an empty folder."""
        write_checkpoint(folder, self.progress, self.rows, self.optimizer, self.judge, self.judge_optimizer)

    def _needed_snapshots(self) -> set[int]:
        """Snapshots that some checkpoint which may still be resumed from names: gap and best of the last few.

        Ray commits a checkpoint some time after it was reported, so one more than `checkpoint.keep` counts.
        """
        oldest = max(0, self.progress.iteration - self.config.checkpoint.keep - 1)
        needed = set(range(max(0, oldest + 1 - self.config.negatives.gap), self.progress.iteration + 1)) | {0}
        return needed | {best for t, best in self.progress.bests.items() if int(t) >= oldest}

    def _log(self, step: int, metrics: dict[str, float], times: dict[str, float]) -> None:
        """Keep a row for the checkpoint and send it with times, which are not part of the result."""
        self.rows.append({"step": step, **metrics})
        self.host.emit({"kind": "metrics", "rows": [{"step": step, **metrics, **times}]})

    # -- negatives and their quality ----------------------------------------------------------------------------

    def _negatives(self, iteration: int, visited: Sequence[int]) -> dict[int, list[Negative]]:
        """Sampled negatives of the iteration's questions; empty lists where the iteration has none."""
        config = self.config.negatives
        if self.sampler is None or (config.warmup == "skip" and iteration <= config.gap and config.source != "fixed"):
            return {index: [] for index in visited}
        if config.source != "fixed":
            self.snapshots.load_into(snapshot_for(iteration, config.gap), self.sampler.model)
        examples = [self.data.examples[index] for index in visited]

        def on_progress(done: int, total: int) -> None:
            self._progress(self.schedule.steps_of(iteration).start, f"negatives {done}/{total}")

        made = sample_negatives(
            self.sampler, self.data.tokenizer, examples, config, self.config.seed, iteration, on_progress
        )
        return dict(zip(visited, made, strict=True))

    def _quality(
        self, visited: Sequence[int], negatives: dict[int, list[Negative]]
    ) -> dict[int, tuple[list[float], list[float]]]:
        """(s+ of each positive, s- of each negative) of each question: constants until the judge's next update."""
        if self.judge is None:
            return {
                i: ([1.0] * len(self.data.examples[i].positives), [0.0] * len(self._targets(i, negatives[i])))
                for i in visited
            }
        new = [index for index in visited if index not in self._positive_quality]
        pairs = [(self.data.examples[i].text, t) for i in new for t in self.data.examples[i].positive_texts]
        scores = iter(self.judge.score(pairs) if pairs else [])
        for index in new:
            self._positive_quality[index] = [next(scores) for _ in self.data.examples[index].positive_texts]
        pairs = [(self.data.examples[i].text, t) for i in visited for t in self._negative_texts(i, negatives[i])]
        scores = iter(self.judge.score(pairs) if pairs else [])
        return {
            index: (
                self._positive_quality[index], [next(scores) for _ in self._negative_texts(index, negatives[index])]
            )
            for index in visited
        }  # fmt: skip

    def _uses_teacher_negatives(self) -> bool:
        return self.config.negatives.source in ("teacher", "snapshot_and_teacher")

    def _negative_texts(self, index: int, sampled: Sequence[Negative]) -> list[str]:
        teacher = self.data.examples[index].negative_texts if self._uses_teacher_negatives() else []
        return [one.text for one in sampled] + teacher

    def _targets(self, index: int, sampled: Sequence[Negative]) -> list[list[int]]:
        teacher = self.data.examples[index].negatives if self._uses_teacher_negatives() else []
        return [one.target_ids for one in sampled] + teacher

    def _negative_metrics(self, visited: Sequence[int], negatives: dict[int, list[Negative]]) -> dict[str, float]:
        made = [(self.data.examples[i].answer, one) for i in visited for one in negatives[i]]
        if not made:
            return {}
        return {
            "negatives/count": len(made),
            "negatives/truncated": sum(one.truncated for _, one in made) / len(made),
            "negatives/mean_tokens": sum(len(one.target_ids) for _, one in made) / len(made),
            "negatives/right_answer": sum(self.task.states_answer(one.text, a) for a, one in made) / len(made),
        }

    # -- steps --------------------------------------------------------------------------------------------------

    def _batch(
        self, step: int, negatives: dict[int, list[Negative]], quality: dict[int, tuple[list[float], list[float]]]
    ) -> QuestionBatch:
        indices = self.schedule.batch(step)
        examples = [self.data.examples[index] for index in indices]
        draws = generator(self.config.seed, "scheme_draws", step).random((len(indices), 2))
        return QuestionBatch(
            predict_ids=[e.predict_ids for e in examples],
            explain_ids=[e.explain_ids for e in examples],
            label_ids=[e.label_ids for e in examples],
            rationale_ids=[e.rationale_ids for e in examples],
            positives=[e.positives for e in examples],
            negatives=[self._targets(index, negatives[index]) for index in indices],
            quality_positives=[quality[index][0] for index in indices],
            quality_negatives=[quality[index][1] for index in indices],
            draws=[(float(a), float(b)) for a, b in draws],
        )

    def _loss(self, batch: QuestionBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if self.config.method == "finetune":
            return finetune_step(self.student, batch)
        if self.config.method == "dss":
            return dss_step(self.student, batch, self.config.loss)
        return qcrd_step(self.student, batch, self.config.loss)

    def _train_steps(
        self, iteration: int, negatives: dict[int, list[Negative]],
        quality: dict[int, tuple[list[float], list[float]]],
    ) -> dict[str, float]:
        """All optimizer steps of an iteration. Returns the iteration's own metrics."""
        window: list[dict[str, torch.Tensor]] = []
        selected: Counter[int] = Counter()
        steps = self.schedule.steps_of(iteration)
        started = time.perf_counter()
        for step in steps:
            window.append(self._optimizer_step(step, self._batch(step, negatives, quality)))
            done = step + 1
            if done % self.config.train.log_every == 0 or done == steps.stop:
                for metrics in window:
                    if (chosen := metrics.pop("selected_positive", None)) is not None:
                        selected.update(index for index in chosen.tolist() if index >= 0)
                means = {f"train/{key}": float(torch.stack([m[key] for m in window]).mean()) for key in window[0]}
                if not math.isfinite(means["train/loss"]):
                    raise FloatingPointError(f"loss {means['train/loss']} in the {len(window)} steps up to {done}")
                seconds = (time.perf_counter() - started) / len(window)
                self._log(done, means, {"time/step": seconds})
                self._progress(done, f"iteration {iteration}, loss {means['train/loss']:.3f}")
                window, started = [], time.perf_counter()
        return {"train/selection_entropy": _entropy(selected)} if selected else {}

    def _optimizer_step(self, step: int, batch: QuestionBatch) -> dict[str, torch.Tensor]:
        rate = self.config.train.learning_rate * self.schedule.learning_rate_factor(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(stable_seed(self.config.seed, "dropout", step))
        self.student.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss, metrics = self._loss(batch)
        loss.backward()
        norm = clip_grad_norm_(self.student.model.parameters(), self.config.train.max_grad_norm)
        self.optimizer.step()
        rate_tensor = torch.tensor(rate, dtype=torch.float64)
        return {"loss": loss.detach(), "grad_norm": norm.detach(), "learning_rate": rate_tensor, **metrics}

    def _progress(self, done: int, info: str) -> None:
        self.host.emit({"kind": "progress", "done": done, "total": self.config.train.steps, "info": info})

    # -- the judge's online update ------------------------------------------------------------------------------

    def _update_judge(
        self, iteration: int, visited: Sequence[int], negatives: dict[int, list[Negative]]
    ) -> dict[str, float]:
        """Train the judge on the questions just visited: teacher positives, teacher negatives, fresh negatives."""
        config = self.config.discriminator
        if self.judge is None or self.judge_optimizer is None or iteration % config.update_every:
            return {}
        if config.update_steps == 0:
            return {}
        judged = [
            JudgedQuestion(e.question_id, e.text, e.positive_texts, e.negative_texts + [n.text for n in negatives[i]])
            for i, e in ((i, self.data.examples[i]) for i in visited)
        ]
        judged = [q for q in judged if q.positives and q.negatives]
        if not judged:
            return {}
        weight = self.config.loss.discriminator_weight * self.config.loss.discriminator_decay ** (iteration - 1)
        order: list[int] = []
        losses = []
        for update in range(config.update_steps):
            if len(order) < config.batch_questions:
                stream = generator(self.config.seed, "judge_update", iteration, update)
                order += stream.permutation(len(judged)).tolist()
            batch, order = order[: config.batch_questions], order[config.batch_questions :]
            seed = stable_seed(self.config.seed, "judge_update_step", iteration, update)
            questions = [judged[i] for i in batch]
            losses.append(
                optimizer_step(self.judge, self.judge_optimizer, questions, weight, config.max_grad_norm, seed)
            )
        self._positive_quality.clear()
        return {"judge/online_loss": sum(losses) / len(losses), "judge/updates": len(losses), "judge/weight": weight}

    # -- evaluation and results ---------------------------------------------------------------------------------

    def validation_accuracy(self) -> float:
        """Share of right greedy labels on the validation questions."""
        return accuracy_of(self.config, self.student, self.data, self.task)

    def write_results(self, folder: Path) -> None:
        """Write students (best, last), judge, tokenizer-complete model folders, rows and a summary into `folder`."""
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        for name, iteration in (
            ("initial", 0), ("best", self.progress.best_iteration), ("last", self.progress.iteration),
        ):  # fmt: skip
            self.snapshots.load_into(iteration, self.student.model)
            save_student(self.config, self.student, self.data, folder / name)
        if self.judge is not None:
            save_discriminator(self.judge, folder / "discriminator")
        summary = {
            "steps": self.config.train.steps,
            "iterations": self.progress.iteration,
            "best_iteration": self.progress.best_iteration,
            "best_validation_accuracy": self.progress.best_accuracy,
            "num_parameters": sum(p.numel() for p in self.student.model.parameters()),
        }
        (folder / "training.json").write_text(json.dumps(summary, indent=2) + "\n")


def save_student(config: ExperimentConfig, student: Student, data: TrainingData, folder: Path) -> None:
    """A model folder that transformers loads, with its tokenizer and `qcrd.json` (prefixes and limits)."""
    student.model.save_pretrained(folder)
    data.tokenizer.save_pretrained(folder)
    fields = {"prefixes", "max_input_tokens", "max_label_tokens", "max_target_tokens"}
    settings = config.student.model_dump(include=fields)
    (folder / "qcrd.json").write_text(json.dumps(settings, indent=2) + "\n")


def accuracy_of(config: ExperimentConfig, student: Student, data: TrainingData, task: Task) -> float:
    """Share of right greedy labels on the validation questions of `data`."""
    if not data.validation:
        raise ValueError("the task has no validation questions, so no checkpoint can be chosen")
    texts = [config.student.prefixes.predict + question.text for question in data.validation]
    made = generate(
        student, encode_inputs(data.tokenizer, texts, config.student.max_input_tokens),
        max_new_tokens=config.student.max_label_tokens, batch_size=config.evaluation.batch_size,
    )  # fmt: skip
    labels = data.tokenizer.batch_decode([one.ids for one in made], skip_special_tokens=True)
    right = [task.is_right(label.strip(), q) for label, q in zip(labels, data.validation, strict=True)]
    return sum(right) / len(right)


def _entropy(counts: Counter[int]) -> float:
    """Entropy of a frequency table, in nats."""
    total = counts.total()
    return -sum(count / total * math.log(count / total) for count in counts.values())

"""The training loop in plain torch: iterations of steps, negatives before each, the discriminator's update after it.

Several workers run it side by side, each on its share of every batch. It tells its surroundings how it goes through
`emit` and keeps its state in a `CheckpointStore`, so the same loop runs inside a Ray Train worker, in a Tune trial or
in a unit test. Every draw is seeded by what it is for, so a run that was killed and resumed equals one that never
stopped. Sections 5-8 of the method. Knows nothing about Ray, MLflow or folders of artifacts.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from qcrd.config import ExperimentConfig
from qcrd.distill.batch import SELECTED, Metrics, QuestionBatch
from qcrd.distill.checkpoint import Checkpoint, CheckpointStore, Progress
from qcrd.distill.data import TrainingData
from qcrd.distill.discriminator import Discriminator, load_discriminator
from qcrd.distill.labels import Asking, accuracy_of
from qcrd.distill.methods import get_method, uses_discriminator, uses_student_negatives, uses_teacher_negatives
from qcrd.distill.negatives import Negative, NegativeMaker, snapshot_for
from qcrd.distill.online import OnlineDiscriminator, Quality, quality_without_discriminator
from qcrd.distill.schedule import schedule_of
from qcrd.distill.window import entropy, rows_of_window
from qcrd.models.generation import Generated
from qcrd.models.optimizer import FlatAdamW
from qcrd.models.student import build_student
from qcrd.models.weights import set_weights, weights_of
from qcrd.runtime.events import Event
from qcrd.runtime.workers import Workers
from qcrd.seeding import generator, stable_seed
from qcrd.storage.atomic import write_atomically
from qcrd.tasks.base import Task


class NegativesElsewhere(Protocol):
    """Negatives that somebody else makes while this process trains (async_negatives.py)."""

    def ask(self, iteration: int) -> None:
        """Have an iteration's negatives made; asking twice is asking once."""
        ...

    def take(self, iteration: int) -> list[list[Generated]]:
        """All batches of an iteration; waits until they are there."""
        ...


class Training:
    """One worker's part of a training run. `run` goes on from the newest checkpoint."""

    def __init__(
        self,
        config: ExperimentConfig,
        data: TrainingData,
        task: Task,
        store: CheckpointStore,
        device: torch.device,
        emit: Callable[[Event], None],
        workers: Workers | None = None,
        elsewhere: NegativesElsewhere | None = None,
    ) -> None:
        """`elsewhere`: for `negatives.placement` async, of the first worker."""
        self.config, self.data, self.task, self.store = config, data, task, store
        self.method = get_method(config.method)
        self.workers = workers or Workers()
        self.emit = emit if self.workers.rank == 0 else lambda event: None
        self.schedule = schedule_of(config.train, config.seed, len(data.examples))
        self.student = build_student(config.student, data.tokenizer, config.seed, device)
        self.asking = Asking(config.student, config.evaluation.batch_size, self.method.answer_phrase)
        self.maker = None
        if uses_student_negatives(config.method, config.negatives):
            self.maker = NegativeMaker(
                config.negatives, config.seed, data, self.schedule, store.storage, self._load_snapshot,
                self.student.twin,
            )  # fmt: skip
        self.elsewhere = elsewhere
        self.optimizer = FlatAdamW(
            self.student.model, config.train.learning_rate, config.train.weight_decay, config.train.max_grad_norm
        )
        self.online = None
        if uses_discriminator(config.method, config.discriminator) and data.discriminator_folder is not None:
            dtype = torch.float64 if config.student.dtype == "float64" else torch.float32
            self.online = OnlineDiscriminator(
                load_discriminator(data.discriminator_folder, device, dtype), config.discriminator, config.loss,
                config.seed, data.examples, self.workers,
            )  # fmt: skip
        self.progress = Progress()
        self.rows: list[dict[str, Any]] = []

    @property
    def discriminator(self) -> Discriminator | None:
        return None if self.online is None else self.online.discriminator

    @property
    def discriminator_optimizer(self) -> FlatAdamW | None:
        return None if self.online is None else self.online.optimizer

    # -- the run ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to the last step. All results are then in `student`, `discriminator`, `rows` and the snapshots."""
        self.resume()
        while self.progress.iteration < self.schedule.num_iterations:
            self.run_iteration()
        self.store.wait()

    def resume(self) -> None:
        """Every worker takes the state that the first one reads."""
        self.progress, self.rows = self.workers.from_first(self._read_newest)
        self.emit({"kind": "restart", "rows": self.rows})
        if self.progress.iteration == 0:
            return
        for optimizer in (self.optimizer, self.discriminator_optimizer):
            if optimizer is not None:
                state = optimizer.state()
                self.workers.broadcast_([optimizer.weights.data, *state.values()])
                optimizer.load_state(state)

    def _read_newest(self) -> tuple[Progress, list[dict[str, Any]]]:
        """Load the newest checkpoint, or write snapshot 0 where there is none. Returns where training stands."""
        newest = self.store.newest()
        self.store.forget_after(newest or 0)
        if newest is None:
            self.store.save_initial(weights_of(self.student.model))
            return self.progress, self.rows
        checkpoint = self.store.read(newest)
        set_weights(self.student.model, self.store.snapshot(newest))
        self.optimizer.load_state(checkpoint.tensors["optimizer"])
        if self.online is not None:
            set_weights(self.online.discriminator, checkpoint.tensors["discriminator"])
            self.online.optimizer.load_state(checkpoint.tensors["discriminator_optimizer"])
        return checkpoint.progress, checkpoint.rows

    def _load_snapshot(self, iteration: int, model: torch.nn.Module) -> None:
        """Set a model's weights to a snapshot's, on all workers at once; the first one reads it."""
        if self.workers.rank == 0:
            set_weights(model, self.store.snapshot(iteration))
        self.workers.broadcast_(parameter.data for parameter in model.parameters())

    def run_iteration(self) -> None:
        """The next iteration, from its negatives to its checkpoint."""
        iteration = self.progress.iteration + 1
        visited = self.schedule.visited(iteration)
        started = time.perf_counter()
        negatives = self._negatives(iteration, visited)
        made = time.perf_counter()
        quality = self._quality(negatives)
        scored = time.perf_counter()
        summary = self._train_steps(iteration, negatives, quality)
        trained = time.perf_counter()
        summary |= self._negative_metrics(visited, negatives)
        if self.online is not None:
            fresh = {index: [one.text for one in sampled] for index, sampled in negatives.items()}
            summary |= self.online.update(iteration, fresh)
        updated = time.perf_counter()
        accuracy = self.validation_accuracy()
        summary["eval/accuracy"] = accuracy
        evaluated = time.perf_counter()
        progress = self.progress
        progress.iteration, progress.seconds = iteration, progress.seconds + evaluated - started
        if accuracy > progress.best_accuracy:
            progress.best_accuracy, progress.best_iteration = accuracy, iteration
        row = {"step": self.schedule.steps_of(iteration).stop, **summary, "train/iteration": iteration}
        self.rows.append(row)
        self.workers.from_first(self._save)
        times = {
            "time/negatives": made - started, "time/scoring": scored - made, "time/steps": trained - scored,
            "time/discriminator": updated - trained, "time/evaluation": evaluated - updated,
            "time/checkpoint": time.perf_counter() - evaluated,
        }  # fmt: skip
        self.emit({"kind": "metrics", "rows": [{**row, **times}]})

    def _save(self) -> None:
        """Begin to save. Raises `OSError` where the save before failed (a full disk)."""
        tensors = {"optimizer": self.optimizer.state()}
        if self.online is not None:
            tensors["discriminator"] = weights_of(self.online.discriminator)
            tensors["discriminator_optimizer"] = self.online.optimizer.state()
        checkpoint = Checkpoint(self.progress, self.rows, tensors)
        self.store.save(self.progress.iteration, weights_of(self.student.model), checkpoint)

    # -- negatives and their quality ----------------------------------------------------------------------------

    def _has_negatives(self, iteration: int) -> bool:
        settings = self.config.negatives
        skipped = settings.warmup == "skip" and iteration <= settings.gap and settings.source != "fixed"
        return self.maker is not None and not skipped and iteration <= self.schedule.num_iterations

    def _negatives(self, iteration: int, visited: Sequence[int]) -> dict[int, list[Negative]]:
        """Sampled negatives of the iteration's questions; empty lists where the iteration has none."""
        if self.elsewhere is not None:
            for wanted in (iteration, iteration + 1):  # the next one's can be made while this one trains, but for j = 1
                if self._has_negatives(wanted) and snapshot_for(wanted, self.config.negatives.gap) < iteration:
                    self.elsewhere.ask(wanted)
        if self.maker is None or not self._has_negatives(iteration):
            return {index: [] for index in visited}
        if self.config.negatives.placement == "async":
            made = self.workers.from_first(lambda: self.elsewhere.take(iteration))  # pyright: ignore[reportOptionalMemberAccess]
        else:
            made = self._negatives_here(iteration, self.maker)
        return self.maker.negatives(iteration, made)

    def _negatives_here(self, iteration: int, maker: NegativeMaker) -> list[list[Generated]]:
        """The iteration's batches, dealt to the training workers."""
        batches = maker.batches(iteration)
        total, first = sum(map(len, batches)), self.schedule.steps_of(iteration).start

        def on_progress(done: int) -> None:
            self._progress(first, f"negatives {min(done * self.workers.world_size, total)}/{total}")

        return self.workers.gather(maker.make(iteration, self.workers.share(batches), on_progress))

    def _quality(self, negatives: dict[int, list[Negative]]) -> Quality:
        """Scores of each visited question's candidates: constants until the discriminator's next update."""
        texts = {index: self._negative_texts(index, sampled) for index, sampled in negatives.items()}
        if self.online is None:
            return quality_without_discriminator(self.data.examples, texts)
        return self.online.quality(texts)

    def _uses_teacher_negatives(self) -> bool:
        return uses_teacher_negatives(self.config.method, self.config.negatives)

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

    def _batch(self, step: int, negatives: dict[int, list[Negative]], quality: Quality) -> QuestionBatch:
        indices = self.schedule.batch(step)
        examples = [self.data.examples[index] for index in indices]
        draws = generator(self.config.seed, "scheme_draws", step).random((len(indices), 2))
        targets = [self._targets(index, negatives[index]) for index in indices]
        qualities = [quality[index] for index in indices]
        return QuestionBatch.of(examples, targets, qualities, [(float(a), float(b)) for a, b in draws])

    def _train_steps(self, iteration: int, negatives: dict[int, list[Negative]], quality: Quality) -> dict[str, float]:
        """All optimizer steps of an iteration. Returns the iteration's own metrics."""
        window: list[Metrics] = []
        selected: Counter[int] = Counter()
        steps = self.schedule.steps_of(iteration)
        started = time.perf_counter()
        for step in steps:
            window.append(self._optimizer_step(step, self._batch(step, negatives, quality)))
            done = step + 1
            if done % self.config.train.log_every == 0 or done == steps.stop:
                first = done - len(window)
                rows = rows_of_window(window, self.config.rationales.num_samples, self.student.device, self.workers)
                for offset, row in enumerate(rows):
                    if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
                        self._stop_at(first + offset, row, self._batch(first + offset, negatives, quality))
                for row in rows:
                    selected.update({i: int(count) for i, count in enumerate(row.pop(SELECTED, []))})
                measured = {key: [row[key] for row in rows if not math.isnan(row[key])] for key in rows[0]}
                means = {f"train/{key}": sum(values) / len(values) for key, values in measured.items() if values}
                self.rows.append({"step": done, **means})
                seconds = (time.perf_counter() - started) / len(window)
                self.emit({"kind": "metrics", "rows": [{"step": done, **means, "time/step": seconds}]})
                self._progress(done, f"iteration {iteration}, loss {means['train/loss']:.3f}")
                window, started = [], time.perf_counter()
        return {"train/selection_entropy": entropy(selected)} if selected.total() else {}

    def _optimizer_step(self, step: int, batch: QuestionBatch) -> Metrics:
        """This worker's part of one step. Returns its contributions to the loss and the metrics, on the device."""
        torch.manual_seed(stable_seed(self.config.seed, "dropout", step, self.workers.rank))
        self.student.model.train()
        self.optimizer.zero_grad()
        size, share = self.config.micro_batch_size(), len(batch.predict_ids) // self.workers.world_size
        totals: Metrics = {}
        for start in range(self.workers.rank * share, (self.workers.rank + 1) * share, size):
            part = batch.part(start, start + size)
            loss, metrics = self.method.step(self.student, part, self.config.loss)
            loss.backward()
            for name, value in {"loss": loss.detach(), **metrics}.items():
                totals[name] = totals[name] + value if name in totals else value
        self.workers.sum_(self.optimizer.gradient)
        rate = self.config.train.learning_rate * self.schedule.learning_rate_factor(step)
        norm = self.optimizer.step(rate)
        shared = {"grad_norm": norm, "learning_rate": torch.tensor(rate, dtype=torch.float64)}
        return totals | {name: value / self.workers.world_size for name, value in shared.items()}

    def _stop_at(self, step: int, metrics: dict[str, Any], batch: QuestionBatch) -> None:
        """Keep the batch of a step whose loss or gradient is not finite, and raise `FloatingPointError`."""
        path = self.store.folder / f"not-finite-step-{step + 1:06d}.json"
        if self.workers.rank == 0:
            ids = [self.data.examples[index].question_id for index in self.schedule.batch(step)]
            rows = {name: value for name, value in vars(batch).items() if name != "totals_of_whole"}
            shown = {name: str(value) for name, value in metrics.items()}
            write_atomically(path, json.dumps({"step": step + 1, "metrics": shown, "question_ids": ids, **rows}) + "\n")
        raise FloatingPointError(
            f"step {step + 1}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}; its batch is in {path}"
        )

    def _progress(self, done: int, info: str) -> None:
        self.emit({"kind": "progress", "done": done, "total": self.config.train.steps, "info": info})

    def validation_accuracy(self) -> float:
        """Share of right greedy labels on the validation questions."""
        return accuracy_of(self.asking, self.student, self.data, self.task, self.workers)

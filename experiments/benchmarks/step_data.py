"""What the training benchmarks run on: questions with rationales, models of T5's sizes, negatives.

Real SVAMP questions with GPT-3.5's real rationales and T5's own tokenizer where the data folder has them, else
generated arithmetic with the simulated teacher's texts and a tokenizer trained on them. Knows nothing about what is
measured.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from qcrd.config import (
    BenchmarkTaskConfig,
    GeneratedTaskConfig,
    NegativesConfig,
    ScratchDiscriminatorConfig,
    ScratchSizes,
    ScratchStudentConfig,
    StudentSettings,
)
from qcrd.distill.batch import QuestionBatch
from qcrd.distill.discriminator import Discriminator, build_discriminator
from qcrd.distill.negatives import Negative
from qcrd.models.generation import generate
from qcrd.models.student import Student, build_student
from qcrd.models.tokenizer import encode_inputs, encode_targets, eos_of, load_tokenizer, train_tokenizer
from qcrd.records import Example, Question
from qcrd.runtime.devices import set_up_cuda
from qcrd.seeding import generator, stable_seed
from qcrd.tasks import get_task
from qcrd.tasks.files import data_folder
from qcrd.tasks.reading import normalised
from qcrd.teacher.backends.base import Call
from qcrd.teacher.backends.simulated import SimulatedTeacher

QUESTIONS_A_STEP, NEGATIVE_TOKENS = 8, 64
OWN_RATIONALES = 10
SIZES = {
    "small": ScratchStudentConfig(
        d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_decoder_layers=6, num_heads=8, dropout=0.1
    ),
    "base": ScratchStudentConfig(
        d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_decoder_layers=12, num_heads=12, dropout=0.1
    ),
    "tiny": ScratchStudentConfig(
        d_model=64, d_kv=16, d_ff=128, num_layers=2, num_decoder_layers=2, num_heads=4, dropout=0.1
    ),
}
"""T5-small's and T5-base's sizes; `tiny` is for checking the benchmark itself."""


@dataclass(frozen=True)
class Data:
    """Examples whose `positives` are ten rationales of the question itself; `name` says what they are."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    tokenizer_path: str | None
    examples: list[Example]


@dataclass(frozen=True)
class Setting:
    """One size on one device. Plain values, so that it travels to other processes."""

    size: str
    device: str
    dtype: str
    threads: int

    @property
    def naive_questions(self) -> int:
        """Questions whose graphs naive QCRD holds at once: fewer at T5-base's sizes, lest they fill the memory."""
        return 2 if (self.size, self.device) == ("base", "cpu") else QUESTIONS_A_STEP

    def scratch(self, data: Data) -> ScratchStudentConfig:
        return SIZES[self.size].model_copy(update={"tokenizer": data.tokenizer_path})

    def student(self, data: Data) -> Student:
        """A student with random weights and dropout 0.1; the same in every process."""
        config = ScratchStudentConfig.model_validate({**self.scratch(data).model_dump(), "dtype": self.dtype})
        return build_student(config, data.tokenizer, 0, torch.device(self.device))

    def discriminator(self, data: Data) -> Discriminator:
        """A discriminator whose encoder has the student's sizes; hidden size = d_model."""
        config = ScratchDiscriminatorConfig.model_validate(
            {name: value for name, value in self.scratch(data) if name in (*ScratchSizes.model_fields, "dropout")}
        )
        texts = [text for example in data.examples for text in (example.text, *example.positive_texts)]
        return build_discriminator(config, texts, torch.device(self.device))

    def set_up(self) -> None:
        """Set up this process. On a GPU the references, too, go without cuDNN's attention."""
        torch.set_num_threads(self.threads)
        if self.device.startswith("cuda"):
            set_up_cuda(deterministic=False)


def _real_rationales() -> list[tuple[Question, list[str]]]:
    """SVAMP's training questions that GPT-3.5 answered ten times."""
    path = data_folder() / "svamp" / "llm_gpt35" / "train.json.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        texts = {normalised(row["instruction"]): row["output"] for row in json.load(file)}
    questions = [q for q in get_task("svamp").load(BenchmarkTaskConfig(name="svamp")) if q.split == "train"]
    found = [(q, texts[normalised(q.text)]) for q in questions if normalised(q.text) in texts]
    return [(q, [text.strip() for text in own]) for q, own in found if len(own) == OWN_RATIONALES]


def _generated_rationales() -> list[tuple[Question, list[str]]]:
    """Generated arithmetic questions of one to three steps with ten simulated samples each."""
    config = GeneratedTaskConfig(train_size=512, validation_size=1, test_size=1)
    teacher = SimulatedTeacher(error_rate=0.3)
    indices = tuple(range(OWN_RATIONALES))
    rows = []
    for question in get_task("arithmetic").load(config):
        if question.split == "train":
            seeds = tuple(stable_seed("step_benchmark", question.id, index) for index in indices)
            call = Call(question.id, indices, "", question.label, question.facts, seeds)
            rows.append((question, [teacher.write(call, row) for row in indices]))
    return rows


def load_data() -> Data:
    """The examples in a fixed random order."""
    tokenizer_path = data_folder() / "t5-tokenizer"
    if (data_folder() / "svamp" / "llm_gpt35").is_dir() and tokenizer_path.is_dir():
        name, path = "SVAMP's questions, GPT-3.5's rationales", str(tokenizer_path)
        rows, tokenizer = _real_rationales(), load_tokenizer(path)
    else:
        name, path = "generated arithmetic, the simulated teacher's rationales (no SVAMP under QCRD_DATA)", None
        rows = _generated_rationales()
        tokenizer = train_tokenizer([text for question, own in rows for text in (question.text, *own)], 4096)
    rows = [rows[row] for row in generator("step_benchmark", "order").permutation(len(rows))]
    config = StudentSettings()
    predict = encode_inputs(tokenizer, [config.prefixes.predict + q.text for q, _ in rows], config.max_input_tokens)
    explain = encode_inputs(tokenizer, [config.prefixes.explain + q.text for q, _ in rows], config.max_input_tokens)
    labels = encode_targets(tokenizer, [q.label for q, _ in rows], config.max_label_tokens)
    flat = encode_targets(tokenizer, [text for _, own in rows for text in own], config.max_target_tokens)
    examples = []
    for row, (question, own) in enumerate(rows):
        targets = flat[row * OWN_RATIONALES : (row + 1) * OWN_RATIONALES]
        examples.append(
            Example(
                question_id=question.id,
                text=question.text,
                predict_ids=predict[row],
                explain_ids=explain[row],
                label_ids=labels[row],
                rationale_ids=targets[0],
                positives=targets,
                positive_texts=own,
                negatives=[],
                negative_texts=[],
                answer=question.answer,
            )
        )
    return Data(name, tokenizer, path, examples)


def with_positives(examples: Sequence[Example], count: int) -> list[Example]:
    """The examples with their first `count` rationales as positives; past ten, those of the next question follow."""
    chosen = []
    for row, example in enumerate(examples):
        ids, texts = list(example.positives), list(example.positive_texts)
        for following in range(1, -(-count // OWN_RATIONALES)):
            other = examples[(row + following) % len(examples)]
            ids, texts = ids + other.positives, texts + other.positive_texts
        chosen.append(replace(example, positives=ids[:count], positive_texts=texts[:count]))
    return chosen


def sample_negatives(
    student: Student, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], batch_size: int, number: int
) -> list[list[Negative]]:
    """One sample a question as training draws it (T = 1.5, top-k 50, at most 64 tokens); `number` seeds it."""
    config = NegativesConfig()
    made = generate(
        student,
        [example.explain_ids for example in examples],
        max_new_tokens=NEGATIVE_TOKENS,
        batch_size=batch_size,
        temperature=config.temperature,
        top_k=config.top_k,
        stream=lambda row: generator("step_benchmark", "negative", number, examples[row].question_id),
    )
    texts = tokenizer.batch_decode([one.ids for one in made], skip_special_tokens=True)
    targets = [one.ids if one.truncated else [*one.ids, student.eos_id] for one in made]
    return [
        [Negative(target, text, one.truncated)] if one.ids else []
        for one, target, text in zip(made, targets, texts, strict=True)
    ]


def random_negatives(tokenizer: PreTrainedTokenizerBase, count: int, tokens: int = NEGATIVE_TOKENS) -> list[Negative]:
    """Random tokens in place of samples, where only their number matters."""
    rng = generator("step_benchmark", "random_negatives")
    rows: np.ndarray = rng.integers(eos_of(tokenizer) + 10, len(tokenizer) // 2, size=(count, tokens))
    return [Negative(row, "", True) for row in rows.tolist()]


def question_batch(
    examples: Sequence[Example],
    negatives: Sequence[Sequence[Negative]],
    qualities: Sequence[tuple[Sequence[float], Sequence[float]]],
) -> QuestionBatch:
    """One step's questions. `qualities` are (s+ of each positive, s- of each negative) a question."""
    return QuestionBatch.of(examples, [[one.target_ids for one in own] for own in negatives], qualities)

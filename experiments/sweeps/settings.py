"""What the recipes of sweeps have in common: the base experiment of each preset.

`paper`: SVAMP with T5-base and the paper's settings, three seeds. `smoke`: the generated `arithmetic` task with a
simulated teacher and a T5 of 115 thousand weights, two seeds: minutes on two CPU cores. It learns enough for
configurations to differ, and says nothing about language models.
"""

from collections.abc import Mapping
from typing import Any

from experiments.settings import check_preset, config
from qcrd.config import ExperimentConfig

SMOKE = {
    "task.max_number": 5, "task.train_size": 300, "task.validation_size": 100,
    "student.d_model": 64, "student.d_ff": 128, "student.d_kv": 16,
    "train.steps": 160, "train.iteration_steps": 20, "train.global_batch_size": 16, "train.learning_rate": 5e-3,
    "negatives.gap": 2,
}  # fmt: skip


def base(preset: str, changes: Mapping[str, Any] | None = None) -> ExperimentConfig:
    check_preset(preset)
    if preset == "smoke":
        return config(preset, "arithmetic", changes={**SMOKE, **(changes or {})})
    return config(preset, "svamp", changes=changes)


def seeds(preset: str) -> tuple[int, ...]:
    return (0, 1) if preset == "smoke" else (0, 1, 2)


def title(preset: str, what: str) -> str:
    return what if preset == "smoke" else f"{what}, SVAMP, T5-base"

"""All that the paper sweeps one by one, and the loss and learning rate, together: Optuna proposes, ASHA ends early."""

from ray import tune

from experiments.sweeps.settings import base, seeds, title
from qcrd.config.sweep import Sweep


def recipe(preset: str = "paper") -> Sweep:
    return Sweep(
        name="joint",
        title=title(preset, "Counts, gap, temperatures, loss and learning rate together"),
        base=base(preset),
        space={
            "rationales.num_samples": tune.choice([1, 5, 10, 20] if preset == "paper" else [1, 5]),
            "teacher.temperature": tune.choice([0.5, 0.7, 1.0] if preset == "paper" else [0.7]),
            "negatives.num_samples": tune.choice([1, 2, 3]),
            "negatives.gap": tune.choice([3, 5, 10] if preset == "paper" else [1, 2, 4]),
            "negatives.temperature": tune.uniform(0.5, 2.0),
            "loss.beta": tune.loguniform(0.05, 1.0),
            "loss.margin": tune.uniform(1.0, 5.0),
            "train.learning_rate": tune.loguniform(3e-6, 1e-4) if preset == "paper" else tune.loguniform(5e-4, 1e-2),
        },
        seeds=seeds(preset),
        searcher="optuna",
        num_configurations=64 if preset == "paper" else 12,
        scheduler="asha",
        grace_iterations=4 if preset == "paper" else 1,
        budget_hours=200 if preset == "paper" else 0.2,
    )

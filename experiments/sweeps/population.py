"""Learning rate and temperature of the negatives as schedules: a population whose bad members go on from good ones."""

from ray import tune

from experiments.sweeps.settings import base, seeds, title
from qcrd.config.sweep import Sweep


def recipe(preset: str = "paper") -> Sweep:
    return Sweep(
        name="population",
        title=title(preset, "Schedules of the learning rate and of the negatives' temperature"),
        base=base(preset),
        space={
            "train.learning_rate": tune.loguniform(3e-6, 1e-4) if preset == "paper" else tune.loguniform(5e-4, 1e-2),
            "negatives.temperature": tune.uniform(0.5, 2.0),
        },
        seeds=seeds(preset),
        searcher="random",
        num_configurations=8 if preset == "paper" else 4,
        scheduler="pbt",
        perturb=("train.learning_rate", "negatives.temperature"),
        perturb_iterations=4 if preset == "paper" else 2,
    )

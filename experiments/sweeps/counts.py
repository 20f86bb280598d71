"""m and k together: samples of the teacher, and of the student's snapshot."""

from ray import tune

from experiments.sweeps.settings import base, seeds, title
from qcrd.config.sweep import Sweep


def recipe(preset: str = "paper") -> Sweep:
    return Sweep(
        name="counts",
        title=title(preset, "Sampling counts m and k"),
        base=base(preset),
        space={
            "rationales.num_samples": tune.grid_search([1, 5, 10]),
            "negatives.num_samples": tune.grid_search([1, 2, 3]),
        },
        seeds=seeds(preset),
    )

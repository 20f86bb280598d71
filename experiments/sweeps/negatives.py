"""k, how many negatives the student's snapshot samples for a question visited (Table 6, right half)."""

from ray import tune

from experiments.sweeps.settings import base, seeds, title
from qcrd.config.sweep import Sweep


def recipe(preset: str = "paper") -> Sweep:
    return Sweep(
        name="negatives",
        title=title(preset, "Samples of the student, k"),
        base=base(preset),
        space={"negatives.num_samples": tune.grid_search([0, 1, 2, 3])},
        seeds=seeds(preset),
    )

"""The temperature of the student's negatives (Appendix Table 5)."""

from ray import tune

from experiments.sweeps.settings import base, seeds, title
from qcrd.config.sweep import Sweep


def recipe(preset: str = "paper") -> Sweep:
    return Sweep(
        name="temperature",
        title=title(preset, "Temperature of the negatives"),
        base=base(preset),
        space={"negatives.temperature": tune.grid_search([0.0, 0.7, 1.5, 2.0])},
        seeds=seeds(preset),
    )

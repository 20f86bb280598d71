"""j, how many iterations lie between a snapshot and the iteration that samples from it (Appendix Table 3)."""

from ray import tune

from experiments.sweeps.settings import base, seeds, title
from qcrd.config.sweep import Sweep


def recipe(preset: str = "paper") -> Sweep:
    return Sweep(
        name="gap",
        title=title(preset, "The gap j between a snapshot and its negatives"),
        base=base(preset),
        space={"negatives.gap": tune.grid_search([3, 5, 10] if preset == "paper" else [1, 2, 4])},
        seeds=seeds(preset),
    )

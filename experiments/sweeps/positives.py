"""m, how many of the teacher's samples become rationales (Table 6, left half)."""

from ray import tune

from experiments.sweeps.settings import base, seeds, title
from qcrd.config.sweep import Sweep


def recipe(preset: str = "paper") -> Sweep:
    return Sweep(
        name="positives",
        title=title(preset, "Samples of the teacher, m"),
        base=base(preset),
        space={"rationales.num_samples": tune.grid_search([1, 5, 10, 20])},
        seeds=seeds(preset),
    )

"""Table 1: five methods with T5-base on four benchmarks, gold labels."""

from experiments.settings import methods_table
from qcrd.config.grid import Grid


def recipe(preset: str = "paper") -> Grid:
    return methods_table(preset, "table1", "Table 1: test accuracy of five methods", "t5-base", "T5-base")

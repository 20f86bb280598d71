"""Table 2: five methods with T5-small on four benchmarks, gold labels."""

from experiments.settings import methods_table
from qcrd.config.grid import Grid


def recipe(preset: str = "paper") -> Grid:
    return methods_table(preset, "table2", "Table 2: test accuracy of five methods", "t5-small", "T5-small")

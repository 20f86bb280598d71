"""Table 7: an LLM judge compares the rationales of DSS's and QCRD's students, 50 random test questions a benchmark.

The judge is the paper's, gpt-3.5-turbo, with the paper's criterion in our words, asked in both orders. It goes through
the same store, budget and limits as the teacher. Students of the first seed.
"""

from experiments.settings import METHODS, check_preset, columns, config, seeds, titled
from qcrd.config import OpenAITeacherConfig, SimulatedTeacherConfig
from qcrd.config.grid import Cell, Comparison, Grid

COUNTS = {
    "svamp": ((21, 0, 29), (22, 0, 28)), "cqa": ((19, 6, 25), (20, 6, 24)), "anli1": ((26, 1, 23), (25, 1, 24)),
    "esnli": ((17, 11, 22), (14, 3, 33)),
}  # fmt: skip
TEMPERATURES = (0.0, 0.7)


def recipe(preset: str = "paper") -> Grid:
    check_preset(preset)
    smoke = preset == "smoke"
    cells, comparisons = [], []
    for task, title in columns(preset).items():
        for row in ("DSS", "QCRD"):
            changes = {**METHODS[row], "evaluation.explain_temperatures": TEMPERATURES}
            cells.append(Cell(row=row, column=title, config=config(preset, task, changes=changes)))
        for number, temperature in enumerate(TEMPERATURES):
            paper = None if smoke else COUNTS[task][number]
            comparisons.append(
                Comparison(column=title, first="DSS", second="QCRD", temperature=temperature, paper=paper)
            )
    judge = (
        SimulatedTeacherConfig(num_samples=1)
        if smoke
        else OpenAITeacherConfig(model="gpt-3.5-turbo", num_samples=1, temperature=0.0)
    )
    return Grid(
        name="table7",
        title=titled(preset, "Table 7: whose rationales an LLM judge finds better", "T5-base"),
        cells=tuple(cells),
        seeds=seeds(preset)[:1],
        comparisons=tuple(comparisons),
        llm_judge=judge,
    )

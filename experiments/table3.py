"""Table 3: students trained on the teacher's labels, beside the teacher itself (the paper's: GPT-3.5).

The teacher's two rows are read off its stored samples of the training questions: the share of right ones among all
samples, and among all questions' votes. A reply that cannot be parsed, a question without a vote, counts as wrong. The
paper's values for CQA and ANLI1 fit no test split, but they fit the training split; e-SNLI's fit its test split.
"""

from experiments.settings import FLAG, METHODS, claims, columns, config, printed, seeds, titled
from qcrd.config.grid import Cell, Grid

TEACHER = {"Teacher": ("sample_accuracy", (66.30, 78.21, 66.27)),
           "Teacher, self-consistency": ("vote_accuracy", (69.05, 80.15, 67.08))}  # fmt: skip
STUDENTS = {"DSS": (59.15, 44.10, 74.88), "MI": (59.22, 45.90, 74.67), "QCRD": (59.80, 46.70, 74.88)}
ON_TRAIN = "fits no test split, but the training split: here read off the samples of the training questions"
ON_TEST = "fits the test split: here read off the samples of the training questions that training visits"


def recipe(preset: str = "paper") -> Grid:
    benchmarks = columns(preset, ["cqa", "anli1", "esnli"])
    cells = []
    for row, (measure, values) in TEACHER.items():
        for (task, title), value in zip(benchmarks.items(), values, strict=False):
            flag = ON_TEST if task == "esnli" else ON_TRAIN
            settings = config(preset, task, changes={"train.labels": "teacher"})
            cells.append(
                Cell(
                    row=row, column=title, config=settings, measure=measure, paper=printed(preset, value, flag)  # pyright: ignore[reportArgumentType]
                )
            )  # fmt: skip
    for row, values in STUDENTS.items():
        for (task, title), value in zip(benchmarks.items(), values, strict=False):
            settings = config(preset, task, changes={**METHODS[row], "train.labels": "teacher"})
            paper = printed(preset, value, FLAG if task == "cqa" else "")
            cells.append(Cell(row=row, column=title, config=settings, paper=paper))
    return Grid(
        name="table3",
        title=titled(preset, "Table 3: students trained on the teacher's labels", "T5-base"),
        cells=tuple(cells),
        seeds=seeds(preset),
        claims=claims(cells, "QCRD", ["DSS", "MI"]),
    )

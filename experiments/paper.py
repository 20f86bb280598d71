"""What the paper printed, as data: a recipe hands it over, and reports show it beside what is measured.

Tables 1 and 2 (test accuracy in %), appendix Table 2 (statistics of the teacher's samples, K = 5, by gold answer), and
appendix Table 6 (hours of training).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from qcrd.config import PaperNumber

BASE = "t5-base"
SMALL = "t5-small"
HUB_NAMES = {BASE: ("t5-base", "google-t5/t5-base"), SMALL: ("t5-small", "google-t5/t5-small")}
"""Model names that stand for the paper's students. A folder of the same name need not be one, so it does not count."""

SHOWN_NAMES = {BASE: "T5-base", SMALL: "T5-small"}


@dataclass(frozen=True)
class PaperAccuracy:
    """One printed test accuracy in %, and the table that prints it.

    `odd`: no count of right answers over the published test size gives this value (an average, or a slip).
    """

    percent: float
    table: str
    odd: bool = False


_TASKS = ("svamp", "cqa", "anli1", "esnli")
_PRINTED: dict[tuple[str, str], dict[str, tuple[float, float, float, float]]] = {
    ("Table 1", BASE): {
        "finetune": (63.0, 62.19, 43.58, 88.38),
        "single_task": (59.0, 63.11, 47.90, 88.77),
        "dss": (65.5, 63.23, 52.80, 90.09),
        "mi": (67.5, 63.50, 54.20, 90.15),
        "qcrd": (69.0, 63.64, 54.00, 90.26),
    },
    ("Table 2", SMALL): {
        "finetune": (45.00, 43.16, 42.00, 82.90),
        "single_task": (46.50, 44.98, 42.50, 83.67),
        "dss": (48.00, 45.21, 42.80, 84.23),
        "mi": (47.00, 45.49, 42.10, 83.55),
        "qcrd": (50.50, 46.11, 44.10, 85.30),
    },
}
_ODD = {
    ("cqa", BASE, "finetune"), ("cqa", BASE, "single_task"), ("cqa", BASE, "mi"), ("anli1", BASE, "finetune"),
    ("cqa", SMALL, "single_task"), ("cqa", SMALL, "mi"),
}  # fmt: skip

ACCURACIES: dict[tuple[str, str, str], PaperAccuracy] = {
    (task, student, method): PaperAccuracy(percent, table, (task, student, method) in _ODD)
    for (table, student), methods in _PRINTED.items()
    for method, values in methods.items()
    for task, percent in zip(_TASKS, values, strict=True)
}
"""(task, student, method) → the printed accuracy, gold labels."""


@dataclass(frozen=True)
class PaperStatistics:
    """One column of appendix Table 2: positive means that the sample gives the gold answer."""

    mean_positives: float
    share_only_positives: float
    share_only_negatives: float


STATISTICS_SAMPLES = 5
STATISTICS: dict[str, PaperStatistics] = {
    "svamp": PaperStatistics(3.87, 0.55, 0.08),
    "cqa": PaperStatistics(3.89, 0.68, 0.13),
    "anli1": PaperStatistics(3.93, 0.66, 0.11),
    "esnli": PaperStatistics(3.31, 0.50, 0.20),
}


PAPER_STEPS = 10_000
TRAINING_HOURS: dict[tuple[str, str], float] = {
    (BASE, "finetune"): 2.0, (BASE, "dss"): 4.0, (BASE, "mi"): 4.2, (BASE, "qcrd"): 13.0, (BASE, "qcrd w/o D"): 12.0,
    (SMALL, "finetune"): 1.25, (SMALL, "dss"): 2.5, (SMALL, "mi"): 2.6, (SMALL, "qcrd"): 8.5,
    (SMALL, "qcrd w/o D"): 7.5,
}  # fmt: skip
"""(student, method) → hours of `PAPER_STEPS` steps on one A100-80G (appendix Table 6)."""

NO_SUCH_COUNT = "of right answers over the published test size gives this value: an average, another size or a slip"
_WITHOUT_DISCRIMINATOR = " w/o D"


def numbers(task: str) -> tuple[PaperNumber, ...]:
    """What the paper printed about a benchmark: accuracies, T5-base's first, statistics of the samples, and hours."""
    return (*_accuracies(task), *_statistics(task), *_hours())


def _accuracies(task: str) -> list[PaperNumber]:
    return [
        PaperNumber(
            measure="test_accuracy", value=one.percent, task=task, method=method, models=HUB_NAMES[student],
            heading=f"paper ({SHOWN_NAMES[student]})",
            note=f"The paper's number is {one.table}'s: {method} with {SHOWN_NAMES[student]}, gold labels, its default "
            "settings." + (f" No count {NO_SUCH_COUNT}." if one.odd else ""),
        )
        for (of_task, student, method), one in ACCURACIES.items()
        if of_task == task
    ]  # fmt: skip


def _statistics(task: str) -> list[PaperNumber]:
    heading = f"paper, K = {STATISTICS_SAMPLES}, gold"
    return [
        PaperNumber.model_validate({"measure": measure, "value": value, "task": task, "heading": heading})
        for measure, value in asdict(STATISTICS[task]).items()
    ]


def _hours() -> list[PaperNumber]:
    """Of QCRD with and without a discriminator, and of the other methods."""
    return [
        PaperNumber(
            measure="training_hours", value=hours, method=name.removesuffix(_WITHOUT_DISCRIMINATOR), steps=PAPER_STEPS,
            discriminator=name == "qcrd" if name.startswith("qcrd") else None, models=HUB_NAMES[student],
            note="Table A-6, one A100-80G",
        )
        for (student, name), hours in TRAINING_HOURS.items()
    ]  # fmt: skip

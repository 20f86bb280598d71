"""What the recipes of the paper's tables and figures have in common: settings, presets, datasets, methods.

`paper`: the paper's settings on its four benchmarks, three seeds. `smoke`: the same grid on the generated `arithmetic`
task with a simulated teacher and a T5 of 70 thousand weights: minutes on two CPU cores, and no number of it means
anything. The paper's teacher, gpt-3.5-turbo, is no longer served by OpenAI: name another with `teacher.model=…`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.paper import ACCURACIES, NO_SUCH_COUNT, numbers
from qcrd.config import (
    BenchmarkTaskConfig,
    CheckpointConfig,
    ConfigError,
    EvaluationConfig,
    ExperimentConfig,
    GeneratedTaskConfig,
    NegativesConfig,
    OpenAITeacherConfig,
    PretrainedDiscriminatorConfig,
    ScratchDiscriminatorConfig,
    ScratchStudentConfig,
    Seq2SeqStudentConfig,
    SimulatedTeacherConfig,
    TrainConfig,
    with_overrides,
)
from qcrd.config.grid import Cell, Claim, Grid, PaperValue
from qcrd.tasks import anli1, cqa, esnli
from qcrd.tasks.files import DOWNLOAD, data_folder
from qcrd.tasks.sources import is_whole

Settings = Mapping[str, Any]
PRESETS = ("paper", "smoke")
BENCHMARKS = {"svamp": "SVAMP", "cqa": "CQA", "anli1": "ANLI1", "esnli": "ESNLI"}
METHODS: dict[str, Settings] = {
    "Finetuning": {"method": "finetune"},
    "Single-Task": {"method": "single_task"},
    "DSS": {"method": "dss"},
    "MI": {"method": "mi"},
    "QCRD": {"method": "qcrd"},
}
FLAG = f"no count {NO_SUCH_COUNT}"


def check_preset(preset: str) -> None:
    if preset not in PRESETS:
        raise ConfigError(f"--preset: {preset!r} is not allowed; the presets are {', '.join(PRESETS)}")


def titled(preset: str, title: str, subject: str) -> str:
    """A grid's title; a smoke run has another subject, which its report names."""
    return title if preset == "smoke" else f"{title}, {subject}"


def seeds(preset: str) -> tuple[int, ...]:
    return (0,) if preset == "smoke" else (0, 1, 2)


def columns(preset: str, benchmarks: Sequence[str] = tuple(BENCHMARKS)) -> dict[str, str]:
    """Task → its heading; the generated task stands for all benchmarks in a smoke run."""
    check_preset(preset)
    return {"arithmetic": "arithmetic"} if preset == "smoke" else {name: BENCHMARKS[name] for name in benchmarks}


def config(preset: str, task: str, student: str = "t5-base", changes: Settings | None = None) -> ExperimentConfig:
    """The settings of one cell: the preset's, with `changes` (dotted keys)."""
    check_preset(preset)
    base = _smoke() if preset == "smoke" else _paper(task, student)
    return with_overrides(base, changes or {})


def _paper(task: str, student: str) -> ExperimentConfig:
    """All else are the defaults, which are the paper's. Questions come from $QCRD_DATA where it has them whole."""
    benchmark = {"cqa": cqa.BENCHMARK, "anli1": anli1.BENCHMARK, "esnli": esnli.BENCHMARK}.get(task)
    local = BenchmarkTaskConfig(name=task)
    there = is_whole(benchmark, local) if benchmark else (data_folder() / "svamp" / "SVAMP.json").is_file()
    return ExperimentConfig(
        name=f"{task}-{student}",
        task=local if there else BenchmarkTaskConfig(name=task, path=DOWNLOAD),
        teacher=OpenAITeacherConfig(model="gpt-3.5-turbo"),
        student=Seq2SeqStudentConfig(model=student),
        discriminator=PretrainedDiscriminatorConfig(model="t5-base"),
        paper=numbers(task),
    )


def _smoke() -> ExperimentConfig:
    sizes: dict[str, Any] = {
        "d_model": 48, "d_ff": 96, "d_kv": 12, "num_heads": 4, "num_layers": 1, "num_decoder_layers": 1
    }  # fmt: skip
    return ExperimentConfig(
        name="smoke",
        task=GeneratedTaskConfig(
            train_size=160, validation_size=24, test_size=60, min_steps=1, max_steps=1, max_number=10
        ),
        teacher=SimulatedTeacherConfig(error_rate=0.25),
        student=ScratchStudentConfig(**sizes, max_label_tokens=12, max_target_tokens=48),
        discriminator=ScratchDiscriminatorConfig(
            **sizes, max_steps=30, eval_every=15, learning_rate=1e-3, update_steps=2
        ),
        negatives=NegativesConfig(max_new_tokens=12, gap=5),
        train=TrainConfig(steps=48, iteration_steps=4, learning_rate=3e-3, log_every=4),
        checkpoint=CheckpointConfig(keep=1),
        evaluation=EvaluationConfig(batch_size=100, num_examples=2, explained_questions=10),
    )


def printed(preset: str, value: float | None, flag: str = "") -> PaperValue | None:
    """The paper's value of a cell, which a smoke run does not have."""
    return None if value is None or preset == "smoke" else PaperValue(value=value, flag=flag)


def svamp_cells(
    preset: str, rows: Mapping[str, Settings], values: Sequence[float], common: Settings | None = None
) -> list[Cell]:
    """One column, SVAMP with T5-base, for a table of variants; `values` are the paper's."""
    ((task, title),) = columns(preset, ["svamp"]).items()
    return [
        Cell(
            row=row, column=title, config=config(preset, task, changes={**(common or {}), **changes}),
            paper=printed(preset, value),
        )
        for (row, changes), value in zip(rows.items(), values, strict=True)
    ]  # fmt: skip


def claims(cells: Sequence[Cell], better: str, worse: Sequence[str]) -> tuple[Claim, ...]:
    """That one row beats others in every column where both stand."""
    places = {(cell.row, cell.column) for cell in cells}
    return tuple(
        Claim(column=column, better=better, worse=other)
        for column in dict.fromkeys(cell.column for cell in cells)
        for other in worse
        if {(better, column), (other, column)} <= places
    )


def methods_table(preset: str, name: str, title: str, student: str, subject: str) -> Grid:
    """Tables 1 and 2: five methods on all benchmarks."""
    cells = []
    for row, changes in METHODS.items():
        for task, heading in columns(preset).items():
            known = ACCURACIES.get((task, student, str(changes["method"])))
            paper = None if known is None else printed(preset, known.percent, FLAG if known.odd else "")
            cells.append(Cell(row=row, column=heading, config=config(preset, task, student, changes), paper=paper))
    return Grid(
        name=name,
        title=titled(preset, title, subject),
        cells=tuple(cells),
        seeds=seeds(preset),
        claims=claims(cells, "QCRD", [row for row in METHODS if row != "QCRD"]),
    )

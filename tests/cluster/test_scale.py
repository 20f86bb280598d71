"""cluster/SCALE.md says what experiments/benchmarks/scale_table.py reckons, from the constants that it names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.benchmarks import scale_table
from experiments.benchmarks.scale_table import Work, makespan
from experiments.paper import BASE, TRAINING_HOURS
from experiments.table1 import recipe
from qcrd.grids.cell_runs import runs_of

ROOT = Path(__file__).resolve().parents[2]
SCALE = (ROOT / "cluster" / "SCALE.md").read_text()
LINES, FLAT = SCALE.splitlines(), " ".join(SCALE.split())


@pytest.mark.parametrize(
    "table",
    [
        scale_table.gpu_table, scale_table.sampling_table, scale_table.token_table, scale_table.bucket_table,
        scale_table.growth_table,
    ],
)  # fmt: skip
def test_the_tables_are_those_of_the_arithmetic(table: Callable[[], list[str]]) -> None:
    begin = LINES.index(table()[0])
    assert LINES[begin : begin + len(table())] == table()


def test_numbers_in_the_text_are_those_of_the_arithmetic() -> None:
    assert f"{scale_table.left_bytes() / 1e9:.1f} GB stay" in FLAT
    held = scale_table.held_bytes()
    assert f"most {held / 1e9:.1f} GB (" in FLAT and f"up to {500 * held / 1e12:.0f} TB for 500 trials" in FLAT
    assert f"{scale_table.checkpoint_bytes() * scale_table.ITERATIONS / 1e9:.0f} GB" in SCALE
    assert f"{scale_table.GPU_HOUR_USD:.2f}" in SCALE
    hours = scale_table.table1_hours()
    assert f"longest first: {makespan(hours, 8):.1f} hours on 8 GPUs" in FLAT
    assert f"all of them longest first: {makespan(sorted(hours, reverse=True), 8):.1f}" in FLAT
    epoch = -(-scale_table.ESNLI_QUESTIONS // scale_table.BATCH)
    assert f"{epoch:,} steps" in FLAT and f"{epoch / scale_table.STEPS:.2f} x 13.0 hours a seed" in FLAT
    assert f"46 MB/s on loopback, so {scale_table.checkpoint_bytes() / 46e6:.0f} s of" in FLAT
    assert len(LINES) < 150


def test_a_list_of_trainings_takes_as_long_as_its_last_one() -> None:
    assert makespan([2, 2, 2, 13], 2) == 15  # the long one begins when one GPU has done one, the other one
    assert makespan([13, 2, 2, 2], 2) == 13
    assert makespan([5, 5], 8) == 5
    assert Work("w", (10.0,) * 4, share=0.5).span(2) == (10.0, 15.0)
    assert Work("w", (10.0,) * 4).span(2) == (20.0, 20.0)


def test_table_1_is_reckoned_in_the_order_in_which_it_is_run() -> None:
    jobs = [one.config.method for one in runs_of(recipe())]
    known = {method: TRAINING_HOURS.get((BASE, method), scale_table.SINGLE_TASK_HOURS) for method in jobs}
    assert tuple(known[method] for method in jobs) == scale_table.table1_hours()


def test_what_is_said_of_the_readme_is_there() -> None:
    readme = (ROOT / "README.md").read_text()
    assert f"ASHA took {scale_table.ASHA_STEPS} of the steps" in readme
    assert "over the ideal 128 a second | 0.94, 0.95 |" in readme
    assert "22 s, 0.98 GiB" in readme and "22 s, 0.98 GiB" in SCALE


def test_the_readme_of_the_cluster_has_the_same_hours() -> None:
    text = (ROOT / "cluster" / "README.md").read_text()
    total, known = sum(scale_table.table1_hours()), sum(scale_table.table1_hours()) - 12 * scale_table.SINGLE_TASK_HOURS
    assert f"({known:.1f} + {12 * scale_table.SINGLE_TASK_HOURS:.0f})" in text
    found = re.search(r"N = 8: about (\d+) hours; N = 64: (\d+)", text)
    assert found is not None
    assert [int(hours) for hours in found.groups()] == [
        round(makespan(scale_table.table1_hours(), gpus)) for gpus in (8, 64)
    ]
    assert f"{total:.1f}" in SCALE

"""What a grid would run and cost, counted once for all cells that share it. Writes and asks nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qcrd.config import ExperimentConfig, PaidSettings
from qcrd.config.grid import Grid
from qcrd.console import Display
from qcrd.evaluate.llm_judge import comparison_requests, comparison_usd
from qcrd.grids.cell_runs import CellRun, paper_hours, runs_of
from qcrd.grids.run import check_grid
from qcrd.pipeline.plan import PlannedStage, plan, show_cost
from qcrd.pipeline.stage import Stage
from qcrd.pipeline.stages import stages_of
from qcrd.pipeline.stages.samples import SAMPLES
from qcrd.pipeline.stages.student import STUDENT
from qcrd.storage.fingerprints import digest_of
from qcrd.tasks import get_task, load_questions
from qcrd.tasks.files import must_be_downloaded
from qcrd.teacher.backends.table import backend_of
from qcrd.teacher.cost import CostEstimate


@dataclass
class GridPlan:
    """Counts over a whole grid. `hours`: method → GPU hours, where the paper gives them for that student;
    `hours_from`: where it prints them."""

    grid: Grid
    runs: int
    to_run: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    work: dict[str, list[str]] = field(default_factory=dict)
    costs: list[CostEstimate] = field(default_factory=list)
    students: Counter[str] = field(default_factory=Counter)
    hours: dict[str, float] = field(default_factory=dict)
    hours_from: set[str] = field(default_factory=set)
    unknown_hours: set[str] = field(default_factory=set)
    llm_judge_requests: int = 0
    llm_judge_usd: float | None = None

    def show(self, display: Display) -> None:
        grid, seeds = self.grid, ", ".join(map(str, self.grid.seeds))
        title = f"{grid.name}: {grid.title}; {len(grid.cells)} cells, seeds {seeds}, {self.runs} runs"
        longest = max((stages_of(cell.config) for cell in grid.cells), key=len)
        names = [stage.name for stage in longest if stage.name in self.done or stage.name in self.to_run]
        rows = [[name, self.to_run[name], self.done[name], self._work(name)] for name in names]
        display.table(title, ["stage", "to run", "already there", "work of those to run"], rows)
        for cost in self.costs:
            show_cost(cost, display)
        if self.students:
            self._show_hours(display)
        if grid.llm_judge is not None and grid.comparisons:
            paid = grid.llm_judge if isinstance(grid.llm_judge, PaidSettings) else None
            name = backend_of(grid.llm_judge).kind if paid is None else paid.model
            asked = (
                f"Then at most {self.llm_judge_requests} requests to the LLM judge ({name}), both orders of each pair"
            )
            unknown = "" if paid is None else ", without a known price or with questions still to be downloaded"
            display.say(f"{asked}{unknown if self.llm_judge_usd is None else f', at most ${self.llm_judge_usd:,.2f}'}.")
        usd = [way.most_usd for cost in self.costs for way in cost.ways if way.chosen]
        if any(value is not None for value in usd):
            known = sum(value for value in usd if value is not None)
            unread = any("--download" in text for text in self.work.get(SAMPLES.name, []))
            rest = ", without what has no known price" if None in usd else ""
            rest += ", without the questions that are still to be downloaded" if unread else ""
            display.say(f"The teacher's samples cost at most ${known:,.2f}{rest}.")

    def _work(self, name: str) -> str:
        texts = Counter(self.work.get(name, []))
        shown = [f"{count} x {text}" if count > 1 else text for text, count in texts.items() if text]
        return "; ".join(shown[:6]) + ("; ..." if len(shown) > 6 else "")

    def _show_hours(self, display: Display) -> None:
        rows: list[list[Any]] = []
        for method, count in self.students.items():
            known = f"{self.hours[method]:.1f}" if method in self.hours else "not known"
            rows.append([method, count, known])
        display.table("Students to train", ["method", "students", "GPU hours"], rows)
        if self.hours:
            price = self.grid.cells[0].config.resources.gpu_hour_usd
            total = sum(self.hours.values())
            money = "" if price is None else f", ${total * price:,.2f} at ${price:g} an hour"
            display.say(
                f"{total:.1f} GPU hours{money}. These are the paper's hours ({'; '.join(sorted(self.hours_from))}) in "
                "proportion to the steps: they were not measured here."
            )
        if self.unknown_hours:
            display.say(f"Not in the paper's table: {', '.join(sorted(self.unknown_hours))}.")


def plan_grid(grid: Grid, download: bool = False, until: str | None = None) -> GridPlan:
    """Plan every cell and seed, up to the stage `until`; what two of them share counts once. Raises `ConfigError`."""
    check_grid(grid)
    runs = runs_of(grid)
    found = GridPlan(grid, len(runs))
    seen: set[str] = set()
    largest: dict[str, tuple[int, CostEstimate]] = {}
    for one in runs:
        _count(found, one, until or one.until, download, seen, largest)
    found.costs = [cost for _, cost in largest.values() if cost.samples]
    _count_comparisons(found, download)
    return found


def _count_comparisons(found: GridPlan, download: bool) -> None:
    """The LLM judge's requests and price, with what the sample store has already."""
    grid, prices = found.grid, []
    for one in grid.comparisons:
        cell = grid.cell(one.first, one.column)
        assert cell is not None and grid.llm_judge is not None
        task = cell.config.task
        there = isinstance(grid.llm_judge, PaidSettings) and (download or not must_be_downloaded(task))
        questions = load_questions(get_task(task.name), task) if there else []
        test = get_task(task.name).sizes(task)["test"]
        requests = comparison_requests(grid.llm_judge, cell.config.evaluation, test)
        found.llm_judge_requests += requests
        prices.append(comparison_usd(grid.llm_judge, requests, cell.config.student.max_target_tokens, questions))
    found.llm_judge_usd = None if None in prices or not prices else sum(filter(None, prices))


def _count(
    found: GridPlan, one: CellRun, until: str, download: bool, seen: set[str],
    largest: dict[str, tuple[int, CostEstimate]],
) -> None:  # fmt: skip
    config = one.config
    stages = {stage.name: stage for stage in stages_of(config)}
    keys = _keys(config, stages)
    for planned in plan(one.planned_config(), download, until, count=keys.get(SAMPLES.name) not in seen):
        key = keys[planned.stage]
        if key not in seen:
            seen.add(key)
            _add(found, config, stages[planned.stage], planned, largest)


def _add(
    found: GridPlan, config: ExperimentConfig, stage: Stage, planned: PlannedStage,
    largest: dict[str, tuple[int, CostEstimate]],
) -> None:  # fmt: skip
    if planned.state == "done":
        found.done[stage.name] += 1
        return
    found.to_run[stage.name] += 1
    found.work.setdefault(stage.name, []).append(planned.work)
    if planned.cost is not None:
        # samples of a smaller m, or of a part of the questions, are among those of the largest
        settings = {k: v for k, v in stage.settings(config).items() if k != "num_samples"}
        group = digest_of([config.task.name, settings])
        if group not in largest or largest[group][0] < planned.cost.samples:
            largest[group] = planned.cost.samples, planned.cost
    if stage == STUDENT:
        found.students[config.method] += 1
        hours = paper_hours(config)
        printed = config.printed("training_hours")
        if hours is None or printed is None:
            found.unknown_hours.add(config.method)
        else:
            found.hours[config.method] = found.hours.get(config.method, 0.0) + hours
            found.hours_from.add(printed.note)


def _keys(config: ExperimentConfig, stages: Mapping[str, Stage]) -> dict[str, str]:
    """Per stage what is equal for two cells that share its artifact. A stage comes after its inputs."""
    keys: dict[str, str] = {}
    for name, stage in stages.items():
        keys[name] = digest_of([name, stage.settings(config), [keys[one] for one in stage.inputs(config)]])
    return keys

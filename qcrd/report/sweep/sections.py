"""The text of a sweep's report: which configuration to take, tables, importance, effects, how it was made.

The rows of the tables are plain text, for the terminal, too. Knows nothing about files or figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from qcrd.console import duration
from qcrd.report.markdown import cell as shown
from qcrd.report.markdown import percent, table
from qcrd.report.statistics import Range
from qcrd.report.sweep.data import Configuration, SweepResults
from qcrd.report.sweep.statistics import (
    Choice,
    Importance,
    best_choice,
    common_iteration,
    difference,
    effects,
    importance,
    score_interval,
    seconds_per_seed,
    started,
    value_label,
)

SCORE = "validation accuracy"
_SCORE_NOTE = (
    "The score is the best validation accuracy of a training, mean over the seeds, with a 95 % t interval over the "
    "seeds (none with one seed). The best of many was chosen by the same questions, so its own score is too high an "
    "estimate; only the test set tells how good it is."
)
_EFFECT_NOTE = (
    "Mean of the scores at each value, whatever the other fields are, with a 95 % bootstrap interval over the "
    "configurations; an interval of few configurations is too narrow. Values were not assigned at random where a "
    "search or a scheduler chose them."
)
_IMPORTANCE_NOTE = (
    "Functional ANOVA over a random forest of the scores at equal training: the share of each field in what the fields "
    "explain one by one. It says nothing about direction, and with few configurations it is a hint at most."
)


def subject_of(results: SweepResults) -> str:
    """Title of report and figures; it says so where the teacher is simulated."""
    what = f"{results.title}: {results.method} on {results.task}"
    return f"{what}, simulated teacher" if results.simulated else what


def short_names(fields: Sequence[str]) -> dict[str, str]:
    """Field → its last part, or the whole where two would be called the same."""
    last = [name.rpartition(".")[2] for name in fields]
    return {name: one if last.count(one) == 1 else name for name, one in zip(fields, last, strict=True)}


def curve_label(one: Configuration, results: SweepResults, limit: int = 100) -> str:
    """A configuration's name, with its values where they are few."""
    values = values_text(one, results.fields)
    return f"{one.key}: {values}" if values and len(values) <= limit else one.key


def values_text(one: Configuration, fields: Sequence[str]) -> str:
    """A configuration's values on one line."""
    return ", ".join(f"{short} {value_label(one.values.get(name))}" for name, short in short_names(fields).items())


def _points(found: Range | None, digits: int = 1) -> str:
    """An interval of shares in points; with one seed there is none."""
    return "" if found is None else f" [{100 * found[0]:.{digits}f}, {100 * found[1]:.{digits}f}]"


def _values(one: Configuration, results: SweepResults) -> list[str]:
    return [value_label(one.values.get(name)) for name in results.fields]


def _cost(one: Configuration) -> list[str]:
    return [duration(seconds_per_seed(one)), f"{one.steps / max(1, len(one.curves)):.0f}"]


def ranking(results: SweepResults) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the finished configurations, best first."""
    header = ["rank", "configuration", f"{SCORE}, %", "minus the best", "seeds", "time", "steps", *results.fields]
    rows, finished = [], results.finished
    for rank, one in enumerate(finished, start=1):
        behind = "" if rank == 1 else _behind(one, finished[0])
        score = f"{100 * one.score:.1f}{_points(score_interval(one))}"
        rows.append([str(rank), one.key, score, behind, str(len(one.best())), *_cost(one), *_values(one, results)])
    return header, rows


def _behind(one: Configuration, best: Configuration) -> str:
    found = difference(one, best)
    return "no common seed" if found is None else f"{100 * found.mean:+.1f}{_points(found.interval)}"


def others(results: SweepResults) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the configurations that are not ranked, and what became of them."""
    header = ["configuration", "state", f"{SCORE} till then, %", "time", "steps", *results.fields]
    rows = []
    for status in ("stopped", "unfinished", "failed"):
        for one in (one for one in results.configurations if one.status == status):
            score = "" if math.isnan(one.score) else f"{100 * one.score:.1f}"
            rows.append([one.key, _state(one), score, *_cost(one), *_values(one, results)])
    return header, rows


def _state(one: Configuration) -> str:
    after = f"after iteration {one.iterations}"
    if one.status == "stopped":
        return f"stopped {after}"
    if one.status == "unfinished":
        return f"unfinished, {after}" if one.iterations else "unfinished, not begun"
    return f"failed {after}"


def failures(results: SweepResults) -> list[list[str]]:
    """Which configurations failed, and why."""
    failed = [one for one in results.configurations if one.status == "failed"]
    return [[one.key, one.reason or "no reason given"] for one in failed]


def choice_line(results: SweepResults, choice: Choice) -> str:
    """Which configuration to take by the one-standard-error rule, and which others it could be; plain text."""
    best, cheapest, fields = choice.best, choice.cheapest, results.fields
    named = f"{cheapest.key} ({values_text(cheapest, fields)})" if fields else cheapest.key
    cost = f"{duration(seconds_per_seed(cheapest))} a seed"
    rest = ", ".join(one.key for one in choice.candidates[1:])
    if choice.standard_error is None:
        ties = f" Of the best, which tie, {cheapest.key} is the cheapest; the others: {rest}." if rest else ""
        return (
            f"The one-standard-error rule is not applicable: {best.key}, the best, has one seed, which tells nothing "
            f"about others. Best: {best.key}, {percent(best.score)}.{ties}"
        )
    within = f"Within one standard error ({100 * choice.standard_error:.2f} points) of the best"
    then = f" Then, by cost: {rest}." if rest else " No other one is that close."
    return f"{within}, cheapest first: {named}, {percent(cheapest.score)}, {cost}.{then}"


def importance_line(found: Importance) -> str:
    """The fields' shares, most important first; plain text."""
    if not found.shares:
        return f"Importance of the fields: not computed, {found.reason}."
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in found.shares.items())
    return f"Importance of the fields: {shares} ({found.configurations} configurations)."


def counts_line(results: SweepResults) -> str:
    """How many configurations there are, what became of them, and what all of it cost."""
    by_status = {
        status: sum(one.status == status for one in results.configurations)
        for status in ("finished", "stopped", "unfinished", "failed")
    }
    states = ", ".join(f"{count} {status}" for status, count in by_status.items() if count)
    seconds, steps = total_cost(results)
    seeds = f"{len(results.seeds)} seed" + "s" * (len(results.seeds) != 1)
    many = "s" * (len(results.configurations) != 1)
    return (
        f"{len(results.configurations)} configuration{many} ({states or 'none begun'}), {seeds}; "
        f"{duration(seconds)} of training, {steps} optimizer steps in all."
    )


def total_cost(results: SweepResults) -> tuple[float, int]:
    """Seconds of training and optimizer steps of all configurations and seeds."""
    return sum(one.seconds for one in results.configurations), sum(one.steps for one in results.configurations)


def summary_section(results: SweepResults) -> list[str]:
    """Title, what is to be known before any number is read, and the choice."""
    lines = [f"# {shown(subject_of(results))}", ""]
    if results.simulated:
        lines += [
            "> **The teacher is simulated: no language model was asked.** The numbers show that the sweep runs; they "
            "say nothing about these settings on real questions.",
            "",
        ]
    lines += [counts_line(results), ""]
    tasks = [name for name in results.fields if name.startswith("task.")]
    if tasks:
        lines += [
            f"> The configurations differ in {shown(', '.join(tasks))}: where that changes the validation questions, "
            "their accuracies cannot be compared.",
            "",
        ]
    choice = best_choice(results)
    lines += [shown(choice_line(results, choice)) if choice else "Nothing is finished yet, so nothing is ranked.", ""]
    return lines + _test_lines(results)


def _test_lines(results: SweepResults) -> list[str]:
    """The winner's accuracy on the test set, once it was evaluated."""
    winner = next((one for one in results.finished if one.test_accuracy), None)
    if winner is None:
        return []
    values = list(winner.test_accuracy.values())
    mean = sum(values) / len(values)
    each = ", ".join(f"seed {seed}: {percent(value)}" for seed, value in sorted(winner.test_accuracy.items()))
    return [f"Test set, evaluated once: {shown(winner.key)} has {percent(mean)} ({each}).", ""]


def tables_section(results: SweepResults) -> list[str]:
    """The ranked configurations, and below them those that were stopped early, go on later, or failed."""
    lines = ["## Configurations", ""]
    why = (["configuration", "why it failed"], failures(results))
    tables = (("", ranking(results)), ("Not ranked:", others(results)), ("", why))
    for heading, (header, rows) in tables:
        if rows:
            cells = [[shown(text) if text else "" for text in row] for row in rows]
            lines += [*([heading, ""] if heading else []), *table([shown(name) for name in header], cells)]
    return [*lines, _SCORE_NOTE + " Time and steps are means of one seed's training.", ""]


def equal_training_line(results: SweepResults) -> str:
    """At which iteration fields are judged."""
    count, reached = common_iteration(results), len(started(results))
    return (
        f"At equal training: all scores are those after iteration {count}, the last one that each of the {reached} "
        "configurations reached which did not fail."
    )


def importance_section(results: SweepResults) -> list[str]:
    """Which fields matter."""
    found = importance(results)
    lines = ["## Importance of the fields", ""]
    if not found.shares:
        return [*lines, shown(importance_line(found)), ""]
    rows = [[shown(name), percent(share)] for name, share in found.shares.items()]
    return [*lines, equal_training_line(results), "", *table(["field", "importance"], rows), _IMPORTANCE_NOTE, ""]


def effects_section(results: SweepResults) -> list[str]:
    """What each value of a field gives on average."""
    rows = []
    for effect in effects(results):
        for level in effect.levels:
            label = level.label + (" (third)" if effect.in_thirds else "")
            interval = _points(level.interval).strip() or "none, one configuration"
            rows.append(
                [shown(effect.field), shown(label), percent(level.mean), interval, str(level.configurations)]
            )  # fmt: skip
    lines = ["## Effect of each field", ""]
    if not rows:
        return [*lines, "No field has scores at two values yet.", ""]
    header = ["field", "value", SCORE, "95 % interval, %", "configurations"]
    return [*lines, equal_training_line(results), "", *table(header, rows), _EFFECT_NOTE, ""]


def made_section(results: SweepResults) -> list[str]:
    """Command, commit, machine, and whatever else is known."""
    told = {**results.about, "seeds": ", ".join(map(str, results.seeds))}
    return ["## How it was made", "", *table(["what", "value"], [[shown(k), shown(v)] for k, v in told.items()])]

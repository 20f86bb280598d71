"""The command line: `qcrd plan`, `qcrd run` and `qcrd predict`. Bad input is one line on stderr and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from qcrd.config import ConfigError, ExperimentConfig, one_line, with_overrides
from qcrd.recipes import load_recipe

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    help="Distil an LLM's reasoning into a small model (QCRD).",
)  # fmt: skip
Recipe = Annotated[str, typer.Argument(help="a recipe: file.py, or file.py:function")]
Overrides = Annotated[list[str] | None, typer.Argument(help="settings to replace, e.g. train.learning_rate=3e-4")]


def experiment(recipe: str, overrides: Sequence[str]) -> ExperimentConfig:
    """A recipe's config with `key=value` overrides. Raises `ConfigError`."""
    pairs = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"override: {text!r} is not allowed; write key=value, e.g. negatives.gap=3")
        pairs[key] = value
    try:
        return with_overrides(load_recipe(recipe), pairs)
    except ValidationError as error:
        raise ConfigError(one_line(error)) from None


Download = Annotated[bool, typer.Option("--download", help="fetch questions that lie behind a URL, to price them")]


@app.command()
def plan(recipe: Recipe, overrides: Overrides = None, download: Download = False) -> None:
    """List the stages as done or to run, with counts and the teacher's price. Spends nothing, writes nothing."""
    config = experiment(recipe, overrides or [])
    from qcrd import pipeline  # imports torch and Ray: seconds that an error in the config need not wait for
    from qcrd.console import Display
    from qcrd.teacher.cost import cost_rows

    with Display() as display:
        planned = pipeline.plan(config, download)
        title = f"{config.name}: {config.method} on {config.task.name}"
        rows = [[one.stage, one.state, one.work] for one in planned]
        display.table(title, ["stage", "state", "work or folder"], rows)
        for cost in (one.cost for one in planned if one.cost is not None):
            columns, rows, notes = cost_rows(cost)
            display.table(f"What the {cost.samples} missing samples cost", columns, rows)
            for note in notes:
                display.say(note)


RetryErrors = Annotated[bool, typer.Option("--retry-errors", help="ask again for just the samples that failed")]
AcceptMissing = Annotated[
    bool, typer.Option("--accept-missing", help="go on without the samples that are missing; nobody is asked")
]


@app.command()
def run(
    recipe: Recipe, overrides: Overrides = None, retry_errors: RetryErrors = False,
    accept_missing: AcceptMissing = False,
) -> None:  # fmt: skip
    """Run what is missing of an experiment, and show where everything lies."""
    config = experiment(recipe, overrides or [])
    from qcrd import pipeline
    from qcrd.console import Display
    from qcrd.distill.durable import is_full
    from qcrd.distill.train import TrainingFailed
    from qcrd.teacher.asking import Stopped

    with Display() as display:
        try:
            finished = pipeline.run(config, display, retry_errors, accept_missing)
        except KeyboardInterrupt:
            display.warn("interrupted; what is there is kept, and the same command goes on where this one stopped")
            raise typer.Exit(130) from None
        except Stopped as stopped:
            display.warn(f"stopped: {stopped}")
            display.say(
                "What was answered is kept in the sample store. The same command asks for what is missing; "
                "--accept-missing goes on without it."
            )
            raise typer.Exit(3) from None
        except TrainingFailed as failed:
            print(f"error: {failed}", file=sys.stderr)
            raise typer.Exit(1) from None
        except OSError as error:
            if not is_full(error):
                raise
            print(f"error: {str(error).splitlines()[-1]}", file=sys.stderr)
            raise typer.Exit(1) from None
        rows = [[name, artifact.path] for name, artifact in finished.items()]
        rows += [["record", pipeline.record_folder(config)]]
        display.table("Where everything lies", ["what", "path"], rows)
        health, lines = pipeline.headline(finished)
        display.table("What was measured", ["measure", "value"], health)
        for line in lines:
            display.say(line)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `qcrd` and of `python -m qcrd`."""
    try:
        app(args=list(arguments) if arguments is not None else None)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


# -- predict: a finished student answers, without a recipe and without Ray ------------------------------------------

Trained = Annotated[
    Path, typer.Argument(metavar="RUN", help="a run's output folder, a folder student/… in it, or a model folder")
]
Questions = Annotated[
    str, typer.Argument(metavar="FILE", help='JSON lines, {"question": …}, with an id or not; -: stdin')
]
Explain = Annotated[bool, typer.Option("--explain", help="a rationale too, which the student is asked for separately")]
Output = Annotated[Path | None, typer.Option(help="file to write, whole or not at all; default: standard output")]


@app.command()
def predict(student: Trained, file: Questions, explain: Explain = False, output: Output = None) -> None:
    """Label questions with a finished student, one JSON line each: id, question, label (and rationale)."""
    from qcrd.evaluate.ask import answer_file

    answer_file(student, file, output, explain)

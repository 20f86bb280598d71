"""The command line: `qcrd plan`, `run`, `sweep`, `submit`, `compare`, `predict`. Bad input is one line, exit code 2."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from qcrd.config import ConfigError, ExperimentConfig, one_line, with_overrides
from qcrd.config.grid import Grid
from qcrd.config.overrides import override_grid, override_sweep, pairs_of
from qcrd.config.recipes import load_recipe, project_root, recipe_file
from qcrd.config.sweep import Sweep

if TYPE_CHECKING:
    from qcrd.console import Display
    from qcrd.pipeline.run import Options

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    help="Distil an LLM's reasoning into a small model (QCRD).",
)  # fmt: skip
Recipe = Annotated[str, typer.Argument(help="a recipe: file.py, or file.py:function")]
Overrides = Annotated[list[str] | None, typer.Argument(help="settings to replace, e.g. train.learning_rate=3e-4")]


def load(
    recipe: str, overrides: Sequence[str], preset: str | None, seeds: str | None
) -> ExperimentConfig | Grid | Sweep:
    """What a recipe gives, with overrides (of every cell, of a sweep's base) and seeds. Raises `ConfigError`."""
    try:
        made, pairs = load_recipe(recipe, preset), pairs_of(overrides)
        if isinstance(made, ExperimentConfig):
            if seeds is not None:
                raise ConfigError(f"--seeds: {seeds!r} is not allowed for one experiment; write seed=1")
            return with_overrides(made, pairs)
        if isinstance(made, Sweep):
            return override_sweep(made, pairs, seeds)
        return override_grid(made, pairs, seeds)
    except ValidationError as error:
        raise ConfigError(one_line(error)) from None


def experiment(recipe: str, overrides: Sequence[str]) -> ExperimentConfig:
    """The config of a recipe of one experiment. Raises `ConfigError`."""
    made = load(recipe, overrides, None, None)
    if not isinstance(made, ExperimentConfig):
        raise ConfigError(f"RECIPE: {recipe!r} is a {type(made).__name__.lower()}, not one experiment")
    return made


Download = Annotated[bool, typer.Option("--download", help="fetch questions that lie behind a URL, to price them")]
Preset = Annotated[str | None, typer.Option(help="of a recipe that has some: paper (the real thing), smoke (minutes)")]
Seeds = Annotated[str | None, typer.Option(help="of a grid, e.g. 0,1,2; default: the recipe's")]


@app.command()
def plan(
    recipe: Recipe, overrides: Overrides = None, download: Download = False, preset: Preset = None, seeds: Seeds = None,
) -> None:  # fmt: skip
    """List the stages as done or to run, with counts and the teacher's price. Spends nothing, writes nothing."""
    made = load(recipe, overrides or [], preset, seeds)
    from qcrd.console import (
        Display,  # these import torch and Ray: seconds that an error in the config need not wait for
    )
    from qcrd.grids.plan import plan_grid
    from qcrd.pipeline import plan as planning
    from qcrd.sweeps.plan import plan_sweep

    with Display() as display:
        if isinstance(made, Sweep):
            plan_sweep(made, download).show(display)
            return
        if isinstance(made, Grid):
            plan_grid(made, download).show(display)
            return
        planned = planning.plan(made, download)
        title = f"{made.name}: {made.method} on {made.task.name}"
        rows = [[stage.stage, stage.state, stage.work] for stage in planned]
        display.table(title, ["stage", "state", "work or folder"], rows)
        for cost in (stage.cost for stage in planned if stage.cost is not None):
            planning.show_cost(cost, display)


RetryErrors = Annotated[bool, typer.Option("--retry-errors", help="ask again for just the samples that failed")]
AcceptMissing = Annotated[
    bool, typer.Option("--accept-missing", help="go on without the samples that are missing; nobody is asked")
]
Until = Annotated[str | None, typer.Option(metavar="STAGE", help="stop after this stage, e.g. samples or rationales")]
Parallel = Annotated[int | None, typer.Option(min=1, help="cells of a grid at once; default: as GPUs allow, else 1")]


@app.command()
def run(
    recipe: Recipe, overrides: Overrides = None, retry_errors: RetryErrors = False,
    accept_missing: AcceptMissing = False, preset: Preset = None, seeds: Seeds = None, parallel: Parallel = None,
    until: Until = None,
) -> None:  # fmt: skip
    """Run what is missing of an experiment or a grid, and show where everything lies."""
    made = load(recipe, overrides or [], preset, seeds)
    if isinstance(made, Sweep):
        raise ConfigError(f"RECIPE: {recipe!r} is a sweep; write qcrd sweep {recipe}")
    if isinstance(made, Grid) and until is not None:
        raise ConfigError(f"--until: {until!r} is not allowed for a grid, whose cells end with what they measure")
    from qcrd.pipeline import run as pipeline

    options = pipeline.Options(retry_errors, accept_missing, until)
    with _running() as display:
        if isinstance(made, Grid):
            _run_grid(made, recipe, display, options, parallel)
        else:
            _run_one(made, display, options)


AtOnce = Annotated[int | None, typer.Option("--parallel", min=1, help="trials at once; default: as many as fit")]


@app.command()
def sweep(
    recipe: Recipe, overrides: Overrides = None, retry_errors: RetryErrors = False,
    accept_missing: AcceptMissing = False, preset: Preset = None, seeds: Seeds = None, parallel: AtOnce = None,
) -> None:  # fmt: skip
    """Train the configurations of a sweep that are missing, test the winner, and compare them all."""
    made = load(recipe, overrides or [], preset, seeds)
    if not isinstance(made, Sweep):
        raise ConfigError(f"RECIPE: {recipe!r} is no sweep; write qcrd run {recipe}")
    from qcrd.pipeline import run as pipeline

    with _running() as display:
        _run_sweep(made, display, pipeline.Options(retry_errors, accept_missing), parallel)


@contextlib.contextmanager
def _running() -> Iterator[Display]:
    """The display of a long command, and what ends it early as one line and an exit code."""
    from qcrd.console import Display
    from qcrd.runtime.remote import StageFailed
    from qcrd.teacher.asking import Stopped

    with Display() as display, insistent_interrupts():
        try:
            yield display
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
        except StageFailed as failed:
            print(f"error: {failed}", file=sys.stderr)
            raise typer.Exit(1) from None


INSIST_SECONDS = 5.0


@contextlib.contextmanager
def insistent_interrupts() -> Iterator[None]:
    """Ctrl-C that is not lost: Python drops a `KeyboardInterrupt` that comes up in a destructor or a callback, and the
    run would go on. Until this block ends it is raised again every few seconds."""
    ended = threading.Event()

    def again() -> None:
        while not ended.wait(INSIST_SECONDS):
            os.kill(os.getpid(), signal.SIGINT)

    def on_interrupt(*_: object) -> None:
        if not any(thread.name == "qcrd-interrupt" for thread in threading.enumerate()):
            threading.Thread(target=again, name="qcrd-interrupt", daemon=True).start()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        ended.set()
        signal.signal(signal.SIGINT, before)


def _run_one(config: ExperimentConfig, display: Display, options: Options) -> None:
    from qcrd.pipeline import run as pipeline

    finished = pipeline.run(config, display, options)
    rows = [[name, artifact.path] for name, artifact in finished.items()]
    rows += [["record", pipeline.record_folder(config)]]
    display.table("Where everything lies", ["what", "path"], rows)
    measured, lines = pipeline.headline(config, finished)
    display.table("What was measured", ["measure", "value"], measured)
    for line in lines:
        display.say(line)


def _run_grid(grid: Grid, recipe: str, display: Display, options: Options, parallel: int | None) -> None:
    from qcrd.grids.run import run_grid
    from qcrd.report.grid.report import headline

    folder, results = run_grid(grid, display, project_root(recipe_file(recipe)), options, parallel)
    display.markdown(headline(grid, results))
    display.say(f"report: {folder / 'report.html'}")
    if results.missing:
        print(f"error: {len(results.missing)} cells are missing; the report says why", file=sys.stderr)
        raise typer.Exit(1)


def _run_sweep(sweep: Sweep, display: Display, options: Options, parallel: int | None) -> None:
    from qcrd.sweeps.compare import show
    from qcrd.sweeps.run import run_sweep

    folder, results = run_sweep(sweep, display, options, parallel)
    show(results, display)
    display.say(f"report: {folder / 'report' / 'report.html'}")
    if failed := [one for one in results.configurations if one.status == "failed"]:
        print(f"error: {len(failed)} configurations failed; the report says why", file=sys.stderr)
        raise typer.Exit(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `qcrd` and of `python -m qcrd`."""
    try:
        app(args=list(arguments) if arguments is not None else None)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        from qcrd.storage.atomic import is_full
        from qcrd.storage.bucket import StorageAway

        if not (isinstance(error, StorageAway) or is_full(error)):
            raise
        print(f"error: {str(error).splitlines()[-1]}", file=sys.stderr)
        sys.exit(1)


# -- submit and status: the same on a cluster, by Ray's job server ---------------------------------------------------

Address = Annotated[
    str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="the cluster's job server, as http://127.0.0.1:8265")
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="only submit; qcrd status tells how it goes")]
Secrets = Annotated[str | None, typer.Option(metavar="NAME,NAME", help="variables that the nodes must have, by name")]


@app.command()
def submit(
    recipe: Recipe, address: Address, overrides: Overrides = None, retry_errors: RetryErrors = False,
    accept_missing: AcceptMissing = False, preset: Preset = None, seeds: Seeds = None, parallel: Parallel = None,
    no_wait: NoWait = False, secrets: Secrets = None,
) -> None:  # fmt: skip
    """Run an experiment, a grid or a sweep as a job of a Ray cluster, show its log, and end with its exit code."""
    from qcrd.console import Display
    from qcrd.jobs.job import job_of, needed_variables, refuse_secrets, variable_names

    names = variable_names(secrets)
    refuse_secrets(pairs_of(overrides or []), names)
    made = load(recipe, overrides or [], preset, seeds)
    options = {"--preset": preset, "--seeds": seeds, "--parallel": parallel}
    flags = [f"{option}={value}" for option, value in options.items() if value is not None]
    flags += ["--retry-errors"] * retry_errors + ["--accept-missing"] * accept_missing
    job = job_of(made, recipe, overrides or [], flags, names)
    from qcrd.jobs import submit as jobs

    with Display() as display:
        client = jobs.connect(address, display.warn)
        if needed := needed_variables(made, names):
            display.say("The cluster's nodes must have these in their environment; no value is sent from here:")
            for name, why in needed.items():
                display.say(f"  {name}: {why}")
        job_id = jobs.submit(client, job, display.say)
        advice = jobs.how_to_go_on(address, job_id)
        try:
            display.say(f"{job_id}: {job.entrypoint}")
            if no_wait:
                display.say(advice)
                return
            with insistent_interrupts():
                info = jobs.follow(client, job_id, display)
        except (KeyboardInterrupt, ConnectionError) as error:
            reason = "detached" if isinstance(error, KeyboardInterrupt) else str(error)
            display.warn(f"{reason}; {job_id} is not stopped by this\n{advice}")
            raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else 1) from None
        display.say(jobs.outcome(info))
    raise typer.Exit(jobs.exit_code(info))


JobId = Annotated[str | None, typer.Argument(metavar="[JOB]", help="a job's id; default: all that were submitted")]


@app.command()
def status(address: Address, job: JobId = None) -> None:
    """Show the jobs that were submitted to a cluster, or one job's state and last lines, with its exit code."""
    from qcrd.console import Display
    from qcrd.jobs import submit as jobs

    with Display() as display:
        client = jobs.connect(address, display.warn)
        if job is None:
            jobs.show_jobs(client, address, display)
            return
        code = jobs.show_job(client, job, display)
    raise typer.Exit(code)


# -- compare: a sweep or runs as a table and a page, without Ray ------------------------------------------------------

References = Annotated[
    list[str], typer.Argument(metavar="REFERENCE...", help="a sweep's folder or name; run ids; an MLflow experiment")
]
Runs = Annotated[str, typer.Option(help="the output of the runs, a folder or URL")]
Uri = Annotated[str | None, typer.Option(help="MLflow's; default: MLFLOW_TRACKING_URI, else SQLite in the output")]
Html = Annotated[Path | None, typer.Option(help="file for the page; default: the sweep's folder, or ./comparison")]


@app.command()
def compare(references: References, output: Runs = "runs", uri: Uri = None, html: Html = None) -> None:
    """Compare configurations: scores with intervals, cost, what matters, and which one to take."""
    from qcrd.config import TrackingConfig
    from qcrd.console import Display
    from qcrd.sweeps.compare import compare as compare_runs

    with Display() as display:
        compare_runs(references, output, TrackingConfig(uri=uri), html, display)


# -- predict: a finished student answers, without a recipe and without Ray ------------------------------------------

Trained = Annotated[
    str,
    typer.Argument(metavar="RUN", help="a run's output (folder or URL), a folder student/… in it, or a model folder"),
]
Questions = Annotated[
    str, typer.Argument(metavar="FILE", help='JSON lines, {"question": …}, with an id or not; -: stdin')
]
Explain = Annotated[bool, typer.Option("--explain", help="a rationale too, which the student is asked for separately")]
Output = Annotated[Path | None, typer.Option(help="file to write, whole or not at all; default: standard output")]


@app.command()
def predict(student: Trained, file: Questions, explain: Explain = False, output: Output = None) -> None:
    """Label questions with a finished student, one JSON line each: id, question, label (and rationale)."""
    from qcrd.evaluate.inference import answer_file
    from qcrd.pipeline.finished_student import student_folder

    answer_file(student_folder(student), file, output, explain)

"""Running a sweep: what trials share once, then its configurations on Ray Tune (tuning.py), then the winner's test.

The same command goes on after a kill: the record (record.py) is all that a restart reads. In MLflow a sweep is one run
with a child for each configuration and seed (children.py).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from qcrd.config.sweep import Sweep
from qcrd.console import Display
from qcrd.grids.cells import about
from qcrd.pipeline.check import prepare_output
from qcrd.pipeline.run import DEFAULT_OPTIONS, Options, recorded_alone, run, run_inputs_of
from qcrd.pipeline.stages.student import STUDENT
from qcrd.report.sweep.data import SweepResults
from qcrd.report.sweep.page import write_sweep_report
from qcrd.runtime.session import start_ray
from qcrd.storage.output import Storage
from qcrd.sweeps.children import SweepChildren
from qcrd.sweeps.plan import check_sweep, label_of, shared_configurations, sweep_folder
from qcrd.sweeps.record import REPORT, SweepRecord, read_results
from qcrd.sweeps.search_space import description
from qcrd.sweeps.trials import Trials
from qcrd.sweeps.tune_trial import trials_at_once
from qcrd.sweeps.tuning import TUNE, clear_stopped, run_trials
from qcrd.teacher.backends.table import backend_of
from qcrd.tracking.opening import open_run_record
from qcrd.tracking.record import RunRecord, read_metrics
from qcrd.tracking.tracker import RunId

TUNE_DEFAULTS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the record is ours
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run_sweep(
    sweep: Sweep, display: Display, options: Options = DEFAULT_OPTIONS, parallel: int | None = None
) -> tuple[Path, SweepResults]:
    """Run what is missing of a sweep, evaluate its winner, and write its report. Returns the folder and the results.

    `parallel`: trials at once; None: as many as the cluster holds. Raises `ConfigError` before anything is written.
    """
    check_sweep(sweep)
    for name, value in TUNE_DEFAULTS.items():
        os.environ.setdefault(name, value)
    start_ray()
    at_once = trials_at_once(sweep.base, parallel)
    folder, config, storage = sweep_folder(sweep), sweep.base, Storage.of(sweep.base.output)
    output, simulated = storage.folder, backend_of(config.teacher).simulated
    prepare_output(storage)
    with contextlib.ExitStack() as stack:
        folders = (f"records/{folder.name}", f"sweeps/{folder.name}")
        stack.enter_context(recorded_alone(storage, *folders, display=display, without=(TUNE,)))
        record = SweepRecord(folder)
        record.describe({
            "name": sweep.name, "title": sweep.title, "fields": list(sweep.space), "seeds": list(sweep.seeds),
            "space": description(sweep), "searcher": sweep.searcher, "scheduler": sweep.scheduler,
            "simulated": simulated, "task": config.task.name, "method": config.method, "about": about(),
        })  # fmt: skip
        parent = open_run_record(
            output / "records" / folder.name, RunId(folder.name, sweep.name), config.tracking, output, display.warn
        )
        parent.start(
            sweep.model_dump(mode="json", exclude={"space"}) | {"space": description(sweep)},
            {"name": sweep.name, "title": sweep.title, "searcher": sweep.searcher, "scheduler": sweep.scheduler,
             "fields": ", ".join(sweep.space), "seeds": list(sweep.seeds)},
            {"qcrd.sweep": sweep.name, "qcrd.simulated": str(simulated).lower(), "qcrd.task": config.task.name,
             "qcrd.method": config.method},
        )  # fmt: skip
        children = SweepChildren(sweep, record, parent, display)
        trials = Trials(sweep, record, display, at_once)
        status = "FAILED"
        try:
            parent.flush()  # the children are tagged with its id
            _run_what_is_shared(trials, parent, options)
            trials.check_record()
            run_trials(trials, children)
            children.close_left_over()
            clear_stopped(trials)
            register_winner = _test_winner(trials, children, options)
            results = read_results(folder)
            numbers, step = write_sweep_report(results, folder / REPORT), len(record.lines)
            if not any((row["stage"], row["step"]) == ("sweep", step) for row in read_metrics(parent.folder)):
                parent.log("sweep", numbers, step)
            parent.add_artifact(folder / REPORT, "report")
            children.backfill()
            register_winner()  # last: a backfill may have registered an earlier winner
            status = "FINISHED"
            return folder, results
        finally:
            children.join()
            parent.close(status)


def _run_what_is_shared(trials: Trials, record: RunRecord, options: Options) -> None:
    """All that trials share: samples, rationales, training sets, discriminators."""
    sweep, todo = trials.sweep, shared_configurations(trials.sweep)
    for number, values in enumerate(todo, start=1):
        what = f" {number}/{len(todo)} ({label_of(values)})" if len(todo) > 1 else ""
        trials.display.say(f"▶ what trials share{what}")
        config = sweep.config(values, sweep.seeds[0], trials.most)
        run_inputs_of(STUDENT, config, trials.display, record, options)


def _test_winner(trials: Trials, children: SweepChildren, options: Options) -> Callable[[], None]:
    """Take the best configuration through the stages that are left, all seeds. Returns what registers its best
    student."""
    sweep, record, display = trials.sweep, trials.record, trials.display
    finished = read_results(record.folder).finished
    if not finished:
        display.warn("no configuration is finished, so none is evaluated on the test set")
        return lambda: None
    best = finished[0]
    display.say(f"▶ the winner is {best.key} ({label_of(best.values)}): its test, once for each seed")
    students: dict[int, Path] = {}
    for seed in sweep.seeds:
        config = sweep.config(best.values, seed, trials.most)
        made = run(config, display, options, children.open(best.key, seed))
        record.test(best.key, seed, float(made["predictions"].marker()["summary"]["eval/test_accuracy_best"]))
        students[seed] = made["student"].fetch() / "best"
    by_accuracy = max(sweep.seeds, key=lambda seed: best.best()[seed])
    children.parent.add_tags({"qcrd.winner": best.key})
    return lambda: children.register(best.key, by_accuracy, students[by_accuracy])

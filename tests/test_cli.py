"""The command line on bad input: one line, exit code 2, no traceback, nothing written; and the recipes."""

import subprocess
import sys
from pathlib import Path

import pytest

from qcrd.cli import experiment
from qcrd.config import ConfigError
from qcrd.pipeline import plan
from qcrd.recipes import load_recipe

ROOT = Path(__file__).parent.parent
QUICKSTART = str(ROOT / "experiments" / "quickstart.py")
RECIPES = sorted(path for path in (ROOT / "experiments").glob("*.py") if path.name != "__init__.py")


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
        ([QUICKSTART, "task.name=gsm8k"], "task.name: 'gsm8k' is not allowed; the tasks are arithmetic, svamp"),
        ([QUICKSTART, "task.name=svamp", "task.path=/no/such.json"], "task.path: '/no/such.json' does not exist"),
        ([QUICKSTART, "teacher.parser=best"], "teacher.parser: 'best' is not allowed"),
        ([QUICKSTART, "teacher.prompt=/no/prompt.txt"], "teacher.prompt: '/no/prompt.txt' does not exist"),
        ([QUICKSTART, "teacher.kind=openai", "teacher.api_key_env=NO_SUCH_KEY"], "teacher.api_key_env"),
        ([QUICKSTART, "student.kind=seq2seq", "student.model=./no/model"], "student.model: './no/model'"),
    ],
)
def test_what_can_be_known_to_be_wrong_is_said_before_anything_runs(arguments: list[str], message: str, tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        plan(experiment(arguments[0], [*arguments[1:], f"output={tmp_path}"]))
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_plans(path: Path, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("QCRD_DATA", str(shared_data))
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    planned = plan(experiment(str(path), [f"output={tmp_path}"]))
    assert planned[0].stage == "questions" and planned[-1].stage == "report"
    assert all(one.state == "to run" for one in planned)
    assert list(tmp_path.iterdir()) == []


def test_the_plan_counts_requests_and_steps(tmp_path: Path):
    planned = {one.stage: one.work for one in plan(experiment(QUICKSTART, [f"output={tmp_path}"]))}
    config = load_recipe(QUICKSTART)
    total = config.task.generator.train_size * config.teacher.num_samples
    assert planned["samples"] == f"{total} of {total} simulated replies"
    assert planned["student"].startswith(f"{config.train.steps} steps of {config.train.global_batch_size} questions")


def test_a_plan_downloads_nothing_and_counts_by_the_published_sizes(tmp_path: Path):
    nowhere = ["task.path=https://127.0.0.1:9/SVAMP.json", "task.sha256=" + "0" * 64, f"output={tmp_path}"]
    endpoint = ["teacher.base_url=http://127.0.0.1:9/v1"]
    planned = plan(experiment(str(ROOT / "experiments" / "svamp_teacher.py"), [*nowhere, *endpoint]))
    work = {one.stage: one.work for one in planned}
    assert work["questions"] == "720 train, 80 validation, 200 test"
    assert work["samples"] == "at most 3600 teacher requests (paid)"
    assert work["student"] == "10000 steps of 8 questions in 40 iterations of 250"

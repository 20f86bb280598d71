"""What is submitted to a cluster, and what is refused before that. No cluster is needed; tests/ray has one."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from qcrd.cli import load, main
from qcrd.config import ConfigError
from qcrd.config.overrides import pairs_of
from qcrd.jobs.job import EXCLUDES, RECIPE, Job, job_of, needed_variables, refuse_secrets, variable_names
from qcrd.jobs.submit import auth_token, check_address, exit_code, outcome
from qcrd.tracking.provenance import git_state

ROOT = Path(__file__).parents[2]
QUICKSTART, GRID, SWEEP = "experiments/quickstart.py", "experiments/quickstart_methods.py", "experiments/sweeps/gap.py"
TABLE, SVAMP = "experiments/table1.py", "experiments/svamp_teacher.py"
OUT = "output=/shared/runs"


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)


def job(recipe: str, *overrides: str, preset: str | None = None, flags: tuple[str, ...] = (), secrets: str = "") -> Job:
    made = load(recipe, [OUT, *overrides], preset, None)
    return job_of(made, recipe, [OUT, *overrides], flags, variable_names(secrets))


def refused(*arguments: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        job(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("recipe", "preset", "verb"),
    [(QUICKSTART, None, "run"), (GRID, None, "run"), (SWEEP, "smoke", "sweep"), (TABLE + ":recipe", "smoke", "run")],
)
def test_the_job_is_the_same_command_in_the_projects_root(recipe: str, preset: str | None, verb: str):
    flags = () if preset is None else (f"--preset={preset}",)
    made = job(recipe, preset=preset, flags=flags)
    assert made.entrypoint.split() == ["python", "-m", "qcrd", verb, recipe, OUT, *flags]
    code = git_state(ROOT)
    variables = {"QCRD_GIT_COMMIT": code["commit"], "QCRD_GIT_DIRTY": code["dirty"]}
    assert made.root == ROOT
    assert made.runtime_env() == {"working_dir": str(ROOT), "excludes": list(EXCLUDES), "env_vars": variables}
    assert {".git", ".venv", "/data", "/runs", "mlruns", "*.db", "/build", "__pycache__", ".env"} <= set(EXCLUDES)
    assert made.metadata[RECIPE] == recipe and made.metadata.keys() == {RECIPE, "qcrd.commit"}


def test_the_recipe_is_named_as_seen_from_the_root_wherever_one_stands(monkeypatch: pytest.MonkeyPatch):
    here = job(QUICKSTART)
    monkeypatch.chdir(ROOT / "experiments")
    assert job("quickstart.py") == here
    assert job(str(ROOT / QUICKSTART)) == here


def test_a_shell_gives_each_override_back_as_it_was():
    overrides = ["student.prefixes.predict=a  b'$HOME`x`\"", 'teacher.extra_body={"top_k": 40}', "name=x"]
    entrypoint = job(SVAMP, *overrides).entrypoint
    assert shlex.split(entrypoint)[5:] == [OUT, *overrides]
    shown = "import sys; print('|'.join(sys.argv[1:]))"
    command = entrypoint.replace("python -m qcrd", f"{sys.executable} -c {shlex.quote(shown)}", 1)
    printed = subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout
    assert printed == "|".join(["run", SVAMP, OUT, *overrides]) + "\n"


def test_a_job_is_known_by_what_it_runs():
    same = job(QUICKSTART, "train.learning_rate=0.001", "seed=1")
    assert job(QUICKSTART, "seed=1", "train.learning_rate=1e-3").name == same.name
    assert same.name.startswith("qcrd-quickstart-") and len(same.name) == len("qcrd-quickstart-") + 12
    others = [
        job(QUICKSTART), job(QUICKSTART, "seed=2", "train.learning_rate=1e-3"), job(QUICKSTART, "resources.workers=2"),
        job(QUICKSTART, "output=/shared/others"), job(QUICKSTART, flags=("--accept-missing",)), job(GRID),
        job(GRID, "seed=1"), job(SWEEP, preset="smoke"), job(SWEEP, "sweep.max_failures=3", preset="smoke"),
    ]  # fmt: skip
    assert len({one.name for one in [same, *others]}) == len(others) + 1


def test_a_recipe_in_no_project_is_refused(tmp_path: Path):
    (tmp_path / "mine.py").write_text("from experiments.quickstart import recipe\n")
    assert "mine.py' is in no project" in refused(str(tmp_path / "mine.py"))
    (tmp_path / "pyproject.toml").touch()
    assert job(str(tmp_path / "mine.py")).root == tmp_path


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        (QUICKSTART, ["output=runs"], "output: 'runs' is not allowed in a submitted job"),
        (GRID, ["output=runs"], "output: 'runs' is not allowed in a submitted job"),
        (SWEEP, ["output=~/runs"], "output: '~/runs' is not allowed in a submitted job"),
        (QUICKSTART, ["teacher.store=store"], "teacher.store: 'store' is not allowed in a submitted job"),
        (SVAMP, ["teacher.api_key_file=key"], "teacher.api_key_file: 'key' is not allowed in a submitted job"),
        (SVAMP, [f"teacher.api_key_file={ROOT}/key"], "the key would travel with the code"),
        (QUICKSTART, ["task.name=gsm8k"], "task.name: 'gsm8k' is not allowed; the tasks are"),
        (QUICKSTART, ["teacher.parser=best"], "teacher.parser: 'best' is not allowed"),
    ],
)
def test_what_would_be_lost_or_exposed_is_refused(recipe: str, overrides: list[str], message: str):
    assert message in refused(recipe, *overrides)


@pytest.mark.parametrize("place", ["/shared/runs", "s3://bucket/runs", "gs://bucket/runs", "file:///shared/runs"])
def test_shared_places_are_taken(place: str):
    assert f"output={place}" in job(QUICKSTART, f"output={place}", f"teacher.store={place}/store").entrypoint


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("teacher.extra_body={\"user\": \"sk-0123456789abcdefghij\"}", "an API key"),
        ("teacher.extra_body={\"api_key\": \"abc\"}", "by its name"),
        ("teacher.extra_body={\"headers\": {\"Authorization\": \"abc\"}}", "by its name"),
        ("teacher.extra_body={\"user\": \"Bearer 0123456789\"}", "an Authorization header"),
        ("tracking.uri=https://me:word@mlflow.example.org", "a name or password in a URL"),
        ("tracking.experiment=correct-horse-battery", "the value of MLFLOW_TRACKING_TOKEN"),
        ("tracking.experiment=staple-staple", "the value of MY_OWN"),
        ("teacher.store=s3://bucket/x?X-Amz-Signature=0123", "a key in a URL"),
        ("student.model=hf_0123456789abcdefghij", "a token"),
    ],
)  # fmt: skip
def test_secrets_are_refused_and_not_shown(override: str, why: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "correct-horse-battery")
    monkeypatch.setenv("MY_OWN", "staple-staple")
    field, _, value = override.partition("=")
    for message in (refused(SVAMP, override, secrets="MY_OWN"), refused(TABLE, override, secrets="MY_OWN")):
        assert field in message and why in message and value not in message
    if why != "by its name":  # on the command line already, before an error of the config shows the value
        with pytest.raises(ConfigError, match=field):
            refuse_secrets(pairs_of([override]), ("MY_OWN",))


def test_what_only_reminds_of_secrets_is_allowed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    monkeypatch.setenv("SOME_TOKEN_PATH", "/shared/runs")
    assert job(
        SVAMP, "teacher.api_key_env=MY_OPENAI_API_KEY", "teacher.api_key_file=/etc/keys/openai",
        "teacher.max_tokens=100", 'teacher.extra_body={"stop_token_ids": [1], "user": "EMPTY"}', "name=task-sk-1",
    )  # fmt: skip


def test_variables_that_the_nodes_need_are_named():
    def named(recipe: str, *overrides: str, preset: str | None = None) -> dict[str, str]:
        return needed_variables(load(recipe, [OUT, *overrides], preset, None), ("HF_TOKEN",))

    assert named(QUICKSTART, "tracking.enabled=False") == {"HF_TOKEN": "--secrets; the job ends at once without it"}
    assert list(named(QUICKSTART, "tracking.uri=https://x")) == ["MLFLOW_TRACKING_TOKEN", "HF_TOKEN"]
    assert list(named(QUICKSTART)) == ["MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_TOKEN", "HF_TOKEN"]
    asked = ["teacher.kind=openai", "teacher.api_key_env=MY_KEY", "tracking.enabled=False"]
    assert named(QUICKSTART, *asked)["MY_KEY"] == "the key for OpenAI"
    assert named(GRID, *asked)["MY_KEY"] == "the key for OpenAI"
    assert (
        "http://127.0.0.1:1/v1, where" in named(QUICKSTART, *asked, "teacher.base_url=http://127.0.0.1:1/v1")["MY_KEY"]
    )
    assert "MY_KEY" not in named(QUICKSTART, *asked, "method=finetune")
    assert "MY_KEY" not in named(QUICKSTART, *asked, "teacher.api_key_file=/etc/key")
    assert "QCRD_DATA" in named(SVAMP)
    assert "AWS_…" in named(QUICKSTART, "output=s3://bucket/runs")
    assert "GOOGLE_APPLICATION_CREDENTIALS" in named(QUICKSTART, "teacher.store=gs://bucket/store")


def test_a_variable_that_must_be_there_ends_the_job_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    entrypoint = job(QUICKSTART, secrets="SOME_KEY").entrypoint
    command = entrypoint.replace("python -m qcrd", "echo")
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode != 0 and done.stdout == "" and "SOME_KEY: is not set on the node" in done.stderr
    env = {**os.environ, "SOME_KEY": "value-of-it"}
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=env)
    assert done.stdout == f"run {QUICKSTART} {OUT}\n" and "value-of-it" not in done.stdout + done.stderr + entrypoint
    with pytest.raises(ConfigError) as caught:
        variable_names("HF_TOKEN=hf_abc")
    assert "names of environment variables" in str(caught.value) and "hf_abc" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "warns"),
    [
        ("http://127.0.0.1:8265", False), ("http://localhost:8265", False), ("http://[::1]:8265", False),
        ("https://ray.example.org", False), ("http://10.0.0.7:8265", True), ("http://localhost.example.org", True),
    ],
)  # fmt: skip
def test_an_address_in_the_clear_is_warned_of(address: str, warns: bool):
    warning = check_address(address)
    assert (warning is not None) == warns
    assert warning is None or ("executes whatever it is sent" in warning and "tunnel" in warning)


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "auto", "http://me:word@10.0.0.7:8265"])
def test_what_is_no_job_server_is_refused(address: str):
    with pytest.raises(ConfigError, match="--address") as caught:
        check_address(address)
    assert "word" not in str(caught.value)


def test_a_bad_setting_or_a_server_that_is_away_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # submitting sets them
    monkeypatch.setenv("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES", "")
    for overrides, line in [
        (["negatives.gap=0", OUT], "error: negatives.gap: '0' is not allowed; input should be greater"),
        ([], "error: output: 'runs' is not allowed in a submitted job"),
        ([OUT], "error: --address: no job server answers at http://127.0.0.1:9 "),
    ]:
        with pytest.raises(SystemExit) as ended:
            main(["submit", QUICKSTART, *overrides, "--address", "http://127.0.0.1:9"])
        shown = capsys.readouterr()
        assert ended.value.code == 2 and shown.err.startswith(line) and shown.err.count("\n") == 1 and shown.out == ""


def test_the_token_is_found_where_ray_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert auth_token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of-home\n")
    assert auth_token() == "of-home"
    (tmp_path / "other").write_text("of-path")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "other"))
    assert auth_token() == "of-path"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-variable")
    assert auth_token() == "of-variable"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert auth_token() is None


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("PENDING", None, 0), ("RUNNING", None, 0), ("SUCCEEDED", 0, 0), ("FAILED", 3, 3), ("FAILED", -9, 137),
        ("FAILED", None, 1), ("STOPPED", None, 1),
    ],
)  # fmt: skip
def test_exit_codes_are_the_jobs_own(status: str, code: int | None, expected: int):
    info = JobDetails(
        type=JobType.SUBMISSION, submission_id="qcrd-x-1", status=JobStatus(status), entrypoint="",
        message="the reason", start_time=1000, end_time=8000, driver_exit_code=code,
    )  # fmt: skip
    assert exit_code(info) == expected
    assert outcome(info).startswith(f"qcrd-x-1: {status} ") and ("the reason" in outcome(info)) == (code is None)

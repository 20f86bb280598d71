"""Every kind of teacher, with every method: its plan and its report, over small files; nothing is asked or trained."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from qcrd.config import ExperimentConfig, PaidSettings, TeacherConfig, TeacherSettings, validated
from qcrd.pipeline.plan import plan
from qcrd.teacher.backends import openai_endpoint, simulated, vllm_engine
from qcrd.teacher.backends.base import Backend
from qcrd.teacher.backends.table import BACKENDS, any_simulated, backend_of
from tests.report.experiment.test_report import World

METHODS = ["finetune", "single_task", "distill_label", "dss", "mi", "qcrd"]
NAMES = {"openai": "gpt-3.5-turbo (openai)", "vllm": "m (vllm)", "simulated": "simulated", "imported": "imported"}
SHOWN = {
    "openai": {"model": "gpt-3.5-turbo", "temperature": "0.7", "top_p": "1.0", "max_tokens": "256"},
    "vllm": {"model": "m", "revision": "None", "dtype": "float16", "temperature": "0.7", "top_p": "1.0",
             "max_tokens": "256"},
    "simulated": {"error_rate": "0.25"},
    "imported": {"format": "lines"},
}  # fmt: skip
ASKED = {
    "openai": "samples to ask for (paid)", "vllm": "samples to ask for", "simulated": "simulated replies",
    "imported": "imported texts",
}  # fmt: skip


def config_of(kind: str, method: str, folder: Path) -> ExperimentConfig:
    (folder / "texts.jsonl").write_text('{"question_id": "x", "text": "The answer is 1."}\n')
    own: dict[str, dict[str, Any]] = {
        "openai": {}, "vllm": {"model": "m", "dtype": "float16"}, "simulated": {},
        "imported": {"path": str(folder / "texts.jsonl"), "format": "lines"},
    }  # fmt: skip
    return validated(
        {
            "name": "tiny", "method": method, "output": str(folder / "runs"),
            "task": {"train_limit": None, "train_size": 6, "validation_size": 2, "test_size": 2},
            "teacher": {"kind": kind, **own[kind]}, "student": {"kind": "scratch"},
            "discriminator": {"kind": "scratch"},
            "train": {"steps": 80, "labels": "teacher" if method == "distill_label" else "gold"},
        }
    )  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ASKED)
def test_a_plan(kind: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    planned = {stage.stage: stage for stage in plan(config_of(kind, method, tmp_path))}
    assert ("samples" in planned) == (method != "finetune") and "report" in planned
    assert ("discriminator" in planned) == (method == "qcrd")
    assert {stage.state for stage in planned.values()} == {"to run"}
    if method != "finetune":
        assert planned["samples"].work == f"30 of 30 {ASKED[kind]}"
        assert (planned["samples"].cost is not None) == (kind == "openai")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ASKED)
def test_a_report(kind: str, method: str, tmp_path: Path):
    config = config_of(kind, method, tmp_path)
    asks, trains = method != "finetune", method == "qcrd"
    without = (() if asks else ("samples", "rationales")) + (() if trains else ("discriminator",))
    text, metrics, out = World(tmp_path, config, without=without).write()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `teacher.")]
    everyone = {"teacher.kind": kind, "teacher.num_samples": "5"}
    expected = everyone | {f"teacher.{name}": value for name, value in SHOWN[kind].items()}
    assert {name.strip("`"): value.replace("\\", "") for name, value in rows} == (expected if asks else {})
    assert json.loads((out / "summary.json").read_text())["simulated_teacher"] == (kind == "simulated")
    assert text.splitlines()[0].endswith(", simulated teacher") == (kind == "simulated")
    assert metrics["report/test_accuracy"] == 0.75


# -- the table ----------------------------------------------------------------------------------------------------


def test_the_table_has_an_entry_for_each_kind_of_settings():
    union, *_ = get_args(TeacherConfig)
    assert {backend.settings for backend in BACKENDS} == set(get_args(union)) and len(BACKENDS) == len(NAMES)
    for backend in BACKENDS:
        assert backend.settings.model_fields["kind"].default == backend.kind


def test_what_each_kind_says_of_itself(tmp_path: Path):
    teachers = {kind: config_of(kind, "qcrd", tmp_path).teacher for kind in NAMES}
    backends = {kind: backend_of(teacher) for kind, teacher in teachers.items()}
    assert {kind: backend.name(teachers[kind]) for kind, backend in backends.items()} == NAMES
    assert {kind: backend.costs for kind, backend in backends.items()} == {
        "openai": "per_token", "vllm": "gpu", "simulated": "nothing", "imported": "nothing",
    }  # fmt: skip
    assert [kind for kind, backend in backends.items() if backend.simulated] == ["simulated"]
    assert any_simulated(teachers.values()) and not any_simulated(teachers[kind] for kind in ("openai", "vllm"))
    assert {kind: backend.gpus(teachers[kind]) for kind, backend in backends.items()} == {
        "openai": 0, "vllm": 1, "simulated": 0, "imported": 0,
    }  # fmt: skip
    assert [kind for kind, backend in backends.items() if backend.variables(teachers[kind])] == ["openai"]
    assert [kind for kind, backend in backends.items() if backend.endpoint(teachers[kind])] == ["openai"]
    assert [kind for kind, backend in backends.items() if backend.completions] == ["imported"]


def test_a_backend_that_does_not_say_what_it_costs_does_not_load():
    """Nor one that says so and has no price to go by, or that shows settings which it does not have."""
    fields = {field.name: getattr(simulated.BACKEND, field.name) for field in dataclasses.fields(Backend)}
    assert Backend(**fields) == simulated.BACKEND
    with pytest.raises(TypeError, match="'costs'"):
        Backend(**{name: value for name, value in fields.items() if name != "costs"})
    with pytest.raises(TypeError, match=r"^backend simulated: costs = 'per_token' does not go with"):
        Backend(**fields | {"costs": "per_token"})
    with pytest.raises(TypeError, match=r"^backend openai: costs = 'nothing' does not go with"):
        dataclasses.replace(openai_endpoint.BACKEND, costs="nothing")
    with pytest.raises(TypeError, match=r"^backend vllm: shown names 'error_rate'"):
        dataclasses.replace(vllm_engine.BACKEND, shown=("error_rate",))


def test_common_settings_are_those_of_every_kind():
    common = set.intersection(*(set(backend.settings.model_fields) for backend in BACKENDS))
    assert common - {"kind"} == set(TeacherSettings.model_fields)
    paid = {name for name in PaidSettings.model_fields if name.startswith(("budget", "prices"))}
    assert all(paid <= set(backend.settings.model_fields) or backend.costs != "per_token" for backend in BACKENDS)


def test_the_table_loads_no_client_and_no_engine():
    big = "('openai', 'httpx2', 'vllm', 'torch', 'ray')"
    code = f"import sys, qcrd.teacher.backends.table; print([name for name in {big} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

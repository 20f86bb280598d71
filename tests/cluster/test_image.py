"""The image: its lock has what pyproject.toml asks for, with hashes; who it runs as; how it reads secrets."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
IN_THE_BASE = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)")


def requirements() -> list[Requirement]:
    """What the image must have: the project's dependencies with its extras s3 and gcs, and cluster/requirements.in."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [line for line in (CLUSTER / "requirements.in").read_text().splitlines() if not line.startswith("#")]
    return [Requirement(line) for line in [*project["dependencies"], *extras["s3"], *extras["gcs"], *lines]]


def constraints() -> dict[str, str]:
    pairs = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    return {canonicalize_name(name): version for name, version in pairs}


def problems(lock: str) -> list[str]:
    """What is wrong with a lock."""
    text = "\n".join(line for line in lock.splitlines() if not line.startswith("#"))
    locked, found = {}, []
    for entry in re.split(r"\n(?=\S)", text.strip()):
        line, *hashes = entry.replace("\\\n", "\n").split("\n")
        name, _, version = line.strip().partition("==")
        locked[canonicalize_name(name)] = version
        if not version or not hashes or not all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h.strip()) for h in hashes):
            found.append(f"{line.strip()}: no version or no hash")
    found += [f"{name} comes with the base" for name in locked if IN_THE_BASE.fullmatch(name)]
    for requirement in requirements():
        name = canonicalize_name(requirement.name)
        if name != "torch" and not (name in locked and requirement.specifier.contains(locked[name])):
            found.append(f"{requirement}: {locked.get(name)}")
    pinned = constraints()
    found += [f"{name}: {version}, not {pinned[name]}" for name, version in locked.items()
              if version != pinned.get(name, version)]  # fmt: skip
    return found


LOCK = (CLUSTER / "requirements.lock").read_text()


def test_the_lock_is_the_projects() -> None:
    assert problems(LOCK) == []


@pytest.mark.parametrize(
    ("pattern", "replacement", "problem"),
    [
        (r"(?m)^gcsfs==.*\n(    .*\n)+", "", "gcsfs: None"),
        (r"(?m)^transformers==\S+", "transformers==4.57.0", "transformers<6,>=5.23: 4.57.0"),
        (r"(?m)^aiohttp==\S+", "aiohttp==3.0.0", "aiohttp: 3.0.0, not 3"),
        (r"(?m)^six==.*\n(    .*\n)+", "six==1.17.0\n", "six==1.17.0: no version or no hash"),
        (r"(?m)^six==", "nvidia-cublas==", "nvidia-cublas comes with the base"),
        (r"(?m)^six==", "torch==", "torch comes with the base"),
        (r"(?m)^ray==\S+", "ray==2.61.0", "ray[data,train,tune]<2.61,>=2.60: 2.61.0"),
    ],
)
def test_a_wrong_lock_is_found(pattern: str, replacement: str, problem: str) -> None:
    changed, count = re.subn(pattern, replacement, LOCK, count=1)
    assert count == 1 and any(found.startswith(problem) for found in problems(changed)), problems(changed)


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """(instruction, the rest of its lines), without comments."""
    text = re.sub(r"(?m)^#.*\n", "", dockerfile).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2]) for line in text.splitlines() if line.strip()]


def test_the_image_runs_as_user_1000_from_a_pinned_base() -> None:
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    steps = instructions(dockerfile)
    ((_, base),) = [step for step in steps if step[0] == "FROM"]
    assert re.fullmatch(r"pytorch/pytorch:2\.13\.0-cuda[\d.]+-cudnn9-runtime@sha256:[0-9a-f]{64}", base)
    assert constraints()["torch"] == "2.13.0"
    last_user = [rest for name, rest in steps if name == "USER"][-1]
    assert last_user == "1000:1000"
    after = steps[steps.index(("USER", last_user)) :]
    assert not [name for name, _ in after if name in ("RUN", "COPY", "ADD")]
    (install,) = [rest for name, rest in steps if name == "RUN" and "pip install" in rest]
    assert {"--require-hashes", "--no-deps", "--only-binary"} <= set(install.split())
    settings = dict(pair.split("=", 1) for name, rest in steps if name == "ENV" for pair in rest.split())
    assert settings["RAY_AUTH_MODE"] == "token" and settings["QCRD_SCRATCH"].startswith("/scratch/")
    assert ("VOLUME", "/scratch") in steps
    assert not [name for name in settings if re.search(r"KEY|TOKEN|SECRET|PASSWORD", name)]
    copied = {rest.split()[-2] for name, rest in steps if name == "COPY"}
    kept = {line[1:] for line in (CLUSTER / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == kept == {"requirements.lock", "with_secrets.py"}
    assert not [name for name, _ in steps if name == "ARG"]  # a build argument stays readable in the image's history


# -- with-secrets -----------------------------------------------------------------------------------------------------

PROGRAM = CLUSTER / "with_secrets.py"


def module() -> dict[str, Any]:
    return runpy.run_path(str(PROGRAM))


def test_secrets_reach_the_command_and_no_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    found = module()
    cloud, place, names, command = found["parse"](["aws:eu-west-1", "A=x/a", "B=b", "--", "ray", "start", "--", "C=c"])
    assert (cloud, place, names, command) == ("aws", "eu-west-1", {"A": "x/a", "B": "b"}, ["ray", "start", "--", "C=c"])
    asked: list[tuple[str, str]] = []
    monkeypatch.setitem(found["READERS"], "aws", lambda *what: asked.append(what) or f"value of {what[1]}\n")
    assert found["environment"](cloud, place, names) == {"A": "value of x/a", "B": "value of b"}
    assert asked == [("eu-west-1", "x/a"), ("eu-west-1", "b")]
    monkeypatch.setitem(found["READERS"], "aws", lambda *what: " \n")
    with pytest.raises(ValueError, match="the secret 'b' for B is empty"):
        found["environment"]("aws", "eu-west-1", {"B": "b"})


@pytest.mark.parametrize(
    "arguments",
    [[], ["aws:r", "A=a"], ["aws:r", "--", "ray"], ["aws", "A=a", "--", "ray"], ["azure:r", "A=a", "--", "ray"],
     ["aws:r", "A", "--", "ray"], ["aws:r", "A=a", "--"]],
)  # fmt: skip
def test_anything_else_is_refused(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-S", PROGRAM, *arguments], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("usage: with-secrets aws:REGION|gcp:PROJECT")


def test_the_secret_managers_answers() -> None:
    """AWS's by moto, in this process; with the command started at the end."""
    import boto3
    from moto import mock_aws

    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
    with mock_aws(), pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, value)
        boto3.client("secretsmanager", region_name="eu-west-1").create_secret(Name="qcrd/a", SecretString="one two\n")
        started: list[tuple[str, list[str], dict[str, str]]] = []
        patch.setattr(os, "execvpe", lambda *what: started.append(what))
        module()["main"](["aws:eu-west-1", "A=qcrd/a", "--", "env"])
        ((program, command, environment),) = started
        assert (program, command, environment["A"]) == ("env", ["env"], "one two")
        with pytest.raises(Exception, match="find the specified secret") as raised:
            module()["main"](["aws:eu-west-1", "A=qcrd/b", "--", "env"])
        assert raised.value.__notes__ == ["with-secrets: reading 'qcrd/b' for A"]

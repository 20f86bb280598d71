"""The launcher files, the nodes' rights, what a job carries, and whether the README's commands name what there is."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from qcrd.cli import app
from qcrd.config import ConfigError, ExperimentConfig, with_overrides
from qcrd.jobs.job import EXCLUDES

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
README = (CLUSTER / "README.md").read_text()
CLOUDS = ("aws", "gcp")
TEXTS = {path.relative_to(CLUSTER).as_posix(): path.read_text() for path in CLUSTER.rglob("*")
         if path.is_file() and "__pycache__" not in path.parts}  # fmt: skip
Launcher = dict[str, Any]


# -- Ray's cluster launcher -------------------------------------------------------------------------------------------


def launcher(text: str) -> Launcher:
    """A launcher file as `ray up` completes and checks it. Raises what Ray raises for it."""
    config = prepare_config(yaml.safe_load(text))
    validate_config(config)
    return config


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_launcher_files_are_valid(cloud: str) -> None:
    config = launcher(TEXTS[f"{cloud}.yaml"])
    assert config["provider"]["type"] == cloud
    groups = dict(config["available_node_types"])
    head = groups.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0, "GPU": 0}  # no task of Ray runs there
    assert all(group["min_workers"] == 0 for group in groups.values()) and config["idle_timeout_minutes"] > 0
    assert config["provider"]["cache_stopped_nodes"] is False
    gpus = {name: group["resources"].get("GPU", 0) * group["max_workers"] for name, group in groups.items()}
    assert sum(gpus.values()) == 8  # at most, until somebody raises it
    kinds = {"spot" if "spot" in json.dumps(group["node_config"]).lower() else "on demand" for group in groups.values()}
    assert kinds == {"spot", "on demand"}
    for name, group in groups.items():
        assert ("spot" in name) == ("spot" in json.dumps(group["node_config"]).lower())
        assert ("GPU" in group["resources"]) == ("accelerator_type:A100" in group["resources"])
    assert config["setup_commands"] == config["head_setup_commands"] == config["worker_setup_commands"] == []


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        ("idle_timeout_minutes: 10", "idle_timeout_minutes: ten"),
        ("max_workers: 0", "max_worker: 0"),
        ("head_node_type: head", "head_node_type: ray.head"),
        ('"GPU": 0', '"GPU": none'),
        ("container_name: qcrd", "container: qcrd"),
        ("provider:", "providers:"),
    ],
)
def test_a_broken_launcher_file_is_found(pattern: str, replacement: str) -> None:
    text = TEXTS["aws.yaml"]
    assert pattern in text
    with pytest.raises((jsonschema.ValidationError, ValueError, KeyError, AssertionError)):
        launcher(text.replace(pattern, replacement, 1))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_job_server_is_on_loopback_behind_a_token(cloud: str) -> None:
    config = launcher(TEXTS[f"{cloud}.yaml"])
    starts = {role: config[f"{role}_start_ray_commands"][-1] for role in ("head", "worker")}
    for command in starts.values():
        assert "RAY_AUTH_TOKEN=" in command.partition(" -- ")[0] and "with-secrets" in command
    assert "--dashboard-host=127.0.0.1" in starts["head"]
    run_options = config["docker"]["run_options"]
    assert "--security-opt no-new-privileges" in run_options and "--cap-drop ALL" in run_options
    assert not [option for option in run_options if "--privileged" in option or "RAY_AUTH_MODE" in option]
    nodes = [group["node_config"] for group in config["available_node_types"].values()]
    if cloud == "aws":  # else Ray makes a security group that lets ssh in from everywhere
        assert all(node["SecurityGroupIds"] and node["IamInstanceProfile"] for node in nodes)
        assert all(node["MetadataOptions"]["HttpTokens"] == "required" for node in nodes)
    else:  # else it takes the default network, which does
        assert all("subnetworks/qcrd" in node["networkInterfaces"][0]["subnetwork"] for node in nodes)


def test_the_rights_name_what_they_are_for() -> None:
    head, node = (json.loads(TEXTS[f"aws/{name}-policy.json"])["Statement"] for name in ("head", "node"))
    for statement in [*head, *node]:
        actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
        everywhere = statement["Resource"] == "*"
        assert statement["Effect"] == "Allow" and not [one for one in actions if one == "*" or one.endswith(":*")]
        assert not everywhere or set(actions) <= {"ec2:Describe*", "ecr:GetAuthorizationToken"}
    (kinds,) = [one["Condition"]["StringEquals"]["ec2:InstanceType"] for one in head if "Kinds" in one["Sid"]]
    groups = launcher(TEXTS["aws.yaml"])["available_node_types"]
    assert set(kinds) == {group["node_config"]["InstanceType"] for name, group in groups.items() if name != "head"}


# -- everything -------------------------------------------------------------------------------------------------------


def open_addresses(name: str, text: str) -> list[str]:
    """Lines that listen on all addresses, but for those in a pod that say why they may."""
    allowed = "# allowed: ClusterIP and NetworkPolicy" if name.startswith("kubernetes/") else "\0"
    return [line for line in text.splitlines() if "0.0.0.0" in line and allowed not in line]


SECRETS = re.compile(
    r"sk-[A-Za-z0-9]{8}|AKIA[0-9A-Z]{16}|hf_\w{16}|BEGIN [A-Z ]*PRIVATE KEY|://[^/@\s$]+:[^/@\s]+@|"
    r"(?i:password|token): *\w{16}"
)


def test_nothing_listens_everywhere_and_no_secret_is_written_down() -> None:
    assert len(TEXTS) > 12
    for name, text in TEXTS.items():
        assert open_addresses(name, text) == [], name
        assert not SECRETS.search(text), (name, SECRETS.search(text))
    line = "dashboard-host: 0.0.0.0  # allowed: ClusterIP and NetworkPolicy"
    assert open_addresses("kubernetes/raycluster.yaml", line) == []
    assert open_addresses("aws.yaml", line) == [line]
    assert open_addresses("kubernetes/raycluster.yaml", line[:24]) == [line[:24]]
    assert SECRETS.search("postgresql://mlflow:x@postgres/mlflow")


def test_a_job_carries_the_code_and_nothing_else() -> None:
    environment = yaml.safe_load(TEXTS["runtime_env.yaml"])
    assert environment.keys() == {"excludes"}
    assert {".git", ".venv", "/data", "/runs", "*.db", ".env", "*.pem"} <= set(environment["excludes"])
    assert environment["excludes"] == list(EXCLUDES)


# -- the README -------------------------------------------------------------------------------------------------------


def blocks() -> list[str]:
    return re.findall(r"```bash\n(.*?)```", README, re.S)


def commands() -> Iterator[list[str]]:
    """Our own commands in the README and the RayJob, as words."""
    job = next(yaml.safe_load_all(TEXTS["kubernetes/rayjob.yaml"]))
    for text in [*blocks(), job["spec"]["entrypoint"]]:
        for line in text.replace("\\\n", " ").splitlines():
            found = re.search(r"(?:^|\s)(?:python -m )?qcrd ((?:plan|run|sweep|submit|status|compare)\b.*)", line)
            if found:
                yield shlex.split(found[1], comments=True)


def test_the_commands_name_what_there_is() -> None:
    found = list(commands())
    assert {words[0] for words in found} >= {"plan", "submit", "run", "status"}
    for verb, *words in found:
        if verb == "status":
            continue
        assert (ROOT / words[0]).is_file(), words
        overrides = [word for word in words[1:] if "=" in word]
        with_overrides(ExperimentConfig(name="x"), dict(word.split("=", 1) for word in overrides))
        if verb in ("run", "submit"):  # from zero GPUs: `auto` would train on CPUs
            assert "resources.device=cuda" in overrides and "--parallel" in words
    with pytest.raises(ConfigError):
        with_overrides(ExperimentConfig(name="x"), {"resources.devices": "cuda"})


def test_the_commands_are_of_the_command_line() -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for verb, *words in commands():
        options = {option for parameter in known[verb].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, words


def test_files_and_links_are_there() -> None:
    for path in re.findall(r"(?<![\w/.-])((?:experiments|cluster)/[\w/.-]*[\w/])", README):
        assert (ROOT / path.replace("$1", "head")).exists() or "$" in README[README.index(path) :][:40], path
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert "://" in link or (CLUSTER / link).exists(), link
    headings = {re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
                for line in README.splitlines() if line.startswith("#")}  # fmt: skip
    assert {link for link in re.findall(r"\]\(#([^)]+)\)", README)} <= headings


@pytest.mark.parametrize("block", blocks(), ids=lambda block: block.split("\n")[0][:40])
def test_the_commands_are_bash(block: str) -> None:
    done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_what_is_to_be_filled_in_is_filled_in_by_the_readmes_commands() -> None:
    values = {"AMI": "ami-1", "GROUP": "sg-2", "ACCOUNT": "123456789012", "PROJECT": "own", "PATH": "/usr/bin:/bin"}
    lines = {cloud: line for line, cloud in re.findall(r"^(sed .*cluster/(\w+)\.yaml) > my-\w+\.yaml$", README, re.M)}
    assert lines.keys() == set(CLOUDS)
    for cloud, line in lines.items():
        filled = subprocess.run(["bash", "-c", line], cwd=ROOT, env=values, capture_output=True, text=True, check=True)
        registry = {"aws": "123456789012.dkr.ecr.", "gcp": "us-central1-docker.pkg.dev/own/"}[cloud]
        assert launcher(filled.stdout)["docker"]["image"].startswith(registry)
        assert not re.search(r"000000000000|my-project", filled.stdout)

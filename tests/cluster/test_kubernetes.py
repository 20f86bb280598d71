"""The manifests of cluster/kubernetes: valid by Kubernetes' and KubeRay's schemas, and closed to the outside."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.cluster.kuberay_schema import SCHEMAS

FOLDER = Path(__file__).resolve().parents[2] / "cluster" / "kubernetes"
VERSION = "1.34"  # of Kubernetes
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.I)
Object = dict[str, Any]


def documents(name: str) -> list[Object]:
    return list(yaml.load_all((FOLDER / name).read_text(), yaml.CSafeLoader))


FILES = {path.name: documents(path.name) for path in sorted(FOLDER.glob("*.yaml"))}
OBJECTS = [document for file in FILES.values() for document in file]


def named(kind: str, name: str) -> Object:
    (found,) = [one for one in OBJECTS if one["kind"] == kind and one["metadata"]["name"] == name]
    return json.loads(json.dumps(found))  # a copy in which YAML's aliases are objects of their own


def ray_spec(document: Object) -> Object:
    return document["spec"].get("rayClusterSpec", document["spec"])


def pod_templates(document: Object) -> Iterator[Object]:
    """The pod templates of any object here."""
    if document["kind"] in ("RayCluster", "RayJob"):
        spec = ray_spec(document)
        yield spec["headGroupSpec"]["template"]
        yield from (group["template"] for group in spec["workerGroupSpecs"])
        if "submitterPodTemplate" in document["spec"]:
            yield document["spec"]["submitterPodTemplate"]
    elif "template" in document.get("spec", {}):
        yield document["spec"]["template"]


def containers(document: Object) -> Iterator[Object]:
    for template in pod_templates(document):
        yield from template["spec"].get("initContainers", [])
        yield from template["spec"]["containers"]


# -- schemas ----------------------------------------------------------------------------------------------------------


def validate(document: Object) -> None:
    """Raises `jsonschema.ValidationError`: fields that are unknown, missing, of the wrong type; KubeRay's own rules."""
    if document["kind"] not in SCHEMAS:
        kubernetes_validate.validate(document, VERSION, strict=True)
        return
    jsonschema.validate(document, SCHEMAS[document["kind"]])
    for template in pod_templates(document):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]}
        kubernetes_validate.validate(pod, VERSION, strict=True)
    for rule, holds in operator_rules(document):
        if not holds:
            raise jsonschema.ValidationError(rule)


def operator_rules(document: Object) -> Iterator[tuple[str, bool]]:
    """What KubeRay's operator checks beyond its schema (validation.go of v1.7.0)."""
    spec, job = ray_spec(document), document["spec"]
    if spec.get("authOptions", {}).get("mode") == "token":
        version = tuple(int(part) for part in spec.get("rayVersion", "0.0.0").split("."))
        yield "authOptions.mode token needs rayVersion 2.52.0 or later", version >= (2, 52, 0)
    if job.get("ttlSecondsAfterFinished"):
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes", job.get("shutdownAfterJobFinishes") is True
    for group in spec["workerGroupSpecs"]:
        yield "minReplicas is over maxReplicas", group["minReplicas"] <= group["maxReplicas"]


@pytest.mark.parametrize("document", OBJECTS, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_valid(document: Object) -> None:
    validate(document)


def change(document: Object, path: str, value: Any) -> Object:
    """The object with one field set, or taken out where the value is None."""
    *above, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place: Any = document
    for part in above:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return document


@pytest.mark.parametrize(
    ("kind", "name", "path", "value"),
    [
        ("Deployment", "mlflow", "spec.selector", None),
        ("Deployment", "mlflow", "spec.template.spec.containers.0.image", 5),
        ("StatefulSet", "store", "spec.template.spec.securityContext.runAsNonroot", True),
        ("Service", "mlflow", "spec.ports.0.port", "http"),
        ("NetworkPolicy", "ray", "spec.ingress.0.form", []),
        ("RayCluster", "qcrd", "spec.authOptions.mode", "tokens"),
        ("RayCluster", "qcrd", "spec.rayVersion", "2.40.0"),
        ("RayCluster", "qcrd", "spec.workerGroupSpecs.0.maxReplica", 4),
        ("RayCluster", "qcrd", "spec.workerGroupSpecs.1.minReplicas", 9),
        ("RayCluster", "qcrd", "spec.headGroupSpec.rayStartParams.num-cpus", 0),
        ("RayCluster", "qcrd", "spec.headGroupSpec.template.spec.containers.0.envs", []),
        ("RayJob", "table1", "spec.entrypoint", None),
        ("RayJob", "table1", "spec.shutdownAfterJobFinishes", False),
        ("RayJob", "table1", "spec.submissionMode", "K8SJobMode"),
        ("RayJob", "table1", "spec.submitterPodTemplate.spec.containers", None),
        ("RayJob", "table1", "metadata.name", "Table_1"),
    ],
)
def test_a_broken_field_is_found(kind: str, name: str, path: str, value: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validate(change(named(kind, name), path, value))


@pytest.mark.skipif("KUBERAY_CRDS" not in os.environ, reason="KUBERAY_CRDS names no folder with KubeRay's definitions")
@pytest.mark.parametrize(("kind", "name"), [("RayCluster", "qcrd"), ("RayJob", "table1")])
def test_valid_by_kuberays_definitions(kind: str, name: str) -> None:
    path = Path(os.environ["KUBERAY_CRDS"]) / f"ray.io_{kind.lower()}s.yaml"
    definition = yaml.load(path.read_text(), yaml.CSafeLoader)
    (version,) = [version for version in definition["spec"]["versions"] if version["name"] == "v1"]
    schema = version["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.validate(named(kind, name), _strict(schema))


def _strict(schema: Any) -> Any:
    """A definition's schema in which unknown fields are errors, as they are for `kubectl apply`."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    known = {key: _strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        known.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
    return known


# -- what the two Ray objects have in common, and what makes them scale ------------------------------------------------


def test_the_job_has_the_clusters_spec() -> None:
    assert ray_spec(named("RayJob", "table1")) == named("RayCluster", "qcrd")["spec"]


def test_from_zero_and_back() -> None:
    spec = named("RayCluster", "qcrd")["spec"]
    assert spec["enableInTreeAutoscaling"] is True and spec["autoscalerOptions"]["idleTimeoutSeconds"] > 0
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert all(group["replicas"] == group["minReplicas"] == 0 for group in groups.values())
    gpus = [group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", "0")
            for group in (groups["cpu"], groups["gpu"])]  # fmt: skip
    assert gpus == ["0", "1"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    quota = named("ResourceQuota", "gpus")["spec"]["hard"]["requests.nvidia.com/gpu"]
    assert groups["gpu"]["maxReplicas"] == int(quota)


# -- closed to the outside --------------------------------------------------------------------------------------------


def test_pods_are_not_root() -> None:
    for document in OBJECTS:
        for template in pod_templates(document):
            context = template["spec"]["securityContext"]
            assert context["runAsNonRoot"] is True and context["runAsUser"] > 0, document["metadata"]
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}
            assert template["spec"]["enableServiceLinks"] is False  # a Service mlflow would set MLFLOW_PORT
            assert not {"hostNetwork", "hostPID", "hostIPC"} & set(template["spec"])
        sidecars = [ray_spec(document)["autoscalerOptions"]] if document["kind"].startswith("Ray") else []
        for container in [*containers(document), *sidecars]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False and context["capabilities"] == {"drop": ["ALL"]}
            assert "privileged" not in context and "runAsUser" not in context
            assert all("hostPort" not in port for port in container.get("ports", []))


def test_only_the_head_has_a_token_for_kubernetes() -> None:
    for document in OBJECTS:
        for template in pod_templates(document):
            is_head = template["metadata"]["labels"]["app"] == "qcrd-head"
            assert template["spec"].get("automountServiceAccountToken", True) is is_head


def test_services_and_policies() -> None:
    services = [one for one in OBJECTS if one["kind"] == "Service"]
    assert {one["spec"]["type"] for one in services} == {"ClusterIP"}
    assert ray_spec(named("RayCluster", "qcrd"))["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert not [one for one in OBJECTS if one["kind"] in ("Ingress", "HTTPRoute", "Gateway")]
    nobody = named("NetworkPolicy", "nobody")["spec"]
    assert nobody == {"podSelector": {}, "policyTypes": ["Ingress"]}
    for service in services:
        policy = named("NetworkPolicy", service["metadata"]["name"])["spec"]
        assert policy["podSelector"]["matchLabels"] == service["spec"]["selector"]
        assert [rule["ports"][0]["port"] for rule in policy["ingress"]] == [service["spec"]["ports"][0]["port"]]
    assert {one["metadata"].get("namespace", "qcrd") for one in OBJECTS} == {"qcrd"}


def test_mlflow_answers_only_to_its_names() -> None:
    (container,) = named("Deployment", "mlflow")["spec"]["template"]["spec"]["containers"]
    (hosts,) = [text.partition("=")[2].split(",") for text in container["args"] if text.startswith("--allowed-hosts=")]
    assert "mlflow.qcrd.svc:5000" in hosts and not any("*" in host for host in hosts)


def secret_values(document: Object) -> list[str]:
    """Where an object has the value of a secret, or what is called like one."""
    found = [f"kind {document['kind']}"] if document["kind"] == "Secret" else []
    for container in containers(document):
        for one in container.get("env", []):
            if SECRET.search(one["name"]) and "secretKeyRef" not in one.get("valueFrom", {}):
                found.append(one["name"])
        found += re.findall(r"://[^/@\s]+:[^/@\s]+@", " ".join(map(str, container.get("args", []))))
    return found


def test_no_secret_is_written_down() -> None:
    assert [secret_values(document) for document in OBJECTS] == [[]] * len(OBJECTS)
    job = named("RayJob", "table1")
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"]).keys() == {"working_dir"}
    key = {"name": "OPENAI_API_KEY", "value": "x"}
    pod = "spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.env.0"
    assert secret_values(change(job, pod, key)) == ["OPENAI_API_KEY"]
    assert secret_values({"kind": "Secret"}) == ["kind Secret"]


def test_secrets_go_through_a_pipe(tmp_path: Path) -> None:
    """secrets.sh with a kubectl that writes down what it is given: no value is an argument, all are input."""
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/arguments\ncat >> {tmp_path}/input\n')
    kubectl.chmod(0o755)
    values = {"OPENAI_API_KEY": "sk-one", "AWS_ACCESS_KEY_ID": "two", "AWS_SECRET_ACCESS_KEY": "th/r+e="}
    environment = {"PATH": os.environ["PATH"], "KUBECTL": str(kubectl), **values}
    done = subprocess.run([FOLDER / "secrets.sh"], env=environment, check=True, capture_output=True, text=True)
    arguments, given = (tmp_path / "arguments").read_text(), (tmp_path / "input").read_text()
    made = dict(line.split("=", 1) for line in given.splitlines())
    assert values.items() <= made.items()
    random = [made["password"], made["access_key"], made["secret_key"]]
    assert len(set(random)) == 3 and all(re.fullmatch("[0-9a-f]{48}", one) for one in random)
    assert not [one for one in [*values.values(), *random] if one in arguments + done.stdout + done.stderr]
    credentials = yaml.safe_load(made["s3.json"])["identities"][0]["credentials"]
    assert credentials == [{"accessKey": made["access_key"], "secretKey": made["secret_key"]}]

    used = {(ref["name"], ref["key"]) for document in OBJECTS for container in containers(document)
            for one in container.get("env", []) if (ref := one.get("valueFrom", {}).get("secretKeyRef"))}  # fmt: skip
    assert {name for name, _ in used} <= set(re.findall(r"generic (\S+)", arguments))
    assert {key for _, key in used} - {"AWS_ENDPOINT_URL"} <= made.keys()

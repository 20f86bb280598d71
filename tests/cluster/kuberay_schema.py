"""What KubeRay allows in the fields that our manifests use, as JSON schemas; any other field is an error.

Written by hand from the custom resource definitions of KubeRay v1.7.0 (github.com/ray-project/kuberay, commit 59d663a,
ray-operator/config/crd/bases/), in which a pod template is whatever Kubernetes' own schema says and is checked with
that. With KUBERAY_CRDS set to a folder that has those files, test_kubernetes.py validates against them too.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def _object(properties: Schema, required: tuple[str, ...] = ()) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


_TEXT: Schema = {"type": "string"}
_BOOL: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_TEXTS: Schema = {"type": "object", "additionalProperties": _TEXT}
_ANY: Schema = {"type": "object"}  # Kubernetes' own: a pod template, resources, a security context
_NAMED = _object({"name": {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"}, "namespace": _TEXT}, ("name",))

RAY_CLUSTER_SPEC = _object(
    {
        "rayVersion": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
        "enableInTreeAutoscaling": _BOOL,
        "authOptions": _object({"mode": {"enum": ["disabled", "token"]}, "secretName": _TEXT}),
        "autoscalerOptions": _object(
            {
                "version": {"enum": ["v1", "v2"]},
                "idleTimeoutSeconds": _COUNT,
                "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]},
                "securityContext": _ANY,
                "resources": _ANY,
            }
        ),
        "headGroupSpec": _object({"serviceType": _TEXT, "rayStartParams": _TEXTS, "template": _ANY}, ("template",)),
        "workerGroupSpecs": {
            "type": "array",
            "items": _object(
                {
                    "groupName": _TEXT,
                    "replicas": _COUNT,
                    "minReplicas": _COUNT,
                    "maxReplicas": _COUNT,
                    "rayStartParams": _TEXTS,
                    "template": _ANY,
                },
                ("groupName", "minReplicas", "maxReplicas", "template"),
            ),
        },
    },
    ("headGroupSpec",),
)

RAY_JOB_SPEC = _object(
    {
        "entrypoint": _TEXT,
        "entrypointNumCpus": {"type": "number"},
        "runtimeEnvYAML": _TEXT,
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        "shutdownAfterJobFinishes": _BOOL,
        "ttlSecondsAfterFinished": _COUNT,
        "activeDeadlineSeconds": {"type": "integer", "minimum": 1},
        "backoffLimit": _COUNT,
        "submitterPodTemplate": _ANY,
        "rayClusterSpec": RAY_CLUSTER_SPEC,
    },
    ("entrypoint", "rayClusterSpec"),  # without the latter a job needs a cluster that is there already: not ours
)

SCHEMAS: dict[str, Schema] = {
    kind: _object(
        {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": kind}, "metadata": _NAMED, "spec": spec},
        ("apiVersion", "kind", "metadata", "spec"),
    )
    for kind, spec in {"RayCluster": RAY_CLUSTER_SPEC, "RayJob": RAY_JOB_SPEC}.items()
}

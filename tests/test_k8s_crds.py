"""KubeRay's objects as the API server sees them: shapes that people use raise no alarm, nulls and
defaults are the server's, and CEL is evaluated."""

from pathlib import Path
from typing import Any

import pytest
from jsonschema import ValidationError

from k8s.checker.crds import (
    NEEDS_CRDS,
    evaluate,
    find_errors,
    find_folder,
    load_schemas,
    make_strict,
    path_of,
    with_defaults,
)
from k8s.checker.judge import check
from k8s.checker.overlays import Overlay
from k8s.checker.schemas import VERSIONS, find_problems

pytestmark = pytest.mark.shared

POD = {"spec": {"containers": [{"name": "ray", "image": "rayproject/ray:2.60.0"}]}}
GROUP = {"groupName": "small", "replicas": 1, "minReplicas": 0, "maxReplicas": 3, "template": POD}
CLUSTER = {"headGroupSpec": {"template": POD}, "workerGroupSpecs": [GROUP]}


def ray_object(kind: str, spec: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "ray.io/v1",
        "kind": kind,
        "metadata": {"name": "sample", **metadata},
        "spec": spec,
    }


SAMPLES = {
    "smallest cluster": ray_object("RayCluster", {"headGroupSpec": {"template": POD}}),
    "cluster with an autoscaler": ray_object(
        "RayCluster",
        {
            **CLUSTER,
            "rayVersion": "2.60.0",
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": {
                "version": "v2",
                "upscalingMode": "Default",
                "idleTimeoutSeconds": 60,
                "imagePullPolicy": "IfNotPresent",
                "resources": {"limits": {"cpu": 1, "memory": "512Mi"}},
            },
        },
        labels={"team": "cars"},
        annotations={"note": "a sample"},
    ),
    "head with ports, files and a life cycle": ray_object(
        "RayCluster",
        {
            "headGroupSpec": {
                "serviceType": "ClusterIP",
                "rayStartParams": {"dashboard-host": "0.0.0.0", "block": "true"},
                "template": {
                    "metadata": {"labels": {"tier": "head"}, "annotations": {}},
                    "spec": {
                        "containers": [
                            {
                                "name": "ray-head",
                                "image": "rayproject/ray:2.60.0",
                                "ports": [
                                    {"containerPort": 6379, "name": "gcs-server"},
                                    {"containerPort": 8265, "name": "dashboard"},
                                ],
                                "lifecycle": {
                                    "preStop": {"exec": {"command": ["/bin/sh", "-c", "ray stop"]}}
                                },
                                "volumeMounts": [{"name": "code", "mountPath": "/home/ray/code"}],
                                "resources": {"limits": {"cpu": "0.5", "memory": "2G"}},
                                "env": [
                                    {
                                        "name": "POD",
                                        "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}},
                                    }
                                ],
                            }
                        ],
                        "volumes": [
                            {
                                "name": "code",
                                "configMap": {
                                    "name": "code",
                                    "items": [{"key": "code.py", "path": "code.py"}],
                                },
                            }
                        ],
                        "tolerations": [{"key": "gpu", "operator": "Exists"}],
                        "affinity": {"podAntiAffinity": {}},
                    },
                },
            },
        },
    ),
    "cluster that survives its GCS": ray_object(
        "RayCluster",
        {
            **CLUSTER,
            "gcsFaultToleranceOptions": {
                "redisAddress": "redis:6379",
                "redisPassword": {
                    "valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}
                },
            },
        },
    ),
    "job with a runtime environment": ray_object(
        "RayJob",
        {
            "entrypoint": "python -c 'import ray; ray.init()'",
            "runtimeEnvYAML": "pip:\n  - requests==2.26.0\nenv_vars:\n  counter_name: test\n",
            "rayClusterSpec": CLUSTER,
            "entrypointNumCpus": 0.5,
            "metadata": {"owner": "cars"},
        },
    ),
    "job on another's cluster": ray_object(
        "RayJob",
        {"entrypoint": "python a.py", "clusterSelector": {"ray.io/cluster": "shared"}},
    ),
    "job that deletes by rules": ray_object(
        "RayJob",
        {
            "entrypoint": "python a.py",
            "rayClusterSpec": CLUSTER,
            "deletionStrategy": {
                "deletionRules": [
                    {
                        "policy": "DeleteWorkers",
                        "condition": {"jobStatus": "FAILED", "ttlSeconds": 100},
                    },
                    {
                        "policy": "DeleteCluster",
                        "condition": {"jobStatus": "FAILED", "ttlSeconds": 600},
                    },
                ]
            },
        },
    ),
    "nulls that an editor left": ray_object(
        "RayJob",
        {
            "entrypoint": "python a.py",
            "submissionMode": None,
            "runtimeEnvYAML": None,
            "rayClusterSpec": {
                "headGroupSpec": {"rayStartParams": None, "template": POD},
                "workerGroupSpecs": [{**GROUP, "replicas": None}],
            },
        },
    ),
    "nightly job": ray_object(
        "RayCronJob",
        {
            "schedule": "0 2 * * *",
            "jobTemplate": {"entrypoint": "python a.py", "rayClusterSpec": CLUSTER},
        },
    ),
    "service": ray_object(
        "RayService",
        {"serveConfigV2": "applications: []\n", "rayClusterConfig": CLUSTER},
    ),
}
"""Of the forms that KubeRay's own samples have."""
IN_SCHEMAS = (*NEEDS_CRDS, "pod_schema", "metadata_schema", "kubernetes_schema", "ray_name")


@pytest.mark.parametrize("name", SAMPLES)
def test_usual_object_raises_no_alarm(name: str, shared_dir: Path) -> None:
    assert check(Overlay(name=name, objects=(SAMPLES[name],)), IN_SCHEMAS) == []


def test_crds_are_those_of_all_kinds(shared_dir: Path) -> None:
    kinds = {kind for version, kind in load_schemas(find_folder()) if version == "ray.io/v1"}

    assert kinds == {"RayCluster", "RayJob", "RayService", "RayCronJob"}


def test_null_counts_as_not_given_and_takes_the_default(shared_dir: Path) -> None:
    schema = load_schemas(find_folder())["ray.io/v1", "RayJob"]
    job = with_defaults(SAMPLES["nulls that an editor left"], schema)["spec"]

    assert job["submissionMode"] == "K8sJobMode"
    assert job["ttlSecondsAfterFinished"] == 0
    assert "runtimeEnvYAML" not in job
    assert job["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] == 0
    assert job["rayClusterSpec"]["headGroupSpec"] == {"template": POD}


def test_null_in_a_list_and_where_it_is_allowed_stays() -> None:
    schema = {
        "type": "object",
        "properties": {
            "names": {"type": "array", "items": {"type": "string"}},
            "limit": {"type": "integer", "nullable": True, "default": 3},
            "size": {"type": "object", "default": {}, "properties": {"px": {"default": 224}}},
        },
    }

    stored = with_defaults({"names": [None, "a"], "limit": None}, schema)

    assert stored == {"names": [None, "a"], "limit": None, "size": {"px": 224}}


def test_field_is_known_by_its_place_alone() -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
            "map": {"type": "object", "additionalProperties": {"type": "string"}},
            "closed": {"type": "object", "properties": {"a": {"type": "string"}}},
        },
    }

    make_strict(schema)

    assert schema["additionalProperties"] is False
    assert "additionalProperties" not in schema["properties"]["free"]
    assert schema["properties"]["map"]["additionalProperties"] == {"type": "string"}
    assert schema["properties"]["closed"]["additionalProperties"] is False


def test_list_keys_are_unique(shared_dir: Path) -> None:
    container = {
        "name": "ray",
        "image": "rayproject/ray:2.60.0",
        "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}],
    }
    group = {"template": {"spec": {"containers": [container]}}}

    (error,) = find_errors(ray_object("RayCluster", {"headGroupSpec": group}))

    assert path_of(error) == "spec.headGroupSpec.template.spec.containers[0].env"
    assert "two items have name ('A',)" in error.message


@pytest.mark.parametrize(
    ("expression", "value", "holds"),
    [
        ("has(self.a) || has(self.b)", {"b": 1}, True),
        ("has(self.a) || has(self.b)", {}, False),
        ("!(has(self.a) && has(self.b))", {"a": 1, "b": 2}, False),
        ("self in ['x', 'y']", "x", True),
        ("self in ['x', 'y']", "z", False),
    ],
)
def test_cel_is_evaluated(expression: str, value: Any, holds: bool) -> None:
    assert evaluate(expression, value) is holds


def test_error_names_its_place() -> None:
    error = ValidationError("wrong", path=["spec", "workerGroupSpecs", 0, "replicas"])

    assert path_of(error) == "spec.workerGroupSpecs[0].replicas"


def test_field_is_judged_by_every_kubernetes() -> None:
    """`hostnameOverride` came with 1.34; `restartPolicyRules` of containers too."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, **POD}
    newer = {**pod, "spec": {**POD["spec"], "hostnameOverride": "a"}}

    assert list(find_problems(pod)) == []
    ((path, message),) = find_problems(newer)
    assert path == "spec"
    assert message.startswith(f"Kubernetes {VERSIONS[0]} to 1.33: ")

"""What an object names must be there: in the overlay, in every cluster, or among the Secrets that
an example shows."""

from collections.abc import Iterator
from typing import Any

from k8s.checker.overlays import Object, read_example_secrets, with_setup
from k8s.checker.parts import Part, containers, dig, objects, pods, ray_clusters, ray_jobs
from k8s.checker.rule import Problem, rule
from k8s.checker.rules.settings import KUEUE_QUEUE

VOLCANO_QUEUE = "volcano.sh/queue-name"
PRIORITY_LABELS = {
    "kueue.x-k8s.io/priority-class": "WorkloadPriorityClass",
    "ray.io/priority-class-name": "PriorityClass",
}
GIVEN = {
    "ConfigMap": {"kube-root-ca.crt"},
    "ServiceAccount": {"default"},
    "PriorityClass": {"system-cluster-critical", "system-node-critical"},
    "Queue": {"default"},
}
"""What a cluster has by itself; Volcano makes the queue `default`."""


def find(part: Part, kind: str, name: Any) -> Object | None:
    """The object that a name means: of the overlay, of the base's setup where the overlay has jobs
    alone, or a Secret that its user makes."""
    if (found := with_setup(part.overlay).named(kind).get(name)) is not None:
        return found
    return read_example_secrets().get(name) if kind == "Secret" else None


def missing(part: Part, kind: str, name: Any) -> Iterator[str]:
    """One sentence where nothing of this kind has this name."""
    if name and find(part, kind, name) is None and name not in GIVEN.get(kind, ()):
        yield f"{kind} {name} is not there"


@rule(pods)
def service_account_exists(part: Part) -> Iterator[Problem]:
    path = "spec.serviceAccountName"
    for problem in missing(part, "ServiceAccount", dig(part.value, path)):
        yield path, problem


@rule(pods)
def priority_class_exists(part: Part) -> Iterator[Problem]:
    path = "spec.priorityClassName"
    for problem in missing(part, "PriorityClass", dig(part.value, path)):
        yield path, problem


@rule(objects("ServiceAccount"))
def pull_secret_exists(part: Part) -> Iterator[Problem]:
    for secret in part.value.get("imagePullSecrets") or ():
        for problem in missing(part, "Secret", secret.get("name")):
            yield "imagePullSecrets", problem


@rule(pods)
def volume_source_exists(part: Part) -> Iterator[Problem]:
    for secret in dig(part.value, "spec.imagePullSecrets", ()):
        for problem in missing(part, "Secret", secret.get("name")):
            yield "spec.imagePullSecrets", problem
    for index, volume in enumerate(dig(part.value, "spec.volumes", ())):
        for kind, name in sources_of(volume):
            for problem in missing(part, kind, name):
                yield f"spec.volumes[{index}]", problem


def sources_of(volume: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Kind and name of what a volume is made of."""
    if (claim := volume.get("persistentVolumeClaim")) is not None:
        yield "PersistentVolumeClaim", claim.get("claimName", "")
    for part in (volume, *dig(volume, "projected.sources", ())):
        if (secret := part.get("secret")) is not None:
            yield "Secret", secret.get("secretName") or secret.get("name", "")
        if (config := part.get("configMap")) is not None:
            yield "ConfigMap", config.get("name", "")


@rule(containers)
def variable_source_exists(part: Part) -> Iterator[Problem]:
    """Optional ones too: a misspelt one would be left out without a word."""
    kinds = {"secret": "Secret", "configMap": "ConfigMap"}
    for index, item in enumerate(part.value.get("env") or ()):
        for field, kind in kinds.items():
            reference = dig(item, f"valueFrom.{field}KeyRef")
            if reference is None:
                continue
            here = f"env[{index}].valueFrom.{field}KeyRef"
            name, key = reference.get("name"), reference.get("key")
            for problem in missing(part, kind, name):
                yield here, problem
            source = find(part, kind, name)
            if source is not None and key not in keys_of(source):
                yield here, f"{kind} {name} has no key {key}"
    for index, item in enumerate(part.value.get("envFrom") or ()):
        for field, kind in kinds.items():
            reference = item.get(f"{field}Ref")
            if reference is not None:
                for problem in missing(part, kind, reference.get("name")):
                    yield f"envFrom[{index}]", problem


def keys_of(source: dict[str, Any]) -> set[str]:
    """Keys of a Secret or ConfigMap."""
    return {
        key for field in ("data", "stringData", "binaryData") for key in source.get(field) or ()
    }


@rule(ray_clusters)
def auth_secret_exists(part: Part) -> Iterator[Problem]:
    path = "authOptions.secretName"
    for problem in missing(part, "Secret", dig(part.value, path)):
        yield path, problem


@rule(ray_jobs)
def selected_cluster_exists(part: Part) -> Iterator[Problem]:
    name = (part.value.get("clusterSelector") or {}).get("ray.io/cluster")
    for problem in missing(part, "RayCluster", name):
        yield "clusterSelector", problem


@rule(objects())
def queue_exists(part: Part) -> Iterator[Problem]:
    labels = dig(part.value, "metadata.labels", {})
    named = {KUEUE_QUEUE: "LocalQueue", VOLCANO_QUEUE: "Queue", **PRIORITY_LABELS}
    for label, kind in named.items():
        for problem in missing(part, kind, labels.get(label)):
            yield "metadata.labels", problem
    if part.owner["kind"] == "LocalQueue" and part.overlay.is_shipped:  # else an administrator's
        for problem in missing(part, "ClusterQueue", dig(part.value, "spec.clusterQueue")):
            yield "spec.clusterQueue", problem
    for group in dig(part.value, "spec.resourceGroups", ()):
        for flavor in group.get("flavors") or ():
            for problem in missing(part, "ResourceFlavor", flavor.get("name")):
                yield "spec.resourceGroups", problem


@rule(objects("RayJob", "RayCluster"))
def queued_job_returns_its_quota(part: Part) -> Iterator[Problem]:
    """Kueue counts a job once, and as long as its cluster is there."""
    if KUEUE_QUEUE not in dig(part.value, "metadata.labels", {}):
        return
    is_job = part.owner["kind"] == "RayJob"
    if is_job and not dig(part.value, "spec.shutdownAfterJobFinishes"):
        yield "spec.shutdownAfterJobFinishes", "must be true, or the quota is never given back"
    cluster = "spec.rayClusterSpec" if is_job else "spec"
    if dig(part.value, f"{cluster}.enableInTreeAutoscaling"):
        yield f"{cluster}.enableInTreeAutoscaling", "is not supported by Kueue"


@rule(objects("RoleBinding", "ClusterRoleBinding"))
def binding_exists(part: Part) -> Iterator[Problem]:
    role = part.value.get("roleRef") or {}
    if role.get("kind") == "Role":
        for problem in missing(part, "Role", role.get("name")):
            yield "roleRef", problem
    for index, subject in enumerate(part.value.get("subjects") or ()):
        if subject.get("kind") == "ServiceAccount":
            for problem in missing(part, "ServiceAccount", subject.get("name")):
                yield f"subjects[{index}]", problem

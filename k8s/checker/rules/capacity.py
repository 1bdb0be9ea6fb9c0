"""Whether a job's cluster holds what its entrypoint asks for: workers, by Thaw's own plan for them,
and a storage that every node sees."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from math import ceil
from pathlib import PurePosixPath
from typing import Any

from cluster.config import ClusterConfig
from cluster.io.markers import URI, markers
from cluster.runtime import Resources
from cluster.scaling import plan_workers
from k8s.checker.parts import (
    RAY_CONTAINER,
    Part,
    dig,
    gpus_of,
    groups_of,
    pods,
    ray_clusters,
    ray_jobs,
)
from k8s.checker.quantities import parse_quantity
from k8s.checker.rule import Problem, rule
from k8s.checker.rules.entrypoints import Command, configs_of

REMOTE = ("s3://", "gs://", "hf://")


def cluster_of(job: Part) -> Part | None:
    """The cluster that a job makes, or the one of the overlay that it selects."""
    if job.value.get("rayClusterSpec"):
        return job.at("rayClusterSpec", role="cluster")
    name = (job.value.get("clusterSelector") or {}).get("ray.io/cluster")
    for cluster in ray_clusters(job.overlay):
        if cluster.owner["kind"] == "RayCluster" and dig(cluster.owner, "metadata.name") == name:
            return cluster
    return None


def count_resources(cluster: Part, replicas: str) -> Resources:
    """What Ray counts where each worker group has this many replicas, as KubeRay derives it from
    the limits of the Ray container; rayStartParams win."""
    nodes: list[tuple[float, int]] = []
    for group in groups_of(cluster):
        count = 1
        if group.role == "worker":
            count = int(group.value.get(replicas) or 0) * int(group.value.get("numOfHosts") or 1)
        nodes += [node_resources(group)] * min(count, 10_000)
    working = [node for node in nodes if node[0] > 0]
    return Resources(
        num_nodes=len(working),
        num_cpus=sum(cpus for cpus, _ in nodes),
        num_gpus=sum(gpus for _, gpus in nodes),
        memory_gib=0,
        object_store_gib=0,
    )


def node_resources(group: Part) -> tuple[float, int]:
    """CPUs and GPUs of one node of a group."""
    container = (dig(group.value, "template.spec.containers") or [{}])[RAY_CONTAINER]
    limits, params = dig(container, "resources.limits", {}), dig(group.value, "rayStartParams", {})
    cpus = params.get("num-cpus", ceil(parse_quantity(limits.get("cpu", 0))))
    return float(cpus), int(params.get("num-gpus", gpus_of(group)))


def cluster_configs(config: Any) -> list[ClusterConfig]:
    """What a command asks of the cluster; the default, where it has no such options."""
    found = [value for _, value in walk(config) if isinstance(value, ClusterConfig)]
    if not found and hasattr(config, "num_workers"):
        found = [ClusterConfig(num_workers=config.num_workers)]
    return found or [ClusterConfig()]


def walk(config: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Fields of a config and of those below it, by dotted path."""
    yield name, config
    if is_dataclass(config):
        for field in fields(config):
            yield from walk(getattr(config, field.name), f"{name}.{field.name}".lstrip("."))


def uris_of(config: Any) -> Iterator[tuple[str, str]]:
    """Where a command reads and writes; the sweep names the folders of its trainings itself."""
    for path, section in walk(config):
        for name, own in markers(type(section)).items() if is_dataclass(section) else ():
            value = getattr(section, name)
            if URI in own and value is not None and not (path and name == "out"):
                yield name, value


def find_misfits(job: Part, replicas: str) -> Iterator[tuple[Command, str]]:
    """Commands whose workers don't fit on so many replicas, in Thaw's own words."""
    cluster = cluster_of(job)
    if cluster is None:
        return
    resources = count_resources(cluster, replicas)
    for command, config in configs_of(job):
        for wanted in cluster_configs(config):
            try:
                plan_workers(resources, wanted)
            except ValueError as error:
                yield command, str(error)


@rule(ray_jobs)
def workers_fit_max_replicas(part: Part) -> Iterator[Problem]:
    for command, problem in find_misfits(part, "maxReplicas"):
        yield "entrypoint", f"`{command}` at maxReplicas: {problem}"


@rule(ray_jobs)
def workers_are_there_at_start(part: Part) -> Iterator[Problem]:
    """Thaw counts the nodes once, when it connects: the autoscaler comes too late."""
    for command, problem in find_misfits(part, "replicas"):
        yield "entrypoint", f"`{command}` at the first replicas: {problem}"


@rule(ray_jobs)
def storage_is_shared(part: Part) -> Iterator[Problem]:
    """A path of the command line must mean the same files on every node, or be in a bucket."""
    cluster = cluster_of(part)
    if cluster is None:
        return
    for command, config in configs_of(part):
        for name, value in uris_of(config):
            if not value.startswith(REMOTE):
                for problem in find_storage_problems(cluster, value):
                    yield "entrypoint", f"`{command}`: {name} {value} {problem}"


def find_storage_problems(cluster: Part, path: str) -> Iterator[str]:
    """Why not every node of a cluster sees the same files at a path."""
    if not path.startswith("/"):
        yield "is relative: use a path below a mount, or s3://"
        return
    claims: dict[str, str | None] = {}
    for group in groups_of(cluster):
        name = group.value.get("groupName", "the head")
        claims[name] = find_claim(group, path)
        if claims[name] is None:
            yield f"is on no PersistentVolumeClaim in {name}"
    if len({claim for claim in claims.values() if claim}) > 1:
        listed = ", ".join(f"{claim} in {name}" for name, claim in claims.items())
        yield f"is on different claims: {listed}"


def find_claim(group: Part, path: str) -> str | None:
    """The claim that a group's Ray container has mounted at or above a path, and may write."""
    spec = dig(group.value, "template.spec", {})
    volumes = {volume.get("name"): volume for volume in spec.get("volumes") or ()}
    container = (spec.get("containers") or [{}])[RAY_CONTAINER]
    mounts = sorted(
        (
            mount
            for mount in container.get("volumeMounts") or ()
            if PurePosixPath(path).is_relative_to(mount.get("mountPath", "/"))
        ),
        key=lambda mount: len(mount["mountPath"]),
    )
    if not mounts or mounts[-1].get("readOnly"):
        return None
    volume = volumes.get(mounts[-1].get("name"), {})
    return dig(volume, "persistentVolumeClaim.claimName")


@rule(pods)
def claim_for_many_nodes(part: Part) -> Iterator[Problem]:
    """A volume that only one node may mount keeps every pod on another node waiting."""
    claims = part.overlay.named("PersistentVolumeClaim")
    affinity = dig(part.value, "spec.affinity.podAffinity", {})
    terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or ()
    if any(term.get("topologyKey") == "kubernetes.io/hostname" for term in terms):
        return  # on the node of the others
    for index, volume in enumerate(dig(part.value, "spec.volumes", ())):
        claim = claims.get(dig(volume, "persistentVolumeClaim.claimName"))
        modes = dig(claim, "spec.accessModes", [])
        if claim is not None and "ReadWriteMany" not in modes:
            yield (
                f"spec.volumes[{index}]",
                f"other nodes can't mount {dig(claim, 'metadata.name')}, which is "
                f"{', '.join(modes)}: use ReadWriteMany, or a podAffinity to the others' node",
            )

"""Which pods share a node: on kind all of them, elsewhere no two with GPUs, and any others."""

from collections.abc import Iterator
from decimal import Decimal
from functools import cache

import yaml

from k8s.checker.overlays import K8S
from k8s.checker.parts import Part, dig, groups_of, pods, ray_jobs
from k8s.checker.quantities import parse_quantity
from k8s.checker.rule import Problem, rule
from k8s.checker.rules.network import labels_of, selects
from k8s.checker.rules.settings import has_pods_with_gpus, only, shares_node

KIND = {"cpu": "4", "memory": "12Gi"}
"""What GitHub's runners for public repositories have, and k8s/kind.md asks for."""
KIND_SYSTEM = {"cpu": "950m", "memory": "290Mi"}
"""Requests of kind's own pods: API server 250m, controllers 200m, two of CoreDNS, scheduler, etcd
and kindnet 100m each."""


@rule(only(ray_jobs, shares_node))
def job_fits_kind(part: Part) -> Iterator[Problem]:
    """Else its last worker waits, with `Insufficient cpu`, until the job gives up."""
    for resource, has in KIND.items() if part.overlay.is_shipped else ():
        free = parse_quantity(has) - parse_quantity(KIND_SYSTEM[resource]) - of_operator(resource)
        wanted = sum_requests(part, resource)
        if wanted > free:
            yield (
                "rayClusterSpec",
                f"its pods request {wanted} of {resource}; a node of {has} has {free} for them",
            )


@cache
def of_operator(resource: str) -> Decimal:
    """What KubeRay's operator requests."""
    values = yaml.safe_load((K8S / "operator/values.yaml").read_text())
    return parse_quantity(values["resources"]["requests"][resource])


def sum_requests(job: Part, resource: str) -> Decimal:
    """Sum what all pods of a job request."""
    groups = groups_of(job.at("rayClusterSpec"))
    counted = [(group.at("template"), int(group.value.get("replicas", 1))) for group in groups]
    counted.append((job.at("submitterPodTemplate"), 1))
    return sum(
        (
            count * parse_quantity(dig(container, f"resources.requests.{resource}", 0))
            for pod, count in counted
            for container in dig(pod.value, "spec.containers", ())
        ),
        Decimal(),
    )


@rule(only(pods, has_pods_with_gpus))
def gpus_avoid_each_other_alone(part: Part) -> Iterator[Problem]:
    """An anti-affinity works in both directions, and until a pod is deleted: pods without GPUs that
    it means keep a training waiting after their job has ended, and wait for it."""
    path = "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution"
    means_itself = False
    for index, term in enumerate(dig(part.value, path, ())):
        if term.get("topologyKey") != "kubernetes.io/hostname" or "labelSelector" not in term:
            continue
        meant = [
            pod for pod in pods(part.overlay) if selects(term["labelSelector"], labels_of(pod))
        ]
        means_itself |= any(pod.path == part.path and pod.owner is part.owner for pod in meant)
        for pod in meant:
            if not has_pods_with_gpus(pod):
                name = dig(pod.owner, "metadata.name")
                yield f"{path}[{index}]", f"means {name}, {pod.path}, which has no GPUs"
    if not means_itself:
        yield path, "means other pods than these: two of them may share a node"

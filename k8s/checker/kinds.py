"""Which kinds of objects can be judged: Kubernetes' own, KubeRay's, and some of other operators."""

from typing import Any

FOREIGN = {
    "kueue.x-k8s.io": ("ClusterQueue", "LocalQueue", "ResourceFlavor", "WorkloadPriorityClass"),
    "monitoring.coreos.com": ("PodMonitor", "PrometheusRule", "ServiceMonitor"),
    "scheduling.volcano.sh": ("Queue",),
}
"""Kinds of other operators, without schemas here: only their names are checked."""
OWN = (
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "apiregistration.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "certificates.k8s.io",
    "coordination.k8s.io",
    "discovery.k8s.io",
    "events.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "networking.k8s.io",
    "node.k8s.io",
    "rbac.authorization.k8s.io",
    "resource.k8s.io",
    "scheduling.k8s.io",
    "storage.k8s.io",
    "storagemigration.k8s.io",
)
"""Groups of Kubernetes that have a dot, as all groups of operators do."""
RAY = "ray.io"


def group_of(item: dict[str, Any]) -> str:
    """Return the API group of an object; "" for the core."""
    return str(item.get("apiVersion", "")).rpartition("/")[0]


def is_foreign(item: dict[str, Any]) -> bool:
    """Whether an object is of another operator, and of a kind that rules look at."""
    return item.get("kind") in FOREIGN.get(group_of(item), ())


def is_judged(item: dict[str, Any]) -> bool:
    """Whether there is a schema for an object, or a rule about it; one whose group is misspelt as
    one of Kubernetes' is judged, and refused."""
    group = group_of(item)
    return "." not in group or group == RAY or group in OWN or is_foreign(item)

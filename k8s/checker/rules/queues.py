"""Whether a queue will ever let a job go: its quota must cover all that the job's pods ask for."""

from collections import Counter
from collections.abc import Iterator
from decimal import Decimal

from k8s.checker.overlays import Object, name_of
from k8s.checker.parts import Part, containers, dig, objects
from k8s.checker.quantities import parse_quantity
from k8s.checker.rule import Problem, rule
from k8s.checker.rules.network import NAMESPACE_LABEL, selects
from k8s.checker.rules.references import KUEUE_QUEUE, VOLCANO_QUEUE


@rule(objects("RayJob", "RayCluster"))
def quota_holds_job(part: Part) -> Iterator[Problem]:
    labels = dig(part.value, "metadata.labels", {})
    local = part.overlay.named("LocalQueue").get(labels.get(KUEUE_QUEUE, ""))
    volcano = part.overlay.named("Queue").get(labels.get(VOLCANO_QUEUE, ""))
    if local is None and volcano is None:
        return
    asked = count_requests(part)
    if local is not None:
        queue = part.overlay.named("ClusterQueue").get(dig(local, "spec.clusterQueue", ""))
        if queue is not None:  # an administrator's is not in the overlay
            quota = read_quota(queue)
            for resource in sorted(set(asked) - set(quota)):
                text = f"{name_of(local)} does not cover {resource}: it never starts"
                yield "metadata.labels", text
            yield from find_excess(asked, quota)
    if volcano is not None:
        capability = dig(volcano, "spec.capability", {})
        yield from find_excess(
            asked, {name: parse_quantity(value) for name, value in capability.items()}
        )


@rule(objects("LocalQueue"))
def cluster_queue_admits_namespace(part: Part) -> Iterator[Problem]:
    """Kueue takes jobs only of namespaces that the ClusterQueue's selector means; none: of none."""
    name = dig(part.value, "spec.clusterQueue", "")
    queue = part.overlay.named("ClusterQueue").get(name)
    if queue is None:
        return
    namespace = dig(part.value, "metadata.namespace", "default")
    known = part.overlay.named("Namespace").get(namespace, {})
    labels = {NAMESPACE_LABEL: namespace} | dig(known, "metadata.labels", {})
    selector = dig(queue, "spec.namespaceSelector", None)
    if selector is None or not selects(selector, labels):
        yield (
            "metadata.namespace",
            f"ClusterQueue {name} never admits namespace {namespace}: its namespaceSelector is "
            f"{selector}",
        )


def find_excess(asked: Counter[str], quota: dict[str, Decimal]) -> Iterator[Problem]:
    for resource, amount in sorted(quota.items()):
        if asked[resource] > amount:
            yield (
                "metadata.labels",
                f"asks for {asked[resource]} {resource}, its queue has {amount}: it never starts",
            )


def count_requests(part: Part) -> Counter[str]:
    """What all pods of a job request together, every worker group at its first replicas."""
    total: Counter[str] = Counter()
    for container in containers(part.overlay):
        if container.owner is part.owner and container.role != "init":
            group = container.up("pod").within
            assert group is not None
            count = count_pods(group) if group.role == "worker" else 1
            for resource, amount in dig(container.value, "resources.requests", {}).items():
                total[resource] += count * parse_quantity(amount)  # type: ignore[assignment]
    return total


def count_pods(group: Part) -> int:
    return int(group.value.get("replicas") or 0) * int(group.value.get("numOfHosts") or 1)


def read_quota(queue: Object) -> dict[str, Decimal]:
    """Nominal quota of a ClusterQueue, over the flavors that cover a resource."""
    quota: dict[str, Decimal] = {}
    for group in dig(queue, "spec.resourceGroups", []):
        for flavor in group.get("flavors") or ():
            for item in flavor.get("resources") or ():
                if item["name"] in group.get("coveredResources", ()):
                    amount = parse_quantity(item["nominalQuota"])
                    quota[item["name"]] = quota.get(item["name"], Decimal(0)) + amount
    return quota

"""What the NetworkPolicies of an overlay let through, as a network plugin enforces them: a pod that
is selected may do only what some policy allows, and both ends have to agree."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from k8s.checker.overlays import Object, Overlay, name_of, with_setup
from k8s.checker.parts import Part, containers, dig, is_of, objects, pods
from k8s.checker.rule import Problem, rule

NAMESPACE_LABEL = "kubernetes.io/metadata.name"
RAY_PORTS = (6379, 10002, 40000)
"""GCS, and some of those that Ray takes for object transfer, workers, gloo and NCCL."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One end of a connection: a pod, or an address outside the cluster."""

    label: str
    namespace: str = ""
    labels: dict[str, str] = field(default_factory=dict, hash=False)
    address: str | None = None
    role: str = ""
    """head, worker or submitter of Ray's pods."""
    owner: str = ""
    """Their RayJob or RayCluster."""


OPERATOR = Peer(
    label="the operator",
    namespace="kuberay-operator",
    labels={"app.kubernetes.io/component": "kuberay-operator"},
)
"""With the label that its Helm chart and its Kustomize manifests have in common."""
PROMETHEUS = Peer(label="Prometheus", namespace="monitoring", labels={"app": "prometheus"})
NAME_SERVERS = (
    Peer(label="the cluster's DNS", namespace="kube-system", labels={"k8s-app": "kube-dns"}),
    Peer(label="NodeLocal DNSCache at its own address", address="169.254.20.10"),
    Peer(label="NodeLocal DNSCache at kind's DNS Service", address="10.96.0.10"),
    Peer(label="NodeLocal DNSCache at EKS' DNS Service", address="172.20.0.10"),
    Peer(label="NodeLocal DNSCache at GKE's DNS Service", address="34.118.224.10"),
    Peer(label="GKE's Cloud DNS", address="169.254.169.254"),
)
"""A cluster has one of them; on the node's network, a policy sees an address in place of a pod."""
IDENTITIES = {
    Peer(label="EKS Pod Identity", address="169.254.170.23"): 80,
    Peer(label="the cloud's metadata server", address="169.254.169.254"): 80,
    Peer(label="GKE's metadata server", address="169.254.169.252"): 988,
}
"""Where pods with a role get the credentials of a bucket."""
STRANGER = Peer(label="a pod of another team", namespace="others", labels={"app": "web"})
WEB = Peer(label="the web", address="203.0.113.7")


def ray_pods(overlay: Overlay, namespace: str) -> Iterator[Peer]:
    """Heads, workers and submitters, with the labels that the operator gives them."""
    for pod in pods(overlay):
        role = next((role for role in ("head", "worker", "submitter") if is_of(pod, role)), None)
        if role is None or dig(pod.owner, "metadata.namespace", "default") != namespace:
            continue
        owner = name_of(pod.owner)
        label = f"the {role} of {owner}"
        labels = labels_of(pod)
        yield Peer(label=label, namespace=namespace, labels=labels, role=role, owner=owner)


def labels_of(pod: Part) -> dict[str, str]:
    """Labels of a pod, those that the operator adds among them."""
    labels = dict(dig(pod.value, "metadata.labels", {}))
    if pod.within is not None and pod.within.role in ("head", "worker"):
        labels |= {"ray.io/cluster": name_of(pod.owner), "ray.io/node-type": pod.within.role}
    return labels


def allows(overlay: Overlay, source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    """Whether a connection gets through, out of one end and into the other."""
    return all(
        not (chosen := list(policies_for(overlay, end, direction)))
        or any(permits(overlay, policy, direction, other, port, protocol) for policy in chosen)
        for end, other, direction in ((source, target, "Egress"), (target, source, "Ingress"))
        if end.address is None
    )


def policies_for(overlay: Overlay, pod: Peer, direction: str) -> Iterator[Object]:
    for policy in overlay.objects:
        if (
            policy["kind"] == "NetworkPolicy"
            and dig(policy, "metadata.namespace", "default") == pod.namespace
            and direction in dig(policy, "spec.policyTypes", ["Ingress"])
            and selects(dig(policy, "spec.podSelector", {}), pod.labels)
        ):
            yield policy


def names_of(overlay: Overlay, port: int) -> set[Any]:
    """Names that containers of an overlay have for a port."""
    return {
        entry.get("name")
        for container in containers(overlay)
        for entry in container.value.get("ports") or ()
        if entry.get("containerPort") == port
    }


def permits(
    overlay: Overlay, policy: Object, direction: str, other: Peer, port: int, protocol: str
) -> bool:
    """Whether one of a policy's rules lets a connection with this peer through."""
    side = "to" if direction == "Egress" else "from"
    for item in dig(policy, f"spec.{direction.lower()}", []):
        at_port = not item.get("ports") or any(
            entry.get("protocol", "TCP") == protocol and has_port(overlay, entry, port)
            for entry in item["ports"]
        )
        namespace = policy["metadata"].get("namespace", "default")
        with_peer = not item.get(side) or any(
            matches(entry, other, namespace) for entry in item[side]
        )
        if at_port and with_peer:
            return True
    return False


def has_port(overlay: Overlay, entry: dict[str, Any], port: int) -> bool:
    """Whether an entry of `ports` means a port; all where it names none."""
    first = entry.get("port", port)
    if isinstance(first, str):
        return first in names_of(overlay, port)
    return first <= port <= entry.get("endPort", first)


def matches(entry: dict[str, Any], peer: Peer, namespace: str) -> bool:
    """Whether one entry of `from` or `to` means a peer."""
    if (block := entry.get("ipBlock")) is not None:
        address = ip_address(peer.address) if peer.address else None
        return address is not None and (
            address in ip_network(block["cidr"], strict=False)
            and not any(
                address in ip_network(other, strict=False) for other in block.get("except") or ()
            )
        )
    if peer.address is not None:
        return False
    in_namespace = (
        selects(entry["namespaceSelector"], {NAMESPACE_LABEL: peer.namespace})
        if "namespaceSelector" in entry
        else peer.namespace == namespace
    )
    return in_namespace and selects(entry.get("podSelector") or {}, peer.labels)


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector means these labels; an empty one means all."""
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    tests = {
        "Exists": lambda value, values: value is not None,
        "DoesNotExist": lambda value, values: value is None,
        "In": lambda value, values: value in values,
        "NotIn": lambda value, values: value not in values,
    }
    return all(
        tests[item["operator"]](labels.get(item["key"]), item.get("values") or ())
        for item in selector.get("matchExpressions") or ()
    )


def first_of_namespaces(overlay: Overlay) -> Iterator[Part]:
    """One object of each namespace that has Ray's pods: rules about all of its traffic."""
    seen = set()
    for part in objects("RayJob", "RayCluster")(overlay):
        namespace = dig(part.value, "metadata.namespace", "default")
        if namespace not in seen:
            seen.add(namespace)
            yield part


@rule(first_of_namespaces)
def needed_traffic_flows(part: Part) -> Iterator[Problem]:
    """A job waits for ever, without a word, where its submitter can't reach the head."""
    overlay = with_setup(part.overlay)
    namespace = dig(part.value, "metadata.namespace", "default")
    for source, target, port, protocol in needed_traffic(overlay, namespace):
        if not allows(overlay, source, target, port, protocol):
            yield (
                "metadata.namespace",
                f"no NetworkPolicy lets {source.label} reach {target.label} at {protocol} {port}",
            )


def needed_traffic(overlay: Overlay, namespace: str) -> Iterator[tuple[Peer, Peer, int, str]]:
    """From, to, port and protocol of what Ray, Thaw and who watches them need."""
    peers = list(ray_pods(overlay, namespace))
    in_bucket = any(item.get("kind") == "ConfigMap" for item in overlay.objects if is_bucket(item))
    for peer in peers:
        for server in NAME_SERVERS:
            yield peer, server, 53, "UDP"
            yield peer, server, 53, "TCP"
        others = [other for other in peers if other.owner == peer.owner]
        if peer.role == "submitter":
            yield from ((peer, other, 8265, "TCP") for other in others if other.role == "head")
            continue
        yield peer, WEB, 443, "TCP"  # W&B, buckets, weights
        yield PROMETHEUS, peer, 8080, "TCP"
        if peer.role == "head":
            yield OPERATOR, peer, 8265, "TCP"
        if in_bucket:
            yield from ((peer, server, port, "TCP") for server, port in IDENTITIES.items())
        nodes = [other for other in others if other.role != "submitter"]
        yield from ((peer, other, port, "TCP") for other in nodes for port in RAY_PORTS)


def is_bucket(item: Object) -> bool:
    return "THAW_BUCKET" in dig(item, "data", {})


@rule(first_of_namespaces)
def other_traffic_stops(part: Part) -> Iterator[Problem]:
    """Ray runs the code of whoever reaches it."""
    overlay = with_setup(part.overlay)
    for peer in ray_pods(overlay, dig(part.value, "metadata.namespace", "default")):
        unwanted = [(STRANGER, peer, port) for port in (6379, 8265, 8080, 10001)]
        unwanted += [(PROMETHEUS, peer, 8265), (peer, STRANGER, 80), (peer, WEB, 25)]
        for source, target, port in unwanted:
            if allows(overlay, source, target, port):
                yield "metadata.namespace", f"{source.label} reaches {target.label} at TCP {port}"

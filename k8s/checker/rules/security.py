"""The Pod Security Standard `restricted`, for every container there will be: those of init, the
job's submitter and the autoscaler as well, which a namespace that enforces it would reject."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from k8s.checker.parts import Part, containers, dig, objects, pods
from k8s.checker.rule import Problem, rule

STANDARD = "Pod Security Standard, restricted"
ENFORCE = "pod-security.kubernetes.io/enforce"
SECCOMP_TYPES = ("RuntimeDefault", "Localhost")
VOLUME_TYPES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
CLUSTER_WIDE = {
    "ClusterQueue",
    "ClusterRole",
    "ClusterRoleBinding",
    "Namespace",
    "PersistentVolume",
    "PriorityClass",
    "Queue",
    "ResourceFlavor",
    "StorageClass",
    "WorkloadPriorityClass",
}
"""Kinds that are in no namespace."""
SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
}
SELINUX_TYPES = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}


def own(container: Part, field: str) -> Any:
    """A field that only containers have."""
    return dig(container.value, f"securityContext.{field}")


def effective(container: Part, field: str) -> Any:
    """A field of the container, else of its pod."""
    of_pod = dig(container.up("pod").value, f"spec.securityContext.{field}")
    return dig(container.value, f"securityContext.{field}", of_pod)


@rule(containers, STANDARD)
def runs_as_non_root(part: Part) -> Iterator[Problem]:
    if effective(part, "runAsNonRoot") is not True:
        yield "securityContext.runAsNonRoot", "must be true, here or in the pod"
    if effective(part, "runAsUser") == 0:
        yield "securityContext.runAsUser", "is root"


@rule(containers, STANDARD)
def no_privilege_escalation(part: Part) -> Iterator[Problem]:
    if own(part, "allowPrivilegeEscalation") is not False:
        yield "securityContext.allowPrivilegeEscalation", "must be false"
    if own(part, "privileged"):
        yield "securityContext.privileged", "must not be true"


@rule(containers, STANDARD)
def drops_capabilities(part: Part) -> Iterator[Problem]:
    if "ALL" not in (own(part, "capabilities.drop") or ()):
        yield "securityContext.capabilities.drop", "must hold ALL"
    if added := set(own(part, "capabilities.add") or ()) - {"NET_BIND_SERVICE"}:
        yield "securityContext.capabilities.add", f"adds {', '.join(sorted(added))}"


@rule(containers, STANDARD)
def seccomp_profile(part: Part) -> Iterator[Problem]:
    kind = effective(part, "seccompProfile.type")
    if kind not in SECCOMP_TYPES:
        yield (
            "securityContext.seccompProfile",
            (f"is of type {kind}: use {' or '.join(SECCOMP_TYPES)}, here or in the pod"),
        )


@rule(containers, STANDARD)
def no_way_to_the_host(part: Part) -> Iterator[Problem]:
    if (own(part, "procMount") or "Default") != "Default":
        yield "securityContext.procMount", "must be Default"
    for index, port in enumerate(part.value.get("ports") or ()):
        if port.get("hostPort"):
            yield f"ports[{index}].hostPort", "must not be set"
    selinux = effective(part, "seLinuxOptions") or {}
    if selinux.get("type", "") not in SELINUX_TYPES or selinux.get("user") or selinux.get("role"):
        yield "securityContext.seLinuxOptions", "sets a user, a role or a foreign type"


@rule(pods, STANDARD)
def no_host_namespaces(part: Part) -> Iterator[Problem]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if dig(part.value, f"spec.{field}"):
            yield f"spec.{field}", "must not be true"
    for item in dig(part.value, "spec.securityContext.sysctls", ()):
        if item.get("name") not in SAFE_SYSCTLS:
            yield "spec.securityContext.sysctls", f"sets {item.get('name')}"


@rule(pods, STANDARD)
def volume_types(part: Part) -> Iterator[Problem]:
    for index, volume in enumerate(dig(part.value, "spec.volumes", ())):
        if kinds := set(volume) - {"name"} - VOLUME_TYPES:
            yield f"spec.volumes[{index}]", f"is a {', '.join(sorted(kinds))}"


@rule(objects("Namespace"), STANDARD)
def namespace_restricted(part: Part) -> Iterator[Problem]:
    level = dig(part.value, "metadata.labels", {}).get(ENFORCE)
    if level != "restricted":
        yield "metadata.labels", f"{ENFORCE} is {level}: use restricted"


@rule(objects())
def one_namespace(part: Part) -> Iterator[Problem]:
    """What an overlay makes finds each other by name, in one namespace."""
    namespace = dig(part.value, "metadata.namespace")
    if part.owner["kind"] in CLUSTER_WIDE:  # the server takes no notice of a namespace there
        return
    most = Counter(
        dig(item, "metadata.namespace")
        for item in part.overlay.objects
        if item.get("kind") not in CLUSTER_WIDE
    ).most_common(1)[0][0]
    if namespace is None:
        yield "metadata.namespace", "is missing: name one, as `kubectl apply` takes any else"
    elif namespace != most:
        yield "metadata.namespace", f"is {namespace}: the other objects are in {most}"

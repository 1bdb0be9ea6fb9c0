"""What the answers of the nodes mean: pure functions from answers to findings, one a check."""

from collections.abc import Mapping
from typing import Any

from cluster.doctor.nodes import Node, ProbeError, Replies
from cluster.doctor.probes import DECODERS
from cluster.doctor.results import CheckResult, fail, group, ok, warn
from cluster.provenance import find_differences

SPILL_LIMIT = 0.95
"""Ray writes no object to a disk that is fuller than this."""
LITTLE_DISK = 0.15
SKEW_WARN_S, SKEW_FAIL_S = 2.0, 300.0
"""Logs of nodes can't be compared; S3 and TLS begin to refuse."""
LOOK_AT_NODE = "look at its logs, load, network and disks, or leave the node out"


def separate(check: str, answers: Replies, remedy: str) -> tuple[dict[str, Any], list[CheckResult]]:
    """Tell answers from trouble; what is trouble has failed."""
    good = {node: answer for node, answer in answers.items() if not isinstance(answer, ProbeError)}
    troubles = {node: str(answer) for node, answer in answers.items() if node not in good}
    return good, [fail(check, text, remedy, nodes) for text, nodes in group(troubles).items()]


def judge_nodes(answers: Replies, nodes: list[Node], num_dead: int) -> list[CheckResult]:
    """Whether every node starts a process; answers are those to any question."""
    good, findings = separate("nodes", answers, LOOK_AT_NODE)
    if num_dead:
        findings.append(
            warn("nodes", f"{num_dead} died since the cluster began", "see `ray list nodes`")
        )
    num_cpus = sum(node.resources.get("CPU", 0.0) for node in nodes)
    if not num_cpus:
        findings.append(fail("nodes", "no node has CPUs", "start a worker node"))
    elif num_cpus < 2:
        text = "one CPU: a training and the tasks that read its images take turns"
        findings.append(warn("nodes", text, "use two CPUs or more"))
    if len(good) == len(nodes):
        cpus, gpus = (sum(node.resources.get(unit, 0.0) for node in nodes) for unit in _UNITS)
        memory = sum(node.resources.get("memory", 0.0) for node in nodes) / 2**30
        text = f"{len(nodes)} up: {cpus:g} CPUs, {gpus:g} GPUs, {memory:.1f} GiB memory"
        findings.insert(0, ok("nodes", text))
    return findings


_UNITS = ("CPU", "GPU")


def judge_versions(answers: Replies, ours: Mapping[str, str]) -> list[CheckResult]:
    """Every node must have what this process has."""
    good, findings = separate("versions", answers, LOOK_AT_NODE)
    texts = {}
    for node, versions in good.items():
        if other := find_differences(versions, ours):
            texts[node] = ", ".join(other)
    remedy = "let every node run the same image, or install the versions of pyproject.toml there"
    findings += [fail("versions", text, remedy, nodes) for text, nodes in group(texts).items()]
    missing = [name for name, version in ours.items() if version == "missing"]
    if missing:
        text = f"not installed: {', '.join(missing)}"
        findings.append(fail("versions", text, "`pip install -e .` in Thaw's root"))
    if not findings:
        shown = ", ".join(f"{name} {ours[name]}" for name in ("python", "ray", "torch"))
        rest = f"{shown} and {len(ours) - 3} packages"
        findings.append(ok("versions", f"{rest}, the same on {_count(good)}"))
    return findings


def judge_space(answers: Replies, nodes: list[Node]) -> list[CheckResult]:
    """Shared memory against the object store, and the disk that it spills to."""
    good, findings = separate("space", answers, LOOK_AT_NODE)
    stores = {node.name: node.resources.get("object_store_memory", 0.0) for node in nodes}
    small, full, filling = {}, {}, {}
    for node, space in good.items():
        shm, used = space["shm_total"], 1 - space["disk_free"] / space["disk_total"]
        if shm is not None and shm < stores[node]:
            small[node] = (
                f"/dev/shm has {_gib(shm)}, the object store {_gib(stores[node])}: it lies on the "
                "disk, and is slow"
            )
        if used >= SPILL_LIMIT:
            full[node] = f"the disk has {_gib(space['disk_free'])} left: Ray spills no object"
        elif used > 1 - LITTLE_DISK:
            filling[node] = f"the disk is {used:.0%} full"
    remedy = "give its container more shared memory (emptyDir with medium Memory, --shm-size)"
    findings += [warn("space", text, remedy, where) for text, where in group(small).items()]
    remedy = "delete old sessions in /tmp/ray, or start the node with another --temp-dir"
    findings += [fail("space", text, remedy, where) for text, where in group(full).items()]
    findings += [warn("space", text, remedy, where) for text, where in group(filling).items()]
    if good and not findings:
        store = min(stores[node] for node in good)
        disk = min(space["disk_free"] for space in good.values())
        text = f"object store of {_gib(store)} or more in /dev/shm, {_gib(disk)} of disk free"
        findings.append(ok("space", f"{text}, on {_count(good)}"))
    return findings


def judge_decoders(answers: Replies) -> list[CheckResult]:
    """Every decoder must decode a JPEG on every node."""
    good, findings = separate("decoders", answers, LOOK_AT_NODE)
    texts = {
        node: ", ".join(f"{name} ({why})" for name, why in broken.items())
        for node, broken in good.items()
        if broken
    }
    remedy = "install simplejpeg, opencv-python-headless and pillow there, for its processor"
    findings += [fail("decoders", text, remedy, nodes) for text, nodes in group(texts).items()]
    if not findings:
        text = f"{', '.join(DECODERS)} decode a JPEG on {_count(good)}"
        findings.append(ok("decoders", text))
    return findings


def judge_allocator(answers: Replies) -> list[CheckResult]:
    """Networks on CPUs need an allocator that keeps freed memory."""
    good, findings = separate("allocator", answers, LOOK_AT_NODE)
    others = [node for node, version in good.items() if version is None]
    if others:
        text = "no glibc: networks on CPUs are slower, as each step gets its memory again"
        remedy = "use an image with glibc, such as Debian's, where networks run on CPUs"
        findings.append(warn("allocator", text, remedy, others))
    elif good:
        versions = ", ".join(sorted(set(good.values())))
        findings.append(ok("allocator", f"glibc {versions} keeps freed memory on {_count(good)}"))
    return findings


def judge_datasets(answers: Replies) -> list[CheckResult]:
    """`datasets` must be Thaw's own on every node."""
    good, findings = separate("datasets", answers, LOOK_AT_NODE)
    texts = {node: f"datasets is {foreign}" for node, foreign in good.items() if foreign}
    remedy = "Thaw's folder must come first on the path: uninstall the other `datasets` there"
    findings += [fail("datasets", text, remedy, nodes) for text, nodes in group(texts).items()]
    return findings or [ok("datasets", f"Thaw's own on {_count(good)}")]


def judge_auth(answers: Replies, nodes: list[Node]) -> list[CheckResult]:
    """Who reaches the cluster can run anything on it, unless it asks for a token."""
    good, findings = separate("auth", answers, LOOK_AT_NODE)
    without = [node for node, mode in good.items() if mode != "token"]
    remedy = "start head and nodes with RAY_AUTH_MODE=token and one token"
    if without and len(without) < len(good):
        findings.append(
            fail("auth", "no token authentication, other nodes have it", remedy, without)
        )
    elif without and all(node.address.startswith("127.") for node in nodes):
        findings.append(ok("auth", "no token, and none needed: it listens on this machine alone"))
    elif without:
        text = "no token: whoever reaches its ports runs what they like"
        findings.append(warn("auth", text, remedy))
    return findings or [ok("auth", f"a token is asked for, on {_count(good)}")]


def judge_clock(offsets_s: Replies) -> list[CheckResult]:
    """Compare the nodes' clocks with this machine's."""
    good, findings = separate("clock", offsets_s, LOOK_AT_NODE)
    ahead = {
        node: f"the clock is {abs(offset_s):.1f} s {'ahead' if offset_s > 0 else 'behind'}"
        for node, offset_s in good.items()
        if abs(offset_s) > SKEW_WARN_S
    }
    for text, nodes in group(ahead).items():
        level = fail if any(abs(good[node]) > SKEW_FAIL_S for node in nodes) else warn
        findings.append(level("clock", text, "run NTP (chrony) on the machine", nodes))
    if good and not findings:
        worst_s = max(abs(offset_s) for offset_s in good.values())
        findings.append(ok("clock", f"{worst_s * 1000:.0f} ms apart at most, on {_count(good)}"))
    return findings


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"


def _count(answers: Mapping[str, Any]) -> str:
    return "1 node" if len(answers) == 1 else f"{len(answers)} nodes"

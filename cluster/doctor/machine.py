"""What batch systems, containers and laptops do to a node: limits, names, proxies, memory."""

import os
import resource
import socket
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from cluster.doctor.checks import LOOK_AT_NODE, separate
from cluster.doctor.nodes import Replies
from cluster.doctor.results import CheckResult, Level, fail, group, ok, warn
from cluster.memory_watch import find_kill_share
from cluster.ray_internals import find_memory_share, find_session_folder
from cluster.session_folder import FEW_FILES, find_session_problem

PROXIES = ("http_proxy", "https_proxy", "all_proxy")
PROXY_TIMEOUT_S = 3.0
CACHES = {"TORCH_HOME": "~/.cache/torch", "HF_HOME": "~/.cache/huggingface"}
"""Where downloaded weights are kept, by the variable that sets another folder."""
LITTLE_MEMORY = 0.1
"""A share of the memory that is soon used."""
JUMP_S = 2.0

Problem = tuple[Level, str, str]
"""Level, text and remedy."""


def find_machine_problems(environment: Mapping[str, str] = os.environ) -> list[Problem]:
    """Return what is wrong with this node, apart from space, versions and clocks."""
    problems = [_find_few_files(), _find_unresolved_name(), _find_little_memory(environment)]
    found = [*problems, *_find_dead_proxies(environment), *_find_unwritable_caches(environment)]
    return [problem for problem in found if problem is not None]


def _find_few_files() -> Problem | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FEW_FILES:
        return None
    remedy = f"Ray's processes need {FEW_FILES} or more: raise it before `ray start`"
    return "fail", f"ulimit -n is {soft}", remedy


def _find_unresolved_name() -> Problem | None:
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        remedy = "add it to /etc/hosts where a training has workers on several nodes"
        return "warn", f"the host name {name} does not resolve", remedy
    return None


def _find_little_memory(environment: Mapping[str, str]) -> Problem | None:
    used, threshold = find_memory_share(), find_kill_share(environment)
    if used <= threshold - LITTLE_MEMORY and threshold > LITTLE_MEMORY:
        return None
    level: Level = "fail" if used >= threshold else "warn"
    text = f"{used:.0%} of the memory is used, and Ray kills tasks from {threshold:.0%}"
    return level, text, "free memory there, or set RAY_memory_usage_threshold before `ray start`"


def _find_dead_proxies(environment: Mapping[str, str]) -> list[Problem]:
    """Try the proxies that variables name; their user and password are not shown."""
    problems: list[Problem] = []
    for name, value in environment.items():
        if name.lower() not in PROXIES or not value:
            continue
        try:
            url = urlsplit(value if "//" in value else f"//{value}")
            host, port = url.hostname or "", url.port or 80
            socket.create_connection((host, port), timeout=PROXY_TIMEOUT_S).close()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "no host and port"
            text = f"the proxy in {name} does not answer ({reason})"
            remedy = "unset it, or W&B, buckets and downloads of weights are out of reach"
            problems.append(("warn", text, remedy))
    return problems


def _find_unwritable_caches(environment: Mapping[str, str]) -> list[Problem]:
    problems: list[Problem] = []
    for name, default in CACHES.items():
        folder = Path(environment.get(name) or os.path.expanduser(default))
        there = next((path for path in (folder, *folder.parents) if path.is_dir()), Path("/"))
        try:
            tempfile.TemporaryFile(dir=there).close()
        except OSError as error:
            text = f"{folder} can't be written ({error.strerror}): no weights can be downloaded"
            problems.append(("warn", text, f"set {name} to a folder that you may write"))
    return problems


def judge_machine(answers: Replies, started_here: bool) -> list[CheckResult]:
    """Name nodes with the same problem in one line.

    Args:
        started_here: TMPDIR of this process sets where the session is.
    """
    good, findings = separate("machine", answers, LOOK_AT_NODE)
    if started_here and (problem := find_session_problem(os.environ)) is not None:
        text = f"{problem}, so Ray's session is in {find_session_folder()}"
        findings.append(warn("machine", text, "set RAY_TMPDIR to a short folder with free space"))
    problems = {problem for of_node in good.values() for problem in of_node}
    for level, text, remedy in sorted(problems):
        nodes = [node for node, of_node in good.items() if (level, text, remedy) in of_node]
        findings.append((fail if level == "fail" else warn)("machine", text, remedy, nodes))
    if good and not findings:
        findings.append(ok("machine", "open files, memory, host name, proxies and caches are fine"))
    return findings


def read_clock_lead() -> float:
    """Return by how many seconds this node's clock is ahead of the one that can't be set."""
    return time.time() - time.monotonic()


def judge_jumps(before: Replies, after: Replies) -> list[CheckResult]:
    """Name nodes whose clock was set while they were examined."""
    moved = {
        node: f"the clock jumped by {after[node] - start:.0f} s while this ran"
        for node, start in before.items()
        if isinstance(start, float)
        and isinstance(after.get(node), float)
        and abs(after[node] - start) > JUMP_S
    }
    remedy = "let NTP (chrony) slew it; leases and durations do not depend on it"
    return [warn("clock", text, remedy, nodes) for text, nodes in group(moved).items()]

"""Whether nodes reach the hosts that weights are downloaded from."""

import os
import socket
from collections.abc import Mapping

from cluster.doctor.checks import LOOK_AT_NODE, separate
from cluster.doctor.machine import PROXIES
from cluster.doctor.nodes import Replies
from cluster.doctor.results import CheckResult, group, ok, warn

HOSTS = ("download.pytorch.org", "huggingface.co")
TIMEOUT_S = 3.0


def find_unreachable_hosts(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the hosts that do not answer at 443, and why; behind a proxy all count as reached,
    and `machine` asks the proxy."""
    if any(name.lower() in PROXIES and value for name, value in environment.items()):
        return {}
    found = {}
    for host in HOSTS:
        try:
            socket.create_connection((host, 443), timeout=TIMEOUT_S).close()
        except OSError as error:
            found[host] = error.strerror or str(error)
    return found


def judge_hosts(answers: Replies) -> list[CheckResult]:
    """Without them a training needs its weights as a file: a warning."""
    good, findings = separate("hosts", answers, LOOK_AT_NODE)
    texts = {
        node: ", ".join(f"{host} is out of reach ({why})" for host, why in hosts.items())
        for node, hosts in good.items()
        if hosts
    }
    remedy = "give weights as files on storage (--weights), or let nodes out to port 443"
    findings += [warn("hosts", text, remedy, nodes) for text, nodes in group(texts).items()]
    return findings or [ok("hosts", f"weights can be downloaded from {' and '.join(HOSTS)}")]

"""What the clusters of tests have in common."""

import random
import socket
from contextlib import suppress
from typing import Any

HEAD: dict[str, Any] = {
    "num_cpus": 2,
    "include_dashboard": False,
    "include_log_monitor": False,
    "no_monitor": True,
    "dashboard_agent_listen_port": 0,
}
"""Arguments of `ray.cluster_utils.Cluster` for a node that starts fast: where another Ray of the
machine has the agent's usual port, the agent waits for 4 s."""


def free_ports(number: int) -> list[int]:
    """Return ports that are free, of those that neither the kernel nor Ray gives to others."""
    found: list[int] = []
    draw = random.SystemRandom()  # other ones in each process of xdist's
    while len(found) < number:
        port = draw.randrange(20_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            if port not in found:
                found.append(port)
    return found

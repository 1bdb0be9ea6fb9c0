"""What the heads of clusters in tests have in common."""

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

"""What a command and the cluster that it runs on hold at a moment: memory, handles, threads, and
what Ray counts."""

import os
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray._private import internal_api, state
from ray.util import placement_group_table

from tests.support.job_server import TokenCluster

PROGRAMS = {"gcs_server": "GCS", "raylet": "raylet"}
SERVICES = ("Agent", "dashboard", "monitor", "client.server", "log_monitor")
"""Words in the command lines of Ray's services, whose names may begin as those of workers."""
ALLOWED = {"MB": 10.0, "handles": 8.0, "threads": 4.0, "": 1.0}
"""Growth that is none, by unit."""
NAMES = (
    *(f"{unit} of {role}" for role in ("driver", "GCS", "raylet", "services", "workers")
      for unit in ("MB", "handles", "threads")),
    "processes", "actors", "placement groups", "MB of objects", "MB of the session folder",
)  # fmt: skip


def allowed(name: str) -> float:
    """Growth of a measure that is none."""
    return ALLOWED.get(name.split()[0], ALLOWED[""])


class Sampler:
    """Looks at a cluster, to which this process is connected."""

    def __init__(self, cluster: TokenCluster, session_folder: Path) -> None:
        self._cluster, self._folder = cluster, session_folder
        self._state: Any = internal_api.get_state_from_address(cluster.address)

    def take(self, driver: int) -> dict[str, float]:
        """Measure; `driver` is the process of the command."""
        sums: dict[str, float] = defaultdict(float)
        pids = self._cluster.pids()
        for pid in pids:
            with suppress(OSError):  # it has ended since
                for unit, value in measure(Path(f"/proc/{pid}")).items():
                    sums[f"{unit} of {find_role(pid, driver)}"] += value
        alive = state.actors(actor_state_name="ALIVE").values()
        groups: Any = placement_group_table()
        reply: Any = internal_api.get_memory_info_reply(self._state)
        sums |= {
            "processes": len(pids),
            "actors": len(alive),
            "placement groups": sum(group["state"] == "CREATED" for group in groups.values()),
            "MB of objects": reply.store_stats.object_store_bytes_used / 1e6,
            "MB of the session folder": size_of(self._folder) / 1e6,
        }
        return {name: sums[name] for name in NAMES}


def find_role(pid: int, driver: int) -> str:
    if pid == driver:
        return "driver"
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    program, command = Path(words[0]).name, " ".join(words)
    if program in PROGRAMS:
        return PROGRAMS[program]
    is_worker = "ray::" in command and not any(word in command for word in SERVICES)
    return "workers" if is_worker else "services"


def measure(process: Path) -> dict[str, float]:
    """Memory that a process shares with no other, open handles, and threads."""
    lines = process.joinpath("smaps_rollup").read_text().splitlines()
    private_kb = sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
    return {
        "MB": private_kb / 1e3,
        "handles": len(list(process.joinpath("fd").iterdir())),
        "threads": len(list(process.joinpath("task").iterdir())),
    }


def size_of(folder: Path) -> int:
    """Bytes on the disk below a folder."""
    size = 0
    for below, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # deleted since
                size += os.lstat(os.path.join(below, name)).st_blocks * 512
    return size

"""What a command and the cluster that it runs on hold at a moment: memory, handles, threads, and
what Ray counts."""

import os
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ray._private import internal_api, state
from ray.util import placement_group_table

from tests.support.job_server import TokenCluster

PROGRAMS = {"gcs_server": "GCS", "raylet": "raylet"}
STARTING = ("default_worker.py", "setup_worker.py")
"""Scripts of workers, until they have a title."""
SERVICES = ("Agent", "dashboard", "monitor", "client.server", "log_monitor")
"""Words in the command lines of Ray's services, whose names may begin as those of workers."""
ALLOWED = {"MB": 10.0, "handles": 8.0, "threads": 4.0, "": 1.0}
"""Growth that is none, by unit."""
UNITS = ("MB", "handles", "threads")
ROLES = ("driver", "GCS", "raylet", "services", "workers")
SESSION_FOLDER = "MB of the session folder"
COUNTS = ("processes", "actors", "placement groups", "MB of objects", SESSION_FOLDER)
NAMES = (*(f"{unit} of {role}" for role in ROLES for unit in UNITS), *COUNTS)
IDS = re.compile(r"[0-9a-f]{16,}|\d+")
"""Of workers, jobs and processes, and dates, in the names of Ray's files."""
IDLE = "ray::IDLE"
"""Name of a worker process between two tasks."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """What a process holds."""

    role: str
    name: str
    """What it runs now, such as ray::ImplicitFunc.train."""
    held: dict[str, float]
    """By unit."""
    kinds: dict[str, int]
    """Open handles by kind."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What is held at a moment."""

    processes: dict[int, Process]
    """By process id."""
    counts: dict[str, float]
    """By COUNTS."""
    files: dict[str, float]
    """MB of the session folder by the names of its files, less ids and numbers."""

    def measure(self, name: str) -> float:
        """Return one of NAMES."""
        if name in self.counts:
            return self.counts[name]
        unit, _, role = name.partition(" of ")
        return sum(each.held[unit] for each in self.processes.values() if each.role == role)


def allowed(name: str) -> float:
    """Growth of a measure that is none."""
    return ALLOWED.get(name.split()[0], ALLOWED[""])


class Sampler:
    """Looks at a cluster, to which this process is connected."""

    def __init__(self, cluster: TokenCluster, session_folder: Path) -> None:
        self._cluster, self._folder = cluster, session_folder
        self._state: Any = internal_api.get_state_from_address(cluster.address)

    def take(self, driver: int) -> Sample:
        """Measure; `driver` is the process of the command."""
        processes: dict[int, Process] = {}
        for pid in with_children(self._cluster.pids()):
            with suppress(OSError):  # it has ended since
                processes[pid] = measure(pid, driver)
        alive = state.actors(actor_state_name="ALIVE").values()
        groups: Any = placement_group_table()
        reply: Any = internal_api.get_memory_info_reply(self._state)
        files = sizes_of(self._folder)
        counts = {
            "processes": float(len(processes)),
            "actors": float(len(alive)),
            "placement groups": float(
                sum(group["state"] == "CREATED" for group in groups.values())
            ),
            "MB of objects": reply.store_stats.object_store_bytes_used / 1e6,
            SESSION_FOLDER: sum(files.values()),
        }
        return Sample(processes=processes, counts=counts, files=files)


def with_children(pids: list[int]) -> set[int]:
    """Add their children: Ray's agents write a title over their environment, by which processes of
    a cluster are found."""
    parents = set(pids)
    found = set(pids)
    for process in Path("/proc").iterdir():
        with suppress(OSError):  # it has ended since
            if process.name.isdigit() and parent_of(process) in parents:
                found.add(int(process.name))
    return found


def parent_of(process: Path) -> int:
    # The fields after the program's name, which may hold blanks: state, parent, ...
    return int(process.joinpath("stat").read_text().rpartition(") ")[2].split()[1])


def measure(pid: int, driver: int) -> Process:
    """Measure memory that a process shares with no other, open handles, and threads."""
    process = Path(f"/proc/{pid}")
    lines = process.joinpath("smaps_rollup").read_text().splitlines()
    private_kb = sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
    kinds: Counter[str] = Counter()
    for handle in process.joinpath("fd").iterdir():
        with suppress(OSError):  # closed since
            kinds[find_kind(os.readlink(handle))] += 1
    if not (command_line := process.joinpath("cmdline").read_bytes()):
        raise ProcessLookupError  # it has ended, and its parent has not asked how
    role, name = identify(command_line, is_driver=pid == driver)
    held = {
        "MB": private_kb / 1e3,
        "handles": float(kinds.total()),
        "threads": float(len(list(process.joinpath("task").iterdir()))),
    }
    return Process(role=role, name=name, held=held, kinds=dict(kinds))


def find_kind(target: str) -> str:
    """Return `file`, or the kind of a handle that is none: socket, pipe, eventfd, ..."""
    return "file" if target.startswith("/") else target.removeprefix("anon_inode:").split(":")[0]


def identify(command_line: bytes, *, is_driver: bool) -> tuple[str, str]:
    """Return the role and the name of a process."""
    words = command_line.decode().rstrip("\0").split("\0")
    program, command = Path(words[0].split()[0]).name, " ".join(words)
    if is_driver:
        return "driver", "driver"
    if program in PROGRAMS:
        return PROGRAMS[program], program
    if any(word.endswith(STARTING) for word in words):
        return "workers", IDLE
    if any(word in command for word in SERVICES):
        scripts = [Path(word).stem for word in words if word.endswith(".py")]
        modules = [name for flag, name in pairwise(words) if flag == "-m"]
        return "services", [*scripts, *modules, words[0].split()[0]][0]
    return ("workers" if "ray::" in command else "services"), words[0].split()[0]


def sizes_of(folder: Path) -> dict[str, float]:
    """MB on the disk below a folder, by the files' names without ids and numbers."""
    sizes: Counter[str] = Counter()
    for below, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # deleted since
                sizes[IDS.sub("*", name)] += os.lstat(os.path.join(below, name)).st_blocks * 512
    return {name: size / 1e6 for name, size in sizes.items()}

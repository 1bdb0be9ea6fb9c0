"""Warns while Ray's memory monitor kills tasks on this machine: it starts them again, silently."""

import os
import threading
import time
from collections.abc import Callable, Mapping
from math import inf

from cluster.ray_internals import find_memory_share

THRESHOLD = 0.95
"""Ray's default."""
CHECK_EVERY_S = 5.0


def find_kill_share(environment: Mapping[str, str] = os.environ) -> float:
    """Return the share of used memory from which Ray kills tasks; infinity where it kills none."""
    if environment.get("RAY_memory_monitor_refresh_ms") == "0":
        return inf
    try:
        return float(environment.get("RAY_memory_usage_threshold") or THRESHOLD)
    except ValueError:
        return inf  # Ray refuses it by name


def watch_memory(warn: Callable[[str], None]) -> None:
    """Warn once, from a thread, where two looks in a row find so much memory used."""

    def watch() -> None:
        limit, was_above = find_kill_share(), False
        while True:
            used = find_memory_share()
            if used >= limit and was_above:
                warn(
                    f"{used:.0%} of this machine's memory is used, and Ray kills and repeats tasks "
                    f"from {limit:.0%} (RAY_memory_usage_threshold): free memory, or use smaller "
                    "batches or fewer workers"
                )
                return
            was_above = used >= limit
            time.sleep(CHECK_EVERY_S)

    threading.Thread(target=watch, name="watch-memory", daemon=True).start()

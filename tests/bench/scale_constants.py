"""What `tests.bench.scale_measure` has measured: kept in scale_constants.json, read by the tables.

"parts": {PART: {"command": ..., "date": ..., "machine": ..., "values": {NAME: number or list}}}
"""

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_suffix(".json")


def read_constants() -> dict[str, dict[str, Any]]:
    """Return the values of every part."""
    return {name: part["values"] for name, part in read_parts().items()}


def read_parts() -> dict[str, dict[str, Any]]:
    """Return every part with where it comes from."""
    return json.loads(FILE.read_text())["parts"] if FILE.exists() else {}


def write_part(name: str, values: dict[str, Any]) -> None:
    """Put a part in the place of an older one."""
    part = {
        "command": f"python -m tests.bench.scale_measure {name}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {_memory_gib():.0f} GiB, {platform.machine()}, no GPU",
        "values": values,
    }
    parts = dict(sorted((read_parts() | {name: part}).items()))
    FILE.write_text(json.dumps({"parts": parts}, indent=1) + "\n")


def exponent(sizes: list[float], values: list[float]) -> float:
    """Fit value = c * size ** exponent by least squares of logarithms; 1 is in step with the size.

    A value of 0 counts as one that is too small to be told from 0.
    """
    logs = np.log(np.maximum(values, 1e-9))
    return float(np.polyfit(np.log(sizes), logs, 1)[0])


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30

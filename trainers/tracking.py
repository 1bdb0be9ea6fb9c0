"""How a run is recorded: rows of metrics in RUN/metrics.jsonl, and whether W&B mirrors them.

Rank 0 writes them, after reduction; `mirror.py` copies them to W&B.
"""

import json
import os
from typing import Any

from datasets import storage
from datasets.fields import take_object
from datasets.records import damaged, parse_json
from trainers import metrics
from trainers.config import TrackConfig

Row = dict[str, Any]


class JsonlTracker:
    """Write rows to RUN/metrics.jsonl; each has its own, larger global_step.

    Args:
        last_row: what a resumed run measured at its checkpoint. Rows beyond it, of a sitting that
            died later, are dropped; it is added where that sitting died before tracking it.
    """

    def __init__(self, run: str, *, last_row: Row | None = None) -> None:
        self._uri = storage.join(run, "metrics.jsonl")
        self._rows: list[Row] = []
        if last_row:
            before = (row for row in read_rows(run) if row["global_step"] < last_row["global_step"])
            self._rows = [*before, last_row]
        self._write()

    def log(self, row: Row) -> None:
        self._rows.append(row)
        self._write()

    def _write(self) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in self._rows)
        storage.write_bytes(self._uri, lines.encode())


def read_rows(run: str) -> list[Row]:
    """Rows of a run so far; none where it has not begun.

    Raises:
        ValueError: for a line that is no row, which it counts from 1.
    """
    uri = storage.join(run, "metrics.jsonl")
    try:
        content = storage.read_bytes(uri)
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line:
            place = f"{uri} line {number}"
            row = parse_json(line, place)
            try:
                rows.append(take_object(row, _hints_of(row)))
            except ValueError as error:
                raise damaged(place, error) from None
    return rows


def _hints_of(row: object) -> dict[str, Any]:
    """A row names its step, lost images, and where it ends an epoch that; all else is numbers."""
    named = row if isinstance(row, dict) else {}
    hints: dict[str, Any] = dict.fromkeys(named, int | float | None)
    if metrics.LOST_NAMES in named:
        hints[metrics.LOST_NAMES] = list[str]
    if metrics.VAL_TOP1 in named:
        hints |= {metrics.EPOCH: int, metrics.VAL_TOP1: float}
    return hints | {metrics.GLOBAL_STEP: int}


def epoch_rows(run: str) -> list[Row]:
    """Rows of a run that end an epoch and tell its val/top1."""
    return [row for row in read_rows(run) if metrics.VAL_TOP1 in row]


def find_mode(track: TrackConfig) -> str:
    """online, offline or off: as configured, else by WANDB_MODE, else online where a key is set."""
    if track.wandb != "auto":
        return track.wandb
    by_key = "online" if os.environ.get("WANDB_API_KEY") else "offline"
    mode = os.environ.get("WANDB_MODE", by_key)
    return "off" if mode == "disabled" else mode

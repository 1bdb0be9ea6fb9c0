"""How a run is recorded: rows of metrics in RUN/metrics.jsonl, and whether W&B mirrors them.

Rank 0 writes them, after reduction; `mirror.py` copies them to W&B.
"""

import json
import os
import time
from typing import Any

from cluster.io import storage
from cluster.io.fields import take_object
from cluster.io.records import damaged, parse_json
from trainers import metrics
from trainers.config import TrackConfig

Row = dict[str, Any]

WRITING_SHARE = 0.1
"""At most this part of the time goes into rows of a file that has to be written whole."""


class JsonlTracker:
    """Write rows to RUN/metrics.jsonl; each has its own, larger global_step.

    A row costs what it weighs, however many there are before it: a local file grows. An object
    store takes whole objects alone, so there rows wait until all of them are worth writing;
    `flush` writes those that wait, and so does the row that ends an epoch.

    Args:
        last_row: what a resumed run measured at its checkpoint. Rows beyond it, of a sitting that
            died later, are dropped; it is added where that sitting died before tracking it.
    """

    def __init__(self, run: str, *, last_row: Row | None = None) -> None:
        self._uri = storage.join(run, "metrics.jsonl")
        rows: list[Row] = []
        if last_row:
            before = (row for row in read_rows(run) if row["global_step"] < last_row["global_step"])
            rows = [*before, last_row]
        self._grows = storage.can_append(self._uri)
        self._content = bytearray(b"".join(map(_line, rows)))  # of a file that can't grow
        self._waits, self._took_s, self._written_s = False, 0.0, 0.0
        self._write()

    def log(self, row: Row) -> None:
        if self._grows:
            storage.append_bytes(self._uri, _line(row))
            return
        self._content += _line(row)
        self._waits = True
        rest_s = max(1.0, self._took_s / WRITING_SHARE)
        if metrics.EPOCH_S in row or time.monotonic() - self._written_s >= rest_s:
            self._write()

    def flush(self) -> None:
        """Write the rows that wait."""
        if self._waits:
            self._write()

    def _write(self) -> None:
        began_s = time.monotonic()
        storage.write_bytes(self._uri, bytes(self._content))
        self._waits, self._written_s = False, time.monotonic()
        self._took_s = self._written_s - began_s


def _line(row: Row) -> bytes:
    return json.dumps(row).encode() + b"\n"


class RowReader:
    """Read the rows of a run while they are written, each of them once. Where nothing is new, only
    the size of the file is asked for.

    A worker that restarts writes the file anew, without the rows beyond its checkpoint: where the
    last line that was read no longer stands in its place, all are read again.
    """

    def __init__(self, run: str) -> None:
        self._uri = storage.join(run, "metrics.jsonl")
        self._place, self._last_line, self._num_lines = 0, b"", 0

    def poll_new(self) -> list[Row]:
        """Return what `read_new` does; nothing while storage is out of reach. That ends who writes
        there, who says so; who only looks may look again."""
        try:
            return self.read_new()
        except OSError:
            return []

    def read_new(self) -> list[Row]:
        """Return the rows since the last call, or all where the file was written anew.

        Raises:
            UserError: for a line that is no row, which it counts from 1.
        """
        try:
            if storage.size_of(self._uri) == self._place + len(self._last_line):
                return []
            content = storage.read_bytes(self._uri, start=self._place)
            if not content.startswith(self._last_line):
                self._place, self._last_line, self._num_lines = 0, b"", 0
                content = storage.read_bytes(self._uri)
        except FileNotFoundError:
            return []
        lines = _whole_lines(content)
        if not lines:
            return []
        new = lines[1:] if self._last_line else lines
        first = self._num_lines + 1
        self._place += sum(map(len, lines[:-1]))
        self._last_line, self._num_lines = lines[-1], self._num_lines + len(new)
        return [
            _read_row(line, f"{self._uri} line {number}")
            for number, line in enumerate(new, start=first)
            if line.strip()
        ]


def read_rows(run: str) -> list[Row]:
    """Rows of a run so far; none where it has not begun.

    Raises:
        UserError: for a line that is no row, which it counts from 1.
    """
    return RowReader(run).read_new()


def _whole_lines(content: bytes) -> list[bytes]:
    """Cut a file into lines, but for one that is still being written."""
    return content[: content.rfind(b"\n") + 1].splitlines(keepends=True)


def _read_row(line: bytes, place: str) -> Row:
    """A row names its step, lost images, and where it ends an epoch that; all else is numbers."""
    row = parse_json(line, place)
    named = row if isinstance(row, dict) else {}
    hints: dict[str, Any] = dict.fromkeys(named, int | float | None)
    if metrics.UNREADABLE_NAMES in named:
        hints[metrics.UNREADABLE_NAMES] = list[str]
    if metrics.VAL_TOP1 in named:
        hints |= {metrics.EPOCH: int, metrics.VAL_TOP1: float}
    try:
        return take_object(row, hints | {metrics.GLOBAL_STEP: int})
    except ValueError as error:
        raise damaged(place, error) from None


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

"""Rows of metrics in RUN/metrics.jsonl: written by rank 0; the only reader.

`read_rows` and `epoch_rows` read a run so far, `RowReader` follows one that trains.
"""

import json
import time
from typing import Any

from cluster import wandb_env
from cluster.io import storage
from cluster.io.fields import take_object
from cluster.io.records import damaged, parse_json
from trainers import metrics
from trainers.config import TrackConfig

Row = dict[str, Any]

WRITING_SHARE = 0.1
"""Largest share of the time spent on writing a file that can't be appended to."""


class JsonlTracker:
    """Writes rows to RUN/metrics.jsonl, in order of global_step.

    A local file is appended to. An object store only takes whole objects: there rows wait until
    WRITING_SHARE allows another write, until the end of an epoch, or until `flush`.

    Args:
        last_row: of the checkpoint that the run resumes from. Later rows are dropped; it is added
            where the process died before writing it.
    """

    def __init__(self, run: str, *, last_row: Row | None = None) -> None:
        self._uri = storage.join(run, "metrics.jsonl")
        rows: list[Row] = []
        if last_row:
            before = (row for row in read_rows(run) if row["global_step"] < last_row["global_step"])
            rows = [*before, last_row]
        self._can_append = storage.can_append(self._uri)
        self._content = bytearray(b"".join(map(_line, rows)))  # of a file that can't be appended to
        self._waits, self._took_s, self._written_s = False, 0.0, 0.0
        self._write()

    def log(self, row: Row) -> None:
        if self._can_append:
            storage.append_bytes(self._uri, _line(row))
            return
        self._content += _line(row)
        self._waits = True
        rest_s = max(1.0, self._took_s / WRITING_SHARE)
        if metrics.EPOCH_S in row or time.monotonic() - self._written_s >= rest_s:
            self._write()

    def flush(self) -> None:
        """Write the waiting rows."""
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
    """Follows the rows of a run while they are written, each of them once.

    Costs one request for the file's size where nothing is new. A restarted worker rewrites the
    file, without the rows after its checkpoint: once the last line read has changed, all rows are
    read again.
    """

    def __init__(self, run: str) -> None:
        self._uri = storage.join(run, "metrics.jsonl")
        self._offset, self._last_line, self._num_lines = 0, b"", 0

    def poll_new(self) -> list[Row]:
        """Return what `read_new` does, or nothing while storage is out of reach, which the writer
        of the run reports."""
        try:
            return self.read_new()
        except OSError:
            return []

    def read_new(self) -> list[Row]:
        """Return the rows since the last call, or all where the file was rewritten.

        Raises:
            UserError: for a line that is not a row, counted from 1.
        """
        try:
            if storage.size_of(self._uri) == self._offset + len(self._last_line):
                return []
            content = storage.read_bytes(self._uri, start=self._offset)
            if not content.startswith(self._last_line):
                self._offset, self._last_line, self._num_lines = 0, b"", 0
                content = storage.read_bytes(self._uri)
        except FileNotFoundError:
            return []
        lines = _whole_lines(content)
        if not lines:
            return []
        new = lines[1:] if self._last_line else lines
        first = self._num_lines + 1
        self._offset += sum(map(len, lines[:-1]))
        self._last_line, self._num_lines = lines[-1], self._num_lines + len(new)
        return [
            _read_row(line, f"{self._uri} line {number}")
            for number, line in enumerate(new, start=first)
            if line.strip()
        ]


def read_rows(run: str) -> list[Row]:
    """Read the rows of a run so far; none where it has not started.

    Raises:
        UserError: for a line that is not a row, counted from 1.
    """
    return RowReader(run).read_new()


def _whole_lines(content: bytes) -> list[bytes]:
    """Split into lines, without one that is still being written."""
    return content[: content.rfind(b"\n") + 1].splitlines(keepends=True)


def _read_row(line: bytes, source: str) -> Row:
    """Parse a row: its step, names of unreadable images, epoch where it ends one; else numbers."""
    row = parse_json(line, source)
    named = row if isinstance(row, dict) else {}
    hints: dict[str, Any] = dict.fromkeys(named, int | float | None)
    if metrics.UNREADABLE_NAMES in named:
        hints[metrics.UNREADABLE_NAMES] = list[str]
    if metrics.VAL_TOP1 in named:
        hints |= {metrics.EPOCH: int, metrics.VAL_TOP1: float}
    try:
        return take_object(row, hints | {metrics.GLOBAL_STEP: int})
    except ValueError as error:
        raise damaged(source, error) from None


def epoch_rows(run: str) -> list[Row]:
    """Read the rows of a run that end an epoch and have its val/top1."""
    return [row for row in read_rows(run) if metrics.VAL_TOP1 in row]


def find_mode(track: TrackConfig) -> str:
    """Return online, offline or off: as configured, else as the user has set up W&B."""
    return track.wandb if track.wandb != "auto" else wandb_env.find_mode().value

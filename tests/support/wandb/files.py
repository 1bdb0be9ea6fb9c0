"""Runs read back from W&B's local files, by `wandb leet inspect`: wandb's own reader."""

import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainers.tracking.local_runs import TrackedFolder
from trainers.tracking.sync import WANDB

READER_TIMEOUT_S = 120
Json = dict[str, Any]


@dataclass
class Record:
    """The content of a run's files."""

    run: Json = field(default_factory=dict)
    """Its project, run_group, job_type, display_name and tags."""
    config: Json = field(default_factory=dict)
    """Without W&B's own entries."""
    num_configs: int = 0
    """How often it was set."""
    axes: set[str] = field(default_factory=set)
    history: list[Json] = field(default_factory=list)
    """Rows; the parts of a table or picture are named KEY.PART."""
    summary: Json = field(default_factory=dict)
    artifacts: list[Json] = field(default_factory=list)
    exit_code: int | None = None
    """None where the run was not finished."""

    def add(self, record: Json) -> None:
        """Add one record of W&B's reader."""
        kind, content = record["type"], record.get(record["type"], {})
        if kind == "run":
            self.run, self.exit_code = content, None
            self._set(content.get("config", {}))
        elif kind == "config":
            self._set(content)
        elif kind == "metric":
            self.axes.add(content.get("name") or content.get("glob_name"))
        elif kind == "history":
            self.history.append(content["item"])
        elif kind == "summary":
            self.summary |= content.get("update", {})
        elif kind == "artifact":
            self.artifacts.append(content)
        elif kind == "exit":
            self.exit_code = content.get("exit_code", 0)

    def _set(self, config: Json) -> None:
        values = config.get("update", {})
        own = {key: value for key, value in values.items() if not key.startswith("_wandb")}
        self.config |= own
        self.num_configs += bool(own)


def read_record(folder: TrackedFolder) -> Record:
    """Read all sessions of a run.

    Raises:
        ValueError: for a file that W&B's reader can't read.
    """
    return _read(folder.sessions)


def read_history(session: Path) -> list[Json]:
    """Read the rows of one session."""
    return _read([session]).history


def _read(sessions: Iterable[Path]) -> Record:
    record = Record()
    for session in sessions:
        for line in inspect(session).splitlines():
            record.add(json.loads(line))
    return record


def inspect(session: Path, *options: str) -> str:
    """Return the JSON lines that W&B's reader prints of a session.

    Reads it again where wandb's process was still writing it.

    Raises:
        ValueError: with its reason, where it can't read it.
    """

    def measure() -> list[int]:
        return [file.stat().st_size for file in session.glob("*.wandb")]

    while True:
        sizes = measure()
        done = subprocess.run(
            [WANDB, "leet", "inspect", "--json", *options, str(session.resolve())],
            cwd=session.parent,
            capture_output=True,
            text=True,
            timeout=READER_TIMEOUT_S,
        )
        if sizes == measure():
            break
    if done.returncode:
        raise ValueError(f"W&B's reader can't read {session.name}: {done.stderr.strip()}")
    return done.stdout

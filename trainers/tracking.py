"""How a run is recorded: metrics.jsonl in the run folder, and W&B as its mirror.

Rank 0 writes metrics.jsonl, after reduction. The driver copies new rows to W&B: it outlives killed
and pruned workers, so it alone can say how a run ended, and no outage of W&B touches training.
"""

import hashlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb

from datasets import storage
from trainers.config import TrackConfig

logger = logging.getLogger(__name__)

Row = dict[str, Any]


class JsonlTracker:
    """Write rows to RUN/metrics.jsonl; each has its own, larger global_step.

    Rows beyond `global_step`, from a sitting that died after its last checkpoint, are dropped.
    """

    def __init__(self, run: str, *, global_step: int = 0) -> None:
        self._uri = storage.join(run, "metrics.jsonl")
        self._rows = [row for row in read_rows(run) if row["global_step"] <= global_step]
        self._write()

    def log(self, row: Row) -> None:
        self._rows.append(row)
        self._write()

    def _write(self) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in self._rows)
        storage.write_bytes(self._uri, lines.encode())


def read_rows(run: str) -> list[Row]:
    """Rows of a run so far; none where it has not begun."""
    try:
        content = storage.read_bytes(storage.join(run, "metrics.jsonl"))
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in content.decode().splitlines()]


class RunMirror:
    """One run's rows in W&B. Lives in the driver; `sync` it now and then, `finish` it once."""

    def __init__(
        self,
        run: str,
        *,
        track: TrackConfig,
        name: str,
        group: str | None,
        job_type: str,
        config: dict[str, Any],
    ) -> None:
        self._run, self._synced_step = run, -1
        self._wandb = None
        mode = find_mode(track)
        if mode == "off":
            return
        self._folder = run if "://" not in run else os.path.abspath("runs")
        os.makedirs(self._folder, exist_ok=True)
        options: dict[str, Any] = {
            "project": track.project,
            "group": group,
            "name": name,
            "job_type": job_type,
            # The same run folder is the same run, also after a restart.
            "id": hashlib.sha256(run.encode()).hexdigest()[:16],
            "config": config,
            "dir": self._folder,
            "reinit": "create_new",  # a sweep's driver keeps several runs open at once
            "settings": wandb.Settings(console="off", silent=True),
        }
        if mode == "online":
            try:
                self._wandb = wandb.init(mode="online", resume="allow", **options)
                self._synced_step = self._wandb.summary.get("global_step", -1)
            except wandb.Error as error:
                logger.warning("W&B is out of reach (%s): kept offline, to be synced later", error)
        if self._wandb is None:
            self._wandb = wandb.init(mode="offline", **options)
        self._wandb.define_metric("global_step")
        self._wandb.define_metric("*", step_metric="global_step")
        for metric in ("val/top1", "val/top5"):
            self._wandb.define_metric(metric, step_metric="global_step", summary="max")

    def sync(self) -> None:
        """Copy rows that are not in W&B yet."""
        if self._wandb is None:
            return
        for row in read_rows(self._run):
            if row["global_step"] > self._synced_step:
                self._wandb.log(row)
                self._synced_step = row["global_step"]

    def finish(self, state: str) -> None:
        """Copy the last rows and end the run as finished, pruned, failed or killed."""
        if self._wandb is None:
            return
        self.sync()
        self._wandb.summary["state"] = state
        self._wandb.finish(exit_code=0 if state in ("finished", "pruned") else 1)
        if self._wandb.offline:
            self._drop_superseded(Path(self._wandb.dir).parent)
        self._wandb = None

    def _drop_superseded(self, current: Path) -> None:
        """Offline runs can't be resumed: each sitting writes all rows anew, the last is whole."""
        run_id = current.name.rsplit("-", 1)[-1]
        for folder in current.parent.glob(f"offline-run-*-{run_id}"):
            if folder != current:
                shutil.rmtree(folder)

    def sync_command(self) -> str | None:
        """The command that uploads an offline run; None where there is nothing to upload."""
        if self._wandb is None or not self._wandb.offline:
            return None
        return f"wandb sync {self._folder}/wandb/offline-run-*"


def find_mode(track: TrackConfig) -> str:
    """online, offline or off: as configured, else by WANDB_MODE, else online where a key is set."""
    if track.wandb != "auto":
        return track.wandb
    by_key = "online" if os.environ.get("WANDB_API_KEY") else "offline"
    mode = os.environ.get("WANDB_MODE", by_key)
    return "off" if mode == "disabled" else mode


@contextmanager
def follow(run: str, mirror: RunMirror, show: Callable[[Row], None]) -> Iterator[None]:
    """Mirror and show a run's rows while the body trains it; the way it ends is the run's state."""
    stop = threading.Event()
    shown = max((row["global_step"] for row in read_rows(run)), default=-1)

    def copy() -> None:
        nonlocal shown
        for row in read_rows(run):
            if row["global_step"] > shown:
                show(row)
                shown = row["global_step"]
        mirror.sync()

    def poll() -> None:
        while not stop.wait(1.0):
            copy()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    state = "failed"
    try:
        yield
        state = "finished"
    except KeyboardInterrupt:
        state = "killed"
        raise
    finally:
        stop.set()
        thread.join()
        copy()
        mirror.finish(state)

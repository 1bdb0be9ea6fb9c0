"""How a run is recorded: metrics.jsonl in the run folder, and W&B as its mirror.

Rank 0 writes metrics.jsonl, after reduction. The driver copies new rows to W&B: it outlives killed
and pruned workers, so it alone can say how a run ended, and no outage of W&B touches training.
"""

import json
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb
from pyarrow import fs

from datasets import storage
from trainers import metrics
from trainers.config import TrackConfig

logger = logging.getLogger(__name__)

Row = dict[str, Any]
PATIENCE_S = 20
"""How long W&B may keep the driver waiting; then the run goes on, or ends, offline."""


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
    """Rows of a run so far; none where it has not begun."""
    try:
        content = storage.read_bytes(storage.join(run, "metrics.jsonl"))
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in content.decode().splitlines()]


def epoch_rows(run: str) -> list[Row]:
    """Rows of a run that end an epoch and tell its val/top1."""
    return [row for row in read_rows(run) if metrics.VAL_TOP1 in row]


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
        self._id = _run_id(run)
        self._older = self._find_offline_runs()
        options: dict[str, Any] = {
            "project": track.project,
            "group": group,
            "name": name,
            "job_type": job_type,
            "id": self._id,
            "config": config,
            "dir": self._folder,
            "reinit": "create_new",  # a sweep's driver keeps several runs open at once
            "settings": wandb.Settings(
                console="off", silent=True, init_timeout=PATIENCE_S, finish_timeout=PATIENCE_S
            ),
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
            self._keep_offline_run()
        self._wandb = None

    def _keep_offline_run(self) -> None:
        """Drop older sittings: each writes all rows anew, as offline runs can't be resumed."""
        new = self._find_offline_runs() - self._older
        for folder in self._older if new else ():
            shutil.rmtree(folder)
        if "://" in self._run:  # this machine's disk may go away; the run folder stays
            for folder in new:
                target, path = storage.resolve(storage.join(self._run, "wandb", folder.name))
                fs.copy_files(str(folder), path, destination_filesystem=target)

    def _find_offline_runs(self) -> set[Path]:
        return set(Path(self._folder, "wandb").glob(f"offline-run-*-{self._id}*"))

    def sync_command(self) -> str | None:
        """The command that uploads an offline run; None where there is nothing to upload."""
        if self._wandb is None or not self._wandb.offline:
            return None
        if "://" in self._run:
            return f"wandb sync offline-run-*  # after copying {self._run}/wandb to a local folder"
        return f"wandb sync {self._folder}/wandb/offline-run-*"


def _run_id(run: str) -> str:
    """The W&B id kept in the run folder: the same run after a restart, another in a new folder."""
    uri = storage.join(run, "wandb_id")
    if not storage.exists(uri):
        storage.write_bytes(uri, uuid.uuid4().hex[:16].encode())
    return storage.read_bytes(uri).decode()


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

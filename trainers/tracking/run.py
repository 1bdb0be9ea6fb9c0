"""One run in W&B: online, or offline where W&B is out of reach.

FOLDER/wandb_id                   the same run after a restart, another one in a new folder
FOLDER/wandb/offline-run-*-ID     what `wandb sync` uploads
"""

import logging
import os
import shlex
import shutil
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import wandb
from pyarrow import fs
from wandb.sdk import wandb_setup
from wandb.sdk.mailbox import HandleAbandonedError

from cluster.io import storage
from trainers.config import TrackConfig
from trainers.metrics import EPOCH, GLOBAL_STEP, SUMMARIES
from trainers.run.rows import find_mode
from trainers.tracking.local_runs import read_id

logger = logging.getLogger(__name__)

WandbError = wandb.Error

# Statistics of W&B's client, not of runs: without a network they hold up the end of a process.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
OFFLINE_SUFFIX = "-offline"
"""Of the id of a run that W&B could not be reached for; `track sync` brings it home."""
PATIENCE_S = 20
"""How long W&B may keep a thread waiting at a run's start and at its end."""
FLUSH_S = 1
"""Rows that a killed process may lose, in seconds; W&B's own default is 15."""
MAX_TAG = 64
"""Characters of a tag, W&B's limit."""


class WandbRun:
    """A run in W&B, to be used in one thread.

    An outage raises nothing: the run goes on offline, and says how to upload it.

    Args:
        folder: URI of what the run is about; its id is kept there, and offline its files.
        config: nested, fit for JSON.
    """

    def __init__(
        self,
        folder: str,
        *,
        track: TrackConfig,
        name: str,
        group: str | None,
        job_type: str,
        config: dict[str, Any],
        tags: Sequence[str] = (),
    ) -> None:
        self._uri = folder
        self._folder = folder if "://" not in folder else os.path.abspath("runs")
        os.makedirs(self._folder, exist_ok=True)
        self._id = find_id(folder)
        self._older = self._find_offline_runs()
        self.synced_step = -1
        """The global_step up to which W&B has the rows of sittings before."""
        options: dict[str, Any] = {
            "project": track.project,
            "group": group,
            "name": name,
            "job_type": job_type,
            "id": self._id,
            "config": config,
            "tags": [tag[:MAX_TAG] for tag in (*tags, *track.tags)],
            "dir": self._folder,
            "reinit": "create_new",  # a sweep's driver keeps several runs open at once
            "settings": wandb.Settings(
                console="off",
                silent=True,
                init_timeout=PATIENCE_S,
                finish_timeout=PATIENCE_S,
                finish_timeout_raises=True,
                # A private name: wandb is pinned, and test_trainers_wandb_run holds what it does.
                x_transaction_log_flush_interval=FLUSH_S,
            ),
        }
        run = None
        if find_mode(track) == "online":
            try:
                run = wandb.init(mode="online", resume="allow", **options)
                self.synced_step = run.summary.get(GLOBAL_STEP, -1)
            except WandbError as error:
                logger.warning("W&B is out of reach (%s): kept offline, to be synced later", error)
                options["id"] += OFFLINE_SUFFIX  # the other id stays taken in this process
        self._run = run or wandb.init(mode="offline", **options)
        self._asks = True
        self.sync_command = sync_command(folder) if self._run.offline else None
        """What uploads what W&B does not have; None where it has all."""
        self._define_axes()

    def _define_axes(self) -> None:
        """Draw what is measured after an epoch over epochs, all else over optimizer steps."""
        for axis in (EPOCH, GLOBAL_STEP):
            self._run.define_metric(axis)
        self._run.define_metric("*", step_metric=GLOBAL_STEP)
        self._run.define_metric("val/*", step_metric=EPOCH)
        for metric, (axis, best) in SUMMARIES.items():
            self._run.define_metric(metric, step_metric=axis, summary=best)

    def show(self, what: str, show: Callable[[], object]) -> None:
        """Call what asks the server, such as to log a table or an artifact; go on without what W&B,
        or a data set that is gone, does not give. A server that did not answer is asked no more."""
        if not self._asks:
            return
        try:
            show()
        except (WandbError, ValueError, OSError) as error:
            self._asks = not isinstance(error, WandbError)
            logger.warning("W&B is not shown %s of %s: %s", what, self._uri, error)

    def log(self, values: dict[str, Any]) -> None:
        """Add a row; it names its own global_step or epoch. Tables and pictures may be in it."""
        self._run.log(values)

    def log_table(self, key: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Add a table of texts and numbers; a column that has both is written as text."""
        values = (_as_one_type(column) for column in zip(*rows, strict=True))
        data: list[Any] = [list(row) for row in zip(*values, strict=True)]
        self._run.log({key: wandb.Table(columns=list(columns), data=data)})

    def log_picture(self, key: str, path: str) -> None:
        """Add a picture file."""
        self._run.log({key: wandb.Image(path)})

    def summarize(self, values: dict[str, Any]) -> None:
        """Add to the run's summary."""
        self._run.summary.update(values)

    def log_artifact(self, artifact: wandb.Artifact, *, aliases: Sequence[str] = ()) -> None:
        """Name an artifact as what this run has made."""
        self._run.log_artifact(artifact, aliases=list(aliases))

    def use_artifact(self, artifact: wandb.Artifact) -> None:
        """Name an artifact as what this run starts from; W&B knows it by its digest.

        What `wandb.Run.use_artifact` does online, without waiting for the server; offline that
        refuses, though the file can hold it.
        """
        self._run._log_artifact(artifact, aliases=[], is_user_created=True, use_after_commit=True)

    def alert(self, title: str, text: str, *, is_error: bool = False) -> None:
        level = "ERROR" if is_error else "WARN"
        self._run.alert(title=title, text=text, level=level)

    def finish(self, state: str) -> None:
        """End the run as finished, pruned, failed or killed; its summary's `state` tells which."""
        self._run.summary["state"] = state
        file = Path(self._run.settings.sync_file)
        try:
            self._run.finish(exit_code=0 if state in ("finished", "pruned") else 1)
        except (TimeoutError, HandleAbandonedError):  # the other: wandb's process is gone
            self.sync_command = sync_command(self._uri)
            logger.warning("W&B did not take all of %s in time", self._uri)
            return
        if not self._run.offline:
            file.with_name(f"{file.name}.synced").touch()  # W&B's own mark: `track sync` goes by it
        self._keep_one_offline_run()

    def _keep_one_offline_run(self) -> None:
        """Drop older offline sittings: each sitting writes all rows that W&B does not have."""
        new = self._find_offline_runs() - self._older
        for folder in self._older if new or not self._run.offline else ():
            shutil.rmtree(folder)
        if "://" in self._uri:  # this machine's disk may go away; the run folder stays
            kept = storage.join(self._uri, "wandb")
            older = storage.list_names(kept)
            for folder in new:
                target, path = storage.resolve(storage.join(kept, folder.name))
                fs.copy_files(str(folder), path, destination_filesystem=target)
            for name in older if new or not self._run.offline else ():
                storage.delete_folder(storage.join(kept, name))

    def _find_offline_runs(self) -> set[Path]:
        return set(Path(self._folder, "wandb").glob(f"offline-run-*-{self._id}*"))


def _as_one_type(column: Sequence[Any]) -> Sequence[Any]:
    """A freeze depth is a number or `all`; W&B refuses a column of both."""
    texts = [isinstance(value, str) for value in column if value is not None]
    if all(texts) or not any(texts):
        return column
    return [value if value is None else str(value) for value in column]


def give_up() -> None:
    """Let this process end without waiting for W&B; what it was told stands in its files.

    At the end of a process wandb waits for its own one, which tries artifacts again for ever.
    """
    connection = wandb_setup.singleton()._connection  # private names: wandb is pinned
    if connection is not None and connection._cleanup is not None:
        connection._cleanup()


def sync_command(folder: str) -> str:
    """The command that uploads what a folder holds of runs that W&B does not have."""
    return f"python -m trainers track sync {shlex.quote(folder)}"


def find_id(folder: str) -> str:
    """Return the W&B id kept in a folder, which is given one where it has none."""
    uri = storage.join(folder, "wandb_id")
    if not storage.exists(uri):
        storage.write_bytes(uri, uuid.uuid4().hex[:16].encode())
    found = read_id(folder)
    assert found is not None, "it is written above"
    return found

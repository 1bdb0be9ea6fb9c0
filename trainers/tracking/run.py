"""One run in W&B: online, or offline where W&B is out of reach.

FOLDER/wandb_id keeps its id: a resumed training continues the same run, and a copy has its own.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import wandb

from cluster.io import storage
from cluster.wandb_env import MAX_TAG, find_login, split_tags
from trainers.config import TrackConfig
from trainers.metrics import EPOCH, GLOBAL_STEP, SUMMARIES
from trainers.run.rows import find_mode
from trainers.run.stop import STOPPED
from trainers.tracking import wandb_internals
from trainers.tracking.config import sync_command
from trainers.tracking.failures import FAILURES
from trainers.tracking.local_runs import find_id, local_folder
from trainers.tracking.sessions import delete_others, keep_sessions, note_session
from trainers.tracking.where import project_of

logger = logging.getLogger(__name__)

WandbError = wandb.Error

# Error reports of W&B's client, not runs: without a network they delay the exit of a process.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
OFFLINE_SUFFIX = "-offline"
"""Of the id of a run that W&B could not be reached for; `track sync` uploads it under the id."""
PATIENCE_S = 20
"""How long W&B may block a thread when a run starts and when it finishes."""
UPLOAD_TIMEOUT_S = 600
"""How long an upload may take that a link waits for."""
OLD_STOP_S = 60
"""In the first seconds of a resumed session, a stop is that of the session before: the server may
still repeat it. W&B reads it every 15 s, and sends something every 30 s at least."""


class WandbRun:
    """A run in W&B, used by one thread. An outage raises nothing: the run continues offline.

    Args:
        folder: URI of the training, evaluation or sweep; keeps the run's id and its offline files.
        config: nested, JSON-safe.
        on_stop: called, in another thread, where the user stops the run in W&B. By default nothing
            stops: W&B's own default is to interrupt this process, with all its other runs.
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
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        wandb_internals.check_versions()
        wandb_internals.list_packages_once()
        self._uri = folder
        self._is_in_bucket = "://" in folder
        self._folder = local_folder(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._id = find_id(folder)
        self._on_stop, self._stopped_uri = on_stop, storage.join(folder, "wandb_stopped")
        self._was_stopped, self._started_s = storage.exists(self._stopped_uri), time.monotonic()
        self._older = set(wandb_internals.list_sessions(self._folder, self._id))
        self.synced_step = -1
        """The global_step up to which W&B has the rows of earlier sessions."""
        options: dict[str, Any] = {
            "project": project_of(track),
            "group": group,
            # A variable names one run, not all of a sweep.
            "name": (job_type == "train" and os.environ.get("WANDB_NAME")) or name,
            "job_type": job_type,
            "id": self._id,
            "config": config,
            "tags": [tag[:MAX_TAG] for tag in (*tags, *track.tags, *split_tags()) if tag.strip()],
            "dir": str(self._folder),
            "reinit": "create_new",  # a sweep's driver keeps several runs open at once
        }
        with wandb_internals.explaining_settings():
            self._run = self._open(options, is_online=find_mode(track) == "online")
        if self._is_in_bucket:
            note_session(folder, wandb_internals.session_of(self._run))
        self._is_reachable = True
        self._artifacts: list[wandb.Artifact] = []
        self.sync_command = sync_command(folder) if self._run.offline else None
        """The command that uploads what W&B does not have; None where it has all."""
        self._define_axes()

    def _open(self, options: dict[str, Any], *, is_online: bool) -> wandb.Run:
        settings = wandb.Settings(
            api_key=find_login(),
            console="off",
            silent=True,
            init_timeout=PATIENCE_S,
            finish_timeout=PATIENCE_S,
            finish_timeout_raises=True,
            stop_fn=lambda: self._stop(),  # a function: wandb copies its settings deeply
            **wandb_internals.PRIVATE_SETTINGS,
        )
        if is_online:
            try:
                run = wandb.init(mode="online", resume="allow", settings=settings, **options)
                self.synced_step = run.summary.get(GLOBAL_STEP, -1)
                return run
            except WandbError as error:
                logger.warning(
                    "W&B is out of reach (%s): the run is offline, to be synced later", error
                )
            options["id"] += OFFLINE_SUFFIX  # this process can't use the first one again
        return wandb.init(mode="offline", settings=settings, **options)

    def _stop(self) -> None:
        """Do what was asked for, in W&B's thread, which asks once."""
        if self._was_stopped and time.monotonic() - self._started_s < OLD_STOP_S:
            logger.warning(
                "W&B still has %s as stopped: Stop has no effect until it is resumed again",
                self._uri,
            )
            return
        storage.write_bytes(self._stopped_uri, b"stopped")
        self._on_stop()

    def _define_axes(self) -> None:
        """Plot validation metrics over epochs and all others over optimizer steps."""
        for axis in (EPOCH, GLOBAL_STEP):
            self._run.define_metric(axis)
        self._run.define_metric("*", step_metric=GLOBAL_STEP)
        self._run.define_metric("val/*", step_metric=EPOCH)
        for metric, (axis, best) in SUMMARIES.items():
            self._run.define_metric(metric, step_metric=axis, summary=best)

    def try_to(self, log: Callable[[], object], what: str, *, needs_server: bool = True) -> bool:
        """Log media, an artifact or alerts, made of files that may be out of reach or damaged;
        report a failure.

        After one request without an answer the server is not asked again.

        Returns:
            Whether it was logged.
        """
        if needs_server and not self._is_reachable:
            return False
        try:
            log()
        except wandb_internals.SERVICE_ERRORS:
            raise
        except (*wandb_internals.API_ERRORS, ValueError, OSError) as error:
            self._is_reachable = not isinstance(error, WandbError)
            FAILURES.report(f"W&B lacks {what} of {self._uri}: {error}", kind=f"lacks {what}")
            return False
        return True

    def log(self, values: dict[str, Any]) -> None:
        """Log a row of metrics and media, its global_step or epoch included."""
        self._run.log(values)

    def log_table(self, key: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Log a table of strings and numbers; a column of both becomes strings."""
        values = (_as_one_type(column) for column in zip(*rows, strict=True))
        data: list[Any] = [list(row) for row in zip(*values, strict=True)]
        self._run.log({key: wandb.Table(columns=list(columns), data=data)})

    def log_html(self, key: str, page: bytes) -> None:
        """Log a page as it is: `inject` would add a stylesheet that it would have to download."""
        self._run.log({key: wandb.Html(page.decode(), inject=False, data_is_not_path=True)})

    def summarize(self, values: dict[str, Any]) -> None:
        """Add to the run's summary."""
        self._run.summary.update(values)

    def log_artifact(self, artifact: wandb.Artifact, *, aliases: Sequence[str] = ()) -> None:
        """Log an artifact as an output of this run."""
        self._artifacts.append(self._run.log_artifact(artifact, aliases=list(aliases)))

    def link_artifact(self, artifact: wandb.Artifact, path: str, *, alias: str) -> None:
        """Log an artifact, wait until W&B has it, and link it to a collection of the registry."""
        self.log_artifact(artifact)
        artifact.wait(timeout=UPLOAD_TIMEOUT_S)
        self._run.link_artifact(artifact, path, aliases=[alias])

    def use_artifact(self, artifact: wandb.Artifact) -> None:
        """Log an artifact as an input of this run."""
        self._artifacts.append(wandb_internals.use_artifact(self._run, artifact))

    def alert(self, title: str, text: str, *, is_error: bool = False) -> None:
        level = "ERROR" if is_error else "WARN"
        self._run.alert(title=title, text=text, level=level)

    def finish(self, state: str) -> None:
        """Finish the run. `state`, one of those of a trial, is in its summary."""
        self._run.summary["state"] = state
        try:
            self._run.finish(exit_code=0 if state in ("finished", "pruned", STOPPED) else 1)
        except wandb_internals.FINISH_ERRORS:
            self.sync_command = sync_command(self._uri)
            logger.warning("W&B did not take all of %s in time", self._uri)
            self._keep_sessions(is_whole=False)
            return
        for artifact in self._artifacts if not self._run.offline else ():
            if (error := wandb_internals.find_upload_error(artifact)) is not None:
                self.sync_command = sync_command(self._uri)
                text = f"W&B refused {artifact.name} of {self._uri}: {error.strip()}"
                FAILURES.report(text, kind="refused an artifact")
        if self.sync_command is None:
            wandb_internals.mark_synced(self._run)
        self._keep_sessions(is_whole=True)

    def _keep_sessions(self, *, is_whole: bool) -> None:
        """Copy this session to the folder where that is in a bucket; delete older offline ones.

        Args:
            is_whole: this session has all that W&B lacks, its end included.
        """
        new = {*wandb_internals.list_sessions(self._folder, self._id)} - self._older
        if not new:  # the folder was deleted meanwhile
            return
        for folder in filter(wandb_internals.is_offline, self._older) if is_whole else ():
            shutil.rmtree(folder)
        if self._is_in_bucket:  # this machine's disk is temporary
            wandb_internals.wait_until_written(wandb_internals.session_of(self._run))
            keep_sessions(self._uri, new)
            delete_others(self._uri, new, notes_only=not is_whole)


def _as_one_type(column: Sequence[Any]) -> Sequence[Any]:
    """A freeze depth is a number or `all`; W&B refuses a column of both."""
    texts = [isinstance(value, str) for value in column if value is not None]
    if all(texts) or not any(texts):
        return column
    return [value if value is None else str(value) for value in column]

"""Logs to W&B from a background thread, so that an outage never blocks training."""

import logging
import threading
from collections.abc import Callable

from cluster.io.errors import StorageError, UserError
from trainers.tracking.config import sync_command

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 60
"""How long `close` waits; some of wandb's calls have no timeout."""
MAX_RESTARTS = 3
"""Of wandb's service process, where it is killed."""


class WandbThread:
    """Runs `log` in a background thread.

    Args:
        folder: URI of the run's folder.
        log: returns the command that uploads what W&B does not have; None where it has all. Called
            again where W&B's service process has died: it starts another, and logs all rows.
    """

    def __init__(self, folder: str, log: Callable[[], str | None]) -> None:
        self._folder, self._log = folder, log
        self._command: str | None = sync_command(folder)  # until W&B is known to have all
        self._thread: threading.Thread | None = threading.Thread(
            target=self._run, name="wandb", daemon=True
        )
        self._thread.start()

    def close(self, *, timeout_s: float = CLOSE_TIMEOUT_S) -> str | None:
        """Wait until `log` returns, at most `timeout_s`; return the upload command, as it does."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                from trainers.tracking.wandb_internals import abandon_service  # imports wandb

                logger.warning("W&B did not take all of %s in time", self._folder)
                abandon_service()
                self._keep_session()
            self._thread = None  # wait once
        return self._command

    def _keep_session(self) -> None:
        """Copy what this machine has of the run to its bucket: this process may end now."""
        if "://" not in self._folder:
            return
        from trainers.tracking.sessions import keep_open_sessions  # imports wandb

        try:
            keep_open_sessions(self._folder)
        except (UserError, StorageError) as error:
            logger.warning("W&B's files of %s are only on this machine: %s", self._folder, error)

    def _run(self) -> None:
        try:
            command = self._log_all()
        except (UserError, StorageError) as error:
            from trainers.tracking.failures import FAILURES  # imports wandb

            FAILURES.report(f"W&B lacks {self._folder}: {error}", kind="lacks a run")
            return
        if self._thread is not None:  # `close` still waits
            self._command = command

    def _log_all(self) -> str | None:
        for _ in range(MAX_RESTARTS):
            try:
                return self._log_once()
            except Exception as error:
                from trainers.tracking import wandb_internals  # imports wandb

                if not isinstance(error, wandb_internals.SERVICE_ERRORS) or self._thread is None:
                    raise
                logger.warning("W&B's service process died: %s is logged again", self._folder)
                wandb_internals.replace_service()
        return self._log_once()

    def _log_once(self) -> str | None:
        from trainers.tracking.failures import FAILURES  # imports wandb

        FAILURES.open_run()
        try:
            return self._log()
        finally:
            FAILURES.close_run()

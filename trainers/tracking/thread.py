"""What is told to W&B, in a thread of its own: no outage holds up whoever has something to tell."""

import logging
import threading
from collections.abc import Callable

from trainers.tracking.run import give_up, sync_command

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 60
"""What an end waits for W&B at most; some of its calls know no timeout of their own."""


class WandbThread:
    """Call `tell` at once, and `close` it once.

    Args:
        folder: URI of what W&B is told about.
        tell: returns the command that uploads what W&B does not have; None where it has all.
    """

    def __init__(self, folder: str, tell: Callable[[], str | None]) -> None:
        self._folder, self._tell = folder, tell
        self._command: str | None = sync_command(folder)  # until W&B is known to have all
        self._thread: threading.Thread | None = threading.Thread(
            target=self._run, name="wandb", daemon=True
        )
        self._thread.start()

    def close(self, *, timeout_s: float = CLOSE_TIMEOUT_S) -> str | None:
        """Wait until W&B has all, or for as long as an outage may take; return what `tell` did."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                logger.warning("W&B did not take all of %s in time", self._folder)
                give_up()
            self._thread = None  # waited for once
        return self._command

    def _run(self) -> None:
        command = self._tell()
        if self._thread is not None:  # nobody gave up
            self._command = command

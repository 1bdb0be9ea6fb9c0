"""Failures of W&B: each kind is reported once, and counted until the last open run has finished.

The lines that wandb itself would write to the terminal are among them: it writes one for every
retry of every run, whatever its setting `silent`.
"""

import logging
import os
import re
import threading
from dataclasses import dataclass

import wandb

from cluster.wandb_env import drop_empty_variables
from trainers.tracking.wandb_internals import explaining_settings

logger = logging.getLogger(__name__)

RETRY = "encountered ("
"""In a line of wandb about a request that failed, between the status and the answer."""
PREFIX = re.compile(r"^(\x1b\[[\d;]*m|wandb|:? |WARNING|ERROR)*")
"""What wandb writes before a message, and its colours."""
VARYING = re.compile(r"""\(.*|"[^"]*"|'[^']*'|\S*/\S*|\b[0-9a-f]{8,}\S*""", re.DOTALL)
"""Parts of a message that tell neither runs nor artifacts apart by kind."""


@dataclass(kw_only=True)
class _Kind:
    first: str
    count: int = 1


class Failures:
    """Counts failures by kind. As a logger of wandb's it takes the lines of its terminal."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}
        self._num_open = 0
        self._lock = threading.Lock()

    def open_run(self) -> None:
        """Expect one more `close_run`; take wandb's lines, which every set-up of wandb resets.

        Raises:
            UserError: where wandb refuses its settings.
        """
        drop_empty_variables(os.environ)
        with explaining_settings():
            wandb.setup()
        wandb.termsetup(wandb.Settings(silent=True), self)
        with self._lock:
            self._num_open += 1

    def close_run(self) -> None:
        """Write the counts where no run is open any more."""
        with self._lock:
            self._num_open -= 1
            if self._num_open > 0:
                return
            kinds, self._kinds = self._kinds, {}
        for kind in kinds.values():
            if kind.count > 1:
                logger.warning("%d times in all: %s", kind.count, kind.first)

    def report(self, text: str, *, kind: str | None = None) -> None:
        """Warn, unless a failure of this kind was reported before; by default the text, less what
        varies in it, is the kind."""
        key = VARYING.sub("", text) if kind is None else kind
        with self._lock:
            if (known := self._kinds.get(key)) is not None:
                known.count += 1
                return
            self._kinds[key] = _Kind(first=text)
        logger.warning("%s", text)

    def info(self, msg: str) -> None:
        if RETRY in msg:
            self.warning(msg)

    def warning(self, msg: str) -> None:
        self.report(f"W&B: {PREFIX.sub('', msg).strip()}")

    error = warning


FAILURES = Failures()
"""Of this process."""

"""Writes rows, predictions and checkpoints of a run in a background thread."""

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from cluster.gauges import publish
from trainers.metrics import PUBLISHED
from trainers.run import checkpoint
from trainers.run.checkpoint import TrainingProgress
from trainers.run.predictions import Predictions, write_predictions
from trainers.run.rows import JsonlTracker, Row
from trainers.run.stop import POLL_S, is_stop_requested

logger = logging.getLogger(__name__)


class Recorder:
    """Writes from one background thread of rank 0, so that no step waits for storage.

    Writes keep their order: a row of an epoch follows its complete checkpoint. Leaving the `with`
    block waits for all writes. A failed write is raised by the next call, at the latest on leaving
    the block; it is logged where the block ends with another error.

    Args:
        last_row: of the checkpoint that the run resumes from.
    """

    def __init__(self, run: str, *, last_row: Row | None = None) -> None:
        self._run = run
        self._tracker = JsonlTracker(run, last_row=last_row)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="recorder")
        self._pending: deque[Future[None]] = deque()
        self.waited_s = 0.0
        """Time that `save` has taken, in all."""
        self._polled_s = 0.0
        self.stop_requested = False
        """Whether the run folder has such a request, as the thread saw after the last row."""

    def log(self, row: Row) -> None:
        """Write a row of metrics."""
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._log, row))

    def _log(self, row: Row) -> None:
        self._tracker.log(row)
        publish({name: row[name] for name in PUBLISHED if row.get(name) is not None}, run=self._run)
        if time.monotonic() - self._polled_s >= POLL_S:
            self.stop_requested = is_stop_requested(self._run)
            self._polled_s = time.monotonic()

    def save(self, serialize: Callable[[], dict[str, bytes]], progress: TrainingProgress) -> None:
        """Write a checkpoint of the current state.

        Waits for the previous one, so that memory holds one at a time.
        """
        started_s = time.perf_counter()
        self.wait()
        self._pending.append(self._pool.submit(self._save, serialize(), progress))
        self.waited_s += time.perf_counter() - started_s

    def _save(self, contents: dict[str, bytes], progress: TrainingProgress) -> None:
        self._tracker.flush()  # a resume needs the rows before its checkpoint
        checkpoint.save(self._run, contents, progress)

    def keep_predictions(self, epoch: int, predictions: Predictions) -> None:
        """Write the predictions for the validation images after an epoch."""
        self._pending.append(self._pool.submit(write_predictions, self._run, epoch, predictions))

    def wait(self) -> None:
        """Wait for all writes."""
        while self._pending:
            self._pending.popleft().result()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Any:
        self._pending.append(self._pool.submit(self._tracker.flush))
        self._pool.shutdown(wait=True)
        if error is None:
            self.wait()
        for job in self._pending:
            if (failure := job.exception()) is not None:
                logger.error("%s: a write failed: %s", self._run, failure)

"""What rank 0 writes of a run, in order and beside the training: rows, predictions, checkpoints."""

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import pyarrow as pa

from trainers.run import checkpoint
from trainers.run.checkpoint import TrainingProgress
from trainers.run.predictions import write_predictions
from trainers.run.rows import JsonlTracker, Row

logger = logging.getLogger(__name__)


class Recorder:
    """Write in one thread of its own, so that no step waits for storage.

    Things are written in the order they are given: a row of metrics.jsonl never tells of an epoch
    whose checkpoint is not whole. Leaving the `with` block waits for all of them; what goes wrong
    is raised by the next call, at the latest there (or logged, where an error leaves the block).

    Args:
        last_row: what a resumed run measured at its checkpoint.
    """

    def __init__(self, run: str, *, last_row: Row | None = None) -> None:
        self._run = run
        self._tracker = JsonlTracker(run, last_row=last_row)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="recorder")
        self._pending: deque[Future[None]] = deque()

    def log(self, row: Row) -> None:
        """Write a row of metrics."""
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._tracker.log, row))

    def save(self, serialize: Callable[[], dict[str, bytes]], progress: TrainingProgress) -> None:
        """Write a checkpoint of the state as it is now.

        Waits until the one before is written: memory holds one at a time.
        """
        self.wait()
        self._pending.append(self._pool.submit(self._save, serialize(), progress))

    def _save(self, contents: dict[str, bytes], progress: TrainingProgress) -> None:
        self._tracker.flush()  # a resume finds the rows before its checkpoint in the file
        checkpoint.save(self._run, contents, progress)

    def keep_predictions(self, epoch: int, predictions: pa.Table) -> None:
        """Write the answers to the validation images after an epoch."""
        self._pending.append(self._pool.submit(write_predictions, self._run, epoch, predictions))

    def wait(self) -> None:
        """Return once everything given is written."""
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
                logger.error("%s: not all could be written: %s", self._run, failure)

"""The run folder of a head that trains together with others: what is not written yet."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from trainers import metrics
from trainers.prepare import Run
from trainers.run import checkpoint
from trainers.run.checkpoint import Checkpoint, TrainingProgress
from trainers.run.folder import is_done, write_result
from trainers.run.predictions import Predictions, write_predictions
from trainers.run.rows import JsonlTracker, Row
from trainers.stops import TrainingStopped


@dataclass(kw_only=True)
class HeadRun:
    """The run of a head, and what is not written yet."""

    run: Run
    progress: TrainingProgress
    saved: TrainingProgress
    """Of its latest checkpoint."""
    tracker: JsonlTracker | None = None
    rows: list[Row] = field(default_factory=list)
    predictions: dict[int, Predictions] = field(default_factory=dict)
    """By epoch."""
    best: Checkpoint | None = None
    """After its best epoch, where later ones have followed."""
    stopped: TrainingStopped | None = None

    @property
    def is_over(self) -> bool:
        done = is_done(self.run.config, self.progress.epoch, self.progress.best_epoch)
        return self.stopped is not None or done

    def write(self, contents: dict[str, bytes] | None) -> None:
        """Write predictions, rows and checkpoints: a row follows its checkpoint, which has it, and
        a resume needs the rows before it.

        Args:
            contents: files of its checkpoint; None where it was stopped.
        """
        out, stop = self.run.config.out, self.stopped
        if stop is not None:  # back to its last checkpoint
            self.progress = self.best.progress if self.best else self.saved
        elif contents is not None:
            self.progress = replace(self.progress, row=self.rows[-1])
        for epoch, predictions in self.predictions.items():
            if epoch <= self.progress.epoch:
                write_predictions(out, epoch, predictions)
        last_step = self.progress.global_step
        rows = [row for row in self.rows if row[metrics.GLOBAL_STEP] <= last_step]
        self._log(rows[:-1])
        if self.best is not None and (stop or self.best.progress.epoch < self.progress.epoch):
            checkpoint.save(out, self.best.contents, self.best.progress)
        if contents is not None:
            checkpoint.save(out, contents, self.progress)
        self._log(rows[-1:])
        self.saved, self.rows, self.predictions, self.best = self.progress, [], {}, None
        if self.is_over:
            write_result(
                out,
                self.progress,
                diverged=stop.diverged if stop else None,
                lost=stop.unreadable if stop else None,
            )

    def _log(self, rows: Sequence[Row]) -> None:
        self.tracker = self.tracker or JsonlTracker(self.run.config.out, last_row=self.saved.row)
        for row in rows:
            self.tracker.log(row)
        self.tracker.flush()

"""The progress of a sweep in the terminal: a line per event, and a block of what is running.

Sweep  ━━━━━━━━━━╺━━━━━━━━━  7 of 24 trials  3:12  about 6 min left
Best   val/top1 0.846 after epoch 4/6 of trial 3: freeze=0 lr=0.001 clip=none init=file
trial 8  freeze=all lr=0.01 clip=1 init=file  epoch 2/6  step 40/144  212 images/s  val/top1 0.713
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rich.console import Group

from cluster.io import terminal
from datasets.manifest import Manifest
from trainers import metrics
from trainers.meter import Meter
from trainers.run.rows import RowReader
from tuning.config import TuningConfig
from tuning.point import Point, describe

MAX_SHOWN = 20
"""Trials with a line; the files of the others are not read."""


@dataclass(frozen=True, kw_only=True)
class RunningTrial:
    """A trial that trains."""

    number: int
    """From 1, in the order of the starts."""
    name: str
    rows: RowReader
    meter: Meter
    started_s: float


class SweepDisplay:
    """Display of a sweep's trials. `draw` is called by another thread."""

    def __init__(
        self, config: TuningConfig, manifest: Manifest, *, num_trials: int, num_concurrent: int
    ) -> None:
        self._base, self._manifest = config.base, manifest
        self._num_trials, self._num_concurrent = num_trials, num_concurrent
        self._started_s = time.monotonic()
        self._running: dict[str, RunningTrial] = {}
        self._num_ended = 0
        self._durations_s: list[float] = []
        self._best_top1, self._best_of = 0.0, ""

    def start(self, trial_id: str, number: int, point: Point, run: str, *, num_ended: int) -> None:
        """Report that a trial starts.

        Args:
            num_ended: trials of the sweep that have ended, those of earlier sessions too.
        """
        trial = RunningTrial(
            number=number,
            name=describe(point),
            rows=RowReader(run),
            meter=Meter(self._base, self._manifest),
            started_s=time.monotonic(),
        )
        self._running[trial_id], self._num_ended = trial, num_ended
        self._report(trial, "started")

    def report(self, trial_id: str, row: dict[str, Any]) -> None:
        """Report an epoch."""
        trial, top1 = self._running[trial_id], row[metrics.VAL_TOP1]
        epoch = f"epoch {row[metrics.EPOCH]}/{self._base.epochs}"
        if top1 > self._best_top1:
            self._best_top1 = top1
            self._best_of = f"after {epoch} of trial {trial.number}: {trial.name}"
        self._report(trial, f"{epoch}  val/top1 {top1:.3f}  (best {self._best_top1:.3f})")

    def end(self, trial_id: str, event: str, *, failed: bool = False) -> None:
        """Report how a trial ended."""
        trial = self._running.pop(trial_id)
        self._num_ended += 1
        self._durations_s.append(time.monotonic() - trial.started_s)
        self._report(trial, event, warning=failed)

    def draw(self) -> Group:
        """Lay out the block of a terminal; reads the rows of the trials that train."""
        now_s = time.monotonic()
        running = [*self._running.values()]
        left_s = estimate_left_s(
            num_left=self._num_trials - self._num_ended,
            durations_s=self._durations_s,
            running_s=[now_s - trial.started_s for trial in running],
            num_concurrent=self._num_concurrent,
        )
        facts = [f"{self._num_ended} of {self._num_trials} trials", self._clock()]
        if left_s is not None:
            facts.append(f"about {terminal.describe_s(left_s)} left")
        lines = [terminal.draw_bar("Sweep", self._num_ended, self._num_trials, facts)]
        if self._best_of:
            best = f"val/top1 {self._best_top1:.3f} {self._best_of}"
            lines.append(terminal.draw_rows([["Best ", best]], shrinks=1))
        shown = running[:MAX_SHOWN]
        for trial in shown:
            with suppress(OSError):  # storage that fails now may answer in a second
                trial.meter.update(trial.rows.read_new())
        cells = [[f"trial {t.number}", t.name, *t.meter.describe()] for t in shown]
        if len(running) > len(shown):
            cells.append([f"and {len(running) - len(shown)} more"])
        return Group("", *lines, terminal.draw_rows(cells, shrinks=1))

    def _report(self, trial: RunningTrial, event: str, *, warning: bool = False) -> None:
        number = f"trial {trial.number}/{self._num_trials}"
        terminal.report(f"[{self._clock()}] {number} {trial.name}  {event}", warning=warning)

    def _clock(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._started_s), 60)
        return f"{minutes}:{seconds:02d}"


def estimate_left_s(
    *,
    num_left: int,
    durations_s: Sequence[float],
    running_s: Sequence[float],
    num_concurrent: int,
) -> float | None:
    """Return the seconds that a sweep still takes if the other trials are like those that have
    ended; None before the first has.

    Args:
        num_left: trials that have not ended.
        durations_s: of those that have.
        running_s: time the others have trained.
    """
    if not durations_s:
        return None
    mean_s = fmean(durations_s)
    work_s = num_left * mean_s - sum(min(mean_s, each_s) for each_s in running_s)
    return work_s / min(num_concurrent, num_left) if work_s > 0 else None

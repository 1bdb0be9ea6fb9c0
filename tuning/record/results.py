"""Trials of a sweep with their results: measured by their run folders, and ranked."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

from cluster.io import storage
from cluster.io.statistics import is_above_chance
from trainers import metrics
from trainers.run.rows import epoch_rows
from trainers.run.stop import STOPPED
from tuning.point import Point
from tuning.sharing.reuse import read_origin

STATES = ("running", "finished", "pruned", STOPPED, "failed", "killed", "cut")
RUNNING, FINISHED, PRUNED, _, FAILED, KILLED, CUT = STATES
"""Cut: still running where the sweep was ended, by its budget or by the user."""
LEARNS = "learns"
LEARNS_NOT = "does not learn"


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """A trial of a sweep, from its start on."""

    rank: int = 0
    """From 1 by val/top1; 0 before trials are ranked."""
    trial_id: str
    point: Point
    val_top1: float | None = None
    """The best of all epochs, 0 to 1; None where no epoch was completed."""
    best_epoch: int | None = None
    num_epochs: int = 0
    state: str
    """One of STATES."""
    seconds: float = 0.0
    verdict: str = LEARNS_NOT
    run: str
    """URI of its run folder."""
    copied_from: str | None = None
    """URI of the run with the same training, where this one is a copy of it."""
    number: int = 0
    """From 1 in the order of the starts; 0 where it was not recorded. Not in the leaderboard."""
    reason: str | None = None
    """Why it failed. Not in the leaderboard."""

    def __post_init__(self) -> None:
        storage.require_name("trial_id", self.trial_id)

    def to_dict(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in COLUMN_HINTS}
        return values | self.point


COLUMN_HINTS = {
    name: hint
    for name, hint in get_type_hints(TrialResult).items()
    if name not in ("point", "number", "reason")
}
"""Types of what a leaderboard has of a trial, beside its point."""


def rank(
    trials: Iterable[TrialResult], *, epochs: int, class_counts: Sequence[int]
) -> list[TrialResult]:
    """Measure trials by the rows in their run folders and rank them by their best validation
    accuracy; the faster wins a tie.

    Args:
        epochs: a trial that ended with fewer was pruned.
        class_counts: validation images per class.
    """
    measured = [_measure(trial, epochs, class_counts) for trial in trials]
    measured.sort(key=lambda row: (row.val_top1 is None, -(row.val_top1 or 0.0), row.seconds))
    return [replace(row, rank=i) for i, row in enumerate(measured, start=1)]


def _measure(trial: TrialResult, epochs: int, class_counts: Sequence[int]) -> TrialResult:
    rows = epoch_rows(trial.run)
    best = max(rows, key=lambda row: row[metrics.VAL_TOP1], default=None)
    num_epochs = max((row[metrics.EPOCH] for row in rows), default=0)
    top1 = best[metrics.VAL_TOP1] if best else None
    learns = top1 is not None and is_above_chance(top1, class_counts)
    origin = read_origin(trial.run)
    return replace(
        trial,
        val_top1=top1,
        best_epoch=best[metrics.EPOCH] if best else None,
        num_epochs=num_epochs,
        state=PRUNED if trial.state == FINISHED and num_epochs < epochs else trial.state,
        seconds=rows[-1].get(metrics.TOTAL_S, 0.0) if rows else 0.0,
        verdict=LEARNS if learns else LEARNS_NOT,
        copied_from=origin.run if origin is not None else None,
    )


def find_winner(trials: Sequence[TrialResult]) -> TrialResult | None:
    """Return the best trial, unless none learned."""
    return next((row for row in trials if row.verdict == LEARNS), None)

"""The answer of a sweep: its trials in order of validation accuracy."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.io import storage
from cluster.io.fields import build
from cluster.io.records import damaged, read_object
from trainers import metrics
from trainers.run.rows import epoch_rows
from trainers.tracking.alerts import learned
from tuning.sharing.reuse import read_origin
from tuning.space import AXES, POINT, Point, show

LEARNS = "learns"
LEARNS_NOT = "does not learn"
COLUMNS = ("rank", *AXES.values(), "val/top1", "epoch", "state", "time", "verdict")
"""Of a table for people."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A trial as Tune leaves it."""

    trial_id: str
    point: Point
    run: str
    """URI of its run folder."""
    failed: bool = False


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """A trial's place."""

    rank: int
    trial_id: str
    point: Point
    val_top1: float | None
    """The best of all epochs, 0 to 1; None where no epoch was completed."""
    best_epoch: int | None
    num_epochs: int
    state: str
    """finished, pruned or failed."""
    seconds: float
    verdict: str
    run: str
    copied_from: str | None = None
    """URI of the run with the same training, where this one is a copy of it."""

    def __post_init__(self) -> None:
        storage.require_name("trial_id", self.trial_id)

    def to_dict(self) -> dict[str, Any]:
        values = dict(vars(self))
        return values | values.pop("point")


def rank(trials: Iterable[Ended], *, epochs: int, class_counts: Sequence[int]) -> list[TrialResult]:
    """Rank trials by the best validation accuracy in their run folders; the faster wins a tie.

    Args:
        epochs: a trial with fewer was pruned.
        class_counts: validation images per class.
    """
    measured = [_measure(trial, epochs, class_counts) for trial in trials]
    measured.sort(
        key=lambda row: (row["val_top1"] is None, -(row["val_top1"] or 0.0), row["seconds"])
    )
    return [TrialResult(rank=i, **row) for i, row in enumerate(measured, start=1)]


def _measure(trial: Ended, epochs: int, class_counts: Sequence[int]) -> dict[str, Any]:
    rows = epoch_rows(trial.run)
    best = max(rows, key=lambda row: row[metrics.VAL_TOP1], default=None)
    num_epochs = max((row[metrics.EPOCH] for row in rows), default=0)
    top1 = best[metrics.VAL_TOP1] if best else None
    return {
        "trial_id": trial.trial_id,
        "point": trial.point,
        "val_top1": top1,
        "best_epoch": best[metrics.EPOCH] if best else None,
        "num_epochs": num_epochs,
        "state": "failed" if trial.failed else "pruned" if num_epochs < epochs else "finished",
        "seconds": rows[-1].get(metrics.TOTAL_S, 0.0) if rows else 0.0,
        "verdict": LEARNS if top1 is not None and learned(top1, class_counts) else LEARNS_NOT,
        "run": trial.run,
        "copied_from": origin.run if (origin := read_origin(trial.run)) is not None else None,
    }


def find_winner(standings: Sequence[TrialResult]) -> TrialResult | None:
    """Return the best trial, unless none learned."""
    return next((row for row in standings if row.verdict == LEARNS), None)


def write_leaderboard(out: str, standings: Sequence[TrialResult], **facts: Any) -> None:
    """Write OUT/leaderboard.csv and, last, OUT/leaderboard.json with `facts` beside the trials."""
    rows = [row.to_dict() for row in standings]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    storage.write_bytes(storage.join(out, "leaderboard.csv"), text.getvalue().encode())
    storage.write_bytes(
        storage.join(out, "leaderboard.json"),
        json.dumps(facts | {"trials": rows}, indent=1).encode(),
    )


def read_leaderboard(out: str) -> tuple[list[TrialResult], dict[str, Any]] | None:
    """Read a leaderboard and the facts beside it; None where there is none.

    Its runs are those in this folder, wherever the sweep lay when it ended.

    Raises:
        UserError: where it is damaged.
    """
    uri = storage.join(out, "leaderboard.json")
    if not storage.exists(uri):
        return None
    facts = read_object(uri, {"trials": [POINT], "sync": list[str] | None})
    standings = []
    for row in facts.pop("trials"):
        point = {axis: row.pop(axis) for axis in AXES}
        try:
            standing = build(TrialResult, row | {"point": point}, "trials.")
        except ValueError as error:
            raise damaged(uri, error) from None
        standings.append(replace(standing, run=storage.join(out, "trials", standing.trial_id)))
    return standings, facts | {"sync": facts["sync"] or []}


def show_standing(row: TrialResult) -> tuple[str, ...]:
    """Return a trial's cells under COLUMNS."""
    return (
        str(row.rank),
        *(show(row.point[axis]) for axis in AXES),
        "-" if row.val_top1 is None else f"{row.val_top1:.3f}",
        f"{row.best_epoch or '-'}/{row.num_epochs}",
        row.state,
        "copied" if row.copied_from else f"{row.seconds:.0f} s",
        row.verdict,
    )


def print_leaderboard(standings: Sequence[TrialResult], console: Console | None = None) -> None:
    """Print a table, or aligned plain text where the output is not a terminal."""
    console = console or Console()
    header = [*COLUMNS, "trial"]
    cells = [[*show_standing(row), row.trial_id] for row in standings]
    if not console.is_terminal:
        widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
        for line in [header, *cells]:
            text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            console.file.write(text.rstrip() + "\n")
        return
    table = Table(*header)
    for line, row in zip(cells, standings, strict=True):
        table.add_row(*line, style="dim" if row.verdict == LEARNS_NOT else None)
    console.print(table)

"""The leaderboard: the trials of a sweep in order of validation accuracy."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

from rich.console import Console
from rich.table import Table

from cluster.io import storage
from cluster.io.errors import UserError
from cluster.io.fields import build
from cluster.io.records import damaged, read_object
from cluster.io.statistics import is_above_chance
from cluster.io.tables import to_csv
from cluster.io.terminal import literal_console
from trainers import metrics
from trainers.config import FinetuneConfig
from trainers.networks.freezing import describe_frozen, show_frozen
from trainers.run.rows import epoch_rows
from trainers.run.stop import STOPPED
from tuning.axes.axis import FREEZE_DEPTH
from tuning.sharing.reuse import read_origin
from tuning.space import Point, compared_fields, model_of, short_name, show_at, take_point

STATES = ("running", "finished", "pruned", STOPPED, "failed", "killed", "cut")
RUNNING, FINISHED, PRUNED, _, FAILED, KILLED, CUT = STATES
"""Cut: still running where the sweep was ended, by its budget or by the user."""
LEARNS = "learns"
LEARNS_NOT = "does not learn"
COLUMNS = ("val/top1", "epoch", "state", "time", "verdict")
"""Headings of the printed table, behind the rank and the fields that are compared."""
FROZEN = ("frozen_stage", "frozen_share")
"""Columns of the files that the point and the network imply."""


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
        values = {name: getattr(self, name) for name in _COLUMN_HINTS}
        return values | self.point


_COLUMN_HINTS = {
    name: hint
    for name, hint in get_type_hints(TrialResult).items()
    if name not in ("point", "number", "reason")
}


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


def list_rows(trials: Sequence[TrialResult], base: FinetuneConfig) -> list[dict[str, Any]]:
    """Return the rows of the leaderboard's files, with FROZEN of each trial.

    Args:
        base: the training that every trial starts from.
    """
    rows = []
    for row in trials:
        model = model_of(base, row.point)
        frozen = describe_frozen(model.backbone, model.freeze_depth)
        rows.append(row.to_dict() | dict(zip(FROZEN, frozen, strict=True)))
    return rows


def tabulate(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Return the columns of rows of the leaderboard, and their cells; a field whose axis does not
    apply to a trial is empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return columns, [[row.get(name) for name in columns] for row in rows]


def write_leaderboard(
    out: str, trials: Sequence[TrialResult], base: FinetuneConfig, **facts: Any
) -> None:
    """Write OUT/leaderboard.csv and, last, OUT/leaderboard.json with `facts` beside the trials."""
    rows = list_rows(trials, base)
    content = to_csv(*tabulate(rows))
    storage.write_bytes(storage.join(out, "leaderboard.csv"), content)
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
    hints = {"trials": [_COLUMN_HINTS], "sync": list[str] | None, "ended_by_user": bool | None}
    facts = read_object(uri, hints)
    trials = []
    for row in facts.pop("trials"):
        point = {n: v for n, v in row.items() if n not in _COLUMN_HINTS and n not in FROZEN}
        row = {name: value for name, value in row.items() if name in _COLUMN_HINTS}
        try:
            point = take_point(point, "trials.")
            trial = build(TrialResult, row | {"point": point}, "trials.")
        except UserError as error:
            raise damaged(uri, error) from None
        trials.append(replace(trial, run=storage.join(out, "trials", trial.trial_id)))
    return trials, facts | {"sync": facts["sync"] or []}


def show_field(row: TrialResult, field: str, base: FinetuneConfig) -> str:
    """Write the value of a trial's field; a freeze depth as `layer3 80%`."""
    if field != FREEZE_DEPTH:
        return show_at(row.point, field)
    model = model_of(base, row.point)
    return show_frozen(model.backbone, model.freeze_depth)


def show_trial(row: TrialResult, fields: Sequence[str], base: FinetuneConfig) -> tuple[str, ...]:
    """Return a trial's cells: its rank, its fields, and those under COLUMNS."""
    return (
        str(row.rank),
        *(show_field(row, field, base) for field in fields),
        "-" if row.val_top1 is None else f"{row.val_top1:.3f}",
        f"{row.best_epoch or '-'}/{row.num_epochs}",
        row.state,
        "copied" if row.copied_from else f"{row.seconds:.0f} s",
        row.verdict,
    )


def print_leaderboard(
    trials: Sequence[TrialResult], base: FinetuneConfig, console: Console | None = None
) -> None:
    """Print a table, or aligned plain text where the output is not a terminal."""
    console = console or literal_console()
    fields = compared_fields([row.point for row in trials])
    header = ["rank", *map(short_name, fields), *COLUMNS, "trial"]
    cells = [[*show_trial(row, fields, base), row.trial_id] for row in trials]
    if not console.is_terminal:
        widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
        for line in [header, *cells]:
            text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            console.file.write(text.rstrip() + "\n")
        return
    table = Table(*header)
    for line, row in zip(cells, trials, strict=True):
        table.add_row(*line, style="dim" if row.verdict == LEARNS_NOT else None)
    console.print(table)

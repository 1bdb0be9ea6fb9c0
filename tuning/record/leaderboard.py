"""The leaderboard: the trials of a sweep in order of validation accuracy, in files and printed."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.io import storage
from cluster.io.errors import UserError
from cluster.io.fields import build
from cluster.io.records import damaged, read_object
from cluster.io.tables import to_csv
from cluster.io.terminal import literal_console
from trainers.config import FinetuneConfig
from trainers.networks.freezing import describe_frozen, show_frozen
from tuning.axes.axis import FREEZE_DEPTH
from tuning.point import compared_fields, model_of, short_name, show_at, take_point
from tuning.record.results import COLUMN_HINTS, LEARNS_NOT, TrialResult

COLUMNS = ("val/top1", "epoch", "state", "time", "verdict")
"""Headings of the printed table, behind the rank and the fields that are compared."""
FROZEN = ("frozen_stage", "frozen_share")
"""Columns of the files that the point and the network imply."""


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


def remove_leaderboard(out: str) -> None:
    """Remove both files, as the trials of the sweep run again: it has not ended now."""
    for name in ("leaderboard.json", "leaderboard.csv"):
        storage.delete_file(storage.join(out, name))


def read_leaderboard(out: str) -> tuple[list[TrialResult], dict[str, Any]] | None:
    """Read a leaderboard and the facts beside it; None where there is none.

    Its runs are those in this folder, wherever the sweep lay when it ended.

    Raises:
        UserError: where it is damaged.
    """
    uri = storage.join(out, "leaderboard.json")
    if not storage.exists(uri):
        return None
    hints = {"trials": [COLUMN_HINTS], "sync": list[str] | None, "ended_by_user": bool | None}
    facts = read_object(uri, hints)
    trials = []
    for row in facts.pop("trials"):
        point = {n: v for n, v in row.items() if n not in COLUMN_HINTS and n not in FROZEN}
        row = {name: value for name, value in row.items() if name in COLUMN_HINTS}
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

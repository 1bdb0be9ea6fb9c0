"""Tables of a review: the leaderboard, heat maps of learning rate x clipnorm, work shared."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log10
from typing import Any

from cluster.io.statistics import Estimate, wilson
from tuning.axes.axis import BACKBONE, CLIPNORM, FREEZE_DEPTH, INIT, LEARNING_RATE, show
from tuning.point import compared_fields, order_clipnorm, order_fields, short_name, show_at
from tuning.record.frozen import FrozenPart
from tuning.record.leaderboard import show_field
from tuning.record.record import SweepRecord
from tuning.record.results import LEARNS, TrialResult
from tuning.review.figure import measured, name_axis

MAX_RATES = 7
"""Rows of a heat map; more learning rates are binned into this many ranges."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of the leaderboard."""

    row: TrialResult
    frozen: FrozenPart
    init: str
    cells: Sequence[tuple[object, str]]
    """Of the fields that are compared: what sorts, and what is shown."""
    interval: Estimate | None
    epochs: str
    time: str
    reason: str | None
    learns: bool


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The best trial of a learning rate and a clipnorm."""

    top1: float | None
    """None without a trial."""
    percent: int
    """Strength of the colour: 0 is the worst trial of the sweep, 100 the best."""
    num_trials: int


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """val/top1 by learning rate and clipnorm, at one freeze depth."""

    name: str
    clipnorms: Sequence[str]
    lines: Sequence[tuple[str, Sequence[Cell]]]
    """A learning rate or a range of them, and a cell per clipnorm."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A bar: the work done, as a share of the work without sharing."""

    name: str
    done: str
    without: str
    percent: float


def list_trials(record: SweepRecord) -> list[Line]:
    """Return the leaderboard's rows."""
    num_images, fields = record.num_val_images, compared_fields([r.point for r in record.trials])
    return [
        Line(
            row=row,
            frozen=record.frozen_of(row),
            init=str(row.point.get(INIT, record.base.model.init)),
            cells=[_cell(record, row, field) for field in fields],
            interval=wilson(row.val_top1, num_images)
            if num_images and row.val_top1 is not None
            else None,
            epochs=f"{row.best_epoch or '-'}/{row.num_epochs}",
            time="copied" if row.copied_from else format_seconds(row.seconds),
            reason=row.reason,
            learns=row.verdict == LEARNS,
        )
        for row in record.trials
    ]


def _cell(record: SweepRecord, row: TrialResult, field: str) -> tuple[object, str]:
    value, text = row.point.get(field, ""), show_field(row, field, record.base)
    if field == FREEZE_DEPTH:
        return record.frozen_of(row).share, text
    return order_clipnorm(value) if field == CLIPNORM else value, text


def list_columns(record: SweepRecord) -> list[tuple[str, str]]:
    """Return the title of each field that is compared, and whether it sorts as number or text."""
    points = [row.point for row in record.trials]
    columns = []
    for field in compared_fields(points):
        values = [point[field] for point in points if field in point and point[field] is not None]
        is_number = field == FREEZE_DEPTH or all(isinstance(value, int | float) for value in values)
        columns.append((short_name(field), "number" if is_number else "text"))
    return columns


def list_choices(record: SweepRecord) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Return the filters of the leaderboard: key, title, and values with titles."""
    parts = [record.frozen_of(row) for row in record.trials]
    depths = {part.column: part.name if part.is_only_network else part.column[1] for part in parts}
    choices = {
        "depth": (FREEZE_DEPTH, [(label, depths[at, label]) for at, label in sorted(depths)]),
        "init": (INIT, _twice(line.init for line in list_trials(record))),
        "state": ("state", _twice(row.state for row in record.trials)),
    }
    if len(record.backbones) > 1:
        choices = {"network": (BACKBONE, _twice(part.backbone for part in parts))} | choices
    return [(key, name_axis(field), listed) for key, (field, listed) in choices.items()]


def _twice(values: Iterable[str]) -> list[tuple[str, str]]:
    """Return each distinct value, and itself as its title."""
    return [(value, value) for value in dict.fromkeys(values)]


def map_heat(record: SweepRecord) -> list[HeatMap]:
    """Return a heat map per network and freeze depth, over all initializations."""
    rows = measured(record)
    if not rows:
        return []
    clipnorms = sorted({_clipnorm(record, row) for row in rows}, key=order_clipnorm)
    bands = _bands(sorted({_rate(record, row) for row in rows}))
    top1s = [row.val_top1 or 0.0 for row in rows]
    low, high = min(top1s), max(top1s)

    parts = {record.frozen_of(row) for row in rows}

    def cell(part: FrozenPart, band: tuple[float, float], clipnorm: Any) -> Cell:
        found = [
            row.val_top1 or 0.0
            for row in rows
            if record.frozen_of(row) == part
            and band[0] <= _rate(record, row) <= band[1]
            and _clipnorm(record, row) == clipnorm
        ]
        best = max(found, default=None)
        share = 0.0 if best is None else (best - low) / (high - low) if high > low else 0.5
        return Cell(top1=best, percent=round(100 * share), num_trials=len(found))

    return [
        HeatMap(
            name=part.name,
            clipnorms=[show(clipnorm) for clipnorm in clipnorms],
            lines=[
                (
                    show(band[0]) if band[0] == band[1] else f"{band[0]:.2g} to {band[1]:.2g}",
                    [cell(part, band, clipnorm) for clipnorm in clipnorms],
                )
                for band in reversed(bands)
            ],
        )
        for part in sorted(parts, key=lambda part: (part.backbone, part.depth))
    ]


def _rate(record: SweepRecord, row: TrialResult) -> float:
    return float(str(row.point.get(LEARNING_RATE, record.base.optim.learning_rate)))


def _clipnorm(record: SweepRecord, row: TrialResult) -> Any:
    return row.point.get(CLIPNORM, record.base.optim.clipnorm)


def _bands(rates: list[float]) -> list[tuple[float, float]]:
    """Return each rate as a range, or if they are many, ranges of equal ratio."""
    if len(rates) <= MAX_RATES:
        return [(rate, rate) for rate in rates]
    low, high = log10(rates[0]), log10(rates[-1])
    groups: dict[int, list[float]] = {}
    for rate in rates:
        index = int((log10(rate) - low) / (high - low) * MAX_RATES)
        groups.setdefault(min(MAX_RATES - 1, index), []).append(rate)
    return [(group[0], group[-1]) for group in groups.values()]


def list_work(record: SweepRecord) -> list[Work]:
    """Return the savings of sharing: expected, measured, and trials copied."""
    sharing, bars = record.savings, []
    if sharing.expected > 1:
        bars.append(
            Work(
                name="Expected, in FLOPs of networks",
                done=f"{100 / sharing.expected:.0f} percent",
                without="of the work without sharing",
                percent=100 / sharing.expected,
            )
        )
    if sharing.num_passes:
        bars.append(
            Work(
                name="Measured, passes of images through frozen stages",
                done=f"{sharing.num_computed:,}",
                without=f"instead of {sharing.num_passes:,}",
                percent=min(100.0, 100 * sharing.num_computed / sharing.num_passes),
            )
        )
    if sharing.num_copied:
        trained = len(record.trials) - sharing.num_copied
        bars.append(
            Work(
                name="Trials trained, the others copied from an equal training",
                done=str(trained),
                without=f"of {len(record.trials)}",
                percent=100 * trained / len(record.trials),
            )
        )
    return bars


def format_seconds(seconds: float) -> str:
    """Write a duration: `0.17 s`, `54 s`, `4 min`, `2.5 h`."""
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def show_point(row: TrialResult) -> list[tuple[str, str]]:
    """Return the fields of a trial's point by name, with their values."""
    fields = order_fields(field for field in row.point if field != FREEZE_DEPTH)
    return [(name_axis(field), show_at(row.point, field)) for field in fields]

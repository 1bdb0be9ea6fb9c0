"""Tables of a review: the leaderboard, heat maps of learning rate x clipnorm, work shared."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10
from typing import Any

from cluster.io.statistics import Estimate, wilson
from tuning.leaderboard import LEARNS, TrialResult
from tuning.record import SweepRecord
from tuning.review.figure import AXIS_NAMES, measured, short_depth
from tuning.space import AXES, CLIPNORM, FREEZE_DEPTH, INIT, LEARNING_RATE, order_clipnorm, show
from tuning.verdict import depth_name

MAX_RATES = 7
"""Rows of a heat map; more learning rates are binned into this many ranges."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of the leaderboard."""

    row: TrialResult
    depth: int
    frozen: str
    """The freeze depth as `layer3 80%`."""
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
    num_images = record.num_val_images
    return [
        Line(
            row=row,
            depth=record.depth_of(row),
            frozen=short_depth(record, record.depth_of(row)),
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


def list_choices(record: SweepRecord) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Return the filters of the leaderboard: key, title, and values with titles."""
    depths = sorted({record.depth_of(row) for row in record.trials})
    inits = list(dict.fromkeys(str(row.point[INIT]) for row in record.trials))
    states = list(dict.fromkeys(row.state for row in record.trials))
    return [
        ("depth", AXIS_NAMES[FREEZE_DEPTH], [(str(d), depth_name(record, d)) for d in depths]),
        ("init", AXIS_NAMES[INIT], [(init, init) for init in inits]),
        ("state", "state", [(state, state) for state in states]),
    ]


def map_heat(record: SweepRecord) -> list[HeatMap]:
    """Return a heat map per freeze depth, over all initializations."""
    rows = measured(record)
    if not rows:
        return []
    clipnorms = sorted({row.point[CLIPNORM] for row in rows}, key=order_clipnorm)
    bands = _bands(sorted({_rate(row) for row in rows}))
    top1s = [row.val_top1 or 0.0 for row in rows]
    low, high = min(top1s), max(top1s)

    def cell(depth: int, band: tuple[float, float], clipnorm: Any) -> Cell:
        found = [
            row.val_top1 or 0.0
            for row in rows
            if record.depth_of(row) == depth
            and band[0] <= _rate(row) <= band[1]
            and row.point[CLIPNORM] == clipnorm
        ]
        best = max(found, default=None)
        share = 0.0 if best is None else (best - low) / (high - low) if high > low else 0.5
        return Cell(top1=best, percent=round(100 * share), num_trials=len(found))

    return [
        HeatMap(
            name=depth_name(record, depth),
            clipnorms=[show(clipnorm) for clipnorm in clipnorms],
            lines=[
                (
                    show(band[0]) if band[0] == band[1] else f"{band[0]:.2g} to {band[1]:.2g}",
                    [cell(depth, band, clipnorm) for clipnorm in clipnorms],
                )
                for band in reversed(bands)
            ],
        )
        for depth in sorted({record.depth_of(row) for row in rows})
    ]


def _rate(row: TrialResult) -> float:
    return float(str(row.point[LEARNING_RATE]))


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
    """Return the axes of a trial by name, with their values."""
    return [(AXIS_NAMES[axis], show(row.point[axis])) for axis in AXES]

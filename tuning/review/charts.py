"""Charts of a sweep's trials: accuracy by freeze depth and against cost, importance of the axes."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from cluster.io.statistics import wilson
from tuning.axes.axis import INIT
from tuning.point import describe
from tuning.record.record import SweepRecord
from tuning.record.results import TrialResult
from tuning.review.figure import (
    HOVER_TEXT,
    SYMBOLS,
    Chart,
    colour_of,
    describe_trial,
    mark_chance,
    measured,
    name_axis,
    new_figure,
    plain,
)
from tuning.review.importance import rank_axes

INIT_COLOURS = ("var(--thaw)", "var(--frost)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)")
GAP = 0.16
"""Between the initializations of one freeze depth, where depths are 1 apart."""

Column = tuple[float, str]
"""As `FrozenPart.column`: the key that it is sorted by, and its text."""


def draw_depths(record: SweepRecord) -> Chart | None:
    """Draw val/top1 over freeze depth: a point per trial, a line through the best of each depth."""
    rows = measured(record)
    if not rows:
        return None
    column_of = {row.trial_id: record.frozen_of(row).column for row in rows}
    columns = sorted(set(column_of.values()))
    line_of = {row.trial_id: _name_line(record, row) for row in rows}
    best: dict[str, dict[Column, TrialResult]] = {}
    for row in rows:  # in order of rank
        best.setdefault(line_of[row.trial_id], {}).setdefault(column_of[row.trial_id], row)
    figure = new_figure(
        height=400,
        showlegend=len(best) > 1,
        xaxis={
            "tickvals": list(range(len(columns))),
            "ticktext": [label.replace(" ", "<br>") for _, label in columns],
            "range": [-0.5, len(columns) - 0.5],
            "showgrid": False,
            "title": {"text": "last frozen stage, and the share of frozen stages"},
            "tickangle": 0,
        },
        yaxis={"title": {"text": "val/top1"}, "rangemode": "tozero"},
    )
    table: list[list[Any]] = []
    for number, (line, best_of) in enumerate(best.items()):
        colour = INIT_COLOURS[number % len(INIT_COLOURS)]
        marker = {"color": colour, "symbol": SYMBOLS[number % len(SYMBOLS)]}
        x_of = _place_line(line, best, columns)
        of_line = [row for row in rows if line_of[row.trial_id] == line]
        found = [best_of[column] for column in x_of]
        figure.add_scatter(
            mode="markers",
            x=[x_of[column_of[row.trial_id]] for row in of_line],
            **_values(of_line),
            marker=marker | {"size": 7, "opacity": 0.4},
            showlegend=False,
        )
        figure.add_scatter(
            mode="lines+markers",
            name=plain(line),
            x=list(x_of.values()),
            **_values(found),
            line={"color": colour, "width": 2.5},
            marker=marker | {"size": 10},
            error_y=_intervals(found, record.num_val_images, colour),
        )
        table += [
            [line, record.frozen_of(row).name, f"{row.val_top1:.3f}", row.trial_id] for row in found
        ]
    mark_chance(figure, record)
    return Chart(
        name="depths",
        title="Accuracy against freeze depth",
        label=f"Best val/top1 is {rows[0].val_top1:.3f} with "
        f"{record.frozen_of(rows[0]).name}. "
        + "; ".join(f"{line}, {name}: {top1}" for line, name, top1, _ in table[:12]),
        figures={"": figure},
        header=("initialization", "freeze depth", "best val/top1", "trial"),
        table=table,
    )


def _name_line(record: SweepRecord, row: TrialResult) -> str:
    """Name the line of a trial: its initialization, and its network where there are several."""
    frozen = record.frozen_of(row)
    init = str(row.point.get(INIT, record.base.model.init))
    return init if frozen.is_only_network else f"{frozen.backbone} {init}"


def _place_line(
    line: str, lines: Mapping[str, Collection[Column]], columns: Sequence[Column]
) -> dict[Column, float]:
    """Return the x of each column that a line has: beside those of the other lines."""
    places: dict[Column, float] = {}
    for index, column in enumerate(columns):
        beside = [name for name, of_line in lines.items() if column in of_line]
        if line in beside:
            places[column] = index + GAP * (beside.index(line) - (len(beside) - 1) / 2)
    return places


def _values(rows: Sequence[TrialResult]) -> dict[str, Any]:
    return {
        "y": [row.val_top1 for row in rows],
        "text": list(map(describe_trial, rows)),
        "hovertemplate": HOVER_TEXT,
    }


def _intervals(
    rows: Sequence[TrialResult], num_images: int | None, colour: str
) -> dict[str, Any] | None:
    if not num_images:
        return None
    bounds = [wilson(row.val_top1 or 0.0, num_images) for row in rows]
    return {
        "symmetric": False,
        "array": [each.high - each.mean for each in bounds],
        "arrayminus": [each.mean - each.low for each in bounds],
        "color": colour,
        "thickness": 1.2,
        "width": 4,
    }


def draw_cost(record: SweepRecord) -> Chart | None:
    """Draw val/top1 over seconds of training, with the Pareto front."""
    rows = [row for row in measured(record) if row.seconds > 0]
    if not rows:
        return None
    front = pareto_front(rows)
    figure = new_figure(
        height=400,
        xaxis={"type": "log", "title": {"text": "seconds of training"}, "dtick": 1},
        yaxis={"title": {"text": "val/top1"}, "rangemode": "tozero"},
    )
    figure.add_scatter(
        mode="lines",
        name="no trial is faster and better",
        x=[row.seconds for row in front],
        y=[row.val_top1 for row in front],
        line={"color": "var(--faint)", "width": 2, "shape": "hv"},
        hoverinfo="skip",
    )
    parts = {record.frozen_of(row).column: record.frozen_of(row) for row in rows}
    for number, (column, frozen) in enumerate(sorted(parts.items(), key=lambda item: item[0])):
        of_depth = [row for row in rows if record.frozen_of(row).column == column]
        figure.add_scatter(
            mode="markers",
            name=column[1],
            x=[row.seconds for row in of_depth],
            y=[row.val_top1 for row in of_depth],
            text=[f"{describe_trial(row)}<br>{row.seconds:,.1f} s" for row in of_depth],
            hovertemplate=HOVER_TEXT,
            marker={
                "color": colour_of(frozen),
                "size": 10,
                "symbol": SYMBOLS[number % len(SYMBOLS)],
                "line": {"color": "var(--surface)", "width": 1},
            },
        )
    return Chart(
        name="cost",
        title="Cost against accuracy",
        label="Trials with no other that is both faster and better: "
        + "; ".join(
            f"{row.seconds:,.1f} s for {row.val_top1:.3f} ({describe(row.point)})"
            for row in front[-8:]
        ),
        figures={"": figure},
        header=("seconds", "val/top1", "trial", "point"),
        table=[
            [f"{row.seconds:,.1f}", f"{row.val_top1:.3f}", row.trial_id, describe(row.point)]
            for row in front
        ],
    )


def pareto_front(rows: Sequence[TrialResult]) -> list[TrialResult]:
    """Return the trials with no other that is both faster and better, the fastest first."""
    front: list[TrialResult] = []
    for row in sorted(rows, key=lambda row: (row.seconds, -(row.val_top1 or 0.0))):
        if not front or (row.val_top1 or 0.0) > (front[-1].val_top1 or 0.0):
            front.append(row)
    return front


def draw_importance(record: SweepRecord) -> Chart | None:
    """Draw the importance of each axis."""
    shares = rank_axes(record.trials)
    if not shares:
        return None
    names = [name_axis(axis) for axis in shares]
    values = list(shares.values())
    figure = new_figure(
        height=220,
        bargap=0.45,
        margin={"l": 110, "t": 8, "b": 8, "r": 48},
        xaxis={"visible": False, "range": [0, max(values) * 1.05]},
        yaxis={"autorange": "reversed", "showgrid": False, "ticksuffix": "  "},
    )
    figure.add_bar(
        orientation="h",
        x=values,
        y=names,
        text=[f"{value:.0%}" for value in values],
        textposition="outside",
        cliponaxis=False,
        marker={"color": "var(--thaw)"},
        hoverinfo="skip",
    )
    return Chart(
        name="importance",
        title="Importance of the axes",
        label="Share of each axis: "
        + ", ".join(f"{name} {value:.0%}" for name, value in zip(names, values, strict=True)),
        figures={"": figure},
        header=("axis", "share"),
        table=[[name, f"{value:.3f}"] for name, value in zip(names, values, strict=True)],
    )

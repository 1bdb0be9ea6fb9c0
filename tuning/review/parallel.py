"""A chart of every trial along the axes and val/top1.

Lines in SVG rather than Plotly's parcoords, which needs WebGL and can't be printed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import log10
from typing import Any

import plotly.graph_objects as go

from tuning.axes.axis import CLIPNORM, FREEZE_DEPTH, LEARNING_RATE, show
from tuning.point import compared_fields, describe, order_clipnorm, short_name, show_at
from tuning.record.record import SweepRecord
from tuning.record.results import TrialResult
from tuning.review.figure import (
    HOVER_TEXT,
    NUM_SHADES,
    Chart,
    describe_trial,
    measured,
    name_axis,
    new_figure,
    plain,
)

MAX_LISTED = 50
"""Trials in the chart's table."""
MAX_TICKS = 6
"""Of an axis of numbers; of more, the ends are named."""


def draw_parallel(record: SweepRecord) -> Chart | None:
    """Draw each trial as a line over the axes and val/top1, stronger where it is better."""
    rows = measured(record)
    if len(rows) < 2:
        return None
    fields = compared_fields([row.point for row in rows])
    axes = [_place(record, rows, field) for field in fields]
    top1s = [row.val_top1 or 0.0 for row in rows]
    low, high = min(top1s), max(top1s)
    best = _Column(
        name="val/top1",
        heights=[_scale(top1, low, high) for top1 in top1s],
        ticks=[(0.0, f"{low:.3f}"), (1.0, f"{high:.3f}")] if high > low else [(0.5, f"{low:.3f}")],
    )
    figure = _draw_columns([*axes, best])
    _add_lines(figure, rows, [column.heights for column in (*axes, best)])
    return Chart(
        name="parallel",
        title="Every trial along its axes",
        label=f"{len(rows)} trials over {', '.join(map(name_axis, fields))} and "
        f"val/top1 ({low:.3f} to {high:.3f}); stronger and thicker lines are better. The best: "
        f"{describe(rows[0].point)}.",
        figures={"": figure},
        header=(*map(short_name, fields), "val/top1"),
        table=[
            [*(show_at(row.point, field) for field in fields), f"{row.val_top1:.3f}"]
            for row in rows[:MAX_LISTED]
        ],
    )


@dataclass(frozen=True, kw_only=True)
class _Column:
    """A vertical axis of the chart."""

    name: str
    heights: Sequence[float]
    """Of each trial, 0 to 1."""
    ticks: Sequence[tuple[float, str]]


def _draw_columns(columns: Sequence[_Column]) -> go.Figure:
    return new_figure(
        height=420,
        showlegend=False,
        margin={"l": 12, "r": 12, "t": 12, "b": 44},
        xaxis={
            "tickvals": list(range(len(columns))),
            "ticktext": [column.name for column in columns],
            "range": [-0.12, len(columns) - 0.5],
            "showgrid": False,
        },
        yaxis={"visible": False, "range": [-0.14, 1.14]},
        shapes=[
            {"type": "line", "x0": i, "x1": i, "y0": 0, "y1": 1, "line": {"color": "var(--faint)"}}
            for i in range(len(columns))
        ],
        annotations=[
            {
                "x": axis,
                "y": height,
                "text": text,
                "xanchor": "left",
                "xshift": 4,
                "showarrow": False,
                "bgcolor": "var(--veil)",
                "font": {"size": 12},
            }
            for axis, column in enumerate(columns)
            for height, text in column.ticks
        ],
    )


def _add_lines(
    figure: go.Figure, rows: Sequence[TrialResult], heights: Sequence[Sequence[float]]
) -> None:
    """Draw trials of one shade as one trace; `heights` are of each column, the last is val/top1."""
    shades = [min(NUM_SHADES - 1, int(share * NUM_SHADES)) for share in heights[-1]]
    for shade in sorted(set(shades)):  # the best are drawn last, on top
        drawn = [index for index in range(len(rows)) if shades[index] == shade]
        lines = [[*(column[index] for column in heights), None] for index in drawn]
        texts = [[*[describe_trial(rows[index])] * len(heights), ""] for index in drawn]
        strength = shade / (NUM_SHADES - 1)
        figure.add_scatter(
            mode="lines",
            x=[*range(len(heights)), None] * len(drawn),
            y=[*chain.from_iterable(lines)],
            text=[*chain.from_iterable(texts)],
            hovertemplate=HOVER_TEXT,
            opacity=max(strength**2, min(1.0, 60 / len(rows))),
            line={"color": f"var(--shade-{shade})", "width": 0.8 + 1.8 * strength},
        )


def _place(record: SweepRecord, rows: Sequence[TrialResult], field: str) -> _Column:
    """Place the trials along a field: numbers by their size, other values side by side."""
    values = [row.point.get(field) for row in rows]
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if field not in (FREEZE_DEPTH, CLIPNORM) and len(numbers) == len(rows):
        listed = sorted(set(numbers))
        is_log = listed[0] > 0 and (field == LEARNING_RATE or listed[-1] >= 10 * listed[0])
        scaled = [log10(number) if is_log else number for number in (*numbers, *listed)]
        ends = min(scaled), max(scaled)
        heights = [_scale(number, *ends) for number in scaled]
        ticks = list(zip(heights[len(rows) :], map(show, listed), strict=True))
        ticks = ticks if len(ticks) <= MAX_TICKS else [ticks[0], ticks[-1]]
        return _Column(name=short_name(field), heights=heights[: len(rows)], ticks=ticks)
    keys: list[tuple[Any, str]] = [
        record.frozen_of(row).column
        if field == FREEZE_DEPTH
        else (order_clipnorm(value) if field == CLIPNORM else str(value), show_at(row.point, field))
        for row, value in zip(rows, values, strict=True)
    ]
    listed_keys = sorted(set(keys))
    return _Column(
        name=short_name(field),
        heights=_spread([listed_keys.index(key) for key in keys], len(listed_keys)),
        ticks=[
            (_at(number, len(listed_keys)), plain(text))
            for number, (_, text) in enumerate(listed_keys)
        ],
    )


def _scale(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _at(index: int, count: int) -> float:
    return index / (count - 1) if count > 1 else 0.5


def _spread(indices: Sequence[int], count: int) -> list[float]:
    """Place trials of the same category side by side, so that their lines stay distinguishable."""
    reach = 0.22 / max(1, count - 1) if count > 1 else 0.3
    totals = {index: indices.count(index) for index in set(indices)}
    seen: dict[int, int] = {}
    heights: list[float] = []
    for index in indices:
        turn = seen.get(index, 0)
        seen[index] = turn + 1
        heights.append(_at(index, count) + reach * (_at(turn, totals[index]) - 0.5))
    return heights

"""A chart of every trial along the four axes and val/top1.

Lines in SVG rather than Plotly's parcoords, which needs WebGL and can't be printed.
"""

from collections.abc import Sequence
from math import log10
from typing import Any

from tuning.record import SweepRecord
from tuning.review.figure import (
    HOVER_TEXT,
    NUM_SHADES,
    Chart,
    describe_trial,
    measured,
    new_figure,
    plain,
    short_depth,
)
from tuning.space import AXES, CLIPNORM, INIT, LEARNING_RATE, describe, order_clipnorm, show

MAX_LISTED = 50
"""Trials in the chart's table."""


def draw_parallel(record: SweepRecord) -> Chart | None:
    """Draw each trial as a line over the four axes and val/top1, stronger where it is better."""
    rows = measured(record)
    if len(rows) < 2:
        return None
    depths = sorted({record.depth_of(row) for row in rows})
    clipnorms = sorted({row.point[CLIPNORM] for row in rows}, key=order_clipnorm)
    inits = sorted({str(row.point[INIT]) for row in rows})
    rates = [float(str(row.point[LEARNING_RATE])) for row in rows]
    listed = sorted(set(rates))
    shown = listed if len(listed) <= 6 else [listed[0], listed[-1]]
    top1s = [row.val_top1 or 0.0 for row in rows]
    low, high = min(top1s), max(top1s)
    heights = [
        _spread([depths.index(record.depth_of(row)) for row in rows], len(depths)),
        [_scale(log10(rate), log10(listed[0]), log10(listed[-1])) for rate in rates],
        _spread([clipnorms.index(row.point[CLIPNORM]) for row in rows], len(clipnorms)),
        _spread([inits.index(str(row.point[INIT])) for row in rows], len(inits)),
        [_scale(top1, low, high) for top1 in top1s],
    ]
    ticks = [
        [(_at(i, len(depths)), short_depth(record, depth)) for i, depth in enumerate(depths)],
        [(_scale(log10(r), log10(listed[0]), log10(listed[-1])), show(r)) for r in shown],
        [(_at(i, len(clipnorms)), show(value)) for i, value in enumerate(clipnorms)],
        [(_at(i, len(inits)), plain(init)) for i, init in enumerate(inits)],
        [(0.0, f"{low:.3f}"), (1.0, f"{high:.3f}")] if high > low else [(0.5, f"{low:.3f}")],
    ]
    figure = new_figure(
        height=420,
        showlegend=False,
        margin={"l": 12, "r": 12, "t": 12, "b": 44},
        xaxis={
            "tickvals": list(range(5)),
            "ticktext": ["freeze", "lr", "clip", "init", "val/top1"],
            "range": [-0.12, 4.5],
            "showgrid": False,
        },
        yaxis={"visible": False, "range": [-0.14, 1.14]},
        shapes=[
            {"type": "line", "x0": i, "x1": i, "y0": 0, "y1": 1, "line": {"color": "var(--faint)"}}
            for i in range(5)
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
            for axis, of_axis in enumerate(ticks)
            for height, text in of_axis
        ],
    )
    shades = [min(NUM_SHADES - 1, int(share * NUM_SHADES)) for share in heights[-1]]
    for shade in sorted(set(shades)):  # the best are drawn last, on top
        x: list[Any] = []
        y: list[Any] = []
        text: list[str] = []
        for index, row in enumerate(rows):
            if shades[index] == shade:
                x += [*range(len(heights)), None]
                y += [*(column[index] for column in heights), None]
                text += [describe_trial(row)] * len(heights) + [""]
        strength = shade / (NUM_SHADES - 1)
        figure.add_scatter(
            mode="lines",
            x=x,
            y=y,
            text=text,
            hovertemplate=HOVER_TEXT,
            opacity=max(strength**2, min(1.0, 60 / len(rows))),
            line={"color": f"var(--shade-{shade})", "width": 0.8 + 1.8 * strength},
        )
    return Chart(
        name="parallel",
        title="Every trial along its axes",
        label=f"{len(rows)} trials over freeze depth, learning rate, clipnorm, initialization and "
        f"val/top1 ({low:.3f} to {high:.3f}); stronger and thicker lines are better. The best: "
        f"{describe(rows[0].point)}.",
        figures={"": figure},
        header=(*AXES.values(), "val/top1"),
        table=[
            [*(show(row.point[axis]) for axis in AXES), f"{row.val_top1:.3f}"]
            for row in rows[:MAX_LISTED]
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

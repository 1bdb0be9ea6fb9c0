"""A chart of every trial along the four axes and val/top1.

Lines in SVG rather than Plotly's parcoords, which needs WebGL and can't be printed.
"""

from collections.abc import Sequence
from math import log10
from typing import Any

from tuning.record import SweepRecord
from tuning.review.figure import (
    Chart,
    Figure,
    measured,
    mix,
    plain,
    short_depth,
    single,
    tell_trial,
)
from tuning.space import AXES, CLIPNORM, INIT, LEARNING_RATE, describe, order_clipnorm, show

NUM_SHADES = 8
"""Steps of the colour that tells val/top1."""
MAX_LISTED = 50
"""Trials in the table beside the chart."""


def draw_parallel(sweep: SweepRecord) -> Chart | None:
    """Draw each trial as a line over the four axes and val/top1, stronger where it is better."""
    rows = measured(sweep)
    if len(rows) < 2:
        return None
    depths = sorted({sweep.depth_of(row) for row in rows})
    clipnorms = sorted({row.point[CLIPNORM] for row in rows}, key=order_clipnorm)
    inits = sorted({str(row.point[INIT]) for row in rows})
    rates = [float(str(row.point[LEARNING_RATE])) for row in rows]
    top1s = [row.val_top1 or 0.0 for row in rows]
    low, high = min(top1s), max(top1s)
    places = [
        _spread([depths.index(sweep.depth_of(row)) for row in rows], len(depths)),
        [_scale(log10(rate), log10(min(rates)), log10(max(rates))) for rate in rates],
        _spread([clipnorms.index(row.point[CLIPNORM]) for row in rows], len(clipnorms)),
        _spread([inits.index(str(row.point[INIT])) for row in rows], len(inits)),
        [_scale(top1, low, high) for top1 in top1s],
    ]
    data: list[dict[str, Any]] = []
    for shade in range(NUM_SHADES):  # the best are drawn last, on top
        chosen = [
            at
            for at, top1 in enumerate(top1s)
            if min(NUM_SHADES - 1, int(_scale(top1, low, high) * NUM_SHADES)) == shade
        ]
        if not chosen:
            continue
        strength = shade / (NUM_SHADES - 1)
        x: list[Any] = []
        y: list[Any] = []
        text: list[Any] = []
        for at in chosen:
            x += [*range(len(places)), None]
            y += [*(column[at] for column in places), None]
            text += [tell_trial(rows[at])] * len(places) + [""]
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": x,
                "y": y,
                "text": text,
                "hovertemplate": "%{text}<extra></extra>",
                "opacity": max(strength**2, min(1.0, 60 / len(rows))),
                "line": {
                    "color": mix("var(--deep)", "var(--pale)", 0.15 + 0.85 * strength),
                    "width": 0.8 + 1.8 * strength,
                },
            }
        )
    listed = sorted(set(rates))
    shown = listed if len(listed) <= 6 else [listed[0], listed[-1]]
    ticks = [
        [(_at(i, len(depths)), short_depth(sweep, depth)) for i, depth in enumerate(depths)],
        [(_scale(log10(r), log10(listed[0]), log10(listed[-1])), show(r)) for r in shown],
        [(_at(i, len(clipnorms)), show(value)) for i, value in enumerate(clipnorms)],
        [(_at(i, len(inits)), plain(init)) for i, init in enumerate(inits)],
        [(0.0, f"{low:.3f}"), (1.0, f"{high:.3f}")] if high > low else [(0.5, f"{low:.3f}")],
    ]
    layout: Figure = {
        "height": 420,
        "showlegend": False,
        "margin": {"l": 12, "r": 12, "t": 12, "b": 44},
        "xaxis": {
            "tickvals": list(range(5)),
            "ticktext": ["freeze", "lr", "clip", "init", "val/top1"],
            "range": [-0.12, 4.5],
            "showgrid": False,
            "zeroline": False,
        },
        "yaxis": {"visible": False, "range": [-0.14, 1.14]},
        "shapes": [
            {"type": "line", "x0": i, "x1": i, "y0": 0, "y1": 1, "line": {"color": "var(--faint)"}}
            for i in range(5)
        ],
        "annotations": [
            {
                "x": axis,
                "y": place,
                "text": text,
                "xanchor": "left",
                "xshift": 4,
                "showarrow": False,
                "bgcolor": "var(--veil)",
                "font": {"size": 12},
            }
            for axis, of_axis in enumerate(ticks)
            for place, text in of_axis
        ],
    }
    return Chart(
        name="parallel",
        title="Every trial along its axes",
        label=f"{len(rows)} trials over freeze depth, learning rate, clipnorm, initialization and "
        f"val/top1 ({low:.3f} to {high:.3f}); stronger and thicker lines are better. The best: "
        f"{describe(rows[0].point)}.",
        figures=single({"data": data, "layout": layout}),
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
    """Place each trial beside others of the same category, so that lines can be told apart."""
    reach = 0.22 / max(1, count - 1) if count > 1 else 0.3
    totals = {index: indices.count(index) for index in set(indices)}
    seen: dict[int, int] = {}
    places: list[float] = []
    for index in indices:
        turn = seen.get(index, 0)
        seen[index] = turn + 1
        places.append(_at(index, count) + reach * (_at(turn, totals[index]) - 0.5))
    return places

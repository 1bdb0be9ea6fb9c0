"""Charts of a sweep: accuracy by freeze depth, along all axes, over epochs and against cost.

Colours are CSS, such as `var(--thaw)`: the page resolves them in the reader's light or dark theme.
What Plotly would read as markup is escaped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import log10
from typing import Any

from trainers import metrics
from tuning.importance import rank_axes
from tuning.leaderboard import Standing
from tuning.review_data import Sweep, threshold_of
from tuning.seeds import estimate
from tuning.space import AXES, CLIPNORM, FREEZE_DEPTH, INIT, LEARNING_RATE, describe, show
from tuning.verdict import depth_name

AXIS_NAMES = {
    FREEZE_DEPTH: "freeze depth",
    LEARNING_RATE: "learning rate",
    CLIPNORM: "clipnorm",
    INIT: "initialization",
}
INIT_COLOURS = ("var(--thaw)", "var(--frost)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)")
SYMBOLS = (
    "circle",
    "diamond",
    "square",
    "triangle-up",
    "cross",
    "triangle-down",
    "star",
    "hexagon",
)
NUM_HIGHLIGHTED = 5
"""Learning curves that stand out."""
NUM_SHADES = 8
"""Steps of the colour that tells val/top1."""

Figure = dict[str, Any]
"""`data` and `layout` of Plotly."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart, and what it says to those who can't see it."""

    name: str
    """Its id in the page."""
    title: str
    label: str
    """Text alternative with the key numbers."""
    figures: dict[str, Figure]
    """By the choice the reader has; a single one has none."""
    header: Sequence[str]
    table: Sequence[Sequence[Any]]
    """Its data."""
    is_wide: bool = False
    """Whether it scrolls in its box on a phone."""


def single(figure: Figure) -> dict[str, Figure]:
    return {"": figure}


def measured(sweep: Sweep) -> list[Standing]:
    """Trials with a val/top1, in order of rank."""
    return [row for row in sweep.standings if row.val_top1 is not None]


def draw_depths(sweep: Sweep) -> Chart | None:
    """Draw val/top1 over freeze depth: a point per trial, a line through the best of each depth."""
    rows, num_images = measured(sweep), sweep.num_val_images
    if not rows:
        return None
    depths = sorted({sweep.depth_of(row) for row in rows})
    inits = list(dict.fromkeys(str(row.point[INIT]) for row in rows))
    data: list[dict[str, Any]] = []
    table: list[list[Any]] = []
    inits_at: dict[int, list[str]] = {depth: [] for depth in depths}
    for row in rows:
        if (init := str(row.point[INIT])) not in inits_at[sweep.depth_of(row)]:
            inits_at[sweep.depth_of(row)].append(init)
    for number, init in enumerate(inits):
        colour = INIT_COLOURS[number % len(INIT_COLOURS)]
        symbol = SYMBOLS[number % len(SYMBOLS)]
        place = {  # side by side, or they would hide one another
            depth: at + 0.16 * (others.index(init) - (len(others) - 1) / 2)
            for at, (depth, others) in enumerate(inits_at.items())
            if init in others
        }
        of_init = [row for row in rows if row.point[INIT] == init]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [place[sweep.depth_of(row)] for row in of_init],
                "y": [row.val_top1 for row in of_init],
                "text": [_tell(row) for row in of_init],
                "hovertemplate": "%{text}<extra></extra>",
                "marker": {"color": colour, "size": 7, "opacity": 0.4, "symbol": symbol},
                "showlegend": False,
            }
        )
        found = [next(r for r in of_init if sweep.depth_of(r) == depth) for depth in place]
        line: dict[str, Any] = {
            "type": "scatter",
            "mode": "lines+markers",
            "name": escape(init),
            "x": list(place.values()),
            "y": [row.val_top1 for row in found],
            "text": [_tell(row) for row in found],
            "hovertemplate": "%{text}<extra></extra>",
            "line": {"color": colour, "width": 2.5},
            "marker": {"color": colour, "size": 10, "symbol": symbol},
        }
        table += [
            [init, depth_name(sweep, depth), f"{row.val_top1:.3f}", row.trial_id]
            for depth, row in zip(place, found, strict=True)
        ]
        if num_images:
            bounds = [estimate([row.val_top1 or 0.0], num_images) for row in found]
            line["error_y"] = {
                "type": "data",
                "symmetric": False,
                "array": [each.high - each.mean for each in bounds],
                "arrayminus": [each.mean - each.low for each in bounds],
                "color": colour,
                "thickness": 1.2,
                "width": 4,
            }
        data.append(line)
    layout: Figure = {
        "height": 400,
        "showlegend": len(inits) > 1,
        "xaxis": {
            "tickvals": list(range(len(depths))),
            "ticktext": [_depth_tick(sweep, depth) for depth in depths],
            "range": [-0.5, len(depths) - 0.5],
            "showgrid": False,
            "title": {"text": "frozen stages, and the last of them"},
            "tickangle": 0,
        },
        "yaxis": {"title": {"text": "val/top1"}, "rangemode": "tozero"},
    }
    if sweep.chance is not None:
        layout |= mark_level(sweep.chance, "one class always")
    best_row = rows[0]
    return Chart(
        name="depths",
        title="Accuracy against freeze depth",
        label=f"Best val/top1 is {best_row.val_top1:.3f} with "
        f"{depth_name(sweep, sweep.depth_of(best_row))}. "
        + "; ".join(f"{init}, {name}: {top1}" for init, name, top1, _ in table[:12]),
        figures=single({"data": data, "layout": layout}),
        header=("initialization", "freeze depth", "best val/top1", "trial"),
        table=table,
    )


def draw_parallel(sweep: Sweep) -> Chart | None:
    """Draw each trial as a line over the four axes and val/top1, stronger where it is better.

    Lines in SVG rather than Plotly's parcoords, which needs WebGL and can't be printed.
    """
    rows = measured(sweep)
    if not rows:
        return None
    depths = sorted({sweep.depth_of(row) for row in rows})
    clipnorms = sorted({row.point[CLIPNORM] for row in rows}, key=threshold_of)
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
        x: list[Any] = []
        y: list[Any] = []
        text: list[Any] = []
        for at in chosen:
            x += [*range(len(places)), None]
            y += [*(column[at] for column in places), None]
            text += [_tell(rows[at])] * len(places) + [""]
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": x,
                "y": y,
                "text": text,
                "hovertemplate": "%{text}<extra></extra>",
                "line": {
                    "color": mix(
                        "var(--deep)", "var(--pale)", 0.12 + 0.88 * shade / (NUM_SHADES - 1)
                    ),
                    "width": 1 + 1.8 * shade / (NUM_SHADES - 1),
                },
            }
        )
    listed = sorted(set(rates))
    shown = listed if len(listed) <= 6 else [listed[0], listed[-1]]
    ticks = [
        [(_at(i, len(depths)), _short_depth(sweep, depth)) for i, depth in enumerate(depths)],
        [(_scale(log10(r), log10(listed[0]), log10(listed[-1])), show(r)) for r in shown],
        [(_at(i, len(clipnorms)), show(value)) for i, value in enumerate(clipnorms)],
        [(_at(i, len(inits)), escape(init)) for i, init in enumerate(inits)],
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
        "yaxis": {"visible": False, "range": [-0.06, 1.06]},
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
            [*(show(row.point[axis]) for axis in AXES), f"{row.val_top1:.3f}"] for row in rows[:50]
        ],
    )


def draw_cost(sweep: Sweep) -> Chart | None:
    """Draw val/top1 over seconds of training, with the trials that none beats in both."""
    rows = [row for row in measured(sweep) if row.seconds > 0]
    if not rows:
        return None
    front = pareto_front(rows)
    depths = sorted({sweep.depth_of(row) for row in rows})
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "none is faster and better",
            "x": [row.seconds for row in front],
            "y": [row.val_top1 for row in front],
            "line": {"color": "var(--faint)", "width": 2, "shape": "hv"},
            "hoverinfo": "skip",
        }
    ]
    for number, depth in enumerate(depths):
        of_depth = [row for row in rows if sweep.depth_of(row) == depth]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": _short_depth(sweep, depth),
                "x": [row.seconds for row in of_depth],
                "y": [row.val_top1 for row in of_depth],
                "text": [f"{_tell(row)}<br>{row.seconds:,.1f} s" for row in of_depth],
                "hovertemplate": "%{text}<extra></extra>",
                "marker": {
                    "color": depth_colour(sweep, depth),
                    "size": 10,
                    "symbol": SYMBOLS[number % len(SYMBOLS)],
                    "line": {"color": "var(--surface)", "width": 1},
                },
            }
        )
    return Chart(
        name="cost",
        title="Cost against accuracy",
        label="Trials that none beats in both time and val/top1: "
        + "; ".join(
            f"{row.seconds:,.1f} s for {row.val_top1:.3f} ({describe(row.point)})"
            for row in front[-8:]
        ),
        figures=single(
            {
                "data": data,
                "layout": {
                    "height": 400,
                    "xaxis": {"type": "log", "title": {"text": "seconds of training"}, "dtick": 1},
                    "yaxis": {"title": {"text": "val/top1"}, "rangemode": "tozero"},
                },
            }
        ),
        header=("seconds", "val/top1", "trial", "point"),
        table=[
            [f"{row.seconds:,.1f}", f"{row.val_top1:.3f}", row.trial_id, describe(row.point)]
            for row in front
        ],
    )


def pareto_front(rows: Sequence[Standing]) -> list[Standing]:
    """Return the trials that no other beats in both seconds and val/top1, the fastest first."""
    front: list[Standing] = []
    for row in sorted(rows, key=lambda row: (row.seconds, -(row.val_top1 or 0.0))):
        if not front or (row.val_top1 or 0.0) > (front[-1].val_top1 or 0.0):
            front.append(row)
    return front


def draw_importance(sweep: Sweep) -> Chart | None:
    """Draw how much each axis decides which trials are best."""
    shares = rank_axes(sweep.standings)
    if not shares:
        return None
    names = [AXIS_NAMES[axis] for axis in shares]
    values = list(shares.values())
    return Chart(
        name="importance",
        title="Which axis decides",
        label="Share of each axis: "
        + ", ".join(f"{name} {value:.0%}" for name, value in zip(names, values, strict=True)),
        figures=single(
            {
                "data": [
                    {
                        "type": "bar",
                        "orientation": "h",
                        "x": values,
                        "y": names,
                        "text": [f"{value:.0%}" for value in values],
                        "textposition": "outside",
                        "cliponaxis": False,
                        "marker": {"color": "var(--thaw)"},
                        "hoverinfo": "skip",
                    }
                ],
                "layout": {
                    "height": 220,
                    "bargap": 0.45,
                    "margin": {"l": 110, "t": 8, "b": 8, "r": 48},
                    "xaxis": {"visible": False, "range": [0, max(values) * 1.05]},
                    "yaxis": {"autorange": "reversed", "showgrid": False, "ticksuffix": "  "},
                },
            }
        ),
        header=("axis", "share"),
        table=[[name, f"{value:.3f}"] for name, value in zip(names, values, strict=True)],
    )


def mark_level(level: float, name: str) -> Figure:
    """A dotted line over the whole width, with its name."""
    return {
        "shapes": [
            {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": level,
                "y1": level,
                "line": {"color": "var(--quiet)", "width": 1, "dash": "dot"},
            }
        ],
        "annotations": [
            {
                "xref": "paper",
                "x": 1,
                "y": level,
                "text": f"{name} {level:.3f}",
                "xanchor": "right",
                "yanchor": "bottom",
                "showarrow": False,
                "font": {"size": 12, "color": "var(--quiet)"},
            }
        ],
    }


def depth_colour(sweep: Sweep, depth: int) -> str:
    """From the colour of what is thawed to that of what is frozen."""
    return mix("var(--frost)", "var(--thaw)", depth / len(sweep.stages))


def mix(first: str, second: str, share: float) -> str:
    return f"color-mix(in oklch, {first} {100 * share:.0f}%, {second})"


def _tell(row: Standing) -> str:
    top1 = "" if row.val_top1 is None else f" val/top1 {row.val_top1:.3f}, {row.state}"
    return escape(f"#{row.rank} {row.trial_id}") + f"<br>{escape(describe(row.point))}<br>{top1}"


def _depth_tick(sweep: Sweep, depth: int) -> str:
    if depth in (0, len(sweep.stages)):
        return f"{depth}<br>{'nothing' if depth == 0 else 'all'}"
    return f"{depth}<br>{sweep.stages[depth - 1]}"


def _short_depth(sweep: Sweep, depth: int) -> str:
    return {0: "0 frozen", len(sweep.stages): "all frozen"}.get(depth, f"{depth} frozen")


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


def top1_of(rows: Sequence[dict[str, Any]]) -> tuple[list[int], list[float]]:
    """Epochs and val/top1 of a run."""
    ended = [row for row in rows if metrics.VAL_TOP1 in row]
    return [row[metrics.EPOCH] for row in ended], [row[metrics.VAL_TOP1] for row in ended]

"""Charts of a sweep's trials: accuracy by freeze depth and against cost, importance of the axes."""

from collections.abc import Sequence
from typing import Any

from cluster.io.statistics import wilson
from tuning.leaderboard import TrialResult
from tuning.record import SweepRecord
from tuning.review.figure import (
    AXIS_NAMES,
    SYMBOLS,
    Chart,
    Figure,
    depth_colour,
    mark_level,
    measured,
    plain,
    short_depth,
    single,
    tell_trial,
)
from tuning.review.importance import rank_axes
from tuning.space import INIT, describe
from tuning.verdict import depth_name

INIT_COLOURS = ("var(--thaw)", "var(--frost)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)")


def draw_depths(sweep: SweepRecord) -> Chart | None:
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
                "text": [tell_trial(row) for row in of_init],
                "hovertemplate": "%{text}<extra></extra>",
                "marker": {"color": colour, "size": 7, "opacity": 0.4, "symbol": symbol},
                "showlegend": False,
            }
        )
        found = [next(r for r in of_init if sweep.depth_of(r) == depth) for depth in place]
        line: dict[str, Any] = {
            "type": "scatter",
            "mode": "lines+markers",
            "name": plain(init),
            "x": list(place.values()),
            "y": [row.val_top1 for row in found],
            "text": [tell_trial(row) for row in found],
            "hovertemplate": "%{text}<extra></extra>",
            "line": {"color": colour, "width": 2.5},
            "marker": {"color": colour, "size": 10, "symbol": symbol},
        }
        table += [
            [init, depth_name(sweep, depth), f"{row.val_top1:.3f}", row.trial_id]
            for depth, row in zip(place, found, strict=True)
        ]
        if num_images:
            bounds = [wilson(row.val_top1 or 0.0, num_images) for row in found]
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


def draw_cost(sweep: SweepRecord) -> Chart | None:
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
                "name": short_depth(sweep, depth),
                "x": [row.seconds for row in of_depth],
                "y": [row.val_top1 for row in of_depth],
                "text": [f"{tell_trial(row)}<br>{row.seconds:,.1f} s" for row in of_depth],
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


def pareto_front(rows: Sequence[TrialResult]) -> list[TrialResult]:
    """Return the trials that no other beats in both seconds and val/top1, the fastest first."""
    front: list[TrialResult] = []
    for row in sorted(rows, key=lambda row: (row.seconds, -(row.val_top1 or 0.0))):
        if not front or (row.val_top1 or 0.0) > (front[-1].val_top1 or 0.0):
            front.append(row)
    return front


def draw_importance(sweep: SweepRecord) -> Chart | None:
    """Draw how much each axis decides which trials are best."""
    shares = rank_axes(sweep.trials)
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


def _depth_tick(sweep: SweepRecord, depth: int) -> str:
    if depth in (0, len(sweep.stages)):
        return f"{depth}<br>{'nothing' if depth == 0 else 'all'}"
    return f"{depth}<br>{sweep.stages[depth - 1]}"

"""Charts of what happened during the trials: learning curves, and what clipping did."""

from collections.abc import Sequence
from typing import Any

from trainers import metrics
from tuning.leaderboard import TrialResult
from tuning.record import SweepRecord
from tuning.review.figure import (
    SYMBOLS,
    Chart,
    Figure,
    depth_colour,
    mark_level,
    measured,
    mix,
    plain,
    single,
    top1_of,
)
from tuning.space import CLIPNORM, describe

NUM_HIGHLIGHTED = 5
"""Learning curves that stand out."""
MAX_POINTS = 300
"""Of a line; more can't be told apart."""
MAX_CHOICES = 8
"""Trials whose clipping is told."""


def draw_curves(sweep: SweepRecord) -> Chart | None:
    """Draw val/top1 over epochs: the best in colour, the ends of stopped trials, ASHA's rungs."""
    rows = measured(sweep)
    if not rows:
        return None
    best, others = rows[:NUM_HIGHLIGHTED], rows[NUM_HIGHLIGHTED:]
    x: list[Any] = []
    y: list[Any] = []
    for row in others:
        epochs, top1s = top1_of(sweep.rows[row.trial_id])
        x += [*epochs, None]
        y += [*top1s, None]
    data: list[dict[str, Any]] = []
    if others:
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": f"the other {len(others)}",
                "x": x,
                "y": y,
                "line": {"color": "var(--faint)", "width": 1},
                "opacity": max(0.3, min(1.0, 80 / len(others))),
                "hoverinfo": "skip",
            }
        )
    pruned = [row for row in rows if row.state == "pruned"]
    ends = [top1_of(sweep.rows[row.trial_id]) for row in pruned]
    if pruned:
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "stopped early",
                "x": [epochs[-1] for epochs, _ in ends],
                "y": [top1s[-1] for _, top1s in ends],
                "text": [plain(describe(row.point)) for row in pruned],
                "hovertemplate": "%{text}<br>stopped after epoch %{x}<extra></extra>",
                "marker": {"symbol": "x-thin-open", "size": 8, "color": "var(--quiet)"},
            }
        )
    for number, row in reversed(list(enumerate(best))):
        epochs, top1s = top1_of(sweep.rows[row.trial_id])
        colour = depth_colour(sweep, sweep.depth_of(row))
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": f"#{row.rank} {plain(describe(row.point))}",
                "x": epochs,
                "y": top1s,
                "line": {"color": colour, "width": 3 if number == 0 else 2},
                "marker": {"size": 7, "symbol": SYMBOLS[number], "color": colour},
                "hovertemplate": "epoch %{x}: %{y:.3f}<extra>%{fullData.name}</extra>",
                "legendrank": 1 + number,
            }
        )
    reached = _count_at_rungs(sweep, rows)
    layout: Figure = {
        "height": 440,
        "legend": {"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0},
        "xaxis": {
            "title": {"text": "epoch"},
            "tickformat": "d",
            "dtick": -(-sweep.base.epochs // 12),
        },
        "yaxis": {"title": {"text": "val/top1"}, "rangemode": "tozero"},
    }
    if sweep.chance is not None:
        layout |= mark_level(sweep.chance, "one class always")
    layout["shapes"] = layout.get("shapes", []) + [
        {
            "type": "line",
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "x0": rung,
            "x1": rung,
            "line": {"color": "var(--rule)", "width": 6},
            "layer": "below",
        }
        for rung, _, _ in reached
    ]
    rungs = "; ".join(
        f"after epoch {rung}, {stopped} of {count} stopped" for rung, count, stopped in reached
    )
    return Chart(
        name="curves",
        title="Learning curves",
        label=f"val/top1 over epochs of {len(rows)} trials, {len(pruned)} stopped early. {rungs}",
        figures=single({"data": data, "layout": layout}),
        header=("after epoch", "trials there", "stopped there"),
        table=reached,
    )


def _count_at_rungs(sweep: SweepRecord, rows: Sequence[TrialResult]) -> list[tuple[int, int, int]]:
    """Count, for each of ASHA's rungs, the trials that came there, and those it stopped."""
    return [
        (
            rung,
            sum(row.num_epochs >= rung for row in rows),
            sum(row.num_epochs == rung and row.state == "pruned" for row in rows),
        )
        for rung in sweep.config.rungs
    ]


def draw_clipping(sweep: SweepRecord) -> Chart | None:
    """Draw gradient norms before and after clipping, and the share of tensors clipped, over steps:
    whole and per stage, of the best trials of each freeze depth and clipnorm."""
    rows = [
        row
        for row in measured(sweep)
        if any(metrics.GRAD_NORM in line for line in sweep.rows[row.trial_id])
    ]
    chosen: dict[tuple[Any, ...], TrialResult] = {}
    for row in rows:
        chosen.setdefault((sweep.depth_of(row), row.point[CLIPNORM]), row)
    picked = list(chosen.values())[:MAX_CHOICES]
    if not picked:
        return None
    figures = {
        f"#{row.rank} {describe(row.point)}": _draw_run(sweep, sweep.rows[row.trial_id])
        for row in picked
    }
    table = []
    for row in picked:
        last = [line for line in sweep.rows[row.trial_id] if metrics.GRAD_NORM in line][-1]
        table.append(
            [
                f"#{row.rank} {describe(row.point)}",
                f"{last[metrics.GRAD_NORM]:.3g}",
                f"{last[metrics.GRAD_NORM_AFTER]:.3g}",
                f"{last[metrics.CLIPPED_SHARE]:.1%}",
            ]
        )
    _, before, after, share = table[0]
    return Chart(
        name="clipping",
        title="What clipping does to gradients",
        label=f"The best trial ends with a gradient norm of {before} before clipping and {after} "
        f"after it; {share} of its tensors are clipped.",
        figures=figures,
        header=("trial", "norm before, at the end", "norm after", "tensors clipped"),
        table=table,
    )


def _draw_run(sweep: SweepRecord, rows: Sequence[dict[str, Any]]) -> Figure:
    steps = [row for row in rows if metrics.GRAD_NORM in row]
    steps = steps[:: -(-len(steps) // MAX_POINTS)]
    x = [row[metrics.GLOBAL_STEP] for row in steps]
    stages = [
        name for name in (*sweep.stages, "head") if metrics.stage_metrics([name])[0] in steps[-1]
    ]
    groups: list[tuple[str, str, tuple[str, ...]]] = [
        ("all", "var(--ink)", (metrics.GRAD_NORM, metrics.GRAD_NORM_AFTER, metrics.CLIPPED_SHARE))
    ]
    for number, stage in enumerate(stages):
        share = number / max(1, len(stages) - 1)
        colour = mix("var(--thaw)", "var(--frost)", share)
        groups.append((stage, colour, tuple(metrics.stage_metrics([stage]))))
    data: list[dict[str, Any]] = []
    for name, colour, (before, after, clipped) in groups:
        width = 2.5 if name == "all" else 1.5
        for metric, dash, axis in (
            (before, "solid", "y"),
            (after, "dot", "y"),
            (clipped, "solid", "y2"),
        ):
            when = {before: "before", after: "after", clipped: "clipped"}[metric]
            value = "%{y:.0%}" if metric == clipped else "%{y:.3g}"
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": name,
                    "legendgroup": name,
                    "showlegend": metric == before,
                    "x": x,
                    "y": [row.get(metric) for row in steps],
                    "yaxis": axis,
                    "line": {"color": colour, "width": width, "dash": dash},
                    "marker": {"size": 4, "color": colour},
                    "hovertemplate": f"{name}, {when}: {value}, step %{{x}}<extra></extra>",
                }
            )
    return {
        "data": data,
        "layout": {
            "height": 480,
            "legend": {"orientation": "h", "y": -0.16, "yanchor": "top", "x": 0},
            "xaxis": {"title": {"text": "step"}, "anchor": "y2"},
            "yaxis": {
                "domain": [0.42, 1],
                "type": "log",
                "title": {"text": "gradient norm"},
                "exponentformat": "none",
            },
            "yaxis2": {
                "domain": [0, 0.32],
                "range": [-0.02, 1.02],
                "tickformat": ".0%",
                "title": {"text": "tensors clipped"},
            },
        },
    }

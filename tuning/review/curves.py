"""Charts of what happened during the trials: learning curves and gradient clipping."""

from collections.abc import Iterator, Sequence
from typing import Any

import plotly.graph_objects as go

from trainers import metrics
from trainers.run.rows import Row
from trainers.run.stop import STOPPED
from tuning.axes.axis import CLIPNORM
from tuning.point import describe
from tuning.record.record import SweepRecord
from tuning.record.results import PRUNED, TrialResult
from tuning.review.figure import (
    SYMBOLS,
    Chart,
    blend,
    colour_of,
    mark_chance,
    measured,
    new_figure,
    plain,
    top1_of,
)

NUM_HIGHLIGHTED = 5
"""Learning curves in colour."""
MAX_POINTS = 300
"""Per line; more are indistinguishable."""
MAX_CHOICES = 8
"""Trials whose clipping the reader can choose."""


def draw_curves(record: SweepRecord) -> Chart | None:
    """Draw val/top1 over epochs: the best in colour, where trials were stopped, ASHA's rungs."""
    # A copied folder may lack the rows of a trial that the leaderboard has.
    rows = [row for row in measured(record) if top1_of(record.rows[row.trial_id])[0]]
    if not rows:
        return None
    figure = new_figure(
        height=440,
        legend={"y": -0.2, "yanchor": "top"},
        xaxis={
            "title": {"text": "epoch"},
            "tickformat": "d",
            "dtick": -(-record.base.epochs // 12),
        },
        yaxis={"title": {"text": "val/top1"}, "rangemode": "tozero"},
    )
    best, others = rows[:NUM_HIGHLIGHTED], rows[NUM_HIGHLIGHTED:]
    pruned = [row for row in rows if row.state in (PRUNED, STOPPED)]
    if others:
        _add_others(figure, [record.rows[row.trial_id] for row in others])
    if pruned:
        ends = [top1_of(record.rows[row.trial_id]) for row in pruned]
        figure.add_scatter(
            mode="markers",
            name="stopped early",
            x=[epochs[-1] for epochs, _ in ends],
            y=[top1s[-1] for _, top1s in ends],
            text=[plain(describe(row.point)) for row in pruned],
            hovertemplate="%{text}<br>stopped after epoch %{x}<extra></extra>",
            marker={"symbol": "x-thin-open", "size": 8, "color": "var(--quiet)"},
        )
    for number, row in reversed(list(enumerate(best))):
        epochs, top1s = top1_of(record.rows[row.trial_id])
        colour = colour_of(record.frozen_of(row))
        figure.add_scatter(
            mode="lines+markers",
            name=f"#{row.rank} {plain(describe(row.point))}",
            x=epochs,
            y=top1s,
            line={"color": colour, "width": 3 if number == 0 else 2},
            marker={"size": 7, "symbol": SYMBOLS[number], "color": colour},
            hovertemplate="epoch %{x}: %{y:.3f}<extra>%{fullData.name}</extra>",
            legendrank=1 + number,
        )
    mark_chance(figure, record)
    reached = _count_at_rungs(record, rows)
    for rung, _, _ in reached:
        figure.add_vline(x=rung, line={"color": "var(--rule)", "width": 6}, layer="below")
    rungs = "; ".join(
        f"after epoch {rung}, {stopped} of {count} stopped" for rung, count, stopped in reached
    )
    return Chart(
        name="curves",
        title="Learning curves",
        label=f"val/top1 over epochs of {len(rows)} trials, {len(pruned)} stopped early. {rungs}",
        figures={"": figure},
        header=("after epoch", "trials there", "stopped there"),
        table=reached,
    )


def _add_others(figure: go.Figure, runs: Sequence[Sequence[Row]]) -> None:
    """Add all but the best as one grey line with gaps, which is smaller than a line each."""
    x: list[Any] = []
    y: list[Any] = []
    for rows in runs:
        epochs, top1s = top1_of(rows)
        x += [*epochs, None]
        y += [*top1s, None]
    figure.add_scatter(
        mode="lines",
        name=f"the other {len(runs)}",
        x=x,
        y=y,
        line={"color": "var(--faint)", "width": 1},
        opacity=max(0.3, min(1.0, 80 / len(runs))),
        hoverinfo="skip",
    )


def _count_at_rungs(record: SweepRecord, rows: Sequence[TrialResult]) -> list[tuple[int, int, int]]:
    """Count, for each of ASHA's rungs, the trials that reached it and those stopped there."""
    return [
        (
            rung,
            sum(row.num_epochs >= rung for row in rows),
            sum(row.num_epochs == rung and row.state == PRUNED for row in rows),
        )
        for rung in record.config.rungs
    ]


def draw_clipping(record: SweepRecord) -> Chart | None:
    """Draw gradient norms before and after clipping, and the share of tensors clipped, over steps:
    in total and per stage, for the best trial of each freeze depth and clipnorm."""
    chosen: dict[tuple[Any, ...], TrialResult] = {}
    for row in measured(record):
        if any(metrics.GRAD_NORM in line for line in record.rows[row.trial_id]):
            chosen.setdefault((record.frozen_of(row).key, row.point.get(CLIPNORM)), row)
    shown = list(chosen.values())[:MAX_CHOICES]
    picked = {
        f"#{row.rank} {describe(row.point)}": [
            line for line in record.rows[row.trial_id] if metrics.GRAD_NORM in line
        ]
        for row in shown
    }
    if not picked:
        return None
    table = [
        [
            name,
            f"{steps[-1][metrics.GRAD_NORM]:.3g}",
            f"{steps[-1][metrics.GRAD_NORM_AFTER]:.3g}",
            f"{steps[-1][metrics.CLIPPED_SHARE]:.1%}",
        ]
        for name, steps in picked.items()
    ]
    _, before, after, share = table[0]
    return Chart(
        name="clipping",
        title="Gradient clipping",
        label=f"The best trial ends with a gradient norm of {before} before clipping and {after} "
        f"after it; {share} of its tensors are clipped.",
        figures={
            name: _draw_run(record.frozen_of(row).stages, steps)
            for row, (name, steps) in zip(shown, picked.items(), strict=True)
        },
        header=("trial", "last norm before clipping", "last norm after", "tensors clipped"),
        table=table,
    )


def _draw_run(stages: Sequence[str], steps: Sequence[Row]) -> go.Figure:
    steps = steps[:: -(-len(steps) // MAX_POINTS)]
    figure = new_figure(
        height=480,
        legend={"y": -0.16, "yanchor": "top"},
        xaxis={"title": {"text": "step"}, "anchor": "y2"},
        yaxis={
            "domain": [0.42, 1],
            "type": "log",
            "title": {"text": "gradient norm"},
            "exponentformat": "none",
        },
        yaxis2={
            "domain": [0, 0.32],
            "range": [-0.02, 1.02],
            "tickformat": ".0%",
            "title": {"text": "tensors clipped"},
        },
    )
    for group, colour, (before, after, clipped) in _list_groups(stages, steps[-1]):
        for metric, when, dash, axis, value in (
            (before, "before", "solid", "y", "%{y:.3g}"),
            (after, "after", "dot", "y", "%{y:.3g}"),
            (clipped, "clipped", "solid", "y2", "%{y:.0%}"),
        ):
            figure.add_scatter(
                mode="lines+markers",
                name=group,
                legendgroup=group,
                showlegend=metric == before,
                x=[row[metrics.GLOBAL_STEP] for row in steps],
                y=[row.get(metric) for row in steps],
                yaxis=axis,
                line={"color": colour, "width": 2.5 if group == "all" else 1.5, "dash": dash},
                marker={"size": 4, "color": colour},
                hovertemplate=f"{group}, {when}: {value}, step %{{x}}<extra></extra>",
            )
    return figure


def _list_groups(stages: Sequence[str], row: Row) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Yield the name, the colour and the three metrics of all tensors and of each trained stage."""
    yield "all", "var(--ink)", (metrics.GRAD_NORM, metrics.GRAD_NORM_AFTER, metrics.CLIPPED_SHARE)
    names = {stage: metrics.stage_metrics([stage]) for stage in (*stages, "head")}
    trained = [stage for stage in names if names[stage][0] in row]
    for number, stage in enumerate(trained):
        yield stage, blend(1 - number / max(1, len(trained) - 1)), names[stage]

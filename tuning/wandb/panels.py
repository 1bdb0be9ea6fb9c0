"""W&B panels on trainings and sweeps.

Nested config is addressed by its dotted path, as in `config.to_dict()`. Runs are ranked by
`val/best_top1`, their highest val/top1 so far.
"""

import unicodedata
from collections.abc import Sequence

from wandb_workspaces.reports.v2 import interface as wr

from trainers import metrics
from tuning.axes.axis import LEARNING_RATE
from tuning.point import short_name

BEST = metrics.VAL_BEST_TOP1
MAX_CURVES = 100
"""Runs per panel; W&B's default is 10."""


def where(group: str, *job_types: str) -> str:
    """Write W&B's filter for the runs of a group, of the given job types or of all."""
    of_group = f'Metric("Group") == {_quote(group)}'
    if not job_types:
        return of_group
    return f'{of_group} and Metric("JobType") in [{", ".join(map(_quote, job_types))}]'


def _quote(text: str) -> str:
    # wandb-workspaces rewrites = < > anywhere in a filter, and escapes no quotes.
    return '"' + "".join(c if c.isalnum() else f"\\U{ord(c):08x}" for c in text) + '"'


def name_view(text: str) -> str:
    """Turn a text into a valid name: W&B allows no symbols, and at most 128 characters."""
    plain = (" " if unicodedata.category(char).startswith("S") else char for char in text)
    return "".join(plain)[:128]


def curves(*names: str, axis: str) -> wr.LinePlot:
    """Draw metrics of trainings over `epoch` or `global_step`."""
    return wr.LinePlot(title=", ".join(names), x=axis, y=list(names), max_runs_to_show=MAX_CURVES)


def stage_curves(name: str) -> wr.LinePlot:
    """Draw a clipping metric of each trained stage (`metrics.stage_metrics`)."""
    return wr.LinePlot(
        title=f"{name}, stage by stage",
        x=metrics.GLOBAL_STEP,
        metric_regex=f"^{name.replace('/', '/[^/]+/')}$",
        max_runs_to_show=MAX_CURVES,
    )


def usage_curves(title: str, quantity: str) -> wr.LinePlot:
    """Draw what workers use of their machines (`trainers.run.usage`)."""
    return wr.LinePlot(
        title=title,
        x=metrics.EPOCH,
        metric_regex=rf"^system/{quantity}$",
        max_runs_to_show=MAX_CURVES,
    )


def table(name: str) -> wr.WeavePanelSummaryTable:
    """Show a table of the runs."""
    return wr.WeavePanelSummaryTable(table_name=name)


def parallel_coordinates(fields: Sequence[str]) -> wr.ParallelCoordinatesPlot:
    """Draw each trial as a line over the fields of the space and its accuracy."""
    columns = [
        wr.ParallelCoordinatesPlotColumn(
            metric=wr.Config(field),
            display_name=short_name(field),
            log=field == LEARNING_RATE or None,
        )
        for field in fields
    ]
    best = wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(BEST), display_name="val/top1")
    return wr.ParallelCoordinatesPlot(title="Each line is a trial", columns=[*columns, best])


def importance() -> wr.ParameterImportancePlot:
    """Draw the importance of each config field, as W&B computes it."""
    return wr.ParameterImportancePlot(with_respect_to=BEST)


def best_by(axis: str) -> wr.BarPlot:
    """Draw the best accuracy and the range of the trials at each value of an axis."""
    return wr.BarPlot(
        title=f"Best val/top1 by {axis}",
        metrics=[BEST],
        groupby=wr.Config(axis),
        groupby_aggfunc="max",
        groupby_rangefunc="minmax",
    )


def best_over(name: str) -> wr.ScatterPlot:
    """Draw the best accuracy of each trial over a number of its summary."""
    return wr.ScatterPlot(
        title=f"Best val/top1 over {name}", x=wr.SummaryMetric(name), y=wr.SummaryMetric(BEST)
    )


def best_of_all() -> wr.ScalarChart:
    """Show the best accuracy of all trials."""
    return wr.ScalarChart(title="Best val/top1", metric=BEST, groupby_aggfunc="max")


def accuracy_curves(rungs: Sequence[int]) -> wr.LinePlot:
    """Draw the accuracy of trials over epochs: a line that ends at a rung is a pruned trial."""
    return wr.LinePlot(
        title=f"val/top1; {describe_rungs(rungs)}",
        x=metrics.EPOCH,
        y=[metrics.VAL_TOP1],
        title_x="epoch",
        max_runs_to_show=MAX_CURVES,
    )


def ends(rungs: Sequence[int]) -> wr.ScatterPlot:
    """Draw the accuracy of each trial over its last epoch: the rungs are columns of points."""
    return wr.ScatterPlot(
        title=f"Where trials ended; {describe_rungs(rungs)}",
        x=wr.SummaryMetric(metrics.EPOCH),
        y=wr.SummaryMetric(BEST),
    )


def describe_rungs(rungs: Sequence[int]) -> str:
    if not rungs:
        return "no trial is pruned"
    return f"trials may be pruned after epoch {', '.join(map(str, rungs))}"

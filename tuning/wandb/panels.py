"""W&B's panels on a training and on a sweep, for workspaces and reports alike.

Nested config is addressed by its dotted path, as in `config.to_dict()`. What sums a run up is
`val/best_top1`, its highest val/top1 so far: a plain number in every summary.
"""

import unicodedata
from collections.abc import Sequence
from typing import Any

from wandb_workspaces.reports.v2 import interface as wr

from trainers import metrics
from tuning.space import AXES, LEARNING_RATE

BEST = metrics.VAL_BEST_TOP1
MAX_CURVES = 100
"""Runs that a panel draws at once; W&B's own default is 10."""
SWEEP = "sweep"
"""Job type of the run that sums a sweep up."""
GRID_COLUMNS = 24
"""Of a report."""


def where(group: str, *job_types: str) -> str:
    """Write W&B's filter for a group's runs; without job types, for all of them."""
    of_group = f'Metric("Group") == {_quote(group)}'
    if not job_types:
        return of_group
    return f'{of_group} and Metric("JobType") in [{", ".join(map(_quote, job_types))}]'


def where_id(run_id: str) -> str:
    """Write W&B's filter for one run."""
    return f'Metric("ID") == {_quote(run_id)}'


def _quote(text: str) -> str:
    # wandb-workspaces rewrites = < > wherever they stand in a filter, and escapes no quotes.
    return '"' + "".join(c if c.isalnum() else f"\\U{ord(c):08x}" for c in text) + '"'


def name_view(text: str) -> str:
    """Make a text fit to be a name: W&B takes no symbols in it, and at most 128 characters."""
    plain = (" " if unicodedata.category(char).startswith("S") else char for char in text)
    return "".join(plain)[:128]


def arrange(*rows: Sequence[Any], height: int = 9) -> list[Any]:
    """Lay rows of panels out on a report's grid, each row as wide as the grid."""
    for number, row in enumerate(rows):
        width = GRID_COLUMNS // len(row)
        for place, panel in enumerate(row):
            panel.layout = wr.Layout(x=place * width, y=number * height, w=width, h=height)
    return [panel for row in rows for panel in row]


def curves(*names: str, axis: str) -> wr.LinePlot:
    """Draw metrics of trainings over `epoch` or `global_step`."""
    return wr.LinePlot(title=", ".join(names), x=axis, y=list(names), max_runs_to_show=MAX_CURVES)


def stage_curves(name: str) -> wr.LinePlot:
    """Draw a metric of clipping for each stage that trains, as `metrics.stage_metrics` names it."""
    return wr.LinePlot(
        title=f"{name}, stage by stage",
        x=metrics.GLOBAL_STEP,
        metric_regex=f"^{name.replace('/', '/[^/]+/')}$",
        max_runs_to_show=MAX_CURVES,
    )


def table(name: str) -> wr.WeavePanelSummaryTable:
    """Show a table that runs have logged."""
    return wr.WeavePanelSummaryTable(table_name=name)


def confusion_matrix(split: str) -> wr.CustomChart:
    """Draw what `wandb.plot.confusion_matrix` left as `SPLIT/confusion`."""
    return wr.CustomChart(
        query={"summaryTable": {"tableKey": f"{split}/confusion_table"}},
        chart_name="wandb/confusion_matrix/v1",
        chart_fields={field: field for field in ("Actual", "Predicted", "nPredictions")},
        chart_strings={"title": f"{split}/confusion"},
    )


def parallel_coordinates() -> wr.ParallelCoordinatesPlot:
    """Draw each trial as a line through its point in the space and its accuracy."""
    columns = [
        wr.ParallelCoordinatesPlotColumn(
            metric=wr.Config(axis), display_name=name, log=axis == LEARNING_RATE or None
        )
        for axis, name in AXES.items()
    ]
    best = wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(BEST), display_name="val/top1")
    return wr.ParallelCoordinatesPlot(title="Each line is a trial", columns=[*columns, best])


def importance() -> wr.ParameterImportancePlot:
    """Draw how much each field of the config decides, as W&B finds it."""
    return wr.ParameterImportancePlot(with_respect_to=BEST)


def best_by(axis: str) -> wr.BarPlot:
    """Draw the best accuracy at each value of an axis, and how far its trials spread."""
    return wr.BarPlot(
        title=f"Best val/top1 by {axis}",
        metrics=[BEST],
        groupby=wr.Config(axis),
        groupby_aggfunc="max",
        groupby_rangefunc="minmax",
    )


def best_of_all() -> wr.ScalarChart:
    """Show the best accuracy of all trials."""
    return wr.ScalarChart(title="Best val/top1", metric=BEST, groupby_aggfunc="max")


def accuracy_curves(rungs: Sequence[int]) -> wr.LinePlot:
    """Draw the accuracy of trials over epochs: a line that ends at a rung was pruned there."""
    return wr.LinePlot(
        title=f"val/top1; {describe_rungs(rungs)}",
        x=metrics.EPOCH,
        y=[metrics.VAL_TOP1],
        title_x="epoch",
        max_runs_to_show=MAX_CURVES,
    )


def ends(rungs: Sequence[int]) -> wr.ScatterPlot:
    """Draw how far each trial came, and how good it was: the rungs are columns of points."""
    return wr.ScatterPlot(
        title=f"Where trials ended; {describe_rungs(rungs)}",
        x=wr.SummaryMetric(metrics.EPOCH),
        y=wr.SummaryMetric(BEST),
    )


def describe_rungs(rungs: Sequence[int]) -> str:
    if not rungs:
        return "no trial is pruned"
    return f"the weak are pruned after epoch {', '.join(map(str, rungs))}"

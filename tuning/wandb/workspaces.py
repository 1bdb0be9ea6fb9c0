"""W&B workspaces of a sweep: one for its runs, one for the comparison of its trials.

A workspace shows a whole project, so each is filtered to the group of the sweep and named by it.
"""

from collections.abc import Sequence
from typing import Any

from wandb_workspaces import workspaces as ws
from wandb_workspaces.reports.v2 import interface as wr

from trainers import metrics
from trainers.metrics import EPOCH, GLOBAL_STEP
from trainers.tracking.mirror import TRIAL
from tuning.axes.axis import CLIPNORM, LEARNING_RATE
from tuning.wandb import panels
from tuning.wandb.sweep_run import SWEEP


def build_run_review(
    entity: str, project: str, group: str, *, fields: Sequence[str]
) -> ws.Workspace:
    """Build the workspace with the curves, data and predictions of a group's runs.

    Args:
        fields: of the space.
    """
    clipping = (metrics.GRAD_NORM, metrics.GRAD_NORM_AFTER, metrics.CLIPPED_SHARE)
    return ws.Workspace(
        entity=entity,
        project=project,
        name=panels.name_view(f"Run review: {group}"),
        sections=[
            _section(
                "Learning",
                panels.curves(metrics.VAL_TOP1, axis=EPOCH),
                panels.curves(metrics.VAL_TOP5, axis=EPOCH),
                panels.curves(metrics.VAL_LOSS, axis=EPOCH),
                panels.curves(metrics.TRAIN_LOSS, axis=GLOBAL_STEP),
                panels.curves(metrics.TRAIN_TOP1, axis=GLOBAL_STEP),
                panels.curves(metrics.LEARNING_RATE, axis=GLOBAL_STEP),
            ),
            _section(
                "Clipping",
                *(panels.curves(name, axis=GLOBAL_STEP) for name in clipping),
                *(panels.stage_curves(name) for name in clipping),
                panels.curves(metrics.PEAK_NORM, axis=GLOBAL_STEP),
            ),
            _section(
                "Throughput",
                panels.curves(metrics.IMAGES_PER_S, axis=EPOCH),
                panels.curves(metrics.WAIT_S, axis=EPOCH),
                panels.curves(metrics.EPOCH_S, axis=EPOCH),
            ),
            _section(
                "Machines",
                panels.usage_curves("GPU, percent", r"gpu\.(gpu|least)"),
                panels.usage_curves("GPU memory, percent", r"gpu\.memoryAllocated"),
                panels.usage_curves("CPUs, percent", r"cpu\.cpu_percent"),
            ),
            _section(
                "Data",
                panels.curves(metrics.UNREADABLE_IMAGES, axis=EPOCH),
                wr.MediaBrowser(title="data/augmentation", media_keys=["data/augmentation"]),
                columns=2,
            ),
            _section(
                "Predictions",
                panels.table("val/predictions"),
                panels.table("val/mistakes"),
                panels.table("val/confusion"),
                columns=2,
            ),
        ],
        settings=ws.WorkspaceSettings(max_runs=panels.MAX_CURVES),
        runset_settings=_runs(panels.where(group), fields),
    )


def build_sweep_review(
    entity: str, project: str, group: str, *, fields: Sequence[str], rungs: Sequence[int]
) -> ws.Workspace:
    """Build the workspace that compares the trials of a sweep, with the tables of its own run.

    Args:
        fields: of the space.
        rungs: epochs after which trials are pruned.
    """
    compared = [field for field in fields if field not in (LEARNING_RATE, CLIPNORM)]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=panels.name_view(f"Sweep review: {group}"),
        sections=[
            _section(
                "What decides", panels.parallel_coordinates(fields), panels.importance(), columns=2
            ),
            _section(
                "How deep to thaw",
                panels.best_over(metrics.FROZEN_SHARE),
                *map(panels.best_by, compared),
                panels.best_of_all(),
            ),
            _section("Pruning", panels.accuracy_curves(rungs), panels.ends(rungs), columns=2),
            _section(
                "The sweep",
                panels.table("sweep/leaderboard"),
                panels.table("sweep/importance"),
                panels.table("sweep/sharing"),
                columns=1,
            ),
        ],
        settings=ws.WorkspaceSettings(x_axis=EPOCH, max_runs=panels.MAX_CURVES),
        runset_settings=_runs(panels.where(group, TRIAL, SWEEP), fields),
    )


def _section(name: str, *shown: Any, columns: int = 3) -> ws.Section:
    return ws.Section(
        name=name,
        panels=list(shown),
        is_open=True,
        layout_settings=ws.SectionLayoutSettings(columns=columns, rows=-(-len(shown) // columns)),
    )


def _runs(filters: str, fields: Sequence[str]) -> ws.RunsetSettings:
    """Sort the best run first, and show its point and state as columns."""
    return ws.RunsetSettings(
        filters=filters,
        order=[ws.Ordering(ws.Summary(panels.BEST), ascending=False)],
        pinned_columns=[
            "run:displayName",
            f"summary:{panels.BEST}",
            *(f"config:{'.value.'.join(field.split('.', 1))}" for field in fields if "." in field),
            *(f"config:{field}.value" for field in fields if "." not in field),
            f"summary:{metrics.FROZEN_STAGE}",
            f"summary:{metrics.FROZEN_SHARE}",
            "summary:state",
            f"summary:{EPOCH}",
            f"summary:{metrics.TOTAL_S}",
        ],
    )

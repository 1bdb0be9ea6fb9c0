"""The W&B report of a sweep: its verdict, and the review page of its run."""

from wandb_workspaces.reports.v2 import interface as wr

from tuning.record.record import SweepRecord
from tuning.record.verdict import judge
from tuning.wandb import panels
from tuning.wandb.sweep import REVIEW
from tuning.wandb.sweep_run import SWEEP

PAGE_LAYOUT = wr.Layout(x=0, y=0, w=24, h=40)
"""As wide as a report."""


def build_report(entity: str, project: str, record: SweepRecord) -> wr.Report:
    """Build the report; look for one by its title."""
    group, verdict = record.config.group, judge(record)
    page = wr.MediaBrowser(title="Review", media_keys=[REVIEW], layout=PAGE_LAYOUT)
    runset = wr.Runset(filters=panels.where(group, SWEEP))  # of the report's own project
    return wr.Report(
        entity=entity,
        project=project,
        title=panels.name_view(f"How deep to thaw: {group}"),
        description=f"{', '.join(record.backbones)} on {record.base.data}",
        blocks=[
            wr.CalloutBlock(text=verdict.headline),
            wr.P(text=verdict.lead),
            *([wr.UnorderedList(items=list(verdict.cautions))] if verdict.cautions else []),
            wr.PanelGrid(runsets=[runset], panels=[page]),
        ],
        width="fluid",
    )

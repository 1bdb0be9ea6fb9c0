"""W&B reports of a sweep: the decision it leads to, and the card of the model that came of it."""

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from wandb_workspaces.reports.v2 import interface as wr

from cluster.io import storage
from cluster.io.uris import name_of
from trainers import metrics
from trainers.export import model_card
from trainers.metrics import EPOCH, GLOBAL_STEP
from trainers.tracking.media import MAX_CHART_CLASSES
from trainers.tracking.mirror import TRIAL
from tuning.record import SweepRecord
from tuning.space import FREEZE_DEPTH, INIT
from tuning.verdict import judge
from tuning.wandb import card as of_model
from tuning.wandb import panels
from tuning.wandb import texts as of_sweep
from tuning.wandb.card import Card
from tuning.winner import list_next, reproduce


def build_decision_report(entity: str, project: str, record: SweepRecord) -> wr.Report:
    """Build the report on what a sweep that ended says: the answer first, then why."""
    group, rungs = record.config.group, record.config.rungs
    test = of_sweep.describe_test(record)
    shared = [f"- {line}" for line in record.savings.describe()]
    return wr.Report(
        entity=entity,
        project=project,
        title=panels.name_view(f"How deep to thaw: {group}"),
        description=of_sweep.ask(record),
        blocks=[
            wr.CalloutBlock(text=judge(record).text),
            *([wr.P(text=test)] if test else []),
            wr.H2(text="Leaderboard"),
            _markdown(of_sweep.show_leaderboard(record)),
            wr.H2(text="What decides"),
            _grid(
                panels.where(group, TRIAL),
                [panels.parallel_coordinates()],
                [panels.best_by(FREEZE_DEPTH), panels.best_by(INIT)],
                [panels.importance(), panels.best_of_all()],
            ),
            wr.H2(text="How the trials went"),
            _grid(
                panels.where(group, TRIAL),
                [panels.accuracy_curves(rungs), panels.ends(rungs)],
                [
                    panels.curves(metrics.GRAD_NORM, axis=GLOBAL_STEP),
                    panels.curves(metrics.CLIPPED_SHARE, axis=GLOBAL_STEP),
                ],
            ),
            wr.H2(text="What was shared"),
            _markdown(shared or ["Nothing: every trial computed all it needed."]),
            _grid(
                panels.where(group, panels.SWEEP),
                [panels.table("sweep/sharing"), panels.table("sweep/importance")],
            ),
            wr.H2(text="How to reproduce it"),
            _commands(reproduce(record)),
            _markdown(of_sweep.describe_origin(record)),
            wr.H2(text="What comes next"),
            _commands(list_next(record)),
        ],
        width="fluid",
    )


def build_model_card(entity: str, project: str, record: SweepRecord, card: Card) -> wr.Report:
    """Build the card of a sweep's model: what it is for, how good it is, and where it fails."""
    facts = card.facts
    data = name_of(facts.config.data)
    out = storage.join(record.out, "exported")
    export = ["python", "-m", "trainers", "export", "--run", card.run, "--out", out]
    return wr.Report(
        entity=entity,
        project=project,
        title=panels.name_view(f"Model card: {record.config.group}"),
        description=model_card.title_of(facts),
        blocks=[
            _markdown([model_card.introduce(facts)]),
            wr.H2(text="Intended use and limits"),
            _markdown([of_model.describe_use(card), "", *model_card.LIMITS]),
            wr.H2(text="Data"),
            _markdown(of_model.describe_data(card)),
            wr.H2(text="How it was trained"),
            _markdown(
                model_card.table(("setting", "value"), model_card.training_rows(facts, data))
            ),
            *_grid_of_run(
                card.run_id,
                panels.curves(metrics.TRAIN_LOSS, axis=GLOBAL_STEP),
                panels.curves(metrics.TRAIN_TOP1, axis=GLOBAL_STEP),
                *([panels.curves(metrics.VAL_TOP1, axis=EPOCH)] if facts.config.validates else []),
            ),
            wr.H2(text="How good it is"),
            _markdown(of_model.describe_scores(card)),
            wr.H2(text="Where it fails"),
            _markdown(of_model.describe_failures(card)),
            *_grid_of_run(
                card.evaluation_id,
                panels.confusion_matrix("test")
                if len(facts.progress.classes) <= MAX_CHART_CLASSES
                else panels.table("test/confusion"),
                panels.table("test/mistakes"),
            ),
            wr.H2(text="How to load it"),
            _commands([shlex.join(export)]),
            _markdown(model_card.snippet("safetensors", facts)),
        ],
        width="fluid",
    )


def _grid_of_run(run_id: str | None, *row: Any) -> list[wr.PanelGrid]:
    """Show a row of panels on one run, where W&B has it."""
    return [] if run_id is None else [_grid(panels.where_id(run_id), row)]


def _grid(filters: str, *rows: Sequence[Any]) -> wr.PanelGrid:
    """Show rows of panels on the runs that pass a filter, the best one first."""
    best = wr.OrderBy(name=wr.SummaryMetric(panels.BEST), ascending=False)
    runset = wr.Runset(filters=filters, order=[best])  # of the report's own project
    return wr.PanelGrid(runsets=[runset], panels=panels.arrange(*rows))


def _markdown(lines: Iterable[str]) -> wr.MarkdownBlock:
    return wr.MarkdownBlock(text="\n".join(lines))


def _commands(lines: Sequence[str]) -> wr.MarkdownBlock:
    return _markdown(["```bash", *lines, "```"])

"""The content of a sweep's own run in W&B, with its review page."""

from collections import Counter
from functools import partial

from datasets.manifest import Manifest
from trainers import metrics
from trainers.tracking.artifacts import data_artifact
from trainers.tracking.media import augmentation_image
from trainers.tracking.run import WandbRun
from tuning.combine.combinations import COLUMNS, read_combinations, tabulate_combinations
from tuning.point import describe
from tuning.record.leaderboard import list_rows, tabulate
from tuning.record.record import SweepRecord
from tuning.record.verdict import judge
from tuning.review.importance import rank_axes

REVIEW = "sweep/review"
"""Key of the review page."""
COMBINED = "sweep/combined"
"""Key of the table of combinations of the best trials."""


def log_sweep(run: WandbRun, manifest: Manifest, record: SweepRecord, page: bytes) -> None:
    """Log the review page, the answer, the leaderboard, the importance of each axis, the work
    shared and the combinations of the best trials."""
    config, combined = record.config, read_combinations(record.out)
    tables = {
        "sweep/leaderboard": tabulate(list_rows(record.trials, config.base)),
        "sweep/importance": (("axis", "importance"), rank_axes(record.trials).items()),
        "sweep/sharing": (("measure", "value"), record.savings.to_dict().items()),
    }
    if combined is not None and combined.tried:
        tables[COMBINED] = (COLUMNS, tabulate_combinations(record.out, combined))
        kept = {f"combined/{each.kind}/{metrics.VAL_TOP1}": each.top1 for each in combined.kept}
        run.summarize({"combined/kept": len(kept)} | kept)
    data = config.base.data
    run.try_to(lambda: run.use_artifact(data_artifact(data, manifest)), "the data set")
    run.try_to(
        lambda: run.log({"data/augmentation": augmentation_image(config.base)}), "augmentation"
    )
    run.try_to(lambda: run.log_html(REVIEW, page), "the review page")
    for key, (columns, values) in tables.items():
        run.try_to(partial(run.log_table, key, columns, values), key)
    winner, answer = record.winner, judge(record).text
    run.summarize({"sweep/answer": answer})
    run.summarize(
        {f"trials/{state}": n for state, n in Counter(r.state for r in record.trials).items()}
    )
    if winner is None:
        run.alert(f"{config.group}: no winner", answer)
    else:
        test = record.test or {}
        run.summarize(
            {"winner/trial": winner.trial_id, "winner/point": describe(winner.point)}
            | {f"winner/{metrics.VAL_TOP1}": winner.val_top1}
            | {f"winner/{name}": value for name, value in test.items() if "test/" in name}
        )

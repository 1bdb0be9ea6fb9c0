"""The sweep itself as a run in W&B, in the group of its trials: what came of all of them."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from datasets.shards import Manifest
from trainers import metrics
from trainers.run.rows import find_mode
from trainers.tracking.artifacts import data_artifact
from trainers.tracking.media import augmentation_image
from trainers.tracking.mirror import find_tags
from trainers.tracking.run import WandbRun
from trainers.tracking.thread import WandbThread
from tuning.config import TuningConfig
from tuning.importance import rank_axes
from tuning.leaderboard import TrialResult, find_winner
from tuning.sharing.savings import Savings
from tuning.space import describe


def log_sweep(
    config: TuningConfig,
    manifest: Manifest,
    standings: Sequence[TrialResult],
    savings: Savings,
    test: dict[str, Any] | None,
) -> str | None:
    """Tell W&B the leaderboard, how much each axis matters, and what was shared.

    Args:
        test: the winner's measures on the test split.

    Returns:
        The command that uploads what W&B does not have; None where it has all.
    """
    if find_mode(config.base.track) == "off":
        return None
    log = partial(_log, config, manifest, standings, savings, test)
    return WandbThread(config.out, log).close()


def _log(
    config: TuningConfig,
    manifest: Manifest,
    standings: Sequence[TrialResult],
    savings: Savings,
    test: dict[str, Any] | None,
) -> str | None:
    run = WandbRun(
        config.out,
        track=config.base.track,
        name=f"sweep {config.group}",
        group=config.group,
        job_type="sweep",
        config=config.to_dict(),
        tags=find_tags(config.base, manifest),
    )
    rows = [row.to_dict() for row in standings]
    tables = {
        "sweep/leaderboard": (list(rows[0]), [list(row.values()) for row in rows]),
        "sweep/importance": (("axis", "importance"), rank_axes(standings).items()),
        "sweep/sharing": (("measure", "value"), savings.to_dict().items()),
    }
    data = config.base.data
    run.try_to(lambda: run.use_artifact(data_artifact(data, manifest)), "the data set")
    run.try_to(
        lambda: run.log({"data/augmentation": augmentation_image(config.base)}), "augmentation"
    )
    for key, (columns, values) in tables.items():
        run.try_to(partial(run.log_table, key, columns, values), key)
    winner = find_winner(standings)
    run.summarize(
        {f"trials/{state}": n for state, n in Counter(r.state for r in standings).items()}
    )
    if winner is None:
        run.alert(f"{config.group}: no winner", "no trial is above what one answer to all reaches")
    else:
        run.summarize(
            {"winner/trial": winner.trial_id, "winner/point": describe(winner.point)}
            | {f"winner/{metrics.VAL_TOP1}": winner.val_top1}
            | {f"winner/{name}": value for name, value in (test or {}).items() if "test/" in name}
        )
    run.finish("finished")
    return run.sync_command

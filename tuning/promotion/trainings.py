"""The trainings of a promotion: the winner's, but longer, one per seed or fold."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from cluster.io import storage
from cluster.io.errors import require
from cluster.io.terminal import report
from cluster.io.uris import name_of
from trainers.commands import follow_training
from trainers.config import FinetuneConfig
from trainers.prepare import Run
from trainers.run import checkpoint
from trainers.run.folder import read_config
from tuning.config import fit_warmup
from tuning.promotion.config import PromoteConfig
from tuning.record.files import read_sweep_config
from tuning.winner import LONGER

logger = logging.getLogger(__name__)


def plan_trainings(
    config: PromoteConfig, base: FinetuneConfig, sweep: str, out: str, *, num_folds: int = 0
) -> list[FinetuneConfig]:
    """Return a training per seed, on train and val, or per fold: the winner's, but longer.

    Args:
        base: of the winner.

    Raises:
        UserError: where folds are asked for and there are none.
    """
    if base.schedule.early_stopping_epochs is not None:
        logger.warning("schedule.early_stopping_epochs is not used: the last epoch counts")
    base = replace(base, schedule=replace(base.schedule, early_stopping_epochs=None))
    if config.folds:
        require(
            num_folds > 0,
            "folds",
            True,
            f"the data set {base.data} has none; prepare it again with --folds",
        )
        if base.model.head is not None:
            logger.warning(
                "model.head is not used: it has seen the validation images of other folds"
            )
        model = replace(base.model, head=None)
        trainings = [replace(base, fold=fold, model=model) for fold in range(num_folds)]
        names = [f"fold-{fold}" for fold in range(num_folds)]
    else:
        trainings = [replace(base, seed=seed, train_on="train+val") for seed in range(config.seeds)]
        names = [f"seed-{seed}" for seed in range(config.seeds)]
    epochs = config.epochs or count_longest(base, sweep)
    warmup = fit_warmup(base.schedule.warmup_epochs, epochs)
    return [
        replace(
            training,
            out=storage.join(out, name),
            epochs=epochs,
            schedule=replace(training.schedule, warmup_epochs=warmup),
            track=replace(
                base.track,
                wandb=config.wandb,
                group=base.track.group or name_of(sweep),
            ),
            cluster=replace(
                base.cluster,
                address=config.address,
                num_workers=config.num_workers,
                min_workers=None,
                device=config.device,
            ),
        )
        for training, name in zip(trainings, names, strict=True)
    ]


def count_longest(base: FinetuneConfig, sweep: str) -> int:
    """Return the epochs of the longest training: LONGER times those of a trial, which a budget may
    have shortened."""
    known = read_sweep_config(sweep)
    full_epochs = known[0].full_epochs if known else None
    return LONGER * (full_epochs or base.epochs)


def refuse_other_epochs(trainings: Sequence[FinetuneConfig]) -> None:
    """Refuse other epochs for a started run: its learning rate would fall and rise again."""
    for training in trainings:
        before = find_epochs(training.out)
        require(
            before in (None, training.epochs),
            "epochs",
            training.epochs,
            f"{training.out} was promoted with {before}; use the same value to resume it, or "
            "another --out",
        )


def find_epochs(run: str) -> int | None:
    """Return the epochs of a run that was started; None where it wasn't."""
    return read_config(run).epochs if checkpoint.latest_progress(run) is not None else None


def train(run: Run) -> str | None:
    """Train, unless that is done; return the command that uploads it to W&B."""
    if run.result is not None:
        report(f"{run.config.out} is trained: reusing it")
        return None
    _, command = follow_training(run, job_type="promote")
    return command

"""Why a run stops early: a request, unreadable images, or gradients that are not finite."""

import logging
from collections.abc import Sequence

import torch
from torch import distributed

from cluster.io.errors import UserError
from trainers import metrics
from trainers.config import FinetuneConfig
from trainers.feed import Feed
from trainers.run.rows import Row

logger = logging.getLogger(__name__)


class TrainingStopped(Exception):
    """Ends a run, on all ranks at the same step, with the reason in one sentence."""

    def __init__(self, *, diverged: str | None = None, unreadable: str | None = None) -> None:
        super().__init__(diverged or unreadable)
        self.diverged, self.unreadable = diverged, unreadable


class StopRequested(Exception):
    """Ends a run where it is, on all ranks at the same step; it resumes from there."""


def too_many_unreadable(config: FinetuneConfig, num_unreadable: float, num_images: int) -> bool:
    return num_unreadable > config.ingest.max_bad_fraction * num_images


def require_readable(
    config: FinetuneConfig, num_unreadable: int, num_images: int, split: str, first: str
) -> str:
    """Describe the unreadable images of a split.

    Args:
        first: name of one of them.

    Raises:
        UserError: where they are more than `ingest.max_bad_fraction`.
    """
    more = " ..." if num_unreadable > 1 else ""
    problem = f"{num_unreadable} of {num_images} {split} images could not be read: {first}{more}"
    if too_many_unreadable(config, num_unreadable, num_images):
        raise UserError(
            f"ingest.max_bad_fraction is {config.ingest.max_bad_fraction}: {problem}; repair or "
            "prepare the data again"
        )
    return problem


def check_unreadable(
    config: FinetuneConfig, feed: Feed, num_unreadable: int, names: Sequence[str]
) -> None:
    """Warn of an epoch's unreadable images.

    Args:
        names: of the first of them.

    Raises:
        TrainingStopped: where they are more than `ingest.max_bad_fraction`.
    """
    if not num_unreadable:
        return
    try:
        problem = require_readable(config, num_unreadable, feed.num_images, feed.split, names[0])
    except UserError as error:
        reason = f"{error}, or allow more with --max-bad-fraction"
        raise TrainingStopped(unreadable=reason) from None
    logger.warning(problem)


def find_bad_step(sums: metrics.Sums, step: int, world_size: int) -> int:
    """Return the first step whose gradient was not finite on any rank. All ranks must call."""
    local = sums.local()
    first = torch.tensor(step + 1 - round(local["steps"] - local["finite"]))
    if world_size > 1:
        first = first.to(sums.totals_N.device)
        distributed.all_reduce(first, distributed.ReduceOp.MIN)
    return int(first)


def describe_divergence(bad_step: int, row: Row) -> str:
    return (
        f"gradients are not finite from step {bad_step} on (epoch {row[metrics.EPOCH]}, train/loss "
        f"{row[metrics.TRAIN_LOSS]}): lower optim.learning_rate or clip gradients, with another "
        "--out; earlier checkpoints are kept"
    )

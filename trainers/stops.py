"""What ends a run before its time, and how it is told: lost images, gradients that diverge."""

import logging
from typing import Any

import torch
from torch import distributed

from trainers import metrics
from trainers.config import FinetuneConfig
from trainers.feed import Feed

logger = logging.getLogger(__name__)


class TrainingStopped(Exception):
    """Ends a run, on all ranks at the same step, and says why in one sentence."""

    def __init__(self, *, diverged: str | None = None, lost: str | None = None) -> None:
        super().__init__(diverged or lost)
        self.diverged, self.lost = diverged, lost


def too_many_unreadable(config: FinetuneConfig, num_unreadable: float, num_images: int) -> bool:
    return num_unreadable > config.ingest.max_bad_fraction * num_images


def describe_unreadable(
    config: FinetuneConfig, feed: Feed, num_unreadable: int, names: list[str]
) -> str | None:
    """Warn of the images lost in an epoch; return why the run stops where they are too many.

    Args:
        names: of the first of them.
    """
    if not num_unreadable:
        return None
    told = (
        f"{num_unreadable} of {feed.num_images} {feed.split} images could not be read: {names[0]}"
    )
    if too_many_unreadable(config, num_unreadable, feed.num_images):
        return (
            f"ingest.max_bad_fraction is {config.ingest.max_bad_fraction}: {told} ...; repair or "
            "prepare the data again, or allow more with --max-bad-fraction"
        )
    logger.warning("%s%s", told, " ..." if num_unreadable > 1 else "")
    return None


def find_bad_step(sums: metrics.Sums, step: int, world_size: int) -> int:
    """Return the first step whose gradient was not finite on any rank. All ranks must call."""
    local = sums.local()
    first = torch.tensor(step + 1 - round(local["steps"] - local["finite"]))
    if world_size > 1:
        first = first.to(sums.totals_N.device)
        distributed.all_reduce(first, distributed.ReduceOp.MIN)
    return int(first)


def describe_divergence(bad_step: int, row: dict[str, Any]) -> str:
    return (
        f"gradients are not finite from step {bad_step} on (epoch {row[metrics.EPOCH]}, train/loss "
        f"{row[metrics.TRAIN_LOSS]}): lower optim.learning_rate or clip gradients, with another "
        "--out; the checkpoints before it stay"
    )

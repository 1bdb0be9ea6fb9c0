"""Alerts that a run's rows give reason for."""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple

from cluster.io.statistics import is_above_chance
from trainers import metrics
from trainers.config import FinetuneConfig
from trainers.run.rows import Row

MAX_UNREADABLE_SHARE = 0.01
MIN_RATE_SHARE = 0.5
MIN_EPOCHS_BEFORE = 2
"""Epochs to compare a later one with; the first one starts cold."""


class Alert(NamedTuple):
    """Sent once a run for each `kind`."""

    kind: str
    text: str
    is_error: bool = False


def find_alerts(
    rows: Sequence[Row], config: FinetuneConfig, *, images_per_epoch: int
) -> Iterable[Alert]:
    """Judge the rows of a run so far.

    Args:
        images_per_epoch: of training and validation.
    """
    ended = [row for row in rows if metrics.EPOCH_S in row]
    if not ended:
        return
    unreadable, epoch = ended[-1][metrics.UNREADABLE_IMAGES], ended[-1][metrics.EPOCH]
    if unreadable > MAX_UNREADABLE_SHARE * images_per_epoch:
        yield Alert(
            "unreadable images",
            f"{unreadable} of {images_per_epoch} images could not be read in epoch {epoch}; "
            f"{metrics.UNREADABLE_NAMES} has the first of them",
        )
    rates = _rates_of_phase(ended, config)
    before, now = rates[:-1], rates[-1]
    if len(before) >= MIN_EPOCHS_BEFORE and now < MIN_RATE_SHARE * median(before):
        yield Alert(
            "throughput halved",
            f"{now:.0f} images/s in epoch {epoch}, {median(before):.0f} in those before it; "
            f"{metrics.WAIT_S} is the time spent waiting for images",
        )


def judge_end(
    rows: Iterable[Row], *, diverged: str | None, class_counts: Sequence[int]
) -> Iterable[Alert]:
    """Judge a run that has ended.

    Args:
        diverged: reason why the loss is not finite, from result.json.
        class_counts: validation images per class.
    """
    if diverged is not None:
        yield Alert("not finite", diverged, is_error=True)
        return
    best = max((row[metrics.VAL_TOP1] for row in rows if metrics.VAL_TOP1 in row), default=None)
    if best is not None and not is_above_chance(best, class_counts):
        yield Alert(
            "does not learn",
            f"val/top1 {best:.3f} is not above what predicting the commonest class reaches",
        )


def _rates_of_phase(ended: Sequence[Row], config: FinetuneConfig) -> list[float]:
    """Return images per second of the epochs in the last one's phase; phases differ in speed."""
    last = ended[-1][metrics.EPOCH]
    start = max(phase.start_epoch for phase in config.phases if phase.start_epoch < last)
    return [row[metrics.IMAGES_PER_S] for row in ended if row[metrics.EPOCH] > start]

"""How many epochs the seeds train.

    OUT/length/    a run folder: the winner, trained until its validation accuracy stops rising

Seeds that train on the validation images as well have no accuracy to stop at. They have as many
epochs as a training on the training images alone had when its val/top1 was best (Goodfellow et al.
2016, Deep Learning, algorithm 7.2), or as many as the budget has time for.
"""

from dataclasses import replace

from cluster.io import storage
from trainers import metrics
from trainers.config import FinetuneConfig
from trainers.run.folder import read_result


def train_until_flat(training: FinetuneConfig, base: FinetuneConfig, out: str) -> FinetuneConfig:
    """Return the training that shows how many epochs the winner needs, at most those of a seed; it
    stops once val/top1 has not risen for as many epochs as the sweep's trials have.

    Args:
        training: of a seed.
        base: of the winner.
    """
    return replace(
        training,
        out=storage.join(out, "length"),
        seed=base.seed,
        train_on=base.train_on,
        schedule=replace(training.schedule, early_stopping_epochs=base.epochs),
    )


def describe_length(measured: FinetuneConfig) -> tuple[int, str]:
    """Return the epochs that a training needed, and a line about them."""
    result = read_result(measured.out)
    epochs, trained = result["best_epoch"], result["epochs"]
    return epochs, (
        f"{epochs} of each seed: val/top1 was best then, {result[metrics.VAL_BEST_TOP1]:.3f}, in "
        f"{trained} epochs of a training on {measured.train_on}"
    )


def fit_epochs(
    left_s: float, *, epoch_s: float, fixed_s: float, seeds: int, shortest: int, longest: int
) -> int:
    """Return the epochs of each seed that a budget allows: as many as fit for all seeds, up to
    `longest`; where that is below `shortest`, fewer seeds have so many.

    Args:
        fixed_s: of each seed, whatever its epochs: its start and its test.
    """
    for number in range(seeds, 0, -1):
        if (epochs := int((left_s / number - fixed_s) / epoch_s)) >= shortest:
            return min(epochs, longest)
    return max(1, int((left_s - fixed_s) / epoch_s))

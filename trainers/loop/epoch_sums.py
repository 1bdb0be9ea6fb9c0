"""The training metrics of an epoch: summed over its steps, reduced over all ranks."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trainers import metrics
from trainers.run.checkpoint import TrainingProgress
from trainers.run.rows import Row
from trainers.stops import TrainingStopped, describe_divergence, find_bad_step
from trainers.worker import WorkerContext


class EpochSums:
    """What the steps of an epoch add up to, from the checkpoint that it resumes from.

    Args:
        stages: names of those that train.
    """

    def __init__(
        self, progress: TrainingProgress, stages: Sequence[str], worker: WorkerContext
    ) -> None:
        self._epoch, self._worker = progress.epoch + 1, worker
        totals = metrics.rescale(progress.totals, worker.world_size)
        self._sums = metrics.Sums(
            metrics.TRAIN_SUMS,
            worker.device,
            parts={metrics.STAGE_CLIPPING: metrics.stage_metrics(stages)},
            start=totals if worker.rank == 0 else None,
        )
        self._finite = torch.ones((), dtype=torch.bool, device=worker.device)
        self._peak_norm = torch.tensor(progress.peak_norm, device=worker.device)

    def add(self, step_metrics: Mapping[str, Tensor]) -> None:
        """Add what `train_step` returned; waits for no device."""
        # Once false it stays so: the number of finite steps gives the first bad one.
        self._finite &= step_metrics["finite"]
        self._sums.add({**step_metrics, "finite": self._finite})
        peak_norm = step_metrics[metrics.PEAK_NORM]
        torch.maximum(self._peak_norm, peak_norm, out=self._peak_norm)

    def reduce(self, step: int, learning_rate: float) -> tuple[dict[str, float], Row]:
        """Return the sums over all ranks, and the row of the epoch so far. All ranks must call.

        Raises:
            TrainingStopped: where a gradient was not finite.
        """
        totals = self._sums.reduce(self._worker.world_size)
        # The peak is the same on all ranks.
        row = train_row(self._epoch, step, learning_rate, totals, float(self._peak_norm))
        if totals["finite"] < totals["steps"]:
            bad_step = find_bad_step(self._sums, step, self._worker.world_size)
            raise TrainingStopped(diverged=describe_divergence(bad_step, row))
        return totals, row


def train_row(
    epoch: int, step: int, learning_rate: float, totals: Mapping[str, float], peak_norm: float
) -> Row:
    """Return the row of an epoch, counted from 1, so far."""
    means = metrics.means_of(totals)
    return {
        metrics.EPOCH: epoch,
        metrics.GLOBAL_STEP: step,
        metrics.TRAIN_LOSS: means["loss"],
        metrics.TRAIN_TOP1: means["top1"],
        metrics.LEARNING_RATE: learning_rate,
        metrics.UNREADABLE_IMAGES: int(means["lost"]),
        **{name: mean for name, mean in means.items() if name.startswith("clip/")},
        metrics.PEAK_NORM: peak_norm,
    }

"""The training metrics of an epoch of heads that train together.

T heads, M sums of an epoch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainers import metrics
from trainers.heads.run import HeadRun
from trainers.loop.epoch_sums import train_row
from trainers.run.rows import Row
from trainers.stops import TrainingStopped, describe_divergence
from trainers.worker import WorkerContext


class HeadSums:
    """The training metrics of an epoch of each head, as `EpochSums` has them of one."""

    def __init__(self, heads: Sequence[HeadRun], worker: WorkerContext) -> None:
        self._heads = heads
        clipping = metrics.stage_metrics(["head"])
        parts = {metrics.STAGE_CLIPPING: clipping}
        self._names = [p for name in metrics.TRAIN_SUMS for p in parts.get(name, [name])]
        shape = (len(heads), len(self._names))
        self._totals_TM = torch.zeros(shape, dtype=torch.float64, device=worker.device)
        self._finite_T = torch.ones(len(heads), dtype=torch.bool, device=worker.device)
        peaks = [head.progress.peak_norm for head in heads]
        self._peaks_T = torch.tensor(peaks, device=worker.device)
        self._num_steps = 0

    def add(self, step_metrics: dict[str, Tensor]) -> None:
        """Add what `HeadStack.train_step` returned; waits for no device."""
        self._finite_T &= step_metrics["finite"]  # once false it stays so, as in EpochSums
        values = {**step_metrics, "finite": self._finite_T}
        columns = [values[name].reshape(len(self._heads), -1) for name in metrics.TRAIN_SUMS]
        self._totals_TM += torch.cat([column.double() for column in columns], dim=1)
        torch.maximum(self._peaks_T, step_metrics[metrics.PEAK_NORM], out=self._peaks_T)
        self._num_steps += 1

    def rows(self, epoch: int, step: int, learning_rates: Sequence[float]) -> list[Row]:
        """Return the row of each head so far; stop those whose gradients were not finite."""
        rows: list[Row] = []
        per_head = zip(
            self._heads,
            self._totals_TM.tolist(),
            self._peaks_T.tolist(),
            learning_rates,
            strict=True,
        )
        for head, totals_M, peak, rate in per_head:
            totals = dict(zip(self._names, totals_M, strict=True)) | {"steps": self._num_steps}
            row = train_row(epoch, step, rate, totals, peak)
            if totals["finite"] < self._num_steps and head.stopped is None:
                bad_step = step + 1 - round(self._num_steps - totals["finite"])
                head.stopped = TrainingStopped(diverged=describe_divergence(bad_step, row))
            rows.append(row)
        return rows

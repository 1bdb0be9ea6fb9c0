"""A rank's training, epoch by epoch: its start, its steps, its rows and checkpoints."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace

import torch
from ray.train.collective import broadcast_from_rank_zero
from torch import distributed

from cluster.io import storage
from trainers import metrics
from trainers.config import Phase
from trainers.feed import MAX_NAMES, open_feed
from trainers.loop.epoch_sums import EpochSums
from trainers.loop.validation import predict_feed, val_metrics
from trainers.prepare import Run
from trainers.run import checkpoint
from trainers.run.checkpoint import TrainingProgress
from trainers.run.predictions import Predictions
from trainers.run.recorder import Recorder
from trainers.run.rows import Row
from trainers.run.usage import UsageMeter
from trainers.step.optim import learning_rate_at, set_learning_rate
from trainers.step.settings import train_settings
from trainers.step.state import TrainState
from trainers.step.step import seed_step, train_step
from trainers.stops import StopRequested, check_unreadable, too_many_unreadable
from trainers.worker import WorkerContext

logger = logging.getLogger(__name__)

SAVE_EVERY_S = 5.0
"""Between two checkpoints of a training that ends soon, where a row takes longer."""


class Training:
    """A rank's network and batches, resumed or initialized; trains epoch by epoch."""

    def __init__(
        self,
        run: Run,
        worker: WorkerContext,
        preemption_pending: Callable[[], bool],
        on_batch: Callable[[], None],
    ) -> None:
        config, manifest = run.config, run.manifest
        self._config, self._worker, self._preemption_pending = config, worker, preemption_pending
        self._steps_per_epoch = (
            manifest.split(config.train_on).num_images // config.global_batch_size
        )
        self._state = TrainState(
            config,
            len(manifest.classes),
            worker,
            cut_depth=run.prefix.depth if run.prefix else None,
        )
        self.progress = self._start(run)
        self._settings = train_settings(config, manifest, worker)
        epoch = self.progress.epoch
        self._train_feed = open_feed(
            run,
            worker,
            config.train_on,
            start_epoch=epoch,
            start_step=self.progress.global_step - epoch * self._steps_per_epoch,
            on_batch=on_batch,
        )
        self._val_feed = (
            open_feed(run, worker, "val", start_epoch=epoch, on_batch=on_batch)
            if config.validates
            else None
        )
        self.recorder = (
            Recorder(config.out, last_row=self.progress.row) if worker.rank == 0 else None
        )
        self._usage = UsageMeter(worker.world_size, worker.device)
        self._saved_s = 0.0
        """Of `Recorder.waited_s`, what rows have."""
        self._row_s = time.monotonic()

    def _start(self, run: Run) -> TrainingProgress:
        """Resume from the latest checkpoint, or initialize the network."""
        config, state = self._config, self._state
        prefix = run.prefix.tensors if run.prefix else None
        found = read_latest(config.out, self._worker)
        if found is None:
            report = state.initialize(run.manifest.classes)
            if self._worker.rank == 0 and report.loaded:
                text = json.dumps(asdict(report), indent=1).encode()
                storage.write_bytes(storage.join(config.out, "weights.json"), text)
                if report.missing or report.unexpected:
                    logger.warning("weights: %s; all in %s/weights.json", report, config.out)
            return TrainingProgress(
                classes=run.manifest.classes, fingerprint=run.manifest.fingerprint, prefix=prefix
            )
        progress, contents = found
        state.enter(phase_at(config.phases, progress.trained_epoch))
        state.load(contents, checkpoint.read_prefix(config.out, progress))
        return replace(progress, prefix=prefix)

    def close(self) -> None:
        """End the streams."""
        self._usage.close()
        for feed in (self._train_feed, self._val_feed):
            if feed is not None:
                feed.close()

    def stop_requested(self) -> bool:
        """Whether the user has asked to stop, as rank 0 knows. All ranks must call."""
        requested = self.recorder is not None and self.recorder.stop_requested
        if self._worker.world_size == 1:
            return requested
        flag = torch.tensor(float(requested), device=self._worker.device)
        distributed.broadcast(flag, src=0)
        return bool(flag)

    def run_epoch(self) -> Row:
        """Train one epoch, or the rest of one; evaluate, checkpoint, log and return its row.

        Raises:
            TrainingStopped: where gradients are not finite, or too many images unreadable.
            StopRequested: where the user has asked to stop, before the epoch's end.
        """
        started, waited_s, first_step = (
            time.perf_counter(),
            self._train_feed.wait_s,
            self.progress.global_step,
        )
        phase = phase_at(self._config.phases, self.progress.epoch)
        if phase != self._state.phase:
            self._state.enter(phase)
        row, unreadable = self._train_epoch(phase, started)
        train_s = time.perf_counter() - started
        self._state.share_buffers()
        predictions = self._validate()
        val: dict[str, float] = {}
        if predictions is not None:
            val = val_metrics(predictions)
            row[metrics.UNREADABLE_IMAGES] += predictions.num_unreadable
            unreadable = [*unreadable, *predictions.unreadable][:MAX_NAMES]
        step, epoch_s = row[metrics.GLOBAL_STEP], time.perf_counter() - started
        self.progress = self.progress.after_epoch(
            global_step=step,
            val_top1=val.get(metrics.VAL_TOP1),
            total_s=self.progress.total_s + epoch_s,
            peak_norm=row[metrics.PEAK_NORM],
        )
        if val:
            row |= val | {metrics.VAL_BEST_TOP1: self.progress.best_val_top1}
        row |= {
            metrics.EPOCH_S: epoch_s,
            metrics.TRAIN_S: train_s,
            metrics.TOTAL_S: self.progress.total_s,
            metrics.FIRST_BATCH_S: self._train_feed.first_batch_s,
            metrics.WAIT_S: self._train_feed.wait_s - waited_s,
            metrics.SAVE_S: (self.recorder.waited_s if self.recorder else 0.0) - self._saved_s,
            metrics.UNREADABLE_NAMES: unreadable,
            metrics.IMAGES_PER_S: (step - first_step) * self._config.global_batch_size / train_s,
            **self._usage.take(),
        }
        if self.recorder:
            self._saved_s = self.recorder.waited_s
            if predictions is not None:
                self.recorder.keep_predictions(self.progress.epoch, predictions)
            self.recorder.save(self._state.serialize, replace(self.progress, row=row))
            self.recorder.log(row)
        return row

    def _train_epoch(self, phase: Phase, started: float) -> tuple[Row, list[str]]:
        """Train to the end of the epoch, with rows and checkpoints on the way.

        Returns:
            Its training metrics over all ranks, and names of unreadable images.
        """
        config, progress = self._config, self.progress
        self._state.train_mode()
        sums = EpochSums(progress, self._state.stages, self._worker)
        unreadable = list(progress.unreadable)
        step, last_step = progress.global_step, (progress.epoch + 1) * self._steps_per_epoch
        while True:
            learning_rate, step_metrics = self._take_step(step, phase)
            sums.add(step_metrics)
            step += 1
            saves = step % config.checkpoint_every_steps == 0
            logs = step % config.track.log_every_steps == 0
            if step < last_step and not saves and not logs and not self._saves_early():
                continue
            ends = step < last_step and self.stop_requested()
            saves = saves or ends or (step < last_step and self._preemption_pending())
            totals, row = sums.reduce(step, learning_rate)
            self._row_s = time.monotonic()
            num_unreadable, feed = int(totals["lost"]), self._train_feed
            stops = too_many_unreadable(config, num_unreadable, feed.num_images)
            if step == last_step or saves or stops:
                if num_unreadable:
                    unreadable = [*unreadable, *feed.take_unreadable()][:MAX_NAMES]
                check_unreadable(config, feed, num_unreadable, unreadable)
            if step == last_step:
                return row, unreadable
            if self.recorder and saves:
                middle = replace(
                    progress,
                    global_step=step,
                    total_s=progress.total_s + time.perf_counter() - started,
                    row=row,
                    totals=metrics.rescale(totals, 1 / self._worker.world_size),
                    peak_norm=row[metrics.PEAK_NORM],
                    unreadable=tuple(unreadable),
                )
                self.recorder.save(self._state.serialize, middle)
            if self.recorder:
                self.recorder.log(row)
            if ends:
                raise StopRequested

    def _saves_early(self) -> bool:
        """Whether a lone worker saves before its next row, as it ends soon."""
        if self._worker.world_size > 1 or time.monotonic() - self._row_s < SAVE_EVERY_S:
            return False
        return self._preemption_pending()

    def _validate(self) -> Predictions | None:
        """Return the predictions for the validation images, unless they train."""
        if self._val_feed is None:
            return None
        predictions = predict_feed(
            self._state.evaluated,
            self._val_feed,
            self._settings,
            self._worker,
            classes=self.progress.classes,
        )
        num_unreadable, unreadable = predictions.num_unreadable, list(predictions.unreadable)
        check_unreadable(self._config, self._val_feed, num_unreadable, unreadable)
        return predictions

    def _take_step(self, step: int, phase: Phase) -> tuple[float, dict[str, torch.Tensor]]:
        """Take an optimizer step; return its learning rate and the metrics of `train_step`."""
        config, state = self._config, self._state
        assert state.optimizer is not None
        learning_rate = learning_rate_at(
            step - phase.start_epoch * self._steps_per_epoch,
            phase.learning_rate,
            config.optim,
            config.schedule,
            steps_per_epoch=self._steps_per_epoch,
            num_epochs=phase.num_epochs,
        )
        set_learning_rate(state.optimizer, learning_rate)
        seed_step(config.seed, step, self._worker.rank, self._worker.device)
        step_metrics = train_step(
            state.network,
            state.optimizer,
            *self._train_feed.next(),
            settings=self._settings,
            scaler=state.scaler,
        )
        state.update_average()
        return learning_rate, step_metrics


def read_latest(run: str, worker: WorkerContext) -> checkpoint.Checkpoint | None:
    """Read the checkpoint that all ranks resume from, as rank 0 sees it; None for a new run."""
    found = checkpoint.read_latest(run) if worker.rank == 0 else None
    if worker.world_size == 1:
        return found
    step = broadcast_from_rank_zero(found.progress.global_step if found else None)
    return found or (None if step is None else checkpoint.read(run, step))


def phase_at(phases: tuple[Phase, ...], epoch: int) -> Phase:
    """Return the phase that trains an epoch, counted from 0; the last one beyond the end."""
    return next((phase for phase in phases if epoch < phase.end_epoch), phases[-1])

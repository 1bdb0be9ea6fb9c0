"""Run folders of heads that train together: rows, predictions and checkpoints as of a run alone.

Rows and checkpoints are written every few seconds, between epochs, and at the end.

T heads, N images of a split.
"""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, replace

import numpy as np
import torch

from cluster.io import storage
from trainers import metrics
from trainers.failures import Watchdog
from trainers.feed import Feed, open_feed
from trainers.heads.run import HeadRun
from trainers.heads.stack import HeadStack
from trainers.heads.sums import HeadSums
from trainers.loop.validation import val_metrics
from trainers.prepare import Run
from trainers.run import checkpoint
from trainers.run.checkpoint import Checkpoint, TrainingProgress
from trainers.run.folder import write_config
from trainers.run.predictions import COLUMNS, Predictions, build_predictions
from trainers.run.rows import Row
from trainers.run.usage import UsageMeter
from trainers.step.optim import learning_rate_at
from trainers.step.settings import start_computing, train_settings
from trainers.step.state import TrainState
from trainers.step.step import seed_step
from trainers.stops import TrainingStopped, check_unreadable
from trainers.worker import WorkerContext

SAVE_EVERY_S = 5.0
"""Time between checkpoints: a killed training repeats at most as much."""


def train_together(
    runs: Sequence[Run],
    worker: WorkerContext,
    *,
    until: int,
    on_saved: Callable[[Sequence[HeadRun]], None] = lambda heads: None,
) -> list[HeadRun]:
    """Train runs, of one `stack_key` and as many epochs each so far, up to an epoch.

    A run that ends, or whose gradients are not finite, gets its result.json, and the others
    continue.

    Args:
        on_saved: called when rows and checkpoints are written.
    """
    start_computing(worker.threads)
    hang_timeout_s = runs[0].config.cluster.hang_timeout_s
    with (
        closing(Watchdog(hang_timeout_s)) as watchdog,
        closing(HeadTraining(runs, worker, watchdog.live)) as training,
    ):
        saved_s = time.monotonic()
        while training.heads and training.epoch < until:
            training.run_epoch()
            is_last = training.epoch >= until or any(head.is_over for head in training.heads)
            if is_last or time.monotonic() - saved_s >= SAVE_EVERY_S:
                training.save()
                on_saved(training.all_heads)
                saved_s = time.monotonic()
        return training.all_heads


class HeadTraining:
    """T heads, resumed or initialized; trains them epoch by epoch."""

    def __init__(
        self, runs: Sequence[Run], worker: WorkerContext, on_batch: Callable[[], None]
    ) -> None:
        run, config = runs[0], runs[0].config
        assert run.prefix is not None, "heads train on features"
        self._config, self._manifest, self._worker = config, run.manifest, worker
        self._steps_per_epoch = (
            run.manifest.split(config.train_on).num_images // config.global_batch_size
        )
        self._settings = train_settings(config, run.manifest, worker)
        self.heads = self._start(runs, run.prefix.depth)
        self.all_heads = self.heads
        self.epoch, self._step = self.heads[0].progress.epoch, self.heads[0].progress.global_step
        self._train_feed, self._val_feed = (
            open_feed(run, worker, split, start_epoch=self.epoch, on_batch=on_batch)
            for split in (config.train_on, "val")
        )
        self._usage = UsageMeter(1, worker.device)

    def _start(self, runs: Sequence[Run], depth: int) -> list[HeadRun]:
        """Build the heads, and load those of runs that have a checkpoint."""
        config, manifest = self._config, self._manifest
        state = TrainState(config, len(manifest.classes), self._worker, cut_depth=depth)
        found = [checkpoint.read_latest(run.config.out) for run in runs]
        report = None if all(found) else state.initialize(manifest.classes)
        state.enter(config.phases[0])
        self._stack = HeadStack(state, [run.config for run in runs], depth)
        fresh = TrainingProgress(classes=manifest.classes, fingerprint=manifest.fingerprint)
        heads: list[HeadRun] = []
        for number, (run, known) in enumerate(zip(runs, found, strict=True)):
            out, prefix = run.config.out, run.prefix
            assert prefix is not None
            write_config(run.config)
            if known is not None:
                self._stack.load(number, known.contents)
            elif report is not None and report.loaded:
                text = json.dumps(asdict(report), indent=1).encode()
                storage.write_bytes(storage.join(out, "weights.json"), text)
            progress = replace(known.progress if known else fresh, prefix=prefix.tensors)
            heads.append(HeadRun(run=run, progress=progress, saved=progress))
        self._stack.join()
        assert len({head.progress.global_step for head in heads}) == 1, "all are as far"
        return heads

    def close(self) -> None:
        """End the streams."""
        self._usage.close()
        self._train_feed.close()
        self._val_feed.close()

    def run_epoch(self) -> None:
        """Train an epoch, evaluate, and keep the rows of each head."""
        started, waited_s = time.perf_counter(), self._train_feed.wait_s
        rows = self._train_epoch()
        train_s = (time.perf_counter() - started) / len(self.heads)
        predictions = self._validate()
        epoch_s = (time.perf_counter() - started) / len(self.heads)
        self.epoch += 1
        usage = self._usage.take()
        for number, head in enumerate(self.heads):
            if head.stopped is not None:
                continue
            row = rows[number] | self._finish_epoch(
                head, predictions[number], epoch_s, rows[number][metrics.PEAK_NORM]
            )
            row |= {
                metrics.EPOCH_S: epoch_s,
                metrics.TRAIN_S: train_s,
                metrics.TOTAL_S: head.progress.total_s,
                metrics.FIRST_BATCH_S: self._train_feed.first_batch_s,
                metrics.WAIT_S: (self._train_feed.wait_s - waited_s) / len(self.heads),
                metrics.SAVE_S: 0.0,  # checkpoints are written after the last epoch
                metrics.IMAGES_PER_S: self._steps_per_epoch
                * self._config.global_batch_size
                / train_s,
                **usage,
            }
            row[metrics.UNREADABLE_IMAGES] += predictions[number].num_unreadable
            row[metrics.UNREADABLE_NAMES] = list(predictions[number].unreadable)
            head.rows.append(row)
            if head.progress.best_epoch == self.epoch:
                files = self._stack.serialize(number, self._step)
                head.best = Checkpoint(replace(head.progress, row=row), files)

    def _finish_epoch(
        self, head: HeadRun, predictions: Predictions, epoch_s: float, peak_norm: float
    ) -> Row:
        """Advance the progress of a head; return its validation metrics."""
        val = val_metrics(predictions)
        head.predictions[self.epoch] = predictions
        head.progress = head.progress.after_epoch(
            global_step=self._step,
            val_top1=val[metrics.VAL_TOP1],
            total_s=head.progress.total_s + epoch_s,
            peak_norm=peak_norm,
        )
        return val | {metrics.VAL_BEST_TOP1: head.progress.best_val_top1}

    def _train_epoch(self) -> list[Row]:
        """Train to the end of the epoch; return its last row of each head."""
        self._stack.train_mode()
        sums = HeadSums(self.heads, self._worker)
        last_step = self._step + self._steps_per_epoch
        while True:
            rates = [self._learning_rate(head) for head in self.heads]
            seed_step(self._config.seed, self._step, self._worker.rank, self._worker.device)
            step_metrics = self._stack.train_step(
                *self._train_feed.next(),
                settings=self._settings,
                learning_rates=rates,
                num_updates=self._step,
            )
            sums.add(step_metrics)
            self._step += 1
            if self._step < last_step and self._step % self._config.track.log_every_steps:
                continue
            rows = sums.rows(self.epoch + 1, self._step, rates)
            if self._step == last_step:
                self._check_unreadable(self._train_feed, rows[0][metrics.UNREADABLE_IMAGES])
                return rows
            for head, row in zip(self.heads, rows, strict=True):
                if head.stopped is None:
                    head.rows.append(row)

    def _learning_rate(self, head: HeadRun) -> float:
        config = head.run.config
        return learning_rate_at(
            self._step,
            config.optim.learning_rate,
            config.optim,
            config.schedule,
            steps_per_epoch=self._steps_per_epoch,
            num_epochs=config.epochs,
        )

    def _validate(self) -> list[Predictions]:
        """Return each head's predictions for the validation images."""
        feed, start = self._val_feed, 0
        self._stack.eval_mode()
        shape = (len(COLUMNS), len(self.heads), feed.num_images)
        columns_5TN = torch.zeros(shape, device=self._worker.device)
        for _ in range(feed.batches_per_epoch):
            columns_5TB = self._stack.eval_step(*feed.next(), self._settings)
            end = start + columns_5TB.shape[2]
            columns_5TN[:, :, start:end] = columns_5TB
            start = end
        values_T5N = columns_5TN.cpu().numpy().swapaxes(0, 1)
        classes = self._manifest.classes
        predictions = [_name(columns_5N, classes) for columns_5N in values_T5N]
        num_unreadable = predictions[0].num_unreadable
        names = tuple(feed.take_unreadable()) if num_unreadable else ()
        self._check_unreadable(feed, num_unreadable, names)
        return [replace(of_head, unreadable=names) for of_head in predictions]

    def _check_unreadable(
        self, feed: Feed, num_unreadable: int, names: Sequence[str] | None = None
    ) -> None:
        if not num_unreadable:
            return
        names = feed.take_unreadable() if names is None else names
        try:
            check_unreadable(self._config, feed, num_unreadable, names)
        except TrainingStopped as stop:
            for head in self.heads:
                head.stopped = head.stopped or stop

    def save(self) -> None:
        """Write what the heads have not written; drop those that are over."""
        contents = [
            None if head.stopped else self._stack.serialize(number, self._step)
            for number, head in enumerate(self.heads)
        ]
        with ThreadPoolExecutor(4, thread_name_prefix="recorder") as pool:
            for _ in pool.map(HeadRun.write, self.heads, contents):
                pass
        left = [number for number, head in enumerate(self.heads) if not head.is_over]
        if left and len(left) < len(self.heads):
            self._stack.keep(left)
        self.heads = [self.heads[number] for number in left]


def _name(columns_5N: np.ndarray, classes: Sequence[str]) -> Predictions:
    return build_predictions(dict(zip(COLUMNS, columns_5N, strict=True)), classes)

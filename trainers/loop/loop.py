"""The training loop: the same on every rank, in a Ray Train worker or in a Tune trial's process."""

import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train.collective import broadcast_from_rank_zero

from trainers.config import FinetuneConfig
from trainers.failures import Watchdog, explaining_gpu_memory
from trainers.loop.ray_internals import silence_reports
from trainers.loop.training import Training
from trainers.prepare import Run
from trainers.run.folder import is_done, write_result
from trainers.run.rows import Row
from trainers.step.settings import start_computing
from trainers.stops import StopRequested, TrainingStopped
from trainers.worker import WorkerContext

Report = Callable[[Row], None]


def train_loop_per_worker(arguments: dict[str, Any]) -> None:
    """Run `train` as a Ray Train worker; `launch.fit` gives `arguments`."""
    silence_reports()
    context = ray.train.get_context()
    run: Run = ray.get(arguments["run"])
    worker = WorkerContext(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=ray.train.torch.get_device(),
        threads=run.workers.threads_per_worker,
    )
    train(run, worker, ray.train.report, preemption_pending=preemption_pending)


def preemption_pending() -> bool:
    """Whether a node of this run is about to be preempted. All ranks must call."""
    return ray.train.get_preemption_info() is not None


def ends_soon(run: Run, worker: WorkerContext) -> bool:
    """Whether `Run.save_from_s` has come, by the clock of rank 0. All ranks must call."""
    if run.save_from_s is None:
        return False
    has_come = time.time() >= run.save_from_s
    return has_come if worker.world_size == 1 else bool(broadcast_from_rank_zero(has_come))


def train(
    run: Run,
    worker: WorkerContext,
    report: Report,
    *,
    report_written: bool = False,
    preemption_pending: Callable[[], bool] = lambda: False,
) -> None:
    """Train through all phases, from the latest checkpoint where the run folder has one.

    After each epoch: evaluate, checkpoint, log, report. At the end rank 0 writes result.json, with
    the reason where the run stopped early: a gradient that was not finite, or more unreadable
    images than `ingest.max_bad_fraction`. The last good checkpoint then stays. A run that was asked
    to stop has a checkpoint and no result.json.

    Args:
        report_written: report an epoch only once its row and checkpoint are written.
        preemption_pending: whether the node is about to be preempted; then each row of metrics
            comes with a checkpoint.
    """
    start_computing(worker.threads)
    config, problem = run.config, None

    def is_ending() -> bool:
        return preemption_pending() or ends_soon(run, worker)

    # Among several ranks, the collectives time out.
    hang_timeout_s = config.cluster.hang_timeout_s if worker.world_size == 1 else None
    with (
        explaining_gpu_memory(config, worker),
        closing(Watchdog(hang_timeout_s)) as watchdog,
        closing(Training(run, worker, is_ending, watchdog.live)) as training,
        training.recorder or nullcontext(),
    ):
        try:
            _run_epochs(config, training, watchdog, report, report_written=report_written)
        except StopRequested:
            return
        except TrainingStopped as stop:
            problem = stop
    if worker.rank == 0:
        write_result(
            config.out,
            training.progress,
            diverged=problem.diverged if problem else None,
            lost=problem.unreadable if problem else None,
        )


def _run_epochs(
    config: FinetuneConfig,
    training: Training,
    watchdog: Watchdog,
    report: Report,
    *,
    report_written: bool,
) -> None:
    """Train and report epoch by epoch, until the run is done.

    Raises:
        TrainingStopped, StopRequested: as `Training.run_epoch`.
    """
    while not is_done(config, training.progress.epoch, training.progress.best_epoch):
        watchdog.live()
        if training.stop_requested():
            raise StopRequested
        row = training.run_epoch()
        if training.recorder and report_written:
            training.recorder.wait()
        watchdog.rest()
        report(row)  # may wait for Tune's driver

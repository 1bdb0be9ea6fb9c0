"""A trial: a point of the space, trained, or copied where the same training is recorded."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import ray
import ray.tune
from ray.actor import ActorHandle

from cluster.scaling import in_process, plan_workers
from trainers import launch, metrics
from trainers.config import FinetuneConfig
from trainers.heads.grouping import stack_key
from trainers.heads.run import HeadRun
from trainers.heads.training import train_together
from trainers.prepare import Run, prepare_run
from trainers.run import checkpoint
from trainers.run.folder import is_done, is_over, read_result
from trainers.run.rows import JsonlTracker, Row, RowReader, epoch_rows
from tuning.point import training_of
from tuning.shared import Shared, config_of, trains_together
from tuning.sharing.keys import prefix_key
from tuning.sharing.reuse import copy_run, find_known
from tuning.sharing.rounds import HeadProgress, Round
from tuning.space import point_of
from tuning.sweep_plan import SweepPlan, trains_in_process

POLL_S = 0.5
DRIVER_CPUS = 0.01
"""Of a trial whose workers have reserved their own."""
LEAVE_TIMEOUT_S = "60"
"""Time for a pruned trial to leave its process before Tune starts another process."""


def build_trial(plan: SweepPlan, shared: Shared) -> Callable[[dict[str, Any]], None]:
    """Return the trainable of Tune, with the resources that each trial reserves.

    Head-only trials train in the trial's own process, which the next trial takes over, and reserve
    a worker's share for it. The others reserve next to nothing, as their workers reserve it.
    """
    config, resources = plan.config, plan.resources
    fractions, others = plan.fractions, plan.num_concurrent

    def count_concurrent(training: FinetuneConfig) -> int:
        """Return into how many equal parts the cluster is divided, of which a trial has one."""
        return fractions.get(prefix_key(training), min(fractions.values(), default=others))

    def run_trial(params: dict[str, Any], shared: Shared) -> None:
        os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", LEAVE_TIMEOUT_S)
        trial_id = ray.tune.get_context().get_trial_id()
        assert trial_id is not None
        training = config_of(config, point_of(params), trial_id, shared)
        train_trial(training, shared, num_concurrent=count_concurrent(training))

    def reserve(params: dict[str, Any]) -> ray.tune.PlacementGroupFactory:
        training = training_of(config.base, point_of(params))
        if not trains_in_process(training):
            return ray.tune.PlacementGroupFactory([{"CPU": DRIVER_CPUS}])
        workers = plan_workers(
            resources,
            in_process(training.cluster),
            num_concurrent=count_concurrent(training),
        )
        bundle = {"CPU": workers.cpus_per_worker, "GPU": workers.gpus_per_worker}
        return ray.tune.PlacementGroupFactory([{k: v for k, v in bundle.items() if v}])

    return ray.tune.with_resources(ray.tune.with_parameters(run_trial, shared=shared), reserve)


def train_trial(config: FinetuneConfig, shared: Shared, *, num_concurrent: int) -> None:
    """Train inside a Tune trial, reporting every epoch.

    A pruned trial leaves through `ray.tune.report`, which then raises SystemExit.
    """
    if shared.rounds is not None and trains_together(config, shared):
        _train_in_rounds(config, shared, num_concurrent=num_concurrent)
        return
    _copy_known(config, shared)
    for row in epoch_rows(config.out):  # of a copy, or of an interrupted session
        report_epoch(row)
    if is_over(config.out):
        read_result(config.out)  # which raises where the trial diverged
        return
    options = {
        "manifest": shared.manifest,
        "prefix": shared.prefix_of(config),
        "images": shared.images,
        "num_concurrent": num_concurrent,
        "save_from_s": shared.save_from_s,
    }
    if trains_in_process(config):
        run = prepare_run(config, here=True, **options)
        launch.fit_in_process(run, report=report_epoch)
    else:
        assert shared.runner is not None
        _train_in_workers(config, shared.runner, options)


def report_epoch(row: Row) -> None:
    """Report to Tune what it decides by. Run folders have the other metrics; Tune would keep
    statistics of each in the driver, 0.1 MB for a trial, and write them to its state."""
    ray.tune.report({name: row[name] for name in (metrics.EPOCH, metrics.VAL_TOP1)})


def _train_in_rounds(config: FinetuneConfig, shared: Shared, *, num_concurrent: int) -> None:
    """Report the epochs of a head, which this process or another trial's trains."""
    assert shared.rounds is not None
    reported, key = 0, stack_key(config)
    while True:
        known = read_progress(config.out)
        found: Any
        while found := ray.get(shared.rounds.wait.remote(config, key, known, reported)):
            _train_round(found, config.out, shared, num_concurrent=num_concurrent)
        for row in epoch_rows(config.out):
            if row[metrics.EPOCH] > reported:
                reported = row[metrics.EPOCH]
                report_epoch(row)
        if is_over(config.out):
            read_result(config.out)  # which raises where the trial diverged
            return


def _train_round(found: Round, leader: str, shared: Shared, *, num_concurrent: int) -> None:
    """Train a round, less what was copied or is further than planned."""
    assert shared.rounds is not None
    runs: dict[int, list[Run]] = {}
    for config in found.configs:
        _copy_known(config, shared)
        if is_over(config.out):
            _note(shared.rounds, [config.out])
            continue
        run = prepare_run(
            config,
            manifest=shared.manifest,
            prefix=shared.prefix_of(config),
            num_concurrent=num_concurrent,
            here=True,
        )
        whole = checkpoint.read_latest(config.out) if run.resume else None
        epoch = whole.progress.epoch if whole else 0
        if run.resume is not None and not run.resume.is_between_epochs:
            launch.fit_in_process(run)  # of a Thaw that saved in the middle of an epoch
        elif epoch < found.until:
            runs.setdefault(epoch, []).append(run)
        elif run.resume is not None:  # killed between its checkpoint and its row, or its result
            if is_done(config, run.resume.epoch, run.resume.best_epoch):
                launch.fit_in_process(run)
            else:
                JsonlTracker(config.out, last_row=run.resume.row)
        _note(shared.rounds, [config.out])

    def note(heads: Sequence[HeadRun]) -> None:
        _note(shared.rounds, [head.run.config.out for head in heads])

    try:
        for equally_far in runs.values():
            first = equally_far[0]
            worker = launch.worker_here(first.config.cluster, first.workers)
            heads = train_together(equally_far, worker, until=found.until, on_saved=note)
            own = next((head for head in heads if head.run.config.out == leader), None)
            if own and own.stopped and own.stopped.unreadable:
                read_result(leader)  # raises the reason
    finally:
        ray.get(shared.rounds.release.remote(leader))


def _note(rounds: ActorHandle | None, folders: Sequence[str]) -> None:
    assert rounds is not None
    ray.get(rounds.note.remote({out: read_progress(out) for out in folders}))


def read_progress(run: str) -> HeadProgress:
    """Read how far a head has come from its rows."""
    rows = epoch_rows(run)
    return HeadProgress(
        epoch=rows[-1][metrics.EPOCH] if rows else 0,
        top1s={row[metrics.EPOCH]: row[metrics.VAL_TOP1] for row in rows},
        peak_norm=rows[-1].get(metrics.PEAK_NORM, 0.0) if rows else 0.0,
        is_over=is_over(run),
    )


def _copy_known(config: FinetuneConfig, shared: Shared) -> None:
    """Start a trial from the recorded result of the same training, where there is one."""
    folder = shared.results_of(config)
    if folder is None or epoch_rows(config.out):
        return
    if (known := find_known(folder, config)) is not None:
        copy_run(known, config)


def _train_in_workers(config: FinetuneConfig, runner: ActorHandle, options: dict[str, Any]) -> None:
    """Train in the runner's workers, and report the epochs they write.

    With `TuneReportCallback` the trial would block in `fit` and could not be stopped: its process
    is kept for the next trial, and the workers of the pruned one would continue.
    """
    reported = max((row[metrics.EPOCH] for row in epoch_rows(config.out)), default=0)
    rows = RowReader(config.out)
    training = runner.run.remote(config, options)
    while True:
        done, _ = ray.wait([training], timeout=POLL_S)
        for row in rows.read_new() if done else rows.poll_new():
            if metrics.VAL_TOP1 in row and row[metrics.EPOCH] > reported:
                reported = row[metrics.EPOCH]
                report_epoch(row)
        if done:
            ray.get(training)
            return

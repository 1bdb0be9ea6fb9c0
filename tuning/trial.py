"""One trial: a point of the space, trained."""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray
import ray.tune

from cluster.runtime import Resources
from cluster.scaling import in_process, plan_workers
from datasets import storage
from trainers import launch, metrics
from trainers.config import FinetuneConfig
from trainers.freezing import is_head_only
from trainers.runs import is_over, read_result
from trainers.tracking import read_rows
from tuning.config import TuningConfig
from tuning.search import point_of
from tuning.space import Point, training_of

POLL_S = 0.5
DRIVER_CPUS = 0.01
"""A trial that trains in workers only waits for them."""
LEAVE_TIMEOUT_S = "60"
"""How long Tune waits for a pruned trial to leave its process before it starts another process."""


def run_folder(config: TuningConfig, trial_id: str) -> str:
    return storage.join(config.out, "trials", trial_id)


def config_of(config: TuningConfig, point: Point, trial_id: str) -> FinetuneConfig:
    """Return the training of a trial."""
    return replace(training_of(config.base, point), out=run_folder(config, trial_id))


def build_trial(
    config: TuningConfig, resources: Resources, *, num_concurrent: int
) -> Callable[[dict[str, Any]], None]:
    """Return the function Tune runs for every trial, with what each reserves.

    Head-only trials train in the trial's own process, which the next trial takes over, and reserve
    a worker's share for it. The others reserve next to nothing, as their workers reserve it.
    """

    def run_trial(params: dict[str, Any]) -> None:
        os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", LEAVE_TIMEOUT_S)
        trial_id = ray.tune.get_context().get_trial_id()
        assert trial_id is not None
        train_trial(config_of(config, point_of(params), trial_id), num_concurrent=num_concurrent)

    def reserve(params: dict[str, Any]) -> ray.tune.PlacementGroupFactory:
        training = training_of(config.base, point_of(params))
        if not trains_in_process(training):
            return ray.tune.PlacementGroupFactory([{"CPU": DRIVER_CPUS}])
        plan = plan_workers(resources, in_process(training.cluster), num_concurrent=num_concurrent)
        bundle = {"CPU": plan.cpus_per_worker, **({"GPU": 1.0} if plan.use_gpu else {})}
        return ray.tune.PlacementGroupFactory([bundle])

    return ray.tune.with_resources(run_trial, reserve)


def trains_in_process(config: FinetuneConfig) -> bool:
    return config.cluster.num_workers == 0 or is_head_only(config.model)


def train_trial(config: FinetuneConfig, *, num_concurrent: int) -> None:
    """Train inside a Tune trial, reporting every epoch.

    A pruned trial leaves through `ray.tune.report`, which then raises SystemExit.
    """
    if is_over(config.out):
        read_result(config.out)  # which raises where the trial diverged
        # Finished in a sitting that was cut before Tune noted it: let Tune know its score.
        ray.tune.report([row for row in read_rows(config.out) if metrics.VAL_TOP1 in row][-1])
    elif trains_in_process(config):
        launch.fit_in_process(config, num_concurrent=num_concurrent, report=ray.tune.report)
    else:
        _train_in_workers(config, num_concurrent=num_concurrent)


def _train_in_workers(config: FinetuneConfig, *, num_concurrent: int) -> None:
    """Fit in a task, passing on the epochs it writes; a pruned trial cancels the task.

    With `TuneReportCallback` the trial itself would wait for the fit and could not be told to stop:
    its process is kept for the next trial, and the workers of the pruned one train on.
    """
    fit = ray.remote(num_cpus=0, max_retries=0)(launch.fit)
    training = fit.remote(config, num_concurrent=num_concurrent)  # pyright: ignore[reportCallIssue]
    num_reported = 0
    try:
        while True:
            done, _ = ray.wait([training], timeout=POLL_S)
            rows = [row for row in read_rows(config.out) if metrics.VAL_TOP1 in row]
            for row in rows[num_reported:]:
                num_reported += 1
                ray.tune.report(row)
            if done:
                ray.get(training)
                return
    finally:
        ray.cancel(training, force=True)  # its process owns the controller and the workers

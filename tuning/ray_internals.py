"""Private names of Ray Tune: what a restored Tuner takes over, and ASHA's rungs."""

from collections.abc import Collection, Iterable
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.execution import class_cache
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from cluster.ray_internals import check_version


def keep_out_of_trials(variables: Collection[str]) -> None:
    """Keep environment variables out of the runtime_env of trials, which logs and dashboard show.

    Tune copies AWS keys there; trials find them in their own environment. See test_house_secrets.
    """
    check_version()
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(variables)


def replace_restored(
    tuner: tune.Tuner,
    callbacks: list[tune.Callback],
    num_concurrent: int,
    scheduler: TrialScheduler,
) -> None:
    """Replace what `Tuner.restore` takes from the session before, and has no argument for."""
    restored: Any = tuner._local_tuner
    restored._run_config.callbacks = callbacks
    restored._tune_config.max_concurrent_trials = num_concurrent
    restored._tune_config.scheduler = scheduler


def fill_rungs(scheduler: ASHAScheduler, results: Iterable[tuple[str, int, float]]) -> None:
    """Fill ASHA's rungs, which Tune forgets in a restart, with (trial id, epoch, metric)."""
    (bracket,) = scheduler._brackets
    for trial_id, epoch, value in results:
        trial: Any = SimpleNamespace(trial_id=trial_id)
        bracket.on_result(trial, epoch, value)

"""The Tuner of a sweep: search algorithm, ASHA, and resumption."""

from collections.abc import Callable
from functools import partial
from typing import Any

import optuna
import ray
from ray import tune
from ray.actor import ActorHandle
from ray.tune.execution import class_cache
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from cluster.io import filesystems, storage
from cluster.io.uris import name_of
from cluster.ray_internals import end_with_the_last_trial, find_rung, replace_restored
from trainers import metrics
from trainers.run.rows import epoch_rows
from tuning.config import DEFAULT_TRIALS, TuningConfig
from tuning.space import points, suggest

STATE_FOLDER = "tune"
"""Below the sweep's folder: Tune's own state, for resumption."""


class SessionCallback(tune.Callback):
    """A callback that lives as long as the driver.

    Tune pickles callbacks into a sweep's state. The actors and threads of a driver that died can't
    be restored, so a resumed sweep has new callbacks, from `build_tuner`.
    """

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        return tune.Callback, ()


NOT_IN_METADATA = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SECURITY_TOKEN",
    "AWS_SESSION_TOKEN",
)


def count_trials(config: TuningConfig) -> int:
    if config.search == "optuna":
        return config.trials or DEFAULT_TRIALS
    return len(points(config.space, config.search, config.trials, config.seed))


def build_tuner(
    config: TuningConfig,
    trainable: Callable[[dict[str, Any]], None],
    callbacks: list[tune.Callback],
    *,
    num_concurrent: int,
    rounds: ActorHandle | None = None,
) -> tune.Tuner:
    """Build the Tuner, or restore it where the sweep's folder has Tune's state.

    Args:
        rounds: actor of HeadRounds.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    end_with_the_last_trial(TuneController)
    # Tune copies AWS keys into the runtime_env of trials, which logs show; trials have
    # them in their own environment. test_house_secrets checks this.
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(NOT_IN_METADATA)
    if can_restore(config):
        path = _state_uri(config)
        tuner = tune.Tuner.restore(path, trainable, resume_unfinished=True, resume_errored=True)
        scheduler = build_scheduler(config, rounds)
        if isinstance(scheduler, SweepASHA):
            scheduler.remember()
        replace_restored(tuner, callbacks, num_concurrent, scheduler)
        return tuner
    space, search = build_search(config)
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=metrics.VAL_TOP1,
            mode="max",
            search_alg=search,
            scheduler=build_scheduler(config, rounds),
            num_samples=count_trials(config) if search is not None else 1,
            max_concurrent_trials=num_concurrent,
            reuse_actors=True,
            trial_dirname_creator=_trial_id,
        ),
        run_config=tune.RunConfig(
            name=STATE_FOLDER,
            storage_path=filesystems.escape(config.out),
            failure_config=tune.FailureConfig(max_failures=config.max_failures),
            callbacks=callbacks,
            verbose=0,
        ),
    )


def can_restore(config: TuningConfig) -> bool:
    """Whether the sweep's folder has Tune's state."""
    return tune.Tuner.can_restore(_state_uri(config))


def _state_uri(config: TuningConfig) -> str:
    return filesystems.escape(storage.join(config.out, STATE_FOLDER))


def build_search(config: TuningConfig) -> tuple[dict[str, Any], OptunaSearch | None]:
    """Return Tune's parameter space and search algorithm; None walks through the space."""
    if config.search != "optuna":
        listed = points(config.space, config.search, config.trials, config.seed)
        return {"point": tune.grid_search(listed)}, None
    search = OptunaSearch(
        partial(suggest, space=config.space),
        metric=metrics.VAL_TOP1,
        mode="max",
        seed=config.seed,
    )
    return {}, search


def build_scheduler(config: TuningConfig, rounds: ActorHandle | None = None) -> TrialScheduler:
    """Return ASHA with rungs below the last epoch, which a trial ends by itself.

    Stopped by the scheduler at its last epoch instead, its workers would be killed while they write
    the result.

    Args:
        rounds: actor of HeadRounds.
    """
    last_rung = config.base.epochs - 1
    if config.grace_epochs > last_rung:
        return FIFOScheduler()
    return SweepASHA(
        config,
        rounds,
        time_attr=metrics.EPOCH,
        max_t=last_rung,
        grace_period=config.grace_epochs,
        reduction_factor=config.reduction_factor,
        stop_last_trials=False,
    )


class SweepASHA(ASHAScheduler):
    """ASHA that knows results before Tune does: of an earlier session, which Tune forgets, and of
    heads that have trained ahead of their trials."""

    def __init__(self, config: TuningConfig, rounds: ActorHandle | None, **options: Any) -> None:
        super().__init__(**options)
        self._config, self._rounds = config, rounds
        self._decided: set[tuple[str, int]] = set()
        """Trials and the rungs they have passed."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune pickles it into a sweep's state; the actor ends with its driver."""
        return build_scheduler, (self._config,)

    def remember(self) -> None:
        """Fill the rungs with the results in run folders; a trial has passed those below its last
        epoch."""
        for trial_id in storage.list_names(storage.join(self._config.out, "trials")):
            rows = epoch_rows(run_folder(self._config, trial_id))
            top1s = {row[metrics.EPOCH]: row[metrics.VAL_TOP1] for row in rows}
            for rung in top1s.keys() & set(self._config.rungs):
                find_rung(self, rung)[trial_id] = top1s[rung]
                if rung < max(top1s):
                    self._decided.add((trial_id, rung))

    def on_trial_result(
        self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]
    ) -> str:
        epoch = result.get(metrics.EPOCH, 0)
        if epoch in self._config.rungs and (trial.trial_id, epoch) not in self._decided:
            self._decided.add((trial.trial_id, epoch))
            rung = find_rung(self, epoch)
            if self._rounds is not None:
                top1s: Any = ray.get(self._rounds.top1s.remote(epoch))
                rung.update({name_of(out): top1s[out] for out in top1s})
            rung.pop(trial.trial_id, None)
        return super().on_trial_result(tune_controller, trial, result)


def run_folder(config: TuningConfig, trial_id: str) -> str:
    """URI of a trial's run folder."""
    return storage.join(config.out, "trials", trial_id)


def _trial_id(trial: Any) -> str:
    return trial.trial_id

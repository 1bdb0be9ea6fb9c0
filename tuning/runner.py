"""The DDP trainings of a sweep, owned by one actor that outlives the trials.

Ray Train releases the CPUs of a training's workers when the training ends or is interrupted. Where
the owner of a training dies, its workers die too, but their CPUs stay reserved until Ray has asked
the dashboard which actors are alive: without a dashboard, until the sweep ends. Tune ends the
process of a pruned trial without waiting for it, and any process may be killed.
"""

import asyncio
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.tune.experiment import Trial

from trainers import launch
from trainers.config import FinetuneConfig
from trainers.prepare import prepare_run
from tuning.config import TuningConfig
from tuning.search import SessionCallback, run_folder

ABORT_TIMEOUT_S = 20.0
"""Time for a training to end its workers before it is killed."""


class TrainingRunner:
    """Actor that runs the DDP trainings of a sweep."""

    def __init__(self) -> None:
        self._running: dict[str, ray.ObjectRef] = {}

    async def run(self, config: FinetuneConfig, options: dict[str, Any]) -> None:
        """Train, or wait for the training in this run folder that a killed trial has started.

        Args:
            options: of `prepare_run`.
        """
        if config.out not in self._running:
            fit = ray.remote(num_cpus=0, max_retries=0)(_fit)
            self._running[config.out] = fit.remote(config, options)
        try:
            await self._running[config.out]
        finally:
            self._running.pop(config.out, None)

    async def abort(self, run: str) -> None:
        """Interrupt the training in a run folder, if there is one, and wait until it has ended."""
        if (fit := self._running.get(run)) is None:
            return
        ray.cancel(fit)  # an interrupt, as by Ctrl-C
        ended = asyncio.gather(asyncio.wrap_future(fit.future()), return_exceptions=True)
        _, running = await asyncio.wait([ended], timeout=ABORT_TIMEOUT_S)
        if running:
            ray.cancel(fit, force=True)


def _fit(config: FinetuneConfig, options: dict[str, Any]) -> None:
    launch.fit(prepare_run(config, **options))


def start_runner() -> ActorHandle:
    """Start the actor; it lives as long as this process holds its handle."""
    actor: Any = ray.remote(num_cpus=0)(TrainingRunner).remote()
    return actor


class EndHeads(SessionCallback):
    """Take trials that have ended out of the rounds of heads."""

    def __init__(self, config: TuningConfig, rounds: ActorHandle) -> None:
        self._config, self._rounds = config, rounds

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._rounds.end.remote(run_folder(self._config, trial.trial_id))

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self.on_trial_complete(iteration, trials, trial)


class AbortTrainings(SessionCallback):
    """Abort the training of a trial that has ended: Tune only ends the trial's process."""

    def __init__(self, config: TuningConfig, runner: ActorHandle) -> None:
        self._config, self._runner = config, runner
        self._aborts: list[ray.ObjectRef] = []

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._aborts.append(self._runner.abort.remote(run_folder(self._config, trial.trial_id)))

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self.on_trial_complete(iteration, trials, trial)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        for trial in trials:
            if not trial.is_finished():  # the budget has ended, or Ctrl-C
                self.on_trial_complete(0, trials, trial)
        ray.wait(self._aborts, num_returns=len(self._aborts), timeout=2 * ABORT_TIMEOUT_S)

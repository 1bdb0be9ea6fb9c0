"""The DDP trainings of a sweep, owned by one actor: the trials that ask for them come and go.

Ray Train gives back the CPUs of a training's workers when the training ends, or is interrupted.
Where its owner dies, the workers die too, but what they had reserved stays reserved until Ray has
asked the dashboard who lives: without a dashboard, to the end of the sweep. Tune ends the process
of a trial that was pruned without waiting for it, and any process may be killed.
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
"""How long a training may take to end its workers before it is killed."""


class Fits:
    """What the actor runs."""

    def __init__(self) -> None:
        self._running: dict[str, ray.ObjectRef] = {}

    async def run(self, config: FinetuneConfig, options: dict[str, Any]) -> None:
        """Train, or wait for the training in this run folder that a killed trial has begun.

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
        """End the training in a run folder, if it runs, and return once it is over."""
        if (fit := self._running.get(run)) is None:
            return
        ray.cancel(fit)  # an interrupt, as by Ctrl-C
        ended = asyncio.gather(asyncio.wrap_future(fit.future()), return_exceptions=True)
        _, running = await asyncio.wait([ended], timeout=ABORT_TIMEOUT_S)
        if running:
            ray.cancel(fit, force=True)


def _fit(config: FinetuneConfig, options: dict[str, Any]) -> None:
    launch.fit(prepare_run(config, **options))


def start_fits() -> ActorHandle:
    """Start the actor; it lives as long as this process holds its handle."""
    actor: Any = ray.remote(num_cpus=0)(Fits).remote()
    return actor


class AbortFits(SessionCallback):
    """Abort what a trial leaves behind: of a pruned one, Tune ends the process alone."""

    def __init__(self, config: TuningConfig, fits: ActorHandle) -> None:
        self._config, self._fits = config, fits
        self._aborts: list[ray.ObjectRef] = []

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._aborts.append(self._fits.abort.remote(run_folder(self._config, trial.trial_id)))

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self.on_trial_complete(iteration, trials, trial)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        ray.wait(self._aborts, num_returns=len(self._aborts), timeout=2 * ABORT_TIMEOUT_S)

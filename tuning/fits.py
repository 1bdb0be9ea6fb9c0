"""The DDP trainings of a sweep, owned by one actor: the trials that ask for them come and go.

Ray Train gives back the CPUs of a training's workers when the training ends, or is interrupted.
Where its owner dies, workers die too, but what they had reserved stays reserved until Ray asks the
dashboard who lives: without a dashboard, to the end of the sweep. Tune ends the process of a trial
that was pruned without waiting for it, and any process may be killed.
"""

import asyncio

import ray

from trainers import launch
from trainers.config import FinetuneConfig
from trainers.feed import Prefix

ABORT_TIMEOUT_S = 20.0
"""How long a training may take to end its workers before it is killed."""


class Fits:
    """A Ray actor that outlives the trials."""

    def __init__(self) -> None:
        self._running: dict[str, ray.ObjectRef] = {}

    async def run(
        self, config: FinetuneConfig, *, num_concurrent: int, prefix: Prefix | None
    ) -> None:
        """Train, or wait for the training in this run folder that a killed trial has begun."""
        if config.out not in self._running:
            fit = ray.remote(num_cpus=0, max_retries=0)(launch.fit)
            options = {"num_concurrent": num_concurrent, "prefix": prefix}
            self._running[config.out] = fit.remote(config, **options)
        try:
            await self._running[config.out]
        finally:
            self._running.pop(config.out, None)

    async def abort(self, run: str) -> None:
        """End the training in a run folder, if it runs, and return once it is over."""
        if (fit := self._running.get(run)) is None:
            return
        ray.cancel(fit)  # an interrupt, as by Ctrl-C
        ended = asyncio.wrap_future(fit.future())
        _, running = await asyncio.wait([ended], timeout=ABORT_TIMEOUT_S)
        if running:
            ray.cancel(fit, force=True)

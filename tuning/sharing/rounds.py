"""Which head-only trials train together: rounds of trials on the same features, up to a rung.

A round trains trials that wait, and beside them those that will be asked for next: every trial up
to the first rung, and from rung to rung those that ASHA will let continue. Its decisions depend on
the order of results alone, which is the order of the trials here.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import ray
from ray.actor import ActorHandle

from trainers.config import FinetuneConfig
from tuning.config import TuningConfig


class HeadProgress(NamedTuple):
    """What the run folder of a head has."""

    epoch: int
    top1s: dict[int, float]
    """val/top1 by epoch."""
    peak_norm: float
    is_over: bool


class Round(NamedTuple):
    """Trials to train together."""

    configs: list[FinetuneConfig]
    until: int
    """Epoch to train up to."""


@dataclass(kw_only=True)
class PlannedHead:
    """A head-only trial, which may not have started yet."""

    config: FinetuneConfig
    key: str
    """Trials of one key can train together."""
    progress: HeadProgress = field(default_factory=lambda: HeadProgress(0, {}, 0.0, False))
    waits: bool = False
    """Its trial waits for its next epoch."""
    leader: str | None = None
    """Run folder of the trial that trains it now."""


class HeadRounds:
    """Chooses rounds."""

    def __init__(self, config: TuningConfig, *, max_together: int, num_concurrent: int) -> None:
        self._epochs, self._rungs = config.base.epochs, config.rungs
        self._reduction_factor = config.reduction_factor
        self._max_together, self._num_concurrent = max_together, num_concurrent
        self._heads: dict[str, PlannedHead] = {}
        self._variants: dict[str, list[str]] = {}

    def add(self, config: FinetuneConfig, key: str) -> PlannedHead:
        """Plan a trial, in the order of the trials."""
        if config.out not in self._heads:
            self._heads[config.out] = PlannedHead(config=config, key=key)
            self._variants.setdefault(_variant(config), []).append(config.out)
        return self._heads[config.out]

    def note(self, progress: dict[str, HeadProgress]) -> None:
        """Take the progress of heads by run folder."""
        for out, of_head in progress.items():
            if (head := self._heads.get(out)) is None:
                continue  # of an actor that was restarted; its trial will ask
            head.waits = head.waits and of_head.epoch <= head.progress.epoch
            head.progress = of_head

    def release(self, leader: str) -> None:
        """End the round that a trial trains."""
        for head in self._heads.values():
            if head.leader == leader:
                head.leader = None

    def end(self, out: str) -> None:
        """Take back a trial that has ended, and what it trained."""
        self.release(out)
        if (head := self._heads.get(out)) is not None:
            head.progress, head.waits = head.progress._replace(is_over=True), False

    def take(self, out: str) -> Round | None:
        """Return a round for the process of a trial that waits; None where others train all."""
        self.release(out)
        self._heads[out].waits = True
        free = [head for head in self._heads.values() if self._is_free(head)]
        ready = [head for head in free if head.waits or self._is_next(head)]
        if not ready:
            return None
        # The least trained first: once all have reached a rung, more of them continue together.
        own = self._heads[out]
        first = min(ready, key=lambda head: (head.progress.epoch, head is not own))
        epoch = first.progress.epoch
        same = [h for h in ready if (h.key, h.progress.epoch) == (first.key, epoch)]
        size = min(self._max_together, ceil(len(same) / self._num_concurrent))
        same.sort(key=lambda head: head is not first)
        chosen = same[: max(1, size)]
        for head in chosen:
            head.leader = out
        until = next((rung for rung in self._rungs if rung > epoch), self._epochs)
        return Round([head.config for head in chosen], until)

    def _is_free(self, head: PlannedHead) -> bool:
        return head.leader is None and not head.progress.is_over

    def _is_next(self, head: PlannedHead) -> bool:
        """Whether a trial that does not wait yet will train its next epochs."""
        epoch = head.progress.epoch
        if epoch == 0:
            return not self._may_be_copied(head)
        return epoch in self._rungs and head.config.out in self._survivors(epoch)

    def _may_be_copied(self, head: PlannedHead) -> bool:
        """Whether another trial, of a looser clipnorm, may turn out to be the same training."""
        out, clipnorm = head.config.out, head.config.optim.clipnorm
        variants = self._variants[_variant(head.config)]
        before = [self._heads[name] for name in variants[: variants.index(out)]]
        return clipnorm is not None and any(
            other.progress.epoch == 0 or other.progress.peak_norm <= clipnorm for other in before
        )

    def _survivors(self, rung: int) -> set[str]:
        """Return what ASHA lets continue of the results at a rung, in the order of the trials."""
        share = 100 * (1 - 1 / self._reduction_factor)
        survivors: set[str] = set()
        seen: list[float] = []
        for out, head in self._heads.items():
            if (top1 := head.progress.top1s.get(rung)) is not None:
                if not seen or top1 >= np.percentile(seen, share):
                    survivors.add(out)
                seen.append(top1)
        return survivors


def _variant(config: FinetuneConfig) -> str:
    """Return all of a training but its clipnorm and its folder."""
    values = config.to_dict()
    del values["out"], values["optim"]["clipnorm"]
    return str(values)


class HeadRoundsActor:
    """HeadRounds, asked by the processes of trials."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._rounds = HeadRounds(*arguments, **options)
        self._changed = asyncio.Condition()

    async def plan(self, planned: Sequence[tuple[FinetuneConfig, str]]) -> None:
        """Add trials that will start."""
        for config, key in planned:
            self._rounds.add(config, key)

    async def wait(self, config: FinetuneConfig, key: str, known: HeadProgress) -> Round | None:
        """Wait until a trial has more epochs than are `known`, or is over, and return None; or
        return a round that its process shall train."""
        head = self._rounds.add(config, key)
        if known.epoch > head.progress.epoch:
            head.progress = known
        async with self._changed:
            while True:
                if head.progress.epoch > known.epoch or head.progress.is_over:
                    return None
                if (found := self._rounds.take(config.out)) is not None:
                    return found
                await self._changed.wait()

    async def note(self, progress: dict[str, HeadProgress]) -> None:
        async with self._changed:
            self._rounds.note(progress)
            self._changed.notify_all()

    async def release(self, leader: str) -> None:
        async with self._changed:
            self._rounds.release(leader)
            self._changed.notify_all()

    async def end(self, out: str) -> None:
        async with self._changed:
            self._rounds.end(out)
            self._changed.notify_all()


def start_rounds(
    config: TuningConfig,
    planned: Iterable[tuple[FinetuneConfig, str]],
    *,
    max_together: int,
    num_concurrent: int,
) -> ActorHandle:
    """Start the actor; it lives as long as this process holds its handle."""
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1)(HeadRoundsActor)
    handle = actor.remote(config, max_together=max_together, num_concurrent=num_concurrent)
    handle.plan.remote(list(planned))
    return handle

"""Which head-only trials train together: rounds of trials on the same features, up to a rung.

A round trains trials that wait, and beside them those that will be asked for next: every trial up
to the first rung, and from rung to rung those that ASHA will let continue. A trial reports a rung
once the trials that follow it have reached that rung, so that ASHA compares it with them too,
whatever their order.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import dropwhile, islice
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import ray
from ray.actor import ActorHandle

from trainers.config import FinetuneConfig
from tuning.config import TuningConfig
from tuning.sharing.quantiles import quantiles_of_others

NUM_COMPARED = 128
"""How many of the trials that follow it a trial waits for at a rung."""


class HeadProgress(NamedTuple):
    """What the run folder of a head has."""

    epoch: int
    top1s: dict[int, float]
    """val/top1 by epoch."""
    peak_norm: float
    is_over: bool


class Round(NamedTuple):
    """Trials to train together, one at least."""

    configs: list[FinetuneConfig]
    until: int
    """Epoch to train up to."""


@dataclass(kw_only=True)
class PlannedHead:
    """A head-only trial, which may not have started yet."""

    config: FinetuneConfig
    key: str
    """Trials of one key can train together."""
    variant: str
    """Of trials that differ in clipnorm alone."""
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
            head = PlannedHead(config=config, key=key, variant=_variant(config))
            self._heads[config.out] = head
            self._variants.setdefault(head.variant, []).append(config.out)
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

    def may_report(self, out: str) -> bool:
        """Whether the trials that follow a trial have reached its rung, or are over."""
        epoch, survivors = self._heads[out].progress.epoch, self._survivors()
        rung = max((rung for rung in self._rungs if rung <= epoch), default=0)
        following = islice(dropwhile(lambda name: name != out, self._heads), 1, 1 + NUM_COMPARED)
        return not any(
            head.progress.epoch < rung and (head.leader or self._is_ready(head, survivors))
            for head in map(self._heads.__getitem__, following)
        )

    def top1s(self, rung: int) -> dict[str, float]:
        """Return val/top1 at a rung by run folder."""
        found = {out: head.progress.top1s.get(rung) for out, head in self._heads.items()}
        return {out: top1 for out, top1 in found.items() if top1 is not None}

    def take(self, out: str, *, waits: bool = True) -> Round | None:
        """Return a round for the process of a trial; None where others train all.

        Args:
            waits: whether the trial waits for its own next epoch, and not only for others.
        """
        self.release(out)
        own, survivors = self._heads[out], self._survivors()
        own.waits = waits
        ready = [head for head in self._heads.values() if self._is_ready(head, survivors)]
        if not ready:
            return None
        # The least trained first: once all have reached a rung, more of them continue together.
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

    def _is_ready(self, head: PlannedHead, survivors: dict[int, set[str]]) -> bool:
        """Whether a trial that no process trains waits, or will train its next epochs."""
        epoch = head.progress.epoch
        if head.leader is not None or head.progress.is_over:
            return False
        if epoch == 0 and not head.waits:
            return not self._may_be_copied(head)
        return head.waits or head.config.out in survivors.get(epoch, ())

    def _may_be_copied(self, head: PlannedHead) -> bool:
        """Whether another trial, of a looser clipnorm, may turn out to be the same training."""
        out, clipnorm = head.config.out, head.config.optim.clipnorm
        variants = self._variants[head.variant]
        before = [self._heads[name] for name in variants[: variants.index(out)]]
        return clipnorm is not None and any(
            other.progress.epoch == 0 or other.progress.peak_norm <= clipnorm for other in before
        )

    def _survivors(self) -> dict[int, set[str]]:
        """Return what ASHA lets continue at each rung of the results so far."""
        share = 1 - 1 / self._reduction_factor
        survivors: dict[int, set[str]] = {}
        for rung in self._rungs:
            found = self.top1s(rung)
            top1s_T = np.array(list(found.values()))
            is_in_T = top1s_T >= quantiles_of_others(top1s_T, share)
            survivors[rung] = {out for out, is_in in zip(found, is_in_T, strict=True) if is_in}
        return survivors


def _variant(config: FinetuneConfig) -> str:
    """Return all of a training but its clipnorm and its folder."""
    values = config.to_dict()
    del values["out"], values["optim"]["clipnorm"]
    return str(values)


class HeadRoundsActor:
    """HeadRounds, asked by the processes of trials.

    Args:
        planned: trials that will start.
        options: of HeadRounds.
    """

    def __init__(
        self,
        config: TuningConfig,
        planned: Sequence[tuple[FinetuneConfig, str]],
        **options: int,
    ) -> None:
        self._rounds = HeadRounds(config, **options)
        for training, key in planned:  # not by a call: Ray may let those of trials run before it
            self._rounds.add(training, key)
        self._changed = asyncio.Condition()

    async def wait(
        self, config: FinetuneConfig, key: str, known: HeadProgress, reported: int
    ) -> Round | None:
        """Wait until a trial may report more epochs than it has `reported`, or is over, and return
        None; or return a round that its process shall train.

        Args:
            known: what the trial's run folder has.
        """
        head = self._rounds.add(config, key)
        if known.is_over or known.epoch > head.progress.epoch:
            head.progress = known
        async with self._changed:
            while True:
                has_news = head.progress.epoch > reported or head.progress.is_over
                if has_news and self._rounds.may_report(config.out):
                    return None
                if (found := self._rounds.take(config.out, waits=not has_news)) is not None:
                    return found
                await self._changed.wait()

    async def top1s(self, rung: int) -> dict[str, float]:
        return self._rounds.top1s(rung)

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
    return actor.remote(
        config, list(planned), max_together=max_together, num_concurrent=num_concurrent
    )

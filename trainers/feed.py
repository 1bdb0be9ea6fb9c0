"""A rank's batches: planned, streamed, timed and on its device."""

import time
from collections.abc import Callable, Generator

import torch
from torch import distributed

from datasets.epochs import Batch, stream
from datasets.plan import Plan, plan_epochs
from trainers.prepare import Run
from trainers.worker import WorkerContext

MAX_NAMES = 20
"""Unreadable images that are named; metrics count them all."""


class Feed:
    """The batches of one split through all epochs of a run; measures how long the loop waits."""

    def __init__(
        self,
        split: str,
        plan: Plan,
        batches: Generator[Batch, None, None],
        worker: WorkerContext,
        on_batch: Callable[[], None] = lambda: None,
    ) -> None:
        self.split = split
        self.num_images = plan.row_groups.num_images
        self.batches_per_epoch = plan.batches_per_epoch
        self.first_row = int(plan.start_B[0])
        """First row of this rank's share of a split that is evaluated in stored order."""
        self.first_batch_s: float | None = None
        self.wait_s = 0.0
        self._batches, self._worker, self._on_batch = batches, worker, on_batch
        self._unreadable: list[str] = []

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images_BHWC (uint8) or features, and labels_B, being copied to the device."""
        start = time.perf_counter()
        batch = next(self._batches)
        waited_s = time.perf_counter() - start
        self._on_batch()
        self.wait_s += waited_s
        if self.first_batch_s is None:
            self.first_batch_s = waited_s
        if batch["unreadable"]:
            self._unreadable = [*self._unreadable, *batch["unreadable"]][:MAX_NAMES]
        return to_device(batch, self._worker.device)

    def close(self) -> None:
        """End the stream in this thread; the garbage collector would end it in any."""
        self._batches.close()

    def take_unreadable(self) -> list[str]:
        """Return names of images unreadable on any rank since the last call, at most MAX_NAMES of
        each rank. All ranks must call."""
        unreadable, self._unreadable = self._unreadable, []
        if self._worker.world_size == 1:
            return unreadable
        by_rank: list[list[str]] = [[]] * self._worker.world_size
        distributed.all_gather_object(by_rank, unreadable)
        return [name for of_rank in by_rank for name in of_rank]


def to_device(batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Start copying images_BHWC (uint8) or features, and labels_B, to the device."""
    # A copy, as Ray's blocks are read-only.
    images_B, labels_B = torch.tensor(batch["image"]), torch.tensor(batch["label"])
    if device.type == "cuda":
        images_B, labels_B = images_B.pin_memory(), labels_B.pin_memory()
    return images_B.to(device, non_blocking=True), labels_B.to(device, non_blocking=True)


def open_feed(
    run: Run,
    worker: WorkerContext,
    split: str,
    *,
    start_epoch: int = 0,
    start_step: int = 0,
    on_batch: Callable[[], None] = lambda: None,
) -> Feed:
    """Open a split's stream of batches, shuffled and augmented where it trains.

    Args:
        start_step: steps of `start_epoch` that are done already.
        on_batch: called after each batch.
    """
    config = run.config
    plan = plan_epochs(
        config.data,
        run.manifest,
        config.ingest,
        split=split,
        num_epochs=config.num_epochs,
        global_batch_size=config.global_batch_size,
        seed=config.seed,
        train=split == config.train_on,
        rank=worker.rank,
        world_size=worker.world_size,
        start_epoch=start_epoch,
        start_step=start_step,
    )
    batches = stream(plan, run.source(split), run.limits)
    return Feed(split, plan, batches, worker, on_batch)

"""A rank's batches: planned, streamed, timed and on its device."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from datasets.epochs import Batch, stream
from datasets.plan import Plan, plan_epochs
from datasets.shards import Manifest
from trainers.config import FinetuneConfig


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where this process stands among its peers, and what it may use."""

    rank: int = 0
    world_size: int = 1
    device: torch.device
    threads: int
    """CPU threads to compute with."""
    reader_cpus: float
    """Logical CPUs of each read task."""
    store_bytes: float | None = None
    """Object store that each of its streams may fill ahead."""


class Feed:
    """The batches of one split through all epochs of a run, and how long the loop waited."""

    def __init__(self, plan: Plan, batches: Iterator[Batch], device: torch.device) -> None:
        self.batches_per_epoch = plan.batches_per_epoch
        self.first_batch_s: float | None = None
        self.wait_s = 0.0
        self._batches, self._device = batches, device

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images_BHWC (uint8) and labels_B, on their way to the device."""
        start = time.perf_counter()
        batch = next(self._batches)
        waited_s = time.perf_counter() - start
        self.wait_s += waited_s
        if self.first_batch_s is None:
            self.first_batch_s = waited_s
        # A copy, as Ray's blocks are read-only.
        images_BHWC, labels_B = torch.tensor(batch["image"]), torch.tensor(batch["label"])
        if self._device.type == "cuda":
            images_BHWC, labels_B = images_BHWC.pin_memory(), labels_B.pin_memory()
        return (
            images_BHWC.to(self._device, non_blocking=True),
            labels_B.to(self._device, non_blocking=True),
        )


def open_feed(
    config: FinetuneConfig,
    manifest: Manifest,
    place: Place,
    *,
    split: str,
    num_epochs: int | None = None,
    start_epoch: int = 0,
) -> Feed:
    """Open a split's stream of batches; `train` is shuffled and augmented, the others are not."""
    train = split == "train"
    plan = plan_epochs(
        config.data,
        manifest,
        config.ingest,
        split=split,
        num_epochs=num_epochs or config.epochs,
        global_batch_size=config.global_batch_size,
        seed=config.seed,
        train=train,
        rank=place.rank,
        world_size=place.world_size,
        start_epoch=start_epoch,
    )
    batches = stream(
        plan,
        config.ingest,
        seed=config.seed,
        train=train,
        reader_cpus=place.reader_cpus,
        store_bytes=place.store_bytes,
    )
    return Feed(plan, batches, place.device)

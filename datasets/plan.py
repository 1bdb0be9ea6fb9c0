"""Which image stands where in an epoch, and which read task brings it.

The order of an epoch is a function of (seed, epoch); a global batch is a range of positions in that
order, and a rank's share of it a range inside. So the order is the same on any number of workers,
every rank takes equally many training steps, and a plan can start at any step. Training drops the
tail that fills no global batch (other images every epoch); evaluation drops nothing and sees each
image exactly once.
"""

from dataclasses import dataclass

import numpy as np

from datasets import storage
from datasets.config import IngestConfig, require
from datasets.shards import Manifest


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    uri: str
    index: int
    num_rows: int


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """What one read task yields: ranges of positions in an epoch's order, one per batch."""

    epoch: int
    ranges: tuple[range, ...]
    row_groups: tuple[RowGroup, ...]
    """Those of the windows the ranges touch."""
    windows: tuple[tuple[int, int], ...]
    """For each such window its number and how many of the row groups are its own."""
    start: int
    """Position at which the first window begins."""

    @property
    def num_images(self) -> int:
        return sum(len(positions) for positions in self.ranges)


class EpochOrder:
    """The order of one epoch: row groups shuffled, then rows shuffled within windows of them.

    Costs memory per row group, not per image.
    """

    def __init__(
        self, row_groups: list[RowGroup], window_size: int, *, seed: int, epoch: int, shuffle: bool
    ) -> None:
        order = np.arange(len(row_groups))
        if shuffle:
            np.random.default_rng((seed, epoch)).shuffle(order)
        self._epoch = epoch
        self._windows = [
            [row_groups[i] for i in order[start : start + window_size]]
            for start in range(0, len(order), window_size)
        ]
        sizes = [sum(group.num_rows for group in window) for window in self._windows]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])

    def chunk(self, ranges: list[range]) -> Chunk:
        """Gather what a read task has to know to yield these positions."""
        first, last = (
            int(np.searchsorted(self._starts, position, side="right")) - 1
            for position in (ranges[0].start, ranges[-1].stop - 1)
        )
        windows = self._windows[first : last + 1]
        return Chunk(
            epoch=self._epoch,
            ranges=tuple(ranges),
            start=int(self._starts[first]),
            windows=tuple((first + i, len(window)) for i, window in enumerate(windows)),
            row_groups=tuple(group for window in windows for group in window),
        )


def rows_in_order(chunk: Chunk, *, seed: int, shuffle: bool) -> np.ndarray:
    """Row numbers, counted through `chunk.row_groups`, in the order of the epoch's positions."""
    rows: list[np.ndarray] = []
    first_row = first_group = 0
    for window, num_groups in chunk.windows:
        groups = chunk.row_groups[first_group : first_group + num_groups]
        num_rows = sum(group.num_rows for group in groups)
        window_rows = np.arange(first_row, first_row + num_rows)
        if shuffle:
            np.random.default_rng((seed, chunk.epoch, window)).shuffle(window_rows)
        rows.append(window_rows)
        first_row, first_group = first_row + num_rows, first_group + num_groups
    return np.concatenate(rows)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A rank's share of every epoch of a run."""

    chunks: tuple[Chunk, ...]
    batches_per_epoch: int
    worker_batch_size: int


def plan_epochs(
    data: str,
    manifest: Manifest,
    ingest: IngestConfig,
    *,
    split: str,
    num_epochs: int,
    global_batch_size: int,
    seed: int,
    train: bool,
    rank: int = 0,
    world_size: int = 1,
    start_epoch: int = 0,
    start_step: int = 0,
) -> Plan:
    """Plan a rank's share of every epoch from `start_epoch` on.

    Args:
        train: shuffled, augmented, equal steps on all ranks; else in stored order, each image
            exactly once over the ranks, the last batches shorter.
        start_step: steps of `start_epoch` that are done already (training only).

    Raises:
        ValueError: where the split holds no global batch, or ranks can't share one equally.
    """
    row_groups = [
        RowGroup(uri=storage.join(data, shard.path), index=index, num_rows=num_rows)
        for shard in manifest.split(split).shards
        for index, num_rows in enumerate(shard.row_groups)
    ]
    num_images = sum(group.num_rows for group in row_groups)
    require(
        global_batch_size % world_size == 0,
        "global_batch_size",
        global_batch_size,
        f"make it a multiple of the {world_size} workers",
    )
    worker_batch_size = global_batch_size // world_size
    if train:
        require(
            global_batch_size <= num_images,
            "global_batch_size",
            global_batch_size,
            f"{split} has {num_images} images; use at most as many",
        )
        offset = rank * worker_batch_size
        ranges = [
            range(start + offset, start + offset + worker_batch_size)
            for start in range(0, num_images - global_batch_size + 1, global_batch_size)
        ]
    else:
        low, high = (num_images * r // world_size for r in (rank, rank + 1))
        ranges = [
            range(start, min(start + worker_batch_size, high))
            for start in range(low, high, worker_batch_size)
        ]

    chunks: list[Chunk] = []
    batches_per_chunk = 1  # a small first task for a fast first batch, then twice as large each
    largest = max(1, ingest.task_images // worker_batch_size)
    for epoch in range(start_epoch, num_epochs):
        order = EpochOrder(
            row_groups, ingest.window_row_groups, seed=seed, epoch=epoch, shuffle=train
        )
        batch = start_step if epoch == start_epoch else 0
        while batch < len(ranges):
            chunks.append(order.chunk(ranges[batch : batch + batches_per_chunk]))
            batch += batches_per_chunk
            batches_per_chunk = min(2 * batches_per_chunk, largest)
    return Plan(
        chunks=tuple(chunks), batches_per_epoch=len(ranges), worker_batch_size=worker_batch_size
    )

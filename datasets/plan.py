"""The order of the images in each epoch, and which read task reads which.

The order of an epoch is a function of (seed, epoch): row groups are shuffled, then the rows within
each, and the result is cut into a few lanes that are read side by side, as tf.data's `interleave`
and MosaicML's canonical nodes do. Every global batch takes the same share of images from each lane,
so it mixes distant row groups; a rank takes a range of every global batch, so it reads few lanes
instead of the whole data set.

The order is therefore the same on any number of workers, every rank takes the same number of
training steps, and a plan can start at any step. Training drops the incomplete last batch (other
images in every epoch); evaluation keeps the stored order, drops nothing and sees each image once.

Dimensions: N images of a chunk, B of a global batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cluster.io import storage
from cluster.io.errors import require
from datasets.config import IngestConfig
from datasets.manifest import Manifest, Split

IGNORE_INDEX = -1
"""The label of an unreadable image: it stays in its batch and counts in no loss or metric."""


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    uri: str
    index: int
    """In the shard."""
    num_rows: int
    first_row: int
    """Index of its first row in the split."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """The images of one read task: consecutive batches of an epoch."""

    epoch: int
    row_groups: tuple[RowGroup, ...]
    group_N: np.ndarray
    """For each image, the index of its row group in `row_groups`."""
    row_N: np.ndarray
    """For each image, its row in the row group."""

    @property
    def num_images(self) -> int:
        return len(self.group_N)

    @property
    def rows_N(self) -> np.ndarray:
        """For each image, its row in the split."""
        first_rows = np.array([group.first_row for group in self.row_groups])
        return first_rows[self.group_N] + self.row_N


class RowGroups:
    """The row groups of a split as arrays: 20 bytes each, of any size."""

    def __init__(self, data: str, split: Split) -> None:
        self._uris = [storage.join(data, shard.path) for shard in split.shards]
        counts = [len(shard.row_groups) for shard in split.shards]
        self._ends = np.cumsum(counts)
        self.num_rows = np.concatenate([np.array(s.row_groups, np.int32) for s in split.shards])
        self.first_rows = np.cumsum(self.num_rows, dtype=np.int64) - self.num_rows
        self.num_images = int(self.num_rows.sum(dtype=np.int64))

    def __len__(self) -> int:
        return len(self.num_rows)

    def __getitem__(self, number: int) -> RowGroup:
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return RowGroup(
            uri=self._uris[shard],
            index=number - (int(self._ends[shard - 1]) if shard else 0),
            num_rows=int(self.num_rows[number]),
            first_row=int(self.first_rows[number]),
        )


class EpochOrder:
    """The order of one epoch: positions -> rows of row groups."""

    def __init__(self, row_groups: RowGroups, *, seed: int, epoch: int, shuffle: bool) -> None:
        self._row_groups, self._seed, self._epoch = row_groups, seed, epoch
        self._shuffle = shuffle
        self._order = np.arange(len(row_groups), dtype=np.int32)
        if shuffle:
            np.random.default_rng((seed, epoch)).shuffle(self._order)
        self._ends = np.cumsum(row_groups.num_rows[self._order], dtype=np.int64)

    def chunk(self, positions_N: np.ndarray) -> Chunk:
        """Return the chunk of the images at these positions."""
        indices, group_N = np.unique(
            np.searchsorted(self._ends, positions_N, side="right"), return_inverse=True
        )
        row_groups = [self._row_groups[int(self._order[index])] for index in indices]
        starts = self._ends[indices] - [group.num_rows for group in row_groups]
        row_N = positions_N - starts[group_N]
        if self._shuffle:
            for number, group in enumerate(row_groups):
                rng = np.random.default_rng((self._seed, self._epoch, group.first_row))
                inside = group_N == number
                row_N[inside] = rng.permutation(group.num_rows)[row_N[inside]]
        return Chunk(
            epoch=self._epoch,
            row_groups=tuple(row_groups),
            group_N=group_N.astype(np.int32),
            row_N=row_N.astype(np.int32),
        )


def cut_lanes(
    num_images: int, global_batch_size: int, num_lanes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Assign each slot of a global batch a lane, and each lane a part of the epoch's order.

    Returns:
        start_B and step_B: slot s of batch b is position `start_B[s] + b * step_B[s]`.
    """
    num_lanes = min(num_lanes, global_batch_size)
    edges = np.arange(num_lanes + 1) * global_batch_size // num_lanes
    widths = np.diff(edges)
    lane_B = np.repeat(np.arange(num_lanes), widths)
    lane_starts = num_images * edges // global_batch_size
    start_B = lane_starts[lane_B] + np.arange(global_batch_size) - edges[lane_B]
    return start_B, widths[lane_B]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A rank's share of every epoch of a run."""

    row_groups: RowGroups
    seed: int
    train: bool
    """Shuffled and augmented."""
    epochs: range
    start_step: int
    batches_per_epoch: int
    worker_batch_size: int
    task_batches: int
    """Batches of a read task, after the smaller first ones."""
    start_B: np.ndarray
    """Position of each of this rank's slots in the first batch of an epoch."""
    step_B: np.ndarray
    """Distance of each slot from batch to batch."""
    stop: int
    """End of this rank's positions."""

    def chunks(self) -> Iterator[Chunk]:
        """Yield the read tasks of all epochs in order, planning each epoch when it begins."""
        batches = 1  # a small first task for a fast first batch; each next one is twice as large
        for epoch in self.epochs:
            order = EpochOrder(self.row_groups, seed=self.seed, epoch=epoch, shuffle=self.train)
            step = self.start_step if epoch == self.epochs.start else 0
            while step < self.batches_per_epoch:
                steps = np.arange(step, min(step + batches, self.batches_per_epoch))
                positions_N = (self.start_B + steps[:, None] * self.step_B).ravel()
                yield order.chunk(positions_N[positions_N < self.stop])
                step += len(steps)
                batches = min(2 * batches, self.task_batches)


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

    Takes 20 bytes per row group and one chunk, for any number of images and epochs.

    Args:
        train: shuffled, augmented, the same number of steps on all ranks; else in stored order,
            each image exactly once over all ranks, the last batches shorter.
        start_step: steps of `start_epoch` that are skipped.

    Raises:
        UserError: where the split or a rank's share of a global batch is too small.
    """
    row_groups = RowGroups(data, manifest.split(split))
    num_images = row_groups.num_images
    require(
        world_size <= global_batch_size,
        "global_batch_size",
        global_batch_size,
        f"give each of the {world_size} workers an image",
    )
    first, end = (global_batch_size * r // world_size for r in (rank, rank + 1))
    size = end - first
    if train:
        require(
            global_batch_size <= num_images,
            "global_batch_size",
            global_batch_size,
            f"{split} has {num_images} images; use at most as many",
        )
        lanes = cut_lanes(num_images, global_batch_size, ingest.interleave)
        start_B, step_B = (of_batch_B[first:end] for of_batch_B in lanes)
        batches, stop = num_images // global_batch_size, num_images
    else:
        low, stop = (num_images * r // world_size for r in (rank, rank + 1))
        start_B, step_B = np.arange(low, low + size), np.full(size, size)
        batches = -(-(stop - low) // size)
    return Plan(
        row_groups=row_groups,
        seed=seed,
        train=train,
        epochs=range(start_epoch, num_epochs),
        start_step=start_step,
        batches_per_epoch=batches,
        worker_batch_size=size,
        task_batches=max(1, ingest.task_images // size),
        start_B=start_B,
        step_B=step_B,
        stop=stop,
    )

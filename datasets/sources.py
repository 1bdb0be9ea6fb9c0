"""Sources of the batches of a split: shards, or decoded images in memory.

Features of a frozen prefix are read by `passes.features`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from datasets.config import IngestConfig
from datasets.memory import Memory
from datasets.plan import Chunk
from datasets.read import read_chunk


@dataclass(frozen=True, kw_only=True)
class ReadLimits:
    """Resources that a stream of batches may use."""

    task_cpus: float = 1.0
    """Logical CPUs of each of its read tasks."""
    stream_cpus: float | None = None
    """Logical CPUs of all its read tasks; default: the cluster's."""
    store_bytes: float | None = None
    """Bytes of the object store for blocks ahead of the reader."""


class BatchSource(Protocol):
    """Reads the chunks of a plan."""

    @property
    def bytes_per_image(self) -> int: ...

    @property
    def in_tasks(self) -> bool:
        """Whether chunks are read by Ray tasks, or by the process that needs them."""
        ...

    def read(self, chunk: Chunk) -> Iterator[pa.Table]:
        """Yield one block of image, label, image_id and read_error."""
        ...


@dataclass(frozen=True, kw_only=True)
class ShardSource:
    """Images that are read and decoded in every epoch."""

    ingest: IngestConfig
    seed: int = 0
    train: bool = False
    """Augment them."""
    in_tasks = True

    @property
    def bytes_per_image(self) -> int:
        return 3 * self.ingest.size_px**2

    def read(self, chunk: Chunk) -> Iterator[pa.Table]:
        return read_chunk(chunk, ingest=self.ingest, seed=self.seed, train=self.train)


@dataclass(frozen=True, kw_only=True)
class MemorySource(ShardSource):
    """Images that are decoded once and kept in Ray's object store."""

    memory: Memory

    def read(self, chunk: Chunk) -> Iterator[pa.Table]:
        return read_chunk(
            chunk, ingest=self.ingest, seed=self.seed, train=self.train, memory=self.memory
        )


@dataclass(frozen=True)
class RowSource:
    """A source's blocks with the rows of the split.

    Defined here, where no reader imports torch to unpickle it.
    """

    source: BatchSource

    @property
    def bytes_per_image(self) -> int:
        return self.source.bytes_per_image

    @property
    def in_tasks(self) -> bool:
        return self.source.in_tasks

    def read(self, chunk: Chunk) -> Iterator[pa.Table]:
        (block,) = self.source.read(chunk)
        yield block.append_column("row", pa.array(chunk.rows_N.astype("int32")))

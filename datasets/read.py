"""One read task: the images of a chunk, read, decoded and augmented into one block.

An unreadable image does not stop the task: it stays in its batch, so that batch sizes and steps are
the same on every rank. Its label is IGNORE_INDEX, which counts in no loss or metric, and the block
has its name and the reason.

Dimensions: N images, S size in pixels, H height, W width, C the channels red, green, blue.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs
from ray.data.extensions import ArrowTensorArray

from cluster.io import filesystems
from cluster.io.retry import doubling, retry
from cluster.memory_allocator import keep_memory
from datasets.augment import augment, view
from datasets.config import IngestConfig
from datasets.decode import decode
from datasets.memory import Decoded, Memory
from datasets.plan import IGNORE_INDEX, Chunk, RowGroup
from datasets.shards import checksum

NUM_RETRIES, FIRST_RETRY_S = 2, 0.2
COLUMNS = ["image", "label", "image_id", "crc32"]
MAX_KEPT_BYTES = 128 * 2**20
"""Of row groups in a reader's memory, for the next chunk of its task."""

keep_memory()  # a block of images is too large for glibc to keep by itself


class Row(NamedTuple):
    """An image of a chunk: encoded, as pixels, or unreadable."""

    index: int
    """In the chunk."""
    label: int = IGNORE_INDEX
    image_id: int = 0
    jpeg: pa.Buffer | None = None
    pixels_HWC: np.ndarray | None = None
    read_error: str = ""
    """Why it can't be read."""


def read_chunk(
    chunk: Chunk, *, ingest: IngestConfig, seed: int, train: bool, memory: Memory | None = None
) -> Iterator[pa.Table]:
    """Read, decode and augment one chunk into one block. Runs in a Ray task.

    Args:
        memory: decoded images are taken from it, and added to it.
    """
    size_px = ingest.size_px
    policy = ingest.policy if train else "none"
    images_NSSC = np.empty((chunk.num_images, size_px, size_px, 3), np.uint8)
    labels_N = np.full(chunk.num_images, IGNORE_INDEX, np.int64)
    image_ids_N = np.zeros(chunk.num_images, np.int64)
    read_errors_N = np.full(chunk.num_images, None, object)
    rows = rows_of_shards(chunk) if memory is None else rows_of_memory(chunk, memory)
    for row in rows:
        key = {"seed": seed, "epoch": ingest.view_of(chunk.epoch), "image_id": row.image_id}
        read_error = row.read_error
        try:
            if row.pixels_HWC is not None:
                images_NSSC[row.index] = augment(row.pixels_HWC, policy, size_px, **key)
            elif row.jpeg is not None:
                images_NSSC[row.index] = view(row.jpeg, policy, size_px, **key)
        except ValueError as error:
            read_error = str(error)
        if read_error:
            read_errors_N[row.index] = f"{name_row(chunk, row.index)}: {read_error}"
        else:
            labels_N[row.index], image_ids_N[row.index] = row.label, row.image_id
    fill_unreadable(images_NSSC, labels_N == IGNORE_INDEX)
    yield make_block(images_NSSC, labels_N, image_ids_N, read_errors_N)


class KeptGroups:
    """Row groups that the last two chunks of a task read: neighbours need the same ones."""

    def __init__(self) -> None:
        self._before: dict[Any, pa.Table] = {}
        self._now: dict[Any, pa.Table] = {}
        self._is_kept = False

    def read(self, key: Any, read: Callable[[], pa.Table]) -> pa.Table:
        """Return a kept row group, or read it."""
        table = self._now.get(key, self._before.get(key))
        if table is None:
            table = read()
        if self._is_kept and sum(kept.nbytes for kept in self._now.values()) < MAX_KEPT_BYTES:
            self._now[key] = table
        return table

    def read_chunks(
        self, chunks: list[Chunk], read: Callable[[Chunk], Iterator[pa.Table]]
    ) -> Iterator[pa.Table]:
        """Yield the blocks of a task; keep its row groups meanwhile."""
        try:
            for number, chunk in enumerate(chunks):
                self._is_kept = number < len(chunks) - 1
                yield from read(chunk)
                self._before, self._now = self._now, {}
        finally:
            self._before = self._now = {}
            self._is_kept = False


KEPT_GROUPS = KeptGroups()
"""Of this process, which runs one task at a time."""


def read_task(
    chunks: list[Chunk], read: Callable[[Chunk], Iterator[pa.Table]]
) -> Iterator[pa.Table]:
    """Yield the blocks of the chunks of one Ray task."""
    return KEPT_GROUPS.read_chunks(chunks, read)


def make_block(
    images: np.ndarray, labels_N: np.ndarray, image_ids_N: np.ndarray, read_errors_N: Any
) -> pa.Table:
    """Return the block of a chunk: pixels or features, label, image_id and read_error."""
    return pa.table(
        {
            "image": ArrowTensorArray.from_numpy(images),
            "label": labels_N,
            "image_id": image_ids_N,
            "read_error": pa.array(read_errors_N, pa.string()),
        }
    )


def rows_of_shards(chunk: Chunk, indices: np.ndarray | None = None) -> Iterator[Row]:
    """Read encoded images of a chunk, by default all, one row group at a time."""
    indices = np.arange(chunk.num_images) if indices is None else indices
    for number, group in enumerate(chunk.row_groups):
        of_group = indices[chunk.group_N[indices] == number]
        if not len(of_group):
            continue
        try:
            table = read_row_group(group)
        except (OSError, ValueError, IndexError, pa.ArrowException) as error:
            for index in of_group:
                yield Row(int(index), read_error=f"its row group can't be read ({error})")
            continue
        labels, image_ids, sums = (table[name].to_numpy() for name in COLUMNS[1:])
        for index in of_group:
            row = chunk.row_N[index]
            jpeg = table["image"][row].as_buffer()
            label, image_id = int(labels[row]), int(image_ids[row])
            if checksum(jpeg, label, image_id) != sums[row]:
                changed = "its bytes changed after it was prepared (checksum)"
                yield Row(int(index), read_error=changed)
            else:
                yield Row(int(index), label, image_id, jpeg)


def rows_of_memory(chunk: Chunk, memory: Memory) -> Iterator[Row]:
    """Take decoded images from memory; decode the missing ones, and add them to it."""
    rows_N = chunk.rows_N
    found = memory.find(rows_N)
    for index, (label, image_id, pixels_HWC) in found.items():
        yield Row(index, label, image_id, pixels_HWC=pixels_HWC)
    kept_rows: list[int] = []
    images: list[Decoded] = []
    for row in rows_of_shards(chunk, np.setdiff1d(np.arange(len(rows_N)), list(found))):
        if row.jpeg is not None:
            try:
                pixels_HWC = decode(row.jpeg)
            except ValueError as error:
                row = Row(row.index, read_error=str(error))
            else:
                row = row._replace(jpeg=None, pixels_HWC=pixels_HWC)
                kept_rows.append(rows_N[row.index])
                images.append((row.label, row.image_id, pixels_HWC))
        yield row
    if images:
        memory.keep(np.array(kept_rows), images)


def read_row_group(group: RowGroup) -> pa.Table:
    """Read a row group of a shard; raises as `read_again`."""
    return read_again(partial(read_group, group.uri, group.index, COLUMNS))


def read_group(uri: str, index: int, columns: list[str]) -> pa.Table:
    """Read columns of one row group of a Parquet file that never changes."""
    return KEPT_GROUPS.read((uri, index), partial(_read_group, uri, index, columns))


def _read_group(uri: str, index: int, columns: list[str]) -> pa.Table:
    filesystem, path = filesystems.resolve(uri)
    is_local = isinstance(filesystem, fs.LocalFileSystem)
    with filesystem.open_input_file(path) as file:
        known = footer_of(uri)
        shard = pq.ParquetFile(file, metadata=known[0] if known else None, pre_buffer=not is_local)
        known[:] = [shard.metadata]
        # Threads of Arrow's would wait for a core: each has a task of ours.
        return shard.read_row_group(index, columns=columns, use_threads=False)


def read_again(read: Callable[[], pa.Table]) -> pa.Table:
    """Read, with retries where storage fails temporarily.

    Raises:
        OSError, ValueError, pa.ArrowException: where it can't be read, or is damaged.
    """
    return retry(read, _may_pass, doubling(FIRST_RETRY_S, times=NUM_RETRIES))


def _may_pass(error: Exception) -> bool:
    """Neither a file that is gone nor one that is damaged is another time there or whole."""
    gone = isinstance(error, FileNotFoundError | pa.ArrowInvalid)
    return isinstance(error, OSError | ValueError) and not gone


def read_metadata(uri: str) -> pq.FileMetaData:
    """Read a file's footer."""
    filesystem, path = filesystems.resolve(uri)
    with filesystem.open_input_file(path) as file:
        return pq.read_metadata(file)


@lru_cache(maxsize=256)
def footer_of(uri: str) -> list[pq.FileMetaData]:
    """Cache of a file's footer; file names hold a hash, so files never change. The footer is read
    from the file that is open anyway: opening another one is a request to an object store."""
    return []


def fill_unreadable(images_NSSC: np.ndarray, unreadable_N: np.ndarray) -> None:
    """Copy pixels of readable images: batch statistics must not include black images."""
    if unreadable_N.all():
        images_NSSC[:] = 0
    elif unreadable_N.any():
        good = np.flatnonzero(~unreadable_N)
        images_NSSC[unreadable_N] = images_NSSC[good[np.arange(unreadable_N.sum()) % len(good)]]


def name_row(chunk: Chunk, index: int) -> str:
    group = chunk.row_groups[chunk.group_N[index]]
    return f"{group.uri} row group {group.index} row {chunk.row_N[index]}"

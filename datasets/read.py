"""One read task: the images of a chunk, read, decoded and augmented into one block.

An image that can't be read is not a reason to stop: it keeps its place, so that every batch has its
size and every rank its steps; its label is IGNORE_INDEX, which counts in no loss and no score, and
the block says which image it was, and why.

Dimensions: N images, S size in pixels, H height, W width, C the channels red, green, blue.
"""

import time
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ray.data.extensions import ArrowTensorArray

from cluster.io import storage
from datasets.augment import augment, view
from datasets.config import IngestConfig
from datasets.decode import decode
from datasets.memory import Decoded, Memory
from datasets.plan import IGNORE_INDEX, Chunk, RowGroup
from datasets.shards import checksum

READ_ATTEMPTS, FIRST_RETRY_S = 3, 0.2
COLUMNS = ["image", "label", "image_id", "crc32"]


class Row(NamedTuple):
    """An image on its way into a block: encoded, as pixels, or lost."""

    place: int
    """Its place in the chunk."""
    label: int = IGNORE_INDEX
    image_id: int = 0
    jpeg: pa.Buffer | None = None
    pixels_HWC: np.ndarray | None = None
    loss: str = ""
    """Why it can't be read."""


def read_chunk(
    chunk: Chunk, *, ingest: IngestConfig, seed: int, train: bool, memory: Memory | None = None
) -> Iterator[pa.Table]:
    """Read, decode and augment one chunk into one block. Runs in a Ray task.

    Args:
        memory: where to take decoded images from, and to keep them.
    """
    size_px = ingest.size_px
    policy = ingest.policy if train else "none"
    images_NSSC = np.zeros((chunk.num_images, size_px, size_px, 3), np.uint8)
    labels_N = np.full(chunk.num_images, IGNORE_INDEX, np.int64)
    image_ids_N = np.zeros(chunk.num_images, np.int64)
    losses_N = np.full(chunk.num_images, None, object)
    rows = rows_of_shards(chunk) if memory is None else rows_of_memory(chunk, memory)
    for row in rows:
        where = {"seed": seed, "epoch": ingest.view_of(chunk.epoch), "image_id": row.image_id}
        loss = row.loss
        try:
            if row.pixels_HWC is not None:
                images_NSSC[row.place] = augment(row.pixels_HWC, policy, size_px, **where)
            elif row.jpeg is not None:
                images_NSSC[row.place] = view(row.jpeg, policy, size_px, **where)
        except ValueError as error:
            loss = str(error)
        if loss:
            losses_N[row.place] = f"{name_row(chunk, row.place)}: {loss}"
        else:
            labels_N[row.place], image_ids_N[row.place] = row.label, row.image_id
    fill_unreadable(images_NSSC, labels_N == IGNORE_INDEX)
    yield pa.table(
        {
            "image": ArrowTensorArray.from_numpy(images_NSSC),
            "label": labels_N,
            "image_id": image_ids_N,
            "loss": pa.array(losses_N, pa.string()),
        }
    )


def rows_of_shards(chunk: Chunk, places: np.ndarray | None = None) -> Iterator[Row]:
    """Read the encoded images of some places of a chunk, all by default, a row group at a time."""
    places = np.arange(chunk.num_images) if places is None else places
    for number, group in enumerate(chunk.row_groups):
        of_group = places[chunk.group_N[places] == number]
        if not len(of_group):
            continue
        try:
            table = read_row_group(group)
        except (OSError, ValueError, IndexError, pa.ArrowException) as error:
            for place in of_group:
                yield Row(int(place), loss=f"its row group can't be read ({error})")
            continue
        labels, image_ids, sums = (table[name].to_numpy() for name in COLUMNS[1:])
        for place in of_group:
            at = chunk.row_N[place]
            jpeg = table["image"][at].as_buffer()
            label, image_id = int(labels[at]), int(image_ids[at])
            if checksum(jpeg, label, image_id) != sums[at]:
                yield Row(int(place), loss="its bytes changed after it was prepared (checksum)")
            else:
                yield Row(int(place), label, image_id, jpeg)


def rows_of_memory(chunk: Chunk, memory: Memory) -> Iterator[Row]:
    """Take decoded images from memory; decode those that are not there, and keep them."""
    rows_N = chunk.rows_N
    found = memory.find(rows_N)
    for place, (label, image_id, pixels_HWC) in found.items():
        yield Row(place, label, image_id, pixels_HWC=pixels_HWC)
    kept_rows: list[int] = []
    images: list[Decoded] = []
    for row in rows_of_shards(chunk, np.setdiff1d(np.arange(len(rows_N)), list(found))):
        if row.jpeg is not None:
            try:
                pixels_HWC = decode(row.jpeg)
            except ValueError as error:
                row = Row(row.place, loss=str(error))
            else:
                row = row._replace(jpeg=None, pixels_HWC=pixels_HWC)
                kept_rows.append(rows_N[row.place])
                images.append((row.label, row.image_id, pixels_HWC))
        yield row
    if images:
        memory.keep(np.array(kept_rows), images)


def read_row_group(group: RowGroup) -> pa.Table:
    """Read a row group of a shard; raises as `read_again`."""
    return read_again(partial(read_group, group.uri, group.index, COLUMNS))


def read_group(uri: str, index: int, columns: list[str]) -> pa.Table:
    """Read some columns of one row group of a Parquet file that never changes."""
    filesystem, path = storage.resolve(uri)
    with filesystem.open_input_file(path) as file:
        known = footer_of(uri)
        shard = pq.ParquetFile(file, metadata=known[0] if known else None)
        known[:] = [shard.metadata]
        return shard.read_row_group(index, columns=columns)


def read_again(read: Callable[[], pa.Table]) -> pa.Table:
    """Read, and again where storage fails for a moment.

    Raises:
        OSError, ValueError, pa.ArrowException: where it can't be reached or read, or is damaged.
    """
    for attempt in range(READ_ATTEMPTS):
        try:
            return read()
        except (FileNotFoundError, pa.ArrowInvalid):
            raise  # gone, or damaged
        except (OSError, ValueError):
            if attempt + 1 == READ_ATTEMPTS:
                raise
            time.sleep(FIRST_RETRY_S * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def read_metadata(uri: str) -> pq.FileMetaData:
    """Read a file's footer."""
    filesystem, path = storage.resolve(uri)
    with filesystem.open_input_file(path) as file:
        return pq.read_metadata(file)


@lru_cache(maxsize=256)
def footer_of(uri: str) -> list[pq.FileMetaData]:
    """Where a file's footer is kept once it was read: its name says what is in it, so it never
    changes. Read from the file that is open anyway, as opening one asks an object store."""
    return []


def fill_unreadable(images_NSSC: np.ndarray, lost_N: np.ndarray) -> None:
    """Give lost places the pixels of good ones: batch statistics see photographs, not black."""
    if lost_N.any() and not lost_N.all():
        good = np.flatnonzero(~lost_N)
        images_NSSC[lost_N] = images_NSSC[good[np.arange(lost_N.sum()) % len(good)]]


def name_row(chunk: Chunk, place: int) -> str:
    group = chunk.row_groups[chunk.group_N[place]]
    return f"{group.uri} row group {group.index} row {chunk.row_N[place]}"

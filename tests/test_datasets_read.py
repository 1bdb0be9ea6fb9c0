"""What a read task makes of shards that rot: full batches, and a name for each image it lost."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets import read
from datasets.config import IngestConfig
from datasets.manifest_file import read_manifest
from datasets.plan import IGNORE_INDEX, Chunk, plan_epochs
from datasets.prepare.staging import write_images
from datasets.read import read_chunk
from datasets.shards import checksum
from tests.support.data import find_shard, flip_byte

INGEST = IngestConfig(size_px=32, policy="cars", interleave=2)


@pytest.fixture
def data(write_data: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(read, "FIRST_RETRY_S", 0.001)
    return write_data()


def chunk_of(data: str, *, train: bool = True) -> Chunk:
    """All 48 training images in one chunk."""
    plan = plan_epochs(
        data,
        read_manifest(data),
        INGEST,
        split="train",
        num_epochs=1,
        global_batch_size=48,
        seed=0,
        train=train,
    )
    (chunk,) = plan.chunks()
    return chunk


def read_block(chunk: Chunk) -> pa.Table:
    (block,) = read_chunk(chunk, ingest=INGEST, seed=0, train=True)
    return block


def shard_of(data: str) -> Path:
    return find_shard(data, "train")


def test_neighbouring_chunks_of_a_task_read_a_row_group_once(
    data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_epochs(
        data,
        read_manifest(data),
        INGEST,
        split="train",
        num_epochs=2,
        global_batch_size=8,
        seed=0,
        train=True,
    )
    chunks = list(plan.chunks())
    num_groups = len({group.index for chunk in chunks for group in chunk.row_groups})
    draw = partial(read_chunk, ingest=INGEST, seed=0, train=True)
    separate = [block for chunk in chunks for block in draw(chunk)]
    read_groups: list[int] = []

    def count(uri: str, index: int, columns: list[str]) -> pa.Table:
        read_groups.append(index)
        return read_anew(uri, index, columns)

    read_anew = read._read_group
    monkeypatch.setattr(read, "_read_group", count)
    together = list(read.read_task(chunks, draw))

    assert together == separate
    assert num_groups <= len(read_groups) < sum(len(chunk.row_groups) for chunk in chunks)
    read_groups.clear()
    list(draw(chunks[0]))
    assert len(read_groups) == len(chunks[0].row_groups), "kept for a task only"
    monkeypatch.setattr(read, "MAX_KEPT_BYTES", 0)
    read_groups.clear()
    assert list(read.read_task(chunks, draw)) == separate
    assert len(read_groups) == sum(len(chunk.row_groups) for chunk in chunks)


def test_a_whole_data_set_loses_nothing(data: str) -> None:
    block = read_block(chunk_of(data))

    assert block["read_error"].null_count == len(block) == 48
    assert IGNORE_INDEX not in block["label"].to_pylist()


@pytest.mark.parametrize("at", [2, 300, -40])
def test_a_jpeg_that_rots_is_lost_alone_and_named(data: str, at: int) -> None:
    chunk = chunk_of(data)
    before = read_block(chunk)
    flip_byte(shard_of(data), 11, at=at)

    after = read_block(chunk)

    (place,) = np.flatnonzero(np.array(after["label"]) == IGNORE_INDEX)
    assert after["read_error"][place].as_py() == (
        f"{shard_of(data)} row group 1 row 3: its bytes changed after it was prepared (checksum)"
    )
    others = np.delete(np.arange(48), place)
    for column in ("label", "image_id"):
        assert after[column].take(others) == before[column].take(others)
    pixels = [block["image"].combine_chunks().to_numpy()[others] for block in (before, after)]
    np.testing.assert_array_equal(*pixels)


def test_a_lost_image_has_the_pixels_of_a_good_one(data: str) -> None:
    """Batch statistics must see photographs; black images would shift them."""
    flip_byte(shard_of(data), 11, at=300)
    block = read_block(chunk_of(data))
    images = block["image"].combine_chunks().to_numpy()
    (place,) = np.flatnonzero(np.array(block["label"]) == IGNORE_INDEX)

    assert any(
        np.array_equal(images[place], images[other]) for other in range(48) if other != place
    )


def test_a_label_that_rots_is_lost_and_not_trained_on(data: str) -> None:
    shard = shard_of(data)
    table = pq.read_table(shard)
    rows = table.to_pylist()
    rows[5]["label"] += 1
    write_images(str(shard), pa.Table.from_pylist(rows, schema=table.schema), 8)

    (read_error,) = read_block(chunk_of(data))["read_error"].drop_null().to_pylist()

    assert "row group 0 row 5" in read_error


def test_a_jpeg_with_a_right_checksum_that_does_not_decode_is_lost_alone(data: str) -> None:
    shard = shard_of(data)
    table = pq.read_table(shard)
    rows = table.to_pylist()
    rows[5]["image"] = b"no jpeg"
    rows[5]["crc32"] = checksum(b"no jpeg", rows[5]["label"], rows[5]["image_id"])
    write_images(str(shard), pa.Table.from_pylist(rows, schema=table.schema), 8)
    read.footer_of.cache_clear()

    read_errors = read_block(chunk_of(data))["read_error"].drop_null().to_pylist()

    assert len(read_errors) == 1
    assert "row group 0 row 5" in read_errors[0]


def test_a_row_group_that_cannot_be_read_is_lost_and_the_others_are_not(data: str) -> None:
    shard = shard_of(data)
    metadata = pq.read_metadata(shard)
    column = metadata.row_group(2).column(0)
    content = bytearray(shard.read_bytes())
    start = column.data_page_offset
    content[start : start + 16] = b"\xff" * 16  # the header of its page of images
    shard.write_bytes(content)

    read_errors = read_block(chunk_of(data))["read_error"].drop_null().to_pylist()

    assert len(read_errors) == 8
    assert all("row group 2" in error and "can't be read" in error for error in read_errors)


def test_a_shard_that_is_gone_is_lost_whole(data: str) -> None:
    os.remove(shard_of(data))
    read.footer_of.cache_clear()

    block = read_block(chunk_of(data))

    assert block["read_error"].null_count == 0
    assert set(block["label"].to_pylist()) == {IGNORE_INDEX}


def test_storage_that_fails_for_a_moment_loses_nothing(
    data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([OSError("503 Slow Down"), OSError("503 Slow Down")])
    open_file = pq.ParquetFile

    def fail_twice(*arguments: object, **options: object) -> pq.ParquetFile:
        if (failure := next(failures, None)) is not None:
            raise failure
        return open_file(*arguments, **options)

    monkeypatch.setattr(pq, "ParquetFile", fail_twice)

    assert read_block(chunk_of(data))["read_error"].null_count == 48
    assert next(failures, None) is None

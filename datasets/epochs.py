"""All epochs of a run as one Ray Data stream per rank.

One read task reads, decodes and augments, and yields one uint8 block that holds whole batches; one
execution streams all epochs, so no epoch starts cold. Normalization and the change to
channels-first belong to the device.

Dimensions: N images of a batch, S size in pixels.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypedDict, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from ray.data import DataContext, Datasource, ExecutionOptions, ExecutionResources
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask
from ray.data.extensions import ArrowTensorArray

from datasets import storage
from datasets.augment import augment
from datasets.config import IngestConfig
from datasets.decode import decode
from datasets.plan import Chunk, Plan, RowGroup, rows_in_order

PAUSE_SLICES, PAUSE_SLICE_S = 10, 0.01


class Batch(TypedDict):
    image: np.ndarray
    """uint8 `[N, S, S, 3]`, RGB."""
    label: np.ndarray
    """int64 `[N]`."""
    image_id: np.ndarray
    """int64 `[N]`."""


def read_chunk(chunk: Chunk, *, ingest: IngestConfig, seed: int, train: bool) -> Iterator[pa.Table]:
    """Read, decode and augment one chunk into one block. Runs in a Ray task."""
    order = rows_in_order(chunk, seed=seed, shuffle=train)
    wanted = np.concatenate(
        [order[r.start - chunk.start : r.stop - chunk.start] for r in chunk.ranges]
    )
    policy = ingest.policy if train else "none"
    size_px = ingest.size_px
    images_NSSC = np.empty((len(wanted), size_px, size_px, 3), np.uint8)
    labels_N = np.empty(len(wanted), np.int64)
    image_ids_N = np.empty(len(wanted), np.int64)

    # Row group by row group, so that a task never holds more encoded images than one of them.
    places = np.argsort(wanted, kind="stable")
    wanted_sorted = wanted[places]
    first_row = 0
    for group in chunk.row_groups:
        low, high = np.searchsorted(wanted_sorted, (first_row, first_row + group.num_rows))
        if low < high:
            table = _read_row_group(group).take(wanted_sorted[low:high] - first_row)
            image_ids = table["image_id"].to_numpy()
            labels_N[places[low:high]] = table["label"].to_numpy()
            image_ids_N[places[low:high]] = image_ids
            for place, image_id, content in zip(
                places[low:high], image_ids, table["image"], strict=True
            ):
                images_NSSC[place] = augment(
                    decode(content.as_buffer()),
                    policy,
                    size_px,
                    seed=seed,
                    epoch=chunk.epoch,
                    image_id=int(image_id),
                )
        first_row += group.num_rows
    yield pa.table(
        {
            "image": ArrowTensorArray.from_numpy(images_NSSC),
            "label": labels_N,
            "image_id": image_ids_N,
        }
    )


def _read_row_group(group: RowGroup) -> pa.Table:
    filesystem, path = storage.resolve(group.uri)
    with filesystem.open_input_file(path) as file:
        return pq.ParquetFile(file).read_row_group(
            group.index, columns=["image", "label", "image_id"]
        )


class EpochsDatasource(Datasource):
    """The chunks of a plan as Ray Data read tasks, one block each."""

    def __init__(
        self,
        chunks: tuple[Chunk, ...],
        read: Callable[[Chunk], Iterator[pa.Table]],
        bytes_per_image: int,
    ) -> None:
        super().__init__()
        self._chunks, self._read, self._bytes_per_image = chunks, read, bytes_per_image

    def estimate_inmemory_data_size(self) -> int:
        return sum(chunk.num_images for chunk in self._chunks) * self._bytes_per_image

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,
    ) -> list[ReadTask]:
        assert per_task_row_limit is None, "a limit on rows would break batches apart"
        return [
            ReadTask(
                partial(self._read, chunk),
                BlockMetadata(
                    num_rows=chunk.num_images,
                    size_bytes=chunk.num_images * self._bytes_per_image,
                    input_files=None,
                    exec_stats=None,
                ),
            )
            for chunk in self._chunks
        ]


class PauseWhileAhead(ExecutionCallback):
    """Let the streaming executor's thread rest while blocks wait to be taken.

    Without tasks to wait for it spins: a core, and the interpreter lock of a training worker, from
    the last task to the last batch. A reader that has taken them all ends the rest.
    """

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        for _ in range(PAUSE_SLICES):
            if executor._consumer_idling():
                return
            time.sleep(PAUSE_SLICE_S)


def stream(
    plan: Plan,
    ingest: IngestConfig,
    *,
    seed: int,
    train: bool,
    reader_cpus: float = 1.0,
    store_bytes: float | None = None,
) -> Iterator[Batch]:
    """Execute a plan as one Ray Data stream and yield its batches in order, through all epochs.

    Args:
        train: shuffle and augment as the plan was made for training; else policy `none`.
        reader_cpus: logical CPUs of a read task.
        store_bytes: object store this stream may fill ahead of its reader.
    """
    if not plan.chunks:
        return
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.custom_execution_callback_classes.append(PauseWhileAhead)
    context.execution_options = ExecutionOptions(
        preserve_order=True,
        resource_limits=ExecutionResources.for_limits(object_store_memory=store_bytes),
    )
    source = EpochsDatasource(
        plan.chunks,
        partial(read_chunk, ingest=ingest, seed=seed, train=train),
        bytes_per_image=3 * ingest.size_px**2 + 16,
    )
    with DataContext.current(context):  # a data set keeps the context it was made in
        # As many blocks as tasks: with more, Ray splits every output into crumbs.
        dataset = ray.data.read_datasource(
            source, override_num_blocks=len(plan.chunks), num_cpus=reader_cpus
        )
    for block in dataset.iter_batches(batch_size=None, batch_format="numpy"):
        columns = cast(Batch, block)
        for start in range(0, len(columns["label"]), plan.worker_batch_size):
            rows = slice(start, start + plan.worker_batch_size)
            yield Batch(
                image=columns["image"][rows],
                label=columns["label"][rows],
                image_id=columns["image_id"][rows],
            )
